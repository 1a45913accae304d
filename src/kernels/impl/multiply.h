// Float products: one kernel serves the f32 path, attention and dense weights.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace trimpot::impl {

template <class S, class Stored>
[[gnu::always_inline]] inline typename S::F load_panel(const Stored* from) {
  return S::load(from);
}

// bf16 and f16 are both 16-bit integers: a tag type keeps them apart.
struct Bf16Tag {
  bf16 bits;
};
template <class S>
[[gnu::always_inline]] inline typename S::F load_panel(const Bf16Tag* from) {
  return S::load_bf16(&from->bits);
}

// With few rows the panels are read once, from memory: they are asked for ahead.
inline constexpr std::int64_t kPanelPrefetchBytes = 8192;

// Where a step's weights are a row of a wide matrix, pages away from the next one, no hardware
// prefetcher follows.
inline constexpr std::int64_t kRowsAhead = 12;

template <class S, class Stored, int kRows, int kTiles, bool kPrefetch = false>
void multiply_block(const Operand& a, std::int64_t row, const Stored* b, std::int64_t tile_stride,
                    std::int64_t k_stride, std::int64_t depth, float* c, std::int64_t c_stride,
                    std::int64_t columns, bool add) {
  // No registers for all weights of a step beside the sums.
  constexpr bool kTight = kTiles > 1 && kRows * kTiles + kTiles + 1 > S::kVectors;
  typename S::F sum[kRows][kTiles];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < kTiles; ++n) sum[r][n] = S::zero();
  // A pointer for each of 12 rows is more than there are registers: GCC keeps some in vector
  // registers, and moving one back takes a slot of the multipliers (in whole numbers 2 of 26). One
  // for each third row walks instead, and an instruction adds up to twice the stride.
  constexpr bool kWalk = kRows > 8;
  constexpr int kShare = kWalk ? 3 : 1;
  const std::int64_t row_stride = a.row_stride, column_stride = a.column_stride;
  const float* of[(kRows + kShare - 1) / kShare];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; r += kShare) of[r / kShare] = a.data + (row + r) * row_stride;
  const auto value_of = [&](int r, std::int64_t k) __attribute__((always_inline)) {
    const float* from = of[r / kShare];
    return S::set(kWalk ? from[r % kShare * row_stride] : from[k * column_stride]);
  };
  for (std::int64_t k = 0; k < depth; ++k) {
    typename S::F weight[kTiles];
#pragma GCC unroll 4
    for (int n = 0; n < kTiles; ++n) {
      const Stored* from = b + n * tile_stride + k * k_stride;
      weight[n] = load_panel<S>(from);
      if constexpr (kPrefetch)
        __builtin_prefetch(reinterpret_cast<const char*>(from) + kPanelPrefetchBytes);
      else if constexpr (kRows == S::kMaxRowsOfTile && kRows > S::kMaxRowsF32)
        __builtin_prefetch(from + kRowsAhead * k_stride);
      if constexpr (kTight)  // weights one after the other
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) sum[r][n] = S::fma(value_of(r, k), weight[n], sum[r][n]);
    }
    if constexpr (!kTight)
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const auto value = value_of(r, k);
#pragma GCC unroll 4
        for (int n = 0; n < kTiles; ++n) sum[r][n] = S::fma(value, weight[n], sum[r][n]);
      }
    if constexpr (kWalk)
#pragma GCC unroll 8
      for (int r = 0; r < kRows; r += kShare) {
        of[r / kShare] += column_stride;
        asm("" : "+r"(of[r / kShare]));  // or GCC makes 12 pointers of them again
      }
  }
  // Unrolled, or the sums would go to the stack and back: at a depth of 16 (weak columns) or 64 (a
  // head) that shows.
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < kTiles; ++n) {
      float* to = c + (row + r) * c_stride + n * 16;
      const std::int64_t left = columns - n * 16;
      if (left >= 16) {
        S::store(to, add ? S::add(S::load(to), sum[r][n]) : sum[r][n]);
      } else {
        const int count = static_cast<int>(left);
        S::store_first(to, add ? S::add(S::load_first(to, count), sum[r][n]) : sum[r][n], count);
      }
    }
}

