// Products of packed codes with int8 activations: forward, and the gradient of the scales.
//
// The forward formula is one and the same for any number of tokens at once. Per chunk of 32 columns
//   i    = sum byte * x.code                             exact, int32
//   part = fma(float(i - zero_point * x.sum), x.scale, part)    the difference exact: below 2^24
// and per group, after its chunks, with x_sum the sum of its x.scaled_sum
//   acc  = fma(part, scale, acc)                         NF4: scale * kByteScale
//   acc  = fma(fma(-zero, x_sum, part), scale, acc)      where there are zeros
//   acc  = fma(offset, x_sum, fma(part, scale, acc))     where there are offsets
// all in order, in one lane per output row. So prefill, decode and batches agree bit for bit, and
// so do the instruction sets.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/impl/codes.h"
#include "kernels/kernels.h"

namespace trimpot::impl {

// How a group's zero-point is stored.
enum class Shift { kConstant, kZeros, kOffsets };

// How far ahead of the codes in use memory is asked for. Hardware prefetchers stop at each 4 KiB.
// 69 MB one tile at a time, by one core: nothing ahead 1.87 ms, 2 KiB 1.85, 4 KiB 1.67, 8 KiB 1.60,
// 16 KiB 1.70. Two tiles are followed by the next two, which are near where a tile is one of keys.
inline std::int64_t prefetch_bytes(int tiles, std::int64_t tile_bytes) {
  constexpr std::int64_t kAhead = 8192;
  return tiles == 1 || tiles * tile_bytes < kAhead ? kAhead : tiles * tile_bytes;
}

// What is fixed when a kernel is compiled. kMixed: tokens share the codes, each has the groups'
// numbers at of_token[token]. kSingle: groups are one chunk, and need no registers for their sums.
template <Shift kShiftOf, bool kMixedOf, bool kSingleOf>
struct Case {
  static constexpr Shift kShift = kShiftOf;
  static constexpr bool kMixed = kMixedOf, kSingle = kSingleOf;
};

// Weak columns of kTokens x kTiles outputs. Beside the codes of their tile they are one more stream
// of memory; in a pass of their own after a piece's codes, asked for ahead or not, they came at
// half the codes' rate, and QEFT's decode was some 8 % slower.
template <class S, class Stored, int kTokens, int kTiles>
[[gnu::always_inline]] inline void weak_block(const WeakPart& weak, std::int64_t token,
                                              std::int64_t tile,
                                              typename S::F (&sum)[kTokens][kTiles]) {
  const std::int64_t columns = weak.columns.columns, tile_size = columns * kTileRows;
  const auto* from =
      static_cast<const Stored*>(weak.columns.dense) + (tile - weak.first_tile) * tile_size;
  const float* x = weak.x + token * weak.stride;
  for (std::int64_t k = 0; k < columns; ++k) {
    typename S::F weight[kTiles];
#pragma GCC unroll 2
    for (int n = 0; n < kTiles; ++n) weight[n] = S::load(from + n * tile_size + k * kTileRows);
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      const auto value = S::set(x[t * weak.stride + k]);
#pragma GCC unroll 2
      for (int n = 0; n < kTiles; ++n) sum[t][n] = S::fma(value, weight[n], sum[t][n]);
    }
  }
}

