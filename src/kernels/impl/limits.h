// Loops that do nothing but what a core is limited by: the yardstick of `trimpot bench`.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace trimpot::impl {

// Sums that do not wait for each other hide the latency of every instruction used here (4 to 5
// cycles, 2 a cycle): 12 vectors, where they fit the registers. A round is 12 vectors anyway.
template <class S>
inline constexpr int kChains = S::kPairsOfCodes ? 12 : 6;

template <class S>
float peak_f32(std::int64_t rounds, float start) {
  typename S::F sum[kChains<S>];
  for (int i = 0; i < kChains<S>; ++i) sum[i] = S::set(start + static_cast<float>(i));
  const auto factor = S::set(start * 0.5f), term = S::set(start);
  for (std::int64_t round = 0; round < rounds * (12 / kChains<S>); ++round)
#pragma GCC unroll 12
    for (int i = 0; i < kChains<S>; ++i) sum[i] = S::fma(sum[i], factor, term);
  auto total = sum[0];
  for (int i = 1; i < kChains<S>; ++i) total = S::add(total, sum[i]);
  return S::sum(total);
}

template <class S>
float peak_int8(std::int64_t rounds, float start) {
  // Products that are added in a second instruction need a register each until then.
  constexpr int kSums = S::kWholeSums ? kChains<S> : kChains<S> / 3 * 2;
  alignas(64) std::int8_t codes[kSums * 64];
  for (int i = 0; i < kSums * 64; ++i)
    codes[i] = static_cast<std::int8_t>(static_cast<int>(start) + i * i % 13);
  typename S::I sum[kSums];
  for (int i = 0; i < kSums; ++i) sum[i] = S::zero_int();
  for (std::int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 3
    for (int step = 0; step < 12 / kSums; ++step) {
      // Never the same twice, nor for two sums: AVX2's product would be made once.
      const auto four = S::broadcast4(codes + round % 64 + 4 * step);
#pragma GCC unroll 12
      for (int i = 0; i < kSums; ++i)
        sum[i] =
            S::dot(sum[i], S::load_bytes(reinterpret_cast<std::uint8_t*>(codes) + 64 * i), four);
    }
  auto total = S::to_float(sum[0]);
  for (int i = 1; i < kSums; ++i) total = S::add(total, S::to_float(sum[i]));
  return S::sum(total);
}

template <class S>
float peak_int16(std::int64_t rounds, float start) {
  alignas(64) std::int16_t pairs[kChains<S> * 32];
  for (int i = 0; i < kChains<S> * 32; ++i)
    pairs[i] = static_cast<std::int16_t>(static_cast<int>(start) + i * i % 13);
  typename S::I sum[kChains<S>];
  for (int i = 0; i < kChains<S>; ++i) sum[i] = S::zero_int();
  for (std::int64_t round = 0; round < rounds * (12 / kChains<S>); ++round)
#pragma GCC unroll 12
    for (int i = 0; i < kChains<S>; ++i)
      sum[i] = S::dot_pairs(sum[i], pairs + 32 * i, pairs + round % 64);
  auto total = S::to_float(sum[0]);
  for (int i = 1; i < kChains<S>; ++i) total = S::add(total, S::to_float(sum[i]));
  return S::sum(total);
}

template <class S>
float read_memory(const std::uint8_t* data, std::int64_t bytes) {
  auto a = S::load_bytes(data), b = a, c = a, d = a;
  for (std::int64_t at = 0; at < bytes; at += 256) {
    a = S::bit_or(a, S::load_bytes(data + at));
    b = S::bit_or(b, S::load_bytes(data + at + 64));
    c = S::bit_or(c, S::load_bytes(data + at + 128));
    d = S::bit_or(d, S::load_bytes(data + at + 192));
  }
  const auto all = S::bit_or(S::bit_or(a, b), S::bit_or(c, d));
  return S::sum(S::to_float(S::template total<4, 0>(S::dot(S::zero_int(), all, all))));
}

}  // namespace trimpot::impl
