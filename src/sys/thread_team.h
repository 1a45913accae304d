// A team of threads that runs one function at a time on all members. Work is split by outputs only,
// so results never depend on the number of threads or on who did which part.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
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

  // Where the stretch of `member` begins in for_each(count, grain); the next member's is its end.
  std::int64_t stretch_begin(std::int64_t count, std::int64_t grain, int member) const {
    return std::min(count, (count + grain - 1) / grain * member / size() * grain);
  }

  // What `member` (1 .. size() - 1) brings into its cache while it waits for work, instead of what
  // was said before; at most kMostAhead ranges. Memory is asked for, never read: it may be gone.
  static constexpr std::size_t kMostAhead = 16;
  void read_ahead(int member, std::span<const std::span<const std::byte>> ranges);

  // Calls body(begin, end, member) for pieces of at most `grain` that cover [0, count), each once,
  // and returns when all are done; `member` (0 .. size() - 1) tells threads' scratch memory apart.
  // Each member takes the pieces of its own stretch in order, so that it reads memory in order, and
  // then what is left of the others': a core that the system took away for a moment does not hold
  // them up. Not to be nested.
  template <typename Body>
  void for_each(std::int64_t count, std::int64_t grain, Body&& body) {
    if (count <= 0) return;
    if (workers_.empty() || count <= grain) {
      for (std::int64_t begin = 0; begin < count; begin += grain)
        body(begin, begin + grain < count ? begin + grain : count, 0);
      return;
    }
    const int members = size();
    for (int member = 0; member < members; ++member) {
      stretches_[member].next.store(stretch_begin(count, grain, member), std::memory_order_relaxed);
      stretches_[member].end = stretch_begin(count, grain, member + 1);
    }
    auto pieces = [&](int member) {
      for (int i = 0; i < members; ++i) {
        Stretch& stretch = stretches_[(member + i) % members];
        while (stretch.next.load(std::memory_order_relaxed) < stretch.end) {
          const std::int64_t begin = stretch.next.fetch_add(grain, std::memory_order_relaxed);
          if (begin < stretch.end) body(begin, std::min(begin + grain, stretch.end), member);
        }
      }
    };
    run(&pieces,
        [](void* context, int member) { (*static_cast<decltype(pieces)*>(context))(member); });
  }

 private:
  using Call = void (*)(void*, int);
  void run(void* context, Call call);
  void work(int index);
  void wait_for_work(int index, std::uint32_t seen);

  struct alignas(64) Flag {
    std::atomic<std::uint32_t> value{0};
  };
  Flag start_;  // counts the runs; workers wait for it to change
  // Per worker: 2 n when run n needs it no more (it has finished its part, or came too late for
  // one), 2 n - 1 while it is at it.
  std::unique_ptr<Flag[]> part_;
  struct alignas(64) Stretch {
    std::atomic<std::int64_t> next{0};
    std::int64_t end = 0;
  };
  std::unique_ptr<Stretch[]> stretches_;  // per member
  struct alignas(64) Ahead {
    std::atomic<std::uint32_t> version{0};
    std::atomic<const std::byte*> begin[kMostAhead] = {}, end[kMostAhead] = {};
  };
  std::unique_ptr<Ahead[]> ahead_;  // per worker
  void* context_ = nullptr;
  Call call_ = nullptr;
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> workers_;
};

// The number of threads to use when the user does not say: the cores this process may run on.
int default_thread_count();

}  // namespace trimpot
