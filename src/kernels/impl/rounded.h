// Input gradients dy W and those of attention as products of whole numbers, of 13 bits (RoundedView
// in kernels/kernels.h) or, where W has codes, of 8 (RoundedBytes).
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels/impl/codes.h"
#include "kernels/impl/elementwise.h"
#include "kernels/kernels.h"

namespace trimpot::impl {

constexpr std::int64_t kRoundedTiles = kRoundedBlock / kTileRows;

// How a block is rounded, from the largest of its magnitudes, in bits: those of what is not finite
// are above all others, and make the scale NaN. Below 1e-30 the reciprocal could overflow; such a
// block is 0.
struct BlockScale {
  float scale, inverse;
};
template <class S>
BlockScale block_scale(typename S::I most, float limit) {
  const float highest = S::highest_bits(most);
  if (highest > 1e-30f && highest <= std::numeric_limits<float>::max())
    return {highest / limit, limit / highest};
  return {highest <= 1e-30f ? 0.0f : std::numeric_limits<float>::quiet_NaN(), 0.0f};
}

// 16 numbers of a block of `count` from k on, 0 beyond its end.
template <class S>
[[gnu::always_inline]] inline typename S::F load_padded(const float* block, std::int64_t k,
                                                        std::int64_t count) {
  return k + 16 <= count ? S::load(block + k)
         : k < count     ? S::load_first(block + k, static_cast<int>(count - k))
                         : S::zero();
}

template <class S>
[[gnu::always_inline]] inline BlockScale scale_of_block(const float* block, std::int64_t count,
                                                        float limit) {
  auto most = S::zero_int();
  for (std::int64_t k = 0; k < count; k += 16)
    most = S::max_bits(most, load_padded<S>(block, k, count));
  return block_scale<S>(most, limit);
}

// The two forms of a product dy W: codes of W in panels [rows / kRows][32 columns][kRows], those of
// dy in rows.
struct Int16Rows {
  using Code = std::int16_t;
  static constexpr int kRows = 2;
  static constexpr float kLimit = kInt16Limit, kShift = 0.0f;
  // A tile of 16 rows; value(row, half) are its 16 columns from 16 * half on, as numbers of codes.
  template <class S, class Value>
  [[gnu::always_inline]] static void store_tile(Code* panel, Value&& value) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
      S::store_int16_pairs(panel + 32 * i, value(i / 2 * 2, i % 2), value(i / 2 * 2 + 1, i % 2));
  }
  template <class S>
  static typename S::I start(const RoundedView&, std::int64_t) {
    return S::zero_int();
  }
  template <class S>
  static typename S::I dot(typename S::I sum, const Code* panel, const Code* row) {
    return S::dot_pairs(sum, panel, row);
  }
};

// Products of bytes need an unsigned factor: W's codes have 128 added, which `start` takes away.
struct ByteRows {
  using Code = std::uint8_t;
  static constexpr int kRows = 4;
  static constexpr float kLimit = kByteLimit, kShift = 128.0f;
  template <class S, class Value>
  [[gnu::always_inline]] static void store_tile(Code* panel, Value&& value) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const int row = i / 2 * 4, half = i % 2;
      S::store_byte_rows(panel + 64 * i, value(row, half), value(row + 1, half),
                         value(row + 2, half), value(row + 3, half));
    }
  }
  template <class S>
  static typename S::I start(const RoundedBytes& dy, std::int64_t at) {
    return S::set_int(-128 * dy.sums[at]);
  }
  template <class S>
  static typename S::I dot(typename S::I sum, const Code* panel, const std::int8_t* row) {
    return S::dot(sum, S::load_bytes(panel), S::broadcast4(row));
  }
};