// kTokens x kTiles outputs: all accumulators stay in registers. `codes`: the first tile's. Those
// that follow are asked for if `prefetch`; the second tile's, with kShares, if not.
template <class S, class C, class K, int kTokens, int kTiles, bool kShares = false>
void linear_block(const MatrixView& w, const std::uint8_t* codes, const Int8View& x,
                  std::int64_t token, std::int64_t tile, const GroupArrays* of_token,
                  const WeakPart* weak, float* y, std::int64_t y_stride, bool add, bool prefetch) {
  constexpr std::int64_t kChunkBytes = C::kBits * 64;
  typename S::F sum[kTokens][kTiles];
  for (int t = 0; t < kTokens; ++t)
    for (int n = 0; n < kTiles; ++n) sum[t][n] = S::zero();
  const Int8Block* x_row[kTokens];
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) x_row[t] = x.row(token + t);
  const std::int64_t tile_bytes = w.tile_bytes;
  const std::int64_t tile_scales = w.groups * kTileRows;
  const std::uint8_t* ahead = codes + prefetch_bytes(kTiles, tile_bytes);

  std::int64_t numbers = tile * tile_scales;  // of the group
  for (std::int64_t chunk = 0; chunk < w.chunks; numbers += kTileRows) {
    std::int64_t group_end = chunk + 1;
    if constexpr (!K::kSingle)
      group_end = chunk + w.group_chunks < w.chunks ? chunk + w.group_chunks : w.chunks;
    float x_sum[kTokens] = {};
    typename S::F part[kTokens][kTiles];
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 4
      for (int n = 0; n < kTiles; ++n) part[t][n] = S::zero();
    for (; chunk < group_end; ++chunk) {
      if constexpr (kTokens <= 4) {  // more tokens wait for arithmetic, and lack the registers
        if (prefetch)
#pragma GCC unroll 2
          for (int n = 0; n < (kShares ? 1 : kTiles); ++n)
#pragma GCC unroll 8
            for (int line = 0; line < C::kBits; ++line)
              __builtin_prefetch(ahead + n * tile_bytes + chunk * kChunkBytes + 64 * line, 0,
                                 kSecondLevel);
        if constexpr (kShares)
          if (!prefetch)
#pragma GCC unroll 8
            for (int line = 0; line < C::kBits; ++line)
              __builtin_prefetch(ahead + tile_bytes + chunk * kChunkBytes + 64 * line, 0,
                                 kSecondLevel);
      }
      typename S::I dot[S::template kPasses<C::kByteBits>][kTokens][kTiles];
      // Where sums are whole from the beginning on they start with what the zero-point takes away.
      constexpr bool kStarts = S::kWholeSums && K::kShift == Shift::kConstant;
      typename S::I start[kTokens];
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t)
        start[t] = kStarts ? S::set_int(-C::zero_point(w) * x_row[t][chunk].sum) : S::zero_int();
      const auto multiply = [&]<int kPass, int kStep, bool kFirst>()
          __attribute__((always_inline)) {
        typename S::B code[kTiles];
#pragma GCC unroll 4
        for (int n = 0; n < kTiles; ++n)
          code[n] = S::template part<C::kByteBits, kPass>(
              C::template bytes<S, kStep>(codes + n * tile_bytes + chunk * kChunkBytes));
#pragma GCC unroll 8
        for (int t = 0; t < kTokens; ++t) {
          const auto four = S::broadcast4(x_row[t][chunk].codes + 4 * kStep);
#pragma GCC unroll 4
          for (int n = 0; n < kTiles; ++n)
            dot[kPass][t][n] = S::dot(kFirst ? start[t] : dot[kPass][t][n], code[n], four);
        }
      };
      for_each_part<S, C::kByteBits, (kTokens <= 2)>(multiply);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        const auto x_scale = S::set(x_row[t][chunk].scale);
#pragma GCC unroll 4
        for (int n = 0; n < kTiles; ++n) {
          typename S::I product = sum_passes<S, C::kByteBits>(dot, t, n);
          if constexpr (K::kShift == Shift::kConstant && !kStarts)
            product = S::sub(product, S::set_int(C::zero_point(w) * x_row[t][chunk].sum));
          part[t][n] = S::fma(S::to_float(product), x_scale, part[t][n]);
        }
        if constexpr (K::kSingle)
          x_sum[t] = x_row[t][chunk].scaled_sum;
        else if constexpr (K::kShift != Shift::kConstant)
          x_sum[t] += x_row[t][chunk].scaled_sum;
      }
    }
