// A team of threads that runs one function at a time on all members. Work is split by outputs only,
// so results never depend on the number of threads or on who did which part.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace trimpot {

class ThreadTeam {
 public:
  // `threads` >= 1 counts the calling thread, which takes part.
  explicit ThreadTeam(int threads);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(begin, end, member) for pieces of at most `grain` that cover [0, count), each once,
  // and returns when all are done; `member` (0 .. size() - 1) tells threads' scratch memory apart.
  // Pieces are handed out dynamically: a core that the system took away for a moment does not hold
  // up the others. Not to be nested.
  template <typename Body>
  void for_each(std::int64_t count, std::int64_t grain, Body&& body) {
    if (count <= 0) return;
    if (workers_.empty() || count <= grain) {
      for (std::int64_t begin = 0; begin < count; begin += grain)
        body(begin, begin + grain < count ? begin + grain : count, 0);
      return;
    }
    next_.store(0, std::memory_order_relaxed);
    auto pieces = [&](int member) {
      for (;;) {
        const std::int64_t begin = next_.fetch_add(grain, std::memory_order_relaxed);
        if (begin >= count) return;
        body(begin, begin + grain < count ? begin + grain : count, member);
      }
    };
    run(&pieces,
        [](void* context, int member) { (*static_cast<decltype(pieces)*>(context))(member); });
  }

 private:
  using Call = void (*)(void*, int);
  void run(void* context, Call call);
  void work(int index);

  struct alignas(64) Flag {
    std::atomic<std::uint32_t> value{0};
  };
  Flag start_;                        // counts the runs; workers wait for it to change
  std::unique_ptr<Flag[]> finished_;  // per worker: the last run it has finished
  alignas(64) std::atomic<std::int64_t> next_{0};
  void* context_ = nullptr;
  Call call_ = nullptr;
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> workers_;
};

// The number of threads to use when the user does not say: the cores this process may run on.
int default_thread_count();

}  // namespace trimpot
