// Input gradients dy W and those of attention as products of whole numbers of 13 bits (RoundedView
// in kernels/kernels.h).
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/impl/codes.h"
#include "kernels/impl/elementwise.h"
#include "kernels/kernels.h"

namespace trimpot::impl {

constexpr std::int64_t kInt16Tiles = kInt16Block / kTileRows;

// How a block is rounded, from the largest of its magnitudes, in bits: those of what is not finite
// are above all others, and make the scale NaN. Below 1e-30 the reciprocal could overflow; such a
// block is 0.
struct Int16Scale {
  float scale, inverse;
};
template <class S>
Int16Scale int16_scale(typename S::I most) {
  const float highest = S::highest_bits(most);
  if (highest > 1e-30f && highest <= std::numeric_limits<float>::max())
    return {highest / kInt16Limit, kInt16Limit / highest};
  return {highest <= 1e-30f ? 0.0f : std::numeric_limits<float>::quiet_NaN(), 0.0f};
}

template <class S>
void to_int16(const float* from, std::int64_t count, std::int16_t* to, float* scales) {
  for (std::int64_t begin = 0; begin < count; begin += kInt16Block) {
    const std::int64_t end = begin + kInt16Block < count ? begin + kInt16Block : count;
    const auto load = [&](std::int64_t k) {
      return k + 16 <= end ? S::load(from + k)
             : k < end     ? S::load_first(from + k, static_cast<int>(end - k))
                           : S::zero();
    };
    auto most = S::zero_int();
    for (std::int64_t k = begin; k < end; k += 16) most = S::max_bits(most, load(k));
    const Int16Scale scale = int16_scale<S>(most);
    *scales++ = scale.scale;
    const auto inverse = S::set(scale.inverse);
    // Writing at k / 2 never overtakes reading at k: a row can shrink in place.
    std::int64_t k = begin;
    for (; k + 32 <= end; k += 32)
      S::store_int16(to + k, S::mul(S::load(from + k), inverse),
                     S::mul(S::load(from + k + 16), inverse));
    if (k == end) continue;
    std::int16_t whole[32];  // no call of memcpy for each 16 numbers: it took half the time
    S::store_int16(whole, S::mul(load(k), inverse), S::mul(load(k + 16), inverse));
    std::memcpy(to + k, whole, sizeof(std::int16_t) * static_cast<std::size_t>(end + end % 2 - k));
  }
}

// Dense numbers: turned to rows first.
template <class S>
void unpack_columns_dense(const MatrixView& w, std::int64_t chunk, std::int64_t tile_begin,
                          std::int64_t tile_end, std::int16_t* panel, float* scales) {
  typename S::F values[kInt16Tiles * kChunkColumns];
  for (std::int64_t tile = tile_begin; tile < tile_end; tile += kInt16Tiles) {
    const std::int64_t count = tile_end - tile < kInt16Tiles ? tile_end - tile : kInt16Tiles;
    auto most = S::zero_int();
    for (std::int64_t i = 0; i < count; ++i) {
      typename S::F* of_tile = values + i * kChunkColumns;
      unpack_chunk_rows<S>(w, tile + i, chunk, false, of_tile);
      for (int k = 0; k < kChunkColumns; ++k) most = S::max_bits(most, of_tile[k]);
    }
    const Int16Scale scale = int16_scale<S>(most);
    *scales++ = scale.scale;
    const auto inverse = S::set(scale.inverse);
    for (std::int64_t i = 0; i < count; ++i)
      for (int row = 0; row < kTileRows; row += 2, panel += 64) {
        const typename S::F* even = values + i * kChunkColumns + row;
        S::store_int16_pairs(panel, S::mul(even[0], inverse), S::mul(even[1], inverse));
        S::store_int16_pairs(panel + 32, S::mul(even[16], inverse), S::mul(even[17], inverse));
      }
  }
}

// Codes: what is turned to rows are bytes, a third of the shuffles that floats take; and the
// largest number is that of the highest or lowest level, whether or not a code has it. 160 cycles a
// tile and chunk; by way of floats 480.
template <class S, class C>
void unpack_columns_codes(const MatrixView& w, std::int64_t chunk, std::int64_t tile_begin,
                          std::int64_t tile_end, std::int16_t* panel, float* scales) {
  for (std::int64_t tile = tile_begin; tile < tile_end; tile += kInt16Tiles) {
    const std::int64_t count = tile_end - tile < kInt16Tiles ? tile_end - tile : kInt16Tiles;
    // weight = factor level + term, a lane for each row.
    typename S::F factor[kInt16Tiles], term[kInt16Tiles];
    auto most = S::zero_int();
    for (std::int64_t i = 0; i < count; ++i) {
      ask_for_chunk(w.codes + (tile + i) * w.tile_bytes + (chunk + 1) * w.bits * 64, w.bits);
      const std::int64_t group = ((tile + i) * w.groups + chunk / w.group_chunks) * kTileRows;
      const auto zero =
          w.zeros != nullptr ? S::load(w.zeros + group) : S::set(static_cast<float>(w.zero_point));
      factor[i] = S::load(w.scales + group);
      term[i] = S::fma(S::sub(S::zero(), factor[i]), zero,
                       w.offsets != nullptr ? S::load(w.offsets + group) : S::zero());
      for (const float level : {C::kLowest, C::kHighest})
        most = S::max_bits(most, S::fma(factor[i], S::set(level), term[i]));
    }
    const Int16Scale scale = int16_scale<S>(most);
    *scales++ = scale.scale;
    const auto inverse = S::set(scale.inverse);
    for (std::int64_t i = 0; i < count; ++i) {
      const std::uint8_t* codes = w.codes + (tile + i) * w.tile_bytes + chunk * (C::kBits * 64);
      float factors[kTileRows], terms[kTileRows];
      S::store(factors, S::mul(factor[i], inverse));
      S::store(terms, S::mul(term[i], inverse));
      typename S::B step[8], pairs[16];
      for_each_step([&]<int kStep>() __attribute__((always_inline)) {
        step[kStep] = code_step<S, C::kBits, kStep>(codes);
      });
      S::row_pairs(step, pairs);
#pragma GCC unroll 16
      for (int half = 0; half < 16; ++half, panel += 32) {
        const int row = half / 2 * 2;
        const auto value = [&](typename S::F level, int of) __attribute__((always_inline)) {
          return S::fma(level, S::set(factors[of]), S::set(terms[of]));
        };
        S::store_int16_pairs(panel, value(C::template level<S, 0>(pairs[half]), row),
                             value(C::template level<S, 3>(pairs[half]), row + 1));
      }
    }
  }
}

template <class S>
void unpack_columns_int16(const MatrixView& w, std::int64_t chunk, std::int64_t tile_begin,
                          std::int64_t tile_end, std::int16_t* panel, float* scales) {
  const auto unpack = w.storage != Storage::kCodes
                          ? unpack_columns_dense<S>
                          : with_codes(w, []<class C>() { return unpack_columns_codes<S, C>; });
  unpack(w, chunk, tile_begin, tile_end, panel, scales);
}

// dy [tokens, rows] x panel [rows/2][32][2]: 12 x 2 accumulators, 12 broadcasts and 2 loads per 24
// dot products, so neither the loads nor the latency limit it. After a block of 128 rows the sums,
// exact so far, go to c. kHalves: 1 where only 16 columns are wanted (weak ones, the rest of 560).
template <class S, int kTokens, int kHalves>
void multiply_int16_block(const RoundedView& dy, std::int64_t token, const std::int16_t* panel,
                          const float* panel_scales, std::int64_t rows, float* c,
                          std::int64_t c_stride, int columns, bool add) {
  const std::int64_t stride = dy.stride;
  const std::int16_t* codes = dy.codes + token * stride;
  for (std::int64_t begin = 0; begin < rows; begin += kInt16Block, add = true) {
    const std::int64_t end = begin + kInt16Block < rows ? begin + kInt16Block : rows;
    typename S::I sum[kTokens][kHalves];
#pragma GCC unroll 12
    for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 2
      for (int half = 0; half < kHalves; ++half) sum[t][half] = S::zero_int();
    const std::int16_t* of[(kTokens + 2) / 3];  // as in multiply_block()
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t += 3) of[t / 3] = codes + t * stride + begin;
    for (std::int64_t row = begin; row < end; row += 2, panel += 64) {
#pragma GCC unroll 12
      for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 2
        for (int half = 0; half < kHalves; ++half)
          sum[t][half] = S::dot_pairs(sum[t][half], panel + 32 * half, of[t / 3] + t % 3 * stride);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; t += 3) {
        of[t / 3] += 2;
        asm("" : "+r"(of[t / 3]));
      }
    }
    const std::int64_t block = begin / kInt16Block;
    const float* scales = dy.scales + token * dy.scale_stride + block;
#pragma GCC unroll 12
    for (int t = 0; t < kTokens; ++t) {
      const auto scale = S::set(scales[t * dy.scale_stride] * panel_scales[block]);
#pragma GCC unroll 2
      for (int half = 0; half < kHalves; ++half) {
        const int left = columns - half * 16, count = left < 16 ? left : 16;
        float* to = c + t * c_stride + half * 16;
        const auto old = add ? S::load_first(to, count) : S::zero();
        S::store_first(to, S::fma(S::to_float(sum[t][half]), scale, old), count);
      }
    }
  }
}