#pragma GCC unroll 4
    for (int n = 0; n < kTiles; ++n) {
      const std::int64_t at = numbers + n * tile_scales;
      typename S::F scale, shift;
      const auto load_numbers = [&](const auto& from) __attribute__((always_inline)) {
        scale = S::load(from.scales + at);
        if constexpr (C::kScaled) scale = S::mul(scale, S::set(C::kByteScale));
        if constexpr (K::kShift == Shift::kZeros)
          shift = S::sub(S::zero(), S::load(from.zeros + at));
        if constexpr (K::kShift == Shift::kOffsets) shift = S::load(from.offsets + at);
      };
      if constexpr (!K::kMixed) load_numbers(w);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        if constexpr (K::kMixed) {
          // Each token's numbers lie in a place of their own: those of the next tiles are asked for
          // here, a few at a time.
          const GroupArrays& own = of_token[token + t];
          load_numbers(own);
          __builtin_prefetch(own.scales + at + kTiles * tile_scales);
          if constexpr (K::kShift == Shift::kOffsets)
            __builtin_prefetch(own.offsets + at + kTiles * tile_scales);
        }
        if constexpr (K::kShift == Shift::kZeros)
          part[t][n] = S::fma(shift, S::set(x_sum[t]), part[t][n]);
        sum[t][n] = S::fma(part[t][n], scale, sum[t][n]);
        if constexpr (K::kShift == Shift::kOffsets)
          sum[t][n] = S::fma(shift, S::set(x_sum[t]), sum[t][n]);
      }
    }
  }

  const auto store = [&](const auto& last) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 4
      for (int n = 0; n < kTiles; ++n) {
        const std::int64_t row = (tile + n) * kTileRows;
        float* to = y + (token + t) * y_stride + row;
        const std::int64_t left = w.rows - row;
        const int count = static_cast<int>(left < kTileRows ? left : kTileRows);
        const bool whole = left >= kTileRows;
        if (add) {
          const auto old = whole ? S::load(to) : S::load_first(to, count);
          sum[t][n] = S::add(old, sum[t][n]);
        }
        last(sum[t][n], t, n);
        if (whole)
          S::store(to, sum[t][n]);
        else
          S::store_first(to, sum[t][n], count);
      }
  };
  if constexpr (kTokens <= kMostTokensWithWeak || S::kWeakForMany)
    if (weak != nullptr) {
      typename S::F more[kTokens][kTiles];
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 2
        for (int n = 0; n < kTiles; ++n) more[t][n] = S::zero();
      if (weak->columns.storage == Storage::kF16)
        weak_block<S, f16>(*weak, token, tile, more);
      else
        weak_block<S, float>(*weak, token, tile, more);
      return store([&](typename S::F& value, int t, int n) { value = S::add(value, more[t][n]); });
    }
  store([](typename S::F&, int, int) {});
}

// With many tokens the next tiles are asked for between two blocks, a part each time.
struct SharedPrefetch {
  SharedPrefetch(const std::uint8_t* from, std::int64_t bytes, std::int64_t blocks)
      : at(from), share(blocks > 1 ? bytes / blocks + 64 : 0) {}
  void ask() {
    for (std::int64_t i = 0; i < share; i += 64) __builtin_prefetch(at + i);
    at += share;
  }
  const std::uint8_t* at;
  std::int64_t share;
};

// From how many tokens on codes are unpacked once for all blocks of tokens instead of once for
// each, and how many chunks at most: 64 KiB of bytes a tile, 4096 columns.
constexpr std::int64_t kManyTokens = 32;  // 16 tokens of 4 bits: 0.86 times as fast
constexpr std::int64_t kMostUnpackedChunks = 128;

// kTiles tiles of weak columns as floats, where they fit: each block of tokens reads them.
template <class S, int kTiles>
struct WidenedWeak {
  static constexpr std::int64_t kMost = 64;
  WidenedWeak(const WeakPart* weak, std::int64_t tile) : part(weak) {
    if (weak == nullptr || weak->columns.storage != Storage::kF16 || weak->columns.columns > kMost)
      return;
    wide = *weak;
    const std::int64_t tile_size = wide.columns.columns * kTileRows;
    const auto* from =
        static_cast<const f16*>(wide.columns.dense) + (tile - wide.first_tile) * tile_size;
    for (std::int64_t i = 0; i < kTiles * tile_size; i += kTileRows)
      S::store(values + i, S::load(from + i));
    wide.columns.storage = Storage::kF32;
    wide.columns.dense = values;
    wide.first_tile = tile;
    part = &wide;
  }
  WidenedWeak(const WidenedWeak&) = delete;
  WidenedWeak& operator=(const WidenedWeak&) = delete;

  const WeakPart* part;
  WeakPart wide;
  alignas(64) float values[kTiles * kMost * kTileRows];
};

