#include "sys/thread_team.h"

#include <sched.h>

#include <algorithm>
#include <system_error>
#include <utility>

namespace trimpot {
namespace {

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Spins for about 50 us before sleeping: decode has some 150 joins per token of a few us each,
// while an idle team must not keep a core busy.
constexpr int kSpins = 1500;
// Before a member looks at another's stretch, which takes the line with its count away from the one
// that counts: about 1 us, in which nearly all finish.
constexpr int kSpinsBeforeHelp = 24;

// What a worker has done of a run.
enum Phase : std::uint32_t { kOwnDone, kHelping, kAllDone };

bool reached(std::uint32_t finished, std::uint32_t run, Phase phase) {
  return finished - 4 * run >= phase && finished - 4 * run <= kAllDone;
}

bool wait_for_phase(const std::atomic<std::uint32_t>& finished, std::uint32_t run, Phase phase,
                    int spins) {
  for (int spin = 0; spin < spins; ++spin) {
    if (reached(finished.load(std::memory_order_acquire), run, phase)) return true;
    relax();
  }
  return false;
}

void wait_for_phase(const std::atomic<std::uint32_t>& finished, std::uint32_t run, Phase phase) {
  while (!wait_for_phase(finished, run, phase, kSpins)) {
    const std::uint32_t now = finished.load(std::memory_order_acquire);
    if (!reached(now, run, phase)) finished.wait(now, std::memory_order_acquire);
  }
}

// The exchange is a barrier: who waits is either seen here or sees this.
void set_phase(std::atomic<std::uint32_t>& finished, std::uint32_t run, Phase phase) {
  finished.exchange(4 * run + phase, std::memory_order_seq_cst);
  finished.notify_one();
}

}  // namespace

// How many pieces of a member's stretch are taken, in which run. Who takes the first one in a run
// begins the count anew, so that the line stays with its owner.
struct alignas(64) ThreadTeam::Stretch {
  static constexpr std::uint64_t kOwn = 1u << 31;     // the owner has begun
  static constexpr std::uint64_t kClosed = 1u << 30;  // it may not any more
  static constexpr std::uint64_t kTaken = kClosed - 1;
  std::atomic<std::uint64_t> state{0};