template <class S>
void multiply_int16(const RoundedView& dy, const std::int16_t* panel, const float* panel_scales,
                    std::int64_t rows, std::int64_t token_begin, std::int64_t token_end, float* c,
                    std::int64_t c_stride, int columns, bool add) {
  std::int64_t token = token_begin;
  const auto block = [&]<int kTokens>() {
    const auto multiply =
        columns > 16 ? multiply_int16_block<S, kTokens, 2> : multiply_int16_block<S, kTokens, 1>;
    multiply(dy, token, panel, panel_scales, rows, c + token * c_stride, c_stride, columns, add);
    token += kTokens;
  };
  while (token + 12 <= token_end) block.template operator()<12>();
  while (token + 4 <= token_end) block.template operator()<4>();
  while (token < token_end) block.template operator()<1>();
}

template <class S>
void multiply_panels_int16(const RoundedView& rows, std::int64_t count, std::int64_t depth,
                           const RoundedPanels& panels, std::int64_t columns, float* c,
                           std::int64_t c_stride, bool add) {
  for (std::int64_t column = 0; column < columns; column += 32) {
    const RoundedPanels panel = panels.panel(column / 32);
    const auto width = static_cast<int>(columns - column < 32 ? columns - column : 32);
    multiply_int16<S>(rows, panel.codes, panel.scales, depth, 0, count, c + column, c_stride, width,
                      add);
  }
}