// All whole blocks of tokens. Returns the first token that is left. 192 tokens with AVX2: 3 bits
// 1.5 times as fast as unpacking for each block, 4 bits 1.05 to 1.1, NF4 1.2.
template <class S, class C, class K, int kTiles>
[[gnu::noinline]] std::int64_t linear_unpacked(const MatrixView& w, const Int8View& x,
                                               std::int64_t begin, std::int64_t end,
                                               std::int64_t tile, const WeakPart* weak, float* y,
                                               std::int64_t y_stride, bool add) {
  constexpr std::int64_t kChunkBytes = Unpacked<C>::kChunkBytes;
  const std::uint8_t* codes = w.codes + tile * w.tile_bytes;
  alignas(64) std::uint8_t bytes[kTiles * kMostUnpackedChunks * kChunkBytes];
  MatrixView unpacked = w;
  unpacked.tile_bytes = w.chunks * kChunkBytes;
  for (int n = 0; n < kTiles; ++n)
    for (std::int64_t chunk = 0; chunk < w.chunks; ++chunk)
      for_each_step([&]<int kStep>() __attribute__((always_inline)) {
        S::store_bytes(
            bytes + n * unpacked.tile_bytes + chunk * kChunkBytes + 64 * kStep,
            C::template bytes<S, kStep>(codes + n * w.tile_bytes + chunk * C::kBits * 64));
      });
  const WidenedWeak<S, kTiles> widened(weak, tile);
  SharedPrefetch next(codes + kTiles * w.tile_bytes, kTiles * w.tile_bytes,
                      (end - begin) / S::kMaxRowsI8);
  for (; end - begin >= S::kMaxRowsI8; begin += S::kMaxRowsI8) {
    linear_block<S, Unpacked<C>, K, S::kMaxRowsI8, kTiles>(unpacked, bytes, x, begin, tile, nullptr,
                                                           widened.part, y, y_stride, add, false);
    next.ask();
  }
  return begin;
}

template <class S, class C, class K, int kTiles>
void linear_tiles(const MatrixView& w, const Int8View& x, std::int64_t begin, std::int64_t end,
                  std::int64_t tile, const GroupArrays* of_token, const WeakPart* weak, float* y,
                  std::int64_t y_stride, bool add) {
  constexpr int kMost = K::kMixed && S::kMaxRowsI8 > 4 ? 4 : S::kMaxRowsI8;
  const std::uint8_t* codes = w.codes + tile * w.tile_bytes;
  SharedPrefetch next(codes + kTiles * w.tile_bytes, kTiles * w.tile_bytes, (end - begin) / kMost);
  std::int64_t token = begin;
  const auto block = [&]<int kTokens, bool kShares = false>() {
    linear_block<S, C, K, kTokens, kTiles, kShares>(w, codes, x, token, tile, of_token, weak, y,
                                                    y_stride, add, token == begin);
    next.ask();
    token += kTokens;
  };
  // Each of two blocks asks for one of the next tiles: memory is idle in neither (eight sequences
  // 1.01 to 1.05 times as fast).
  if constexpr (kTiles == 2)
    while (end - begin == 8 && token < end) block.template operator()<4, true>();
  if constexpr (kMost > 4)
    // 8 tokens are 4 and 4, not 6 and 2: with the prefetch a quarter faster.
    while (end - token >= kMost && end - token != 8) block.template operator()<kMost>();
  if constexpr (kMost >= 4)
    while (end - token >= 4) block.template operator()<4>();
  if constexpr (kMost > 2)  // three heads that share their keys
    while (end - token == 3) block.template operator()<3>();
  if constexpr (kMost > 1)
    while (end - token >= 2) block.template operator()<2>();
  while (token < end) block.template operator()<1>();
}

template <class S, class C, class K>
void linear_codes(const MatrixView& w, const Int8View& x, std::int64_t token_begin,
                  std::int64_t token_end, std::int64_t tile_begin, std::int64_t tile_end,
                  const GroupArrays* of_token, const WeakPart* weak, float* y,
                  std::int64_t y_stride, bool add) {
  std::int64_t tile = tile_begin;
  const auto next = [&]<int kTiles>() {
    std::int64_t token = token_begin;
    if constexpr (S::kUnpacksForMany && C::kBits < 8 && !K::kMixed)
      if (token_end - token_begin >= kManyTokens && w.chunks <= kMostUnpackedChunks)
        token = linear_unpacked<S, C, K, kTiles>(w, x, token_begin, token_end, tile, weak, y,
                                                 y_stride, add);
    linear_tiles<S, C, K, kTiles>(w, x, token, token_end, tile, of_token, weak, y, y_stride, add);
    tile += kTiles;
  };
  // Two tiles share each broadcast of activations. A single token waits for memory instead, and
  // reads best what lies in a row.
  if constexpr (S::kMaxTiles >= 2)
    if (token_end - token_begin > 1)
      while (tile + 2 <= tile_end) next.template operator()<2>();
  while (tile < tile_end) next.template operator()<1>();
}

