#include "sys/thread_team.h"

#include <sched.h>

#include <algorithm>

namespace trimpot {
namespace {

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Spins for about 50 us before sleeping: decode has some 200 joins per token of a few us each,
// while an idle team must not keep a core busy.
constexpr int kSpins = 1500;

void wait_for_change(const std::atomic<std::uint32_t>& flag, std::uint32_t old) {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (flag.load(std::memory_order_acquire) != old) return;
    relax();
  }
  flag.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadTeam::ThreadTeam(int threads)
    : part_(new Flag[std::max(threads - 1, 1)]),
      stretches_(new Stretch[threads]),
      ahead_(new Ahead[std::max(threads - 1, 1)]) {
  for (int index = 0; index + 1 < threads; ++index)
    workers_.emplace_back([this, index] { work(index); });
}

ThreadTeam::~ThreadTeam() {
  stopping_.store(true, std::memory_order_relaxed);
  start_.value.fetch_add(1, std::memory_order_release);
  start_.value.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadTeam::run(void* context, Call call) {
  context_ = context;
  call_ = call;
  const std::uint32_t run_number = start_.value.fetch_add(1, std::memory_order_release) + 1;
  start_.value.notify_all();
  call(context, 0);
  // All pieces are taken now. A worker that has not begun, because other programs have its core,
  // is not waited for.
  for (std::size_t index = 0; index < workers_.size(); ++index) {
    std::atomic<std::uint32_t>& part = part_[index].value;
    std::uint32_t state = 2 * (run_number - 1);
    if (part.load(std::memory_order_acquire) == state &&
        part.compare_exchange_strong(state, 2 * run_number, std::memory_order_acquire))
      continue;
    while (part.load(std::memory_order_acquire) != 2 * run_number)
      wait_for_change(part, 2 * run_number - 1);
  }
}

void ThreadTeam::read_ahead(int member, std::span<const std::span<const std::byte>> ranges) {
  Ahead& ahead = ahead_[member - 1];
  for (std::size_t i = 0; i < kMostAhead; ++i) {
    const auto range = i < ranges.size() ? ranges[i] : std::span<const std::byte>();
    ahead.begin[i].store(range.data(), std::memory_order_relaxed);
    ahead.end[i].store(range.data() + range.size(), std::memory_order_relaxed);
  }
  ahead.version.fetch_add(1, std::memory_order_release);
}

// Memory would be idle while one thread does what cannot be shared: the others bring what they read
// next into their caches, 512 bytes between two looks at the flag.
void ThreadTeam::wait_for_work(int index, std::uint32_t seen) {
  const Ahead& ahead = ahead_[index];
  std::uint32_t version = ahead.version.load(std::memory_order_acquire) - 1;
  std::size_t range = kMostAhead;
  const std::byte *at = nullptr, *end = nullptr;
  for (int spin = 0; spin < kSpins;) {
    if (start_.value.load(std::memory_order_acquire) != seen) return;
    const std::uint32_t now = ahead.version.load(std::memory_order_acquire);
    if (now != version) {
      version = now;
      range = 0;
      at = end = nullptr;
    }
    while (at >= end && range < kMostAhead) {
      at = ahead.begin[range].load(std::memory_order_relaxed);
      end = ahead.end[range++].load(std::memory_order_relaxed);
    }
    if (at < end) {
      for (int line = 0; line < 8; ++line, at += 64) __builtin_prefetch(at, 0, 2);
    } else {
      relax();
      ++spin;
    }
  }
  start_.value.wait(seen, std::memory_order_acquire);
}

void ThreadTeam::work(int index) {
  std::uint32_t seen = 0;
  for (;;) {
    wait_for_work(index, seen);
    const std::uint32_t run_number = start_.value.load(std::memory_order_acquire);
    if (run_number == seen) continue;
    seen = run_number;
    if (stopping_.load(std::memory_order_relaxed)) return;
    std::atomic<std::uint32_t>& part = part_[index].value;
    std::uint32_t before = 2 * (run_number - 1);
    if (!part.compare_exchange_strong(before, 2 * run_number - 1, std::memory_order_acquire))
      continue;  // the others have done it all
    call_(context_, index + 1);
    part.store(2 * run_number, std::memory_order_release);
    part.notify_one();
  }
}

int default_thread_count() {
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace trimpot