template <class S>
void to_int16(const float* from, std::int64_t count, std::int16_t* to, float* scales) {
  for (; count > 0; from += kRoundedBlock, to += kRoundedBlock, count -= kRoundedBlock) {
    const std::int64_t size = count < kRoundedBlock ? count : kRoundedBlock;
    const BlockScale numbers = scale_of_block<S>(from, size, kInt16Limit);
    *scales++ = numbers.scale;
    const auto inverse = S::set(numbers.inverse);
    const auto code = [&](std::int64_t k) {
      return S::mul(load_padded<S>(from, k, size), inverse);
    };
    // Writing at k / 2 never overtakes reading at k: a row can shrink in place.
    std::int64_t k = 0;
    for (; k + 32 <= size; k += 32) S::store_int16(to + k, code(k), code(k + 16));
    if (k == size) continue;
    std::int16_t whole[32];  // no call of memcpy for each 16 numbers: it took half the time
    S::store_int16(whole, code(k), code(k + 16));
    std::memcpy(to + k, whole,
                sizeof(std::int16_t) * static_cast<std::size_t>(size + size % 2 - k));
  }
}

// Numbers from -1/2 to 1/2, to be added to codes before they are rounded.
struct Dither {
  static constexpr std::uint32_t kPlaces = 2048;  // a power of 2
  alignas(64) float at[kPlaces + kRoundedBlock];
  constexpr Dither() : at{} {
    std::uint32_t state = 1;
    for (float& value : at) {
      state = state * 747796405u + 2891336453u;
      value = static_cast<float>(state >> 8) * 0x1p-24f - 0.5f;
    }
  }
};
inline constexpr Dither kDither;

// One block of to_bytes(); with dither codes stay below 127 - 1/2.
template <class S, bool kDithers>
std::int32_t block_to_bytes(const float* from, std::int64_t count, std::int8_t* to, float& scale,
                            const float* dither) {
  const BlockScale numbers = scale_of_block<S>(from, count, kDithers ? kByteLimit - 1 : kByteLimit);
  scale = numbers.scale;
  const auto inverse = S::set(numbers.inverse);
  const auto code = [&](std::int64_t k) {
    const auto value = load_padded<S>(from, k, count);
    if constexpr (kDithers) return S::fma(value, inverse, S::load(dither + k));
    return S::mul(value, inverse);
  };
  auto sum = S::zero_int();
  std::int64_t k = 0;
  for (; k + 32 <= count; k += 32) sum = S::add(sum, S::store_int8(to + k, code(k), code(k + 16)));
  if (k < count) {
    float rest[32];
    S::store(rest, code(k));
    S::store(rest + 16, code(k + 16));
    for (std::int64_t i = count - k; i < 32; ++i) rest[i] = 0.0f;  // dither alone
    std::int8_t whole[32];
    sum = S::add(sum, S::store_int8(whole, S::load(rest), S::load(rest + 16)));
    std::memcpy(to + k, whole, static_cast<std::size_t>((count - k + 3) / 4 * 4));
  }
  // What is not finite becomes the lowest integer, whose last byte is 0.
  return numbers.inverse > 0.0f ? S::sum_int(sum) : 0;
}

template <class S>
void to_bytes(const float* from, std::int64_t count, std::uint32_t dither, std::int8_t* to,
              float* scales, std::int32_t* sums) {
  for (std::int64_t begin = 0; begin < count; begin += kRoundedBlock) {
    const std::int64_t size = count - begin < kRoundedBlock ? count - begin : kRoundedBlock;
    if (dither == 0) {
      *sums++ = block_to_bytes<S, false>(from + begin, size, to + begin, *scales++, nullptr);
      continue;
    }
    dither = dither * 747796405u + 2891336453u;
    const float* add = kDither.at + (dither >> 16) % Dither::kPlaces;
    *sums++ = block_to_bytes<S, true>(from + begin, size, to + begin, *scales++, add);
  }
}

// Dense numbers: turned to rows first.
template <class S, class Form>
void unpack_columns_dense(const MatrixView& w, std::int64_t chunk, std::int64_t tile_begin,
                          std::int64_t tile_end, typename Form::Code* panel, float* scales) {
  typename S::F values[kRoundedTiles * kChunkColumns];
  for (std::int64_t tile = tile_begin; tile < tile_end; tile += kRoundedTiles) {
    const std::int64_t count = tile_end - tile < kRoundedTiles ? tile_end - tile : kRoundedTiles;
    auto most = S::zero_int();
    for (std::int64_t i = 0; i < count; ++i) {
      typename S::F* of_tile = values + i * kChunkColumns;
      unpack_chunk_rows<S>(w, tile + i, chunk, false, of_tile);
      for (int k = 0; k < kChunkColumns; ++k) most = S::max_bits(most, of_tile[k]);
    }
    const BlockScale scale = block_scale<S>(most, Form::kLimit);
    *scales++ = scale.scale;
    const auto inverse = S::set(scale.inverse), shift = S::set(Form::kShift);
    for (std::int64_t i = 0; i < count; ++i, panel += kTileRows * kChunkColumns)
      Form::template store_tile<S>(
          panel, [&](int row, int half) __attribute__((always_inline)) {
            return S::fma(values[i * kChunkColumns + 16 * half + row], inverse, shift);
          });
  }
}