template <class S>
void linear_int8(const MatrixView& w, const Int8View& x, std::int64_t token_begin,
                 std::int64_t token_end, std::int64_t tile_begin, std::int64_t tile_end,
                 const GroupArrays* of_token, const WeakPart* weak, float* y, std::int64_t y_stride,
                 bool add) {
  const auto of_case = [&]<class C, Shift kShift>() {
    if (of_token != nullptr) return linear_codes<S, C, Case<kShift, true, false>>;
    if constexpr (S::kMaxRowsI8 > 1)
      if (w.group_chunks == 1) return linear_codes<S, C, Case<kShift, false, true>>;
    return linear_codes<S, C, Case<kShift, false, false>>;
  };
  const auto run = with_codes(w, [&]<class C>() {
    if constexpr (!std::is_same_v<C, Nf4>) {
      if (w.zeros != nullptr) return of_case.template operator()<C, Shift::kZeros>();
      if (w.offsets != nullptr) return of_case.template operator()<C, Shift::kOffsets>();
    }
    return of_case.template operator()<C, Shift::kConstant>();
  });
  run(w, x, token_begin, token_end, tile_begin, tile_end, of_token, weak, y, y_stride, add);
}

// Scale gradients. One chunk of kTiles tiles (8 vectors of codes each) stays in registers while the
// tokens of a block pass by: each broadcast of 4 activations feeds kTiles products, and codes are
// unpacked once per block. dy comes from a [tokens][16 kTiles] panel that fits the first-level
// cache.
template <class S, class C, bool kShifts, int kTiles>
void scale_gradient_chunk(const MatrixView& w, const Int8View& x, const float* dy_panel,
                          std::int64_t begin, std::int64_t end, std::int64_t tile,
                          std::int64_t chunk, float* d_scale, float* d_offset) {
  typename S::B code[kTiles][8];
#pragma GCC unroll 2
  for (int n = 0; n < kTiles; ++n) {
    const std::uint8_t* codes = w.codes + (tile + n) * w.tile_bytes + chunk * (C::kBits * 64);
    for_each_step([&]<int kStep>() __attribute__((always_inline)) {
      code[n][kStep] = C::template bytes<S, kStep>(codes);
    });
  }
  typename S::F scale_sum[kTiles], offset_sum[kTiles];
#pragma GCC unroll 2
  for (int n = 0; n < kTiles; ++n) scale_sum[n] = offset_sum[n] = S::zero();
  const auto add_tokens = [&]<int kCount>(std::int64_t token) __attribute__((always_inline)) {
    const Int8Block* block[kCount];
#pragma GCC unroll 4
    for (int t = 0; t < kCount; ++t) block[t] = x.row(token + t) + chunk;
    const float* dy = dy_panel + (token - begin) * kTiles * kTileRows;
    typename S::I dot[S::template kPasses<C::kByteBits>][kCount][kTiles];
    const auto multiply = [&]<int kPass, int kStep, bool kFirst>() __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int t = 0; t < kCount; ++t) {
        const auto four = S::broadcast4(block[t]->codes + 4 * kStep);
#pragma GCC unroll 2
        for (int n = 0; n < kTiles; ++n)
          dot[kPass][t][n] = S::dot(kFirst ? S::zero_int() : dot[kPass][t][n],
                                    S::template part<C::kByteBits, kPass>(code[n][kStep]), four);
      }
    };
    for_each_part<S, C::kByteBits, (kCount <= 2)>(multiply);
