// A team of threads that runs one function at a time on all members. Work is split by outputs only,
// so results never depend on the number of threads or on who did which part.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <type_traits>
#include <vector>

namespace trimpot {

class ThreadTeam {
 public:
  // `threads` >= 1 counts the calling thread, which takes part. There are fewer where the system
  // gives no more.
  explicit ThreadTeam(int threads);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int size() const { return size_; }

  // Where the stretch of `member` begins in for_each(count, grain); the next member's is its end.
  std::int64_t stretch_begin(std::int64_t count, std::int64_t grain, int member) const {
    return std::min(count, (count + grain - 1) / grain * member / size() * grain);
  }

  // What `member` brings into its cache when it has done its part and waits for work, instead of
  // what was said before; at most kMostAhead ranges. Memory is asked for, never read: it may be
  // gone. To be called by the member itself, from a body that runs in for_each(), once it has asked
  // whether it is to: once in each run, if it is not the calling thread.
  static constexpr std::size_t kMostAhead = 16;
  bool wants_ahead(int member);
  void read_ahead(int member, std::span<const std::span<const std::byte>> ranges);

  // Calls body(begin, end, member) for pieces of at most `grain` that cover [0, count), each once,
  // and returns when all are done; `member` (0 .. size() - 1) tells threads' scratch memory apart.
  // Each member takes the pieces of its own stretch in order, so that it reads memory in order, and
  // a little later what is left of the others': a core that the system took away for a moment does
  // not hold them up. Not to be nested. The first exception of the body, whoever met it, leaves
  // for_each() when all are done.
  template <typename Body>
  void for_each(std::int64_t count, std::int64_t grain, Body&& body) {
    if (count <= 0) return;
    if (size_ == 1 || count <= grain) {
      for (std::int64_t begin = 0; begin < count; begin += grain)
        body(begin, begin + grain < count ? begin + grain : count, 0);
      return;
    }
    using Plain = std::remove_reference_t<Body>;
    const auto call = [](const void* context, std::int64_t begin, std::int64_t end, int member) {
      (*static_cast<Plain*>(const_cast<void*>(context)))(begin, end, member);
    };
    run({call, std::addressof(body), count, grain});
  }

 private:
  using Call = void (*)(const void* context, std::int64_t begin, std::int64_t end, int member);
  struct Work {
    Call call;
    const void* context;
    std::int64_t count, grain;
  };
  struct Stretch;
  struct Ahead;
  void run(const Work& work);
  bool do_stretch(int member, int of, std::uint32_t run, const Work& work);
  void call(const Work& work, std::int64_t begin, int member);
  void join(int member, std::uint32_t run, const Work& work);
  void work(int member);
  void help(int member, std::uint32_t run, const Work& work);
  void wait_for_work(int member, std::uint32_t seen, const Work* last);

  // One line, which workers wait for: where cores are far from each other, a line that one has
  // written takes the other 250 ns to get, and decoding has 150 joins per token.
  struct alignas(64) Start {
    std::atomic<std::uint32_t> run{0};  // counts them
    std::atomic<Call> call{nullptr};
    std::atomic<const void*> context{nullptr};
    std::atomic<std::int64_t> count{0}, grain{0};
  };
  int size_;
  Start start_;
  std::unique_ptr<Stretch[]> stretches_;  // per member
  struct alignas(64) Flag {
    std::atomic<std::uint32_t> value{0};
  };
  std::unique_ptr<Flag[]> finished_;  // per member: 4 times the run, and a Phase
  std::unique_ptr<Ahead[]> ahead_;    // per member
  std::atomic<bool> stopping_{false};
  std::atomic<bool> failed_{false};
  std::mutex failure_mutex_;
  std::exception_ptr failure_;
  std::vector<std::thread> workers_;
};

// The number of threads to use when the user does not say: the cores this process may run on.
int default_thread_count();

}  // namespace trimpot