// Codes: what is turned to rows are bytes, a third of the shuffles that floats take; and the
// largest number is that of the highest or lowest level, whether or not a code has it. 160 cycles a
// tile and chunk; by way of floats 480.
template <class S, class C, class Form>
void unpack_columns_codes(const MatrixView& w, std::int64_t chunk, std::int64_t tile_begin,
                          std::int64_t tile_end, typename Form::Code* panel, float* scales) {
  for (std::int64_t tile = tile_begin; tile < tile_end; tile += kRoundedTiles) {
    const std::int64_t count = tile_end - tile < kRoundedTiles ? tile_end - tile : kRoundedTiles;
    // weight = factor level + term, a lane for each row.
    typename S::F factor[kRoundedTiles], term[kRoundedTiles];
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
    const BlockScale scale = block_scale<S>(most, Form::kLimit);
    *scales++ = scale.scale;
    const auto inverse = S::set(scale.inverse), shift = S::set(Form::kShift);
    for (std::int64_t i = 0; i < count; ++i, panel += kTileRows * kChunkColumns) {
      const std::uint8_t* codes = w.codes + (tile + i) * w.tile_bytes + chunk * (C::kBits * 64);
      float factors[kTileRows], terms[kTileRows];
      S::store(factors, S::mul(factor[i], inverse));
      S::store(terms, S::fma(term[i], inverse, shift));
      typename S::B step[8], pairs[16];
      for_each_step([&]<int kStep>() __attribute__((always_inline)) {
        step[kStep] = code_step<S, C::kBits, kStep>(codes);
      });
      S::row_pairs(step, pairs);
      Form::template store_tile<S>(
          panel, [&](int row, int half) __attribute__((always_inline)) {
            const typename S::B pair = pairs[row / 2 * 2 + half];
            const auto level =
                row % 2 == 0 ? C::template level<S, 0>(pair) : C::template level<S, 3>(pair);
            return S::fma(level, S::set(factors[row]), S::set(terms[row]));
          });
    }
  }
}

template <class S, class Form>
void unpack_columns_rounded(const MatrixView& w, std::int64_t chunk, std::int64_t tile_begin,
                            std::int64_t tile_end, typename Form::Code* panel, float* scales) {
  const auto unpack =
      w.storage != Storage::kCodes
          ? unpack_columns_dense<S, Form>
          : with_codes(w, []<class C>() { return unpack_columns_codes<S, C, Form>; });
  unpack(w, chunk, tile_begin, tile_end, panel, scales);
}

// dy [tokens, rows] x panel; with AVX-512 12 x 2 accumulators, 12 broadcasts and 2 loads per 24 dot
// products, so neither the loads nor the latency limit it. After a block of 128 rows the sums,
// exact so far, go to c. kHalves: 1 where only 16 columns are wanted (weak ones, the rest of 560).
template <class S, class Form, int kTokens, int kHalves, class View>
void multiply_rounded_block(const View& dy, std::int64_t token, const typename Form::Code* panel,
                            const float* panel_scales, std::int64_t rows, float* c,
                            std::int64_t c_stride, int columns, bool add) {
  const std::int64_t stride = dy.stride;
  const auto* codes = dy.row(token);
  for (std::int64_t begin = 0; begin < rows; begin += kRoundedBlock, add = true) {
    const std::int64_t end = begin + kRoundedBlock < rows ? begin + kRoundedBlock : rows;
    const std::int64_t block = begin / kRoundedBlock, numbers = token * dy.scale_stride + block;
    typename S::I sum[kTokens][kHalves];
#pragma GCC unroll 12
    for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 2
      for (int half = 0; half < kHalves; ++half)
        sum[t][half] = Form::template start<S>(dy, numbers + t * dy.scale_stride);
    std::decay_t<decltype(codes)> of[(kTokens + 2) / 3];  // as in multiply_block()
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t += 3) of[t / 3] = codes + t * stride + begin;
    for (std::int64_t row = begin; row < end; row += Form::kRows, panel += 32 * Form::kRows) {
#pragma GCC unroll 12
      for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 2
        for (int half = 0; half < kHalves; ++half)
          sum[t][half] = Form::template dot<S>(sum[t][half], panel + 16 * Form::kRows * half,
                                               of[t / 3] + t % 3 * stride);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; t += 3) {
        of[t / 3] += Form::kRows;
        asm("" : "+r"(of[t / 3]));
      }
    }
    const float* scales = dy.scales + numbers;