  // What a state is to run `run`: one of an earlier run is a beginning, one of a later run none.
  static std::uint64_t in_run(std::uint64_t state, std::uint32_t run) {
    const auto ahead = static_cast<std::int32_t>(static_cast<std::uint32_t>(state >> 32) - run);
    if (ahead == 0) return state;
    return std::uint64_t{run} << 32 | (ahead < 0 ? 0 : kClosed);
  }
};

struct alignas(64) ThreadTeam::Ahead {  // of one member, which alone uses it
  bool wanted = false;
  std::size_t count = 0;
  std::span<const std::byte> ranges[kMostAhead];
};

ThreadTeam::ThreadTeam(int threads)
    : size_(threads),
      stretches_(new Stretch[threads]),
      finished_(new Flag[threads]),
      ahead_(new Ahead[threads]) {
  workers_.reserve(static_cast<std::size_t>(threads - 1));
  for (int member = 1; member < threads; ++member) try {
      workers_.emplace_back([this, member] { work(member); });
    } catch (const std::system_error&) {
      size_ = member;  // read by others from the first run on
      return;
    }
}

ThreadTeam::~ThreadTeam() {
  stopping_.store(true, std::memory_order_relaxed);
  start_.run.fetch_add(1, std::memory_order_seq_cst);
  start_.run.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

// Does what is left of a stretch in this run; false if nothing was.
bool ThreadTeam::do_stretch(int member, int of, std::uint32_t run, const Work& work) {
  const std::int64_t first = stretch_begin(work.count, work.grain, of);
  const std::int64_t end = stretch_begin(work.count, work.grain, of + 1);
  std::atomic<std::uint64_t>& state = stretches_[of].state;
  std::uint64_t now = state.load(std::memory_order_acquire);
  for (bool any = false;; any = true) {
    std::int64_t begin;
    std::uint64_t taken;
    do {
      const std::uint64_t in_run = Stretch::in_run(now, run);
      begin = first + static_cast<std::int64_t>(in_run & Stretch::kTaken) * work.grain;
      if ((in_run & Stretch::kClosed) != 0 || begin >= end) return any;
      taken = (in_run + 1) | (member == of ? Stretch::kOwn : 0);
    } while (!state.compare_exchange_weak(now, taken, std::memory_order_acq_rel,
                                          std::memory_order_acquire));
    now = taken;
    call(work, begin, member);
  }
}

void ThreadTeam::call(const Work& work, std::int64_t begin, int member) {
  try {
    work.call(work.context, begin, std::min(begin + work.grain, work.count), member);
  } catch (...) {
    const std::lock_guard lock(failure_mutex_);
    if (!failure_) failure_ = std::current_exception();
    failed_.store(true, std::memory_order_relaxed);  // seen at the join
  }
}

void ThreadTeam::run(const Work& work) {
  const std::uint32_t run = start_.run.load(std::memory_order_relaxed) + 1;
  start_.call.store(work.call, std::memory_order_relaxed);
  start_.context.store(work.context, std::memory_order_relaxed);
  start_.count.store(work.count, std::memory_order_relaxed);
  start_.grain.store(work.grain, std::memory_order_relaxed);
  // No barrier, which would wait until the line is here. A worker that goes to sleep at this moment
  // may miss it: then this run is done without it.
  start_.run.store(run, std::memory_order_release);
  start_.run.notify_all();
  do_stretch(0, 0, run, work);
  for (int member = 1; member < size(); ++member) join(member, run, work);
  // Who helps has said so before it took anything, and all is taken.
  for (int member = 1; member < size(); ++member)
    if (finished_[member].value.load(std::memory_order_acquire) == 4 * run + kHelping)
      wait_for_phase(finished_[member].value, run, kAllDone);
  if (!failed_.load(std::memory_order_relaxed)) return;
  failed_.store(false, std::memory_order_relaxed);
  std::rethrow_exception(std::exchange(failure_, nullptr));
}

// Returns when the member's stretch is done. A member that has not begun, because other programs
// have its core, is not waited for.
void ThreadTeam::join(int member, std::uint32_t run, const Work& work) {
  const std::atomic<std::uint32_t>& finished = finished_[member].value;
  if (wait_for_phase(finished, run, kOwnDone, kSpinsBeforeHelp)) return;
  do_stretch(0, member, run, work);
  std::atomic<std::uint64_t>& state = stretches_[member].state;
  std::uint64_t now = state.load(std::memory_order_acquire);
  for (;;) {
    const std::uint64_t in_run = Stretch::in_run(now, run);
    if ((in_run & Stretch::kOwn) != 0) break;
    // What start_ says may change from now on; it is not to begin with that.
    if (state.compare_exchange_weak(now, in_run | Stretch::kClosed, std::memory_order_acq_rel,
                                    std::memory_order_acquire))
      return;
  }
  wait_for_phase(finished, run, kOwnDone);
}

void ThreadTeam::help(int member, std::uint32_t run, const Work& work) {
  set_phase(finished_[member].value, run, kHelping);
  for (int i = 1; i < size(); ++i) do_stretch(member, (member + i) % size(), run, work);
  set_phase(finished_[member].value, run, kAllDone);
}

bool ThreadTeam::wants_ahead(int member) { return std::exchange(ahead_[member].wanted, false); }

void ThreadTeam::read_ahead(int member, std::span<const std::span<const std::byte>> ranges) {
  Ahead& ahead = ahead_[member];
  ahead.count = std::min(ranges.size(), kMostAhead);
  std::copy_n(ranges.begin(), ahead.count, ahead.ranges);
}

// Memory would be idle while one thread does what cannot be shared: the others bring what they read
// next into their caches, 512 bytes between two looks at the flag. `last`: what this one has taken
// part in, if it has.
void ThreadTeam::wait_for_work(int member, std::uint32_t seen, const Work* last) {
  const Ahead& ahead = ahead_[member];
  std::size_t range = 0;
  const std::byte *at = nullptr, *end = nullptr;
  for (int turn = 0, spin = 0; spin < kSpins; ++turn) {
    if (start_.run.load(std::memory_order_acquire) != seen) return;
    if (turn == kSpinsBeforeHelp && last != nullptr) help(member, seen, *last);
    while (at >= end && range < ahead.count) {
      at = ahead.ranges[range].data();
      end = at + ahead.ranges[range++].size();
    }
    if (at < end) {
      for (int line = 0; line < 8; ++line, at += 64) __builtin_prefetch(at, 0, 2);
    } else {
      relax();
      ++spin;
    }
  }
  start_.run.wait(seen, std::memory_order_acquire);
}

void ThreadTeam::work(int member) {
  std::uint32_t seen = 0;
  bool took_part = false;
  Work work{};
  for (;;) {
    wait_for_work(member, seen, took_part ? &work : nullptr);
    took_part = false;
    const std::uint32_t run = start_.run.load(std::memory_order_acquire);
    if (run == seen) continue;
    seen = run;
    if (stopping_.load(std::memory_order_relaxed)) return;
    // Perhaps of a later run already; then the stretch is closed.
    work = {
        start_.call.load(std::memory_order_relaxed), start_.context.load(std::memory_order_relaxed),
        start_.count.load(std::memory_order_relaxed), start_.grain.load(std::memory_order_relaxed)};
    ahead_[member].wanted = true;
    took_part = do_stretch(member, member, run, work);
    if (took_part) set_phase(finished_[member].value, run, kOwnDone);
  }
}

int default_thread_count() {
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace trimpot
