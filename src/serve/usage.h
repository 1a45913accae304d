// What is counted of the requests to one model, for /metrics. Written by the engine, read by any
// thread.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

namespace trimpot::serve {

// Prometheus histogram of seconds.
class Histogram {
 public:
  static constexpr std::array<double, 14> kBounds{0.005, 0.01, 0.025, 0.05, 0.1,  0.25, 0.5,
                                                  1.0,   2.5,  5.0,   10.0, 30.0, 60.0, 300.0};
  void add(double seconds) {
    std::size_t bucket = 0;
    while (bucket < kBounds.size() && seconds > kBounds[bucket]) ++bucket;
    ++counts_[bucket];
    microseconds_ += static_cast<std::uint64_t>(seconds * 1e6);
  }
  // Of bucket i alone; i = kBounds.size(): beyond all bounds.
  std::uint64_t count(std::size_t i) const { return counts_[i]; }
  double sum() const { return static_cast<double>(microseconds_) * 1e-6; }

 private:
  std::array<std::atomic<std::uint64_t>, kBounds.size() + 1> counts_{};
  std::atomic<std::uint64_t> microseconds_{0};
};

struct Usage {
  std::atomic<std::int64_t> running{0}, waiting{0};  // continuations, now
  std::atomic<std::uint64_t> prompt_tokens{0};       // with those found in the cache
  std::atomic<std::uint64_t> cached_tokens{0};       // prompt tokens that needed no computing
  std::atomic<std::uint64_t> generated_tokens{0};
  std::atomic<std::uint64_t> stopped{0}, reached_length{0}, cancelled{0}, failed{0};
  Histogram first_token, whole;  // seconds from the request's arrival
};

}  // namespace trimpot::serve