#pragma GCC unroll 12
    for (int t = 0; t < kTokens; ++t) {
      const auto scale = S::set(scales[t * dy.scale_stride] * panel_scales[block]);
#pragma GCC unroll 2
      for (int half = 0; half < kHalves; ++half) {
        const int left = columns - half * 16, count = left < 16 ? left : 16;
        float* to = c + t * c_stride + half * 16;
        const bool whole = left >= 16;
        const auto old = !add ? S::zero() : whole ? S::load(to) : S::load_first(to, count);
        const auto value = S::fma(S::to_float(sum[t][half]), scale, old);
        if (whole)
          S::store(to, value);
        else
          S::store_first(to, value, count);
      }
    }
  }
}

template <class S, class Form, class View>
void multiply_rounded(const View& dy, const typename Form::Code* panel, const float* panel_scales,
                      std::int64_t rows, std::int64_t token_begin, std::int64_t token_end, float* c,
                      std::int64_t c_stride, int columns, bool add) {
  constexpr int kWidth = 16 * S::kHalvesRounded;
  for (int column = 0; column < columns; column += kWidth, panel += kWidth * Form::kRows) {
    std::int64_t token = token_begin;
    const auto block = [&]<int kTokens>() {
      const int left = columns - column;
      const auto multiply = S::kHalvesRounded == 2 && left > 16
                                ? multiply_rounded_block<S, Form, kTokens, S::kHalvesRounded, View>
                                : multiply_rounded_block<S, Form, kTokens, 1, View>;
      multiply(dy, token, panel, panel_scales, rows, c + token * c_stride + column, c_stride, left,
               add);
      token += kTokens;
    };
    while (token + S::kMaxRowsRounded <= token_end) block.template operator()<S::kMaxRowsRounded>();
    while (token + 4 <= token_end) block.template operator()<4>();
    while (token < token_end) block.template operator()<1>();
  }
}

template <class S>
void multiply_panels_int16(const RoundedView& rows, std::int64_t count, std::int64_t depth,
                           const RoundedPanels& panels, std::int64_t columns, float* c,
                           std::int64_t c_stride, bool add) {
  for (std::int64_t column = 0; column < columns; column += 32) {
    const RoundedPanels panel = panels.panel(column / 32);
    const auto width = static_cast<int>(columns - column < 32 ? columns - column : 32);
    multiply_rounded<S, Int16Rows>(rows, panel.codes, panel.scales, depth, 0, count, c + column,
                                   c_stride, width, add);
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
  for (std::int64_t begin = 0; begin < count; begin += kRoundedBlock) {
    const std::int64_t end = begin + kRoundedBlock < count ? begin + kRoundedBlock : count;
    auto most = S::zero_int();
    for (std::int64_t row = begin; row < end; ++row)
      for (int half = 0; half < 2; ++half) most = S::max_bits(most, load(row, half));
    const BlockScale scale = block_scale<S>(most, kInt16Limit);
    panel.scales[begin / kRoundedBlock] = scale.scale;
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
  float turned[16 * kRoundedBlock];
  for (std::int64_t column = 0; column < columns; column += 16) {
    const std::int64_t width = columns - column < 16 ? columns - column : 16;
    transpose<S>(rows + column, stride, count, width, turned, kRoundedBlock);
    for (std::int64_t i = 0; i < width; ++i)
      to_int16<S>(turned + i * kRoundedBlock, count, to.row(column + i), to.scales_of(column + i));
  }
}

}  // namespace trimpot::impl