template <class S, class Stored, int kTiles>
void multiply_rows(const Operand& a, const Stored* b, const Panels& panels, std::int64_t rows,
                   std::int64_t columns, std::int64_t depth, float* c, std::int64_t c_stride,
                   bool add) {
  constexpr int kMost = kTiles == 1 ? S::kMaxRowsOfTile : S::kMaxRowsF32;
  std::int64_t row = 0;
  const auto block = [&]<int kRows>() {
    multiply_block<S, Stored, kRows, kTiles>(a, row, b, panels.tile_stride, panels.k_stride, depth,
                                             c, c_stride, columns, add);
    row += kRows;
  };
  while (row + kMost <= rows) block.template operator()<kMost>();
  if constexpr (kMost > 8)
    if (row + 8 <= rows) block.template operator()<8>();
  if constexpr (kMost > 4)
    if (row + 4 <= rows) block.template operator()<4>();
  while (row + 2 <= rows) block.template operator()<2>();
  if (row < rows) block.template operator()<1>();
}

// Few rows against up to 4 tiles at once, as many as there are registers for: one row and two tiles
// are two sums, each waiting 4 cycles for its own last step. Gives the number of columns done.
template <class S, class Stored, int kRows>
std::int64_t multiply_few_rows(const Operand& a, const Stored* b, const Panels& panels,
                               std::int64_t columns, std::int64_t depth, float* c,
                               std::int64_t c_stride, bool add) {
  constexpr int kMost = S::kVectors >= 4 * kRows + 2 ? 4 : S::kVectors >= 2 * kRows + 2 ? 2 : 1;
  std::int64_t column = 0;
  const auto blocks = [&]<int kTiles>() {
    for (; column + 16 * kTiles <= columns; column += 16 * kTiles)
      multiply_block<S, Stored, kRows, kTiles, true>(a, 0, b + column / 16 * panels.tile_stride,
                                                     panels.tile_stride, panels.k_stride, depth,
                                                     c + column, c_stride, 16 * kTiles, add);
  };
  blocks.template operator()<kMost>();
  if constexpr (kMost > 1) blocks.template operator()<kMost / 2>();
  return column;
}

// The last panel may be shorter than 16 columns in memory: copied to a padded one first, unless the
// panels are whole tiles anyway (k_stride 16).
template <class S, class Stored>
void multiply_stored(const Operand& a, const Panels& panels, std::int64_t rows,
                     std::int64_t columns, std::int64_t depth, float* c, std::int64_t c_stride,
                     bool add) {
  const auto* b = static_cast<const Stored*>(panels.data);
  std::int64_t column = 0;
  if constexpr (S::kVectors > 1) {
    const auto few = [&]<int kRows>() {
      column = multiply_few_rows<S, Stored, kRows>(a, b, panels, columns, depth, c, c_stride, add);
    };
    if (rows == 4) few.template operator()<4>();
    if (rows == 3) few.template operator()<3>();
    if (rows == 2) few.template operator()<2>();
    if (rows == 1) few.template operator()<1>();
  }
  if constexpr (S::kMaxTiles >= 2)
    for (; column + 32 <= columns; column += 32)
      multiply_rows<S, Stored, 2>(a, b + column / 16 * panels.tile_stride, panels, rows, 32, depth,
                                  c + column, c_stride, add);
  for (; column < columns; column += 16) {
    const std::int64_t left = columns - column < 16 ? columns - column : 16;
    const Stored* tile = b + column / 16 * panels.tile_stride;
    if (left == 16 || panels.k_stride == 16) {
      multiply_rows<S, Stored, 1>(a, tile, panels, rows, left, depth, c + column, c_stride, add);
      continue;
    }
    // Pieces of 64 steps: short last tiles occur only where a head's width is no multiple of 16.
    Stored padded[64 * 16] = {};
    for (std::int64_t k = 0; k < depth; k += 64) {
      const std::int64_t count = depth - k < 64 ? depth - k : 64;
      for (std::int64_t i = 0; i < count; ++i)
        for (std::int64_t lane = 0; lane < left; ++lane)
          padded[i * 16 + lane] = tile[(k + i) * panels.k_stride + lane];
      const Operand part{a.data + k * a.column_stride, a.row_stride, a.column_stride};
      const Panels whole{padded, panels.storage, 0, 16};
      multiply_rows<S, Stored, 1>(part, padded, whole, rows, left, count, c + column, c_stride,
                                  add || k > 0);
    }
  }
}

template <class S>
void multiply(const Operand& a, const Panels& b, std::int64_t rows, std::int64_t columns,
              std::int64_t depth, float* c, std::int64_t c_stride, bool add) {
  if (b.storage == Storage::kF32)
    multiply_stored<S, float>(a, b, rows, columns, depth, c, c_stride, add);
  else if (b.storage == Storage::kF16)
    multiply_stored<S, f16>(a, b, rows, columns, depth, c, c_stride, add);
  else
    multiply_stored<S, Bf16Tag>(a, b, rows, columns, depth, c, c_stride, add);
}

}  // namespace trimpot::impl
