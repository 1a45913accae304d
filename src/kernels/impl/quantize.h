// Rounding activations to int8 in blocks of 32 columns, each with its own scale, and what that
// leaves of blocks that stand out.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace trimpot::impl {

// At most 16 blocks of a row, from x on; kWhole: 16, all of their columns. What is one number for a
// block is worked out for all of them at once, a lane each.
template <class S, bool kWhole>
[[gnu::always_inline]] inline void quantize_blocks(const float* x, std::int64_t left, int blocks,
                                                   Int8Block* to, typename S::F& broken,
                                                   typename S::F& squares) {
  const int count = kWhole ? 16 : blocks;
  const auto load = [&](int i) __attribute__((always_inline)) {
    const std::int64_t have = left - 16 * i;
    return kWhole || have >= 16 ? S::load(x + 16 * i)
           : have > 0           ? S::load_first(x + 16 * i, static_cast<int>(have))
                                : S::zero();
  };
  typename S::F largest[16];
  typename S::I sums[16];
  for (int i = 0; i < count; ++i) {
    const auto low = load(2 * i), high = load(2 * i + 1);
    broken = S::fma(high, S::zero(), S::fma(low, S::zero(), broken));
    largest[i] = S::max(S::abs(low), S::abs(high));
  }
  for (int i = count; i < 16; ++i) {
    largest[i] = S::zero();
    sums[i] = S::zero_int();
  }
  alignas(64) float scale[16], inverse[16], scaled_sum[16];
  alignas(64) std::int32_t sum[16];
  S::store(scale, S::highest_of_each(largest));
  for (int i = 0; i < 16; ++i) {
    // Below 1e-30 the reciprocal could overflow; such a block is zero for every purpose.
    const bool zero = !(scale[i] > 1e-30f);
    const float reciprocal = 127.0f / (zero ? 1.0f : scale[i]), step = scale[i] / 127.0f;
    inverse[i] = zero ? 0.0f : reciprocal;
    scale[i] = zero ? 0.0f : step;
  }
  squares = S::fma(S::load(scale), S::load(scale), squares);
  // 127 / highest may round up; the clamp keeps |code| <= 127.
  const auto limit = S::set(127.0f), minus_limit = S::set(-127.0f);
  for (int i = 0; i < count; ++i) {
    const auto factor = S::set(inverse[i]);
    const auto round = [&](typename S::F v) __attribute__((always_inline)) {
      return S::max(S::min(S::mul(v, factor), limit), minus_limit);
    };
    sums[i] = S::store_int8(to[i].codes, round(load(2 * i)), round(load(2 * i + 1)));
  }
  S::store(sum, S::sum_of_each(sums));
  for (int i = 0; i < 16; ++i) scaled_sum[i] = scale[i] * static_cast<float>(sum[i]);
#pragma GCC unroll 1  // GCC 12 takes them from registers otherwise, by a shuffle each
  for (int i = 0; i < count; ++i) {
    to[i].scale = scale[i];
    to[i].sum = sum[i];
    to[i].scaled_sum = scaled_sum[i];
  }
}

// `squares`: the sum over the blocks of their squared scales. What has overflowed has no
// remainders.
template <class S>
void find_remainders(const float* x, std::int64_t columns, const Int8Block* blocks,
                     std::int64_t count, float squares, Int8Remainder* to) {
  const float bound = kStandsOut * (squares / static_cast<float>(count));
  Int8Remainder* const end = to + most_remainders(count);
  for (std::int64_t i = 0; i < count && to != end; ++i) {
    const Int8Block& block = blocks[i];
    if (!(block.scale * block.scale > bound)) continue;
    float left[32] = {};
    const std::int64_t size = columns - 32 * i < 32 ? columns - 32 * i : 32;
    for (std::int64_t k = 0; k < size; ++k) left[k] = x[32 * i + k];
    for (int k = 0; k < 32; k += 16)
      S::store(left + k, S::fma(S::set(-block.scale), S::load(block.codes + k), S::load(left + k)));
    auto broken = S::zero(), ignored = S::zero();
    quantize_blocks<S, false>(left, 32, 1, &to->block, broken, ignored);
    to->chunk = static_cast<std::int32_t>(i);
    ++to;
  }
  for (; to != end; ++to) to->chunk = -1;
}

template <class S>
void quantize(const float* x, std::int64_t stride, std::int64_t columns, std::int64_t begin,
              std::int64_t end, const Int8View& out) {
  for (std::int64_t token = begin; token < end; ++token) {
    const float* row = x + token * stride;
    // Maxima drop NaN, and a broken model would go on with finite numbers. 0 * x keeps NaN and
    // makes one of infinities.
    auto broken = S::zero(), squares = S::zero();
    Int8Block* to = out.row(token);
    for (std::int64_t block = 0; block < out.blocks; block += 16) {
      const float* from = row + block * 32;
      const std::int64_t left = columns - block * 32, blocks = out.blocks - block;
      if (left >= 512)
        quantize_blocks<S, true>(from, left, 16, to + block, broken, squares);
      else
        quantize_blocks<S, false>(from, left, static_cast<int>(blocks < 16 ? blocks : 16),
                                  to + block, broken, squares);
    }
    if (out.remainders != nullptr)
      find_remainders<S>(row, columns, to, out.blocks, S::sum(squares), out.remainders_of(token));
    const float poison = S::sum(broken);  // 0 or NaN
    to->scale += poison;
    to->scaled_sum += poison;
  }
}

}  // namespace trimpot::impl