template <class S>
void round_pairs_int16(const float* rows, std::int64_t stride, std::int64_t count, int columns,
                       const RoundedPanels& panel) {
  const auto load = [&](std::int64_t row, int half) {
    const int left = columns - 16 * half;
    const float* from = rows + row * stride + 16 * half;
    return left >= 16 ? S::load(from) : left > 0 ? S::load_first(from, left) : S::zero();
  };
  std::int16_t* to = panel.codes;
  for (std::int64_t begin = 0; begin < count; begin += kInt16Block) {
    const std::int64_t end = begin + kInt16Block < count ? begin + kInt16Block : count;
    auto most = S::zero_int();
    for (std::int64_t row = begin; row < end; ++row)
      for (int half = 0; half < 2; ++half) most = S::max_bits(most, load(row, half));
    const Int16Scale scale = int16_scale<S>(most);
    panel.scales[begin / kInt16Block] = scale.scale;
    const auto inverse = S::set(scale.inverse);
    for (std::int64_t row = begin; row < end; row += 2, to += 64)
      for (int half = 0; half < 2; ++half)
        S::store_int16_pairs(to + 32 * half, S::mul(load(row, half), inverse),
                             row + 1 < end ? S::mul(load(row + 1, half), inverse) : S::zero());
  }
}

template <class S>
void round_columns_int16(const float* rows, std::int64_t stride, std::int64_t count,
                         std::int64_t columns, const RoundedView& to) {
  float turned[16 * kInt16Block];
  for (std::int64_t column = 0; column < columns; column += 16) {
    const std::int64_t width = columns - column < 16 ? columns - column : 16;
    transpose<S>(rows + column, stride, count, width, turned, kInt16Block);
    for (std::int64_t i = 0; i < width; ++i)
      to_int16<S>(turned + i * kInt16Block, count, to.row(column + i), to.scales_of(column + i));
  }
}

}  // namespace trimpot::impl
