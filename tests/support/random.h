// Reproducible random numbers for tests: a stream that is read value by value.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

#include "base/rng.h"

namespace trimpot {

class RandomStream {
 public:
  explicit RandomStream(std::uint64_t seed, std::uint64_t stream = 0) : rng_(seed, stream) {}
  std::uint64_t bits() { return rng_.bits(next_++); }
  double uniform() { return rng_.uniform(next_++); }
  std::int64_t below(std::int64_t bound) {
    return static_cast<std::int64_t>(rng_.below(next_++, static_cast<std::uint64_t>(bound)));
  }
  float normal() {  // Box and Muller
    const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
    return static_cast<float>(radius * std::cos(2.0 * std::numbers::pi * uniform()));
  }
  std::vector<float> normals(std::int64_t count, float deviation = 1.0f) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = deviation * normal();
    return values;
  }

 private:
  CounterRng rng_;
  std::uint64_t next_ = 0;
};

}  // namespace trimpot