#pragma GCC unroll 4
    for (int t = 0; t < kCount; ++t) {
#pragma GCC unroll 2
      for (int n = 0; n < kTiles; ++n) {
        const auto d = S::load(dy + (t * kTiles + n) * kTileRows);
        auto product = sum_passes<S, C::kByteBits>(dot, t, n);
        if constexpr (!kShifts)
          product = S::sub(product, S::set_int(C::zero_point(w) * block[t]->sum));
        scale_sum[n] =
            S::fma(S::to_float(product), S::mul(d, S::set(block[t]->scale)), scale_sum[n]);
        if constexpr (kShifts)
          offset_sum[n] = S::fma(d, S::set(block[t]->scaled_sum), offset_sum[n]);
      }
    }
  };
  constexpr int kTokens = 4;
  std::int64_t token = begin;
  for (; token + kTokens <= end; token += kTokens) add_tokens.template operator()<kTokens>(token);
  for (; token < end; ++token) add_tokens.template operator()<1>(token);
  for (int n = 0; n < kTiles; ++n) {
    const std::int64_t group = (n * w.groups + chunk / w.group_chunks) * kTileRows;
    if constexpr (C::kScaled) scale_sum[n] = S::mul(scale_sum[n], S::set(C::kByteScale));
    S::store(d_scale + group, S::add(S::load(d_scale + group), scale_sum[n]));
    if constexpr (kShifts)
      S::store(d_offset + group, S::add(S::load(d_offset + group), offset_sum[n]));
  }
}

template <class S, class C, bool kShifts, int kTiles>
void scale_gradient_tiles(const MatrixView& w, const Int8View& x, const float* dy,
                          std::int64_t dy_stride, std::int64_t tokens, std::int64_t tile,
                          float* d_scale, float* d_offset, float* scratch) {
  constexpr std::int64_t kBlock = 128;  // 128 x 32 floats of dy are 16 KiB
  for (std::int64_t begin = 0; begin < tokens; begin += kBlock) {
    const std::int64_t end = begin + kBlock < tokens ? begin + kBlock : tokens;
    for (std::int64_t token = begin; token < end; ++token)
      for (int n = 0; n < kTiles; ++n) {
        const std::int64_t row = (tile + n) * kTileRows;
        // A row of dy is pages away from the next: no hardware prefetcher follows.
        __builtin_prefetch(dy + (token + 12) * dy_stride + row);
        const int rows = static_cast<int>(w.rows - row < kTileRows ? w.rows - row : kTileRows);
        S::store(scratch + ((token - begin) * kTiles + n) * kTileRows,
                 S::load_first(dy + token * dy_stride + row, rows));
      }
    for (std::int64_t chunk = 0; chunk < w.chunks; ++chunk)
      scale_gradient_chunk<S, C, kShifts, kTiles>(w, x, scratch, begin, end, tile, chunk, d_scale,
                                                  d_offset);
  }
}

template <class S, class C, bool kShifts>
void scale_gradient_codes(const MatrixView& w, const Int8View& x, const float* dy,
                          std::int64_t dy_stride, std::int64_t tokens, std::int64_t tile_begin,
                          std::int64_t tile_end, float* d_scale, float* d_offset, float* scratch) {
  const std::int64_t per_tile = w.groups * kTileRows;
  std::int64_t tile = tile_begin;
  const auto next = [&]<int kTiles>() {
    scale_gradient_tiles<S, C, kShifts, kTiles>(w, x, dy, dy_stride, tokens, tile, d_scale,
                                                d_offset, scratch);
    tile += kTiles;
    d_scale += kTiles * per_tile;
    if constexpr (kShifts) d_offset += kTiles * per_tile;
  };
  if constexpr (S::kPairsOfCodes)  // 16 vectors of codes leave room for the sums
    while (tile + 2 <= tile_end) next.template operator()<2>();
  while (tile < tile_end) next.template operator()<1>();
}

template <class S>
void scale_gradient_int8(const MatrixView& w, const Int8View& x, const float* dy,
                         std::int64_t dy_stride, std::int64_t tokens, std::int64_t tile_begin,
                         std::int64_t tile_end, float* d_scale, float* d_offset, float* scratch) {
  const auto run = with_codes(w, [&]<class C>() {
    if constexpr (!std::is_same_v<C, Nf4>)
      if (d_offset != nullptr) return scale_gradient_codes<S, C, true>;
    return scale_gradient_codes<S, C, false>;
  });
  run(w, x, dy, dy_stride, tokens, tile_begin, tile_end, d_scale, d_offset, scratch);
}

}  // namespace trimpot::impl
