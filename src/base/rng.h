// Counter-based random numbers: value i of stream (seed, stream) needs no state, so a resumed run
// and any number of threads draw the same numbers. The mixing function is SplitMix64's finalizer
// (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014), applied twice.
#pragma once

#include <cstdint>

namespace trimpot {

class CounterRng {
 public:
  CounterRng(std::uint64_t seed, std::uint64_t stream)
      : key_(mix(seed + 0x9e3779b97f4a7c15u) ^ mix(stream * 0xd1342543de82ef95u + 1)) {}

  std::uint64_t bits(std::uint64_t index) const {
    return mix(mix(index * 0x9e3779b97f4a7c15u + key_) + key_);
  }
  // Uniform in [0, 1), 53 bits.
  double uniform(std::uint64_t index) const {
    return static_cast<double>(bits(index) >> 11) * 0x1p-53;
  }
  // Uniform in [0, bound); bound > 0. The bias is below bound / 2^64.
  std::uint64_t below(std::uint64_t index, std::uint64_t bound) const {
    return static_cast<std::uint64_t>(static_cast<Wide>(bits(index)) * bound >> 64);
  }

 private:
  __extension__ using Wide = unsigned __int128;
  static std::uint64_t mix(std::uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }
  std::uint64_t key_;
};

}  // namespace trimpot
