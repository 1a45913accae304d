// AMX: products of bf16, for a step of tuning. Sums are floats that stay in their tiles.
#include "kernels/impl/codes.h"
#include "kernels/isa.h"
#include "kernels/simd/avx512.h"
#include "kernels/simd/tiles.h"

namespace trimpot {
namespace {

using S = Avx512;
using F = S::F;

// The first 16 of `count` numbers, 0 where there are fewer.
F load_some(const float* from, std::int64_t count) {
  if (count >= 16) return S::load(from);
  return count > 0 ? S::load_first(from, static_cast<int>(count)) : S::zero();
}

void round_row(const float* from, std::int64_t count, std::int16_t* to, float*) {
  // Writing at k / 2 never overtakes reading at k: a row can shrink in place.
  for (std::int64_t k = 0; k < count; k += 16) {
    const std::int64_t left = count - k, padded = left + left % 2;
    const auto bits = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(load_some(from + k, left)));
    _mm256_mask_storeu_epi16(to + k, S::first(padded < 16 ? static_cast<int>(padded) : 16), bits);
  }
}

// A group's numbers, lanes are rows: w = level * scale + shift. The product in shift = -scale *
// zero is exact (22 bits at most), so that rounding is that of impl::unpack_chunk(), once.
struct GroupNumbers {
  GroupNumbers(const MatrixView& w, std::int64_t tile, std::int64_t group) {
    const std::int64_t at = (tile * w.groups + group) * kTileRows;
    scale = S::load(w.scales + at);
    const F zero =
        w.zeros != nullptr ? S::load(w.zeros + at) : S::set(static_cast<float>(w.zero_point));
    const F offset = w.offsets != nullptr ? S::load(w.offsets + at) : S::zero();
    shift = S::sub(offset, S::mul(scale, zero));
  }
  F scale, shift;
};

[[gnu::always_inline]] inline F widen_bytes(const std::uint8_t* from) {
  return _mm512_cvtepi32_ps(
      _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(from))));
}

[[gnu::always_inline]] inline __m512i narrow_pair(F low, F high) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}

bool holds_integers(const MatrixView& w) {
  return w.storage == Storage::kCodes && w.book != CodeBook::kNf4;
}

// A chunk's codes change places as bytes, before they are four times as wide:
//   bytes [even, odd pairs of rows][4 times 8 columns][4 pairs][8 columns][2 rows]
// An octet of a pair is 16 bytes, one after the other as the panel has them.
template <class C>
void unpack_code_columns(const MatrixView& w, std::int64_t tile, std::int64_t chunk,
                         std::int16_t* panel) {
  const std::uint8_t* codes = w.codes + tile * w.tile_bytes + chunk * (C::kBits * 64);
  const __m512i order =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15));
  impl::ask_for_chunk(codes + C::kBits * 64, C::kBits);
  alignas(64) std::uint8_t bytes[2][4][64];
  __m512i step[8];
  impl::for_each_step([&]<int kStep>() __attribute__((always_inline)) {
    step[kStep] = C::template bytes<S, kStep>(codes).v;
  });
  for (int eight = 0; eight < 4; ++eight) {
    const __m512i a = step[2 * eight], b = step[2 * eight + 1];
    _mm512_store_si512(bytes[0][eight], _mm512_shuffle_epi8(_mm512_unpacklo_epi64(a, b), order));
    _mm512_store_si512(bytes[1][eight], _mm512_shuffle_epi8(_mm512_unpackhi_epi64(a, b), order));
  }
  const GroupNumbers group(w, tile, chunk / w.group_chunks);
  alignas(64) double scales[kTileRows / 2], shifts[kTileRows / 2];  // two floats each
  S::store(reinterpret_cast<float*>(scales), group.scale);
  S::store(reinterpret_cast<float*>(shifts), group.shift);
  for (int pair = 0; pair < kTileRows / 2; ++pair, panel += 2 * kChunkColumns) {
    const F scale = _mm512_castpd_ps(_mm512_set1_pd(scales[pair]));
    const F shift = _mm512_castpd_ps(_mm512_set1_pd(shifts[pair]));
    const auto weights = [&](int eight) __attribute__((always_inline)) {
      return S::fma(widen_bytes(bytes[pair % 2][eight] + pair / 2 * 16), scale, shift);
    };
    _mm512_storeu_si512(panel, narrow_pair(weights(0), weights(1)));
    _mm512_storeu_si512(panel + kChunkColumns, narrow_pair(weights(2), weights(3)));
  }
}

// Weights of other kinds are floats first. Lanes of a column are rows, two of which become one
// 32-bit number: a transposition of 16 columns and their second half gives the pairs of rows.
void unpack_columns_bf16(const MatrixView& w, std::int64_t chunk, std::int64_t tile_begin,
                         std::int64_t tile_end, std::int16_t* panel, float*) {
  constexpr int kHalf = kChunkColumns / 2, kPairs = kTileRows / 2;
  if (holds_integers(w))
    return impl::with_integers(w, [&]<class C>() {
      for (std::int64_t tile = tile_begin; tile < tile_end; ++tile, panel += kPairs * 64)
        unpack_code_columns<C>(w, tile, chunk, panel);
    });
  for (std::int64_t tile = tile_begin; tile < tile_end; ++tile) {
    F values[kChunkColumns], pairs[kHalf];
    impl::unpack_chunk<S>(w, tile, chunk, false, values);
    for (int k = 0; k < kHalf; ++k)
      pairs[k] = reinterpret_cast<F>(narrow_pair(values[k], values[k + kHalf]));
    S::transpose(pairs);
    for (int pair = 0; pair < kPairs; ++pair, panel += 2 * kChunkColumns) {
      _mm512_storeu_ps(panel, pairs[pair]);
      _mm512_storeu_ps(panel + kChunkColumns, pairs[kPairs + pair]);
    }
  }
}

// Lane by lane the bf16 of two numbers, the first one below.
[[gnu::always_inline]] inline __m512i interleave_bf16(F low, F high) {
  alignas(64) static constexpr std::int16_t kOrder[32] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), narrow_pair(low, high));
}

// A tile's chunks; two columns of a row lie side by side.
template <class C>
void unpack_code_rows(const MatrixView& w, std::int64_t tile, std::int64_t chunk,
                      std::int64_t chunk_end, std::int16_t* to) {
  const __m512i order =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
  const __m512i halves = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  const __m512i first = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
  for (std::int64_t at = chunk; at < chunk_end; ++at, to += 16 * 4 * kTileRows) {
    const std::uint8_t* codes = w.codes + tile * w.tile_bytes + at * (C::kBits * 64);
    impl::ask_for_chunk(codes + 2 * w.tile_bytes, C::kBits);  // of the next pair of tiles
    const GroupNumbers group(w, tile, at / w.group_chunks);
    const F scale[2] = {_mm512_permutexvar_ps(first, group.scale),
                        _mm512_permutexvar_ps(second, group.scale)};
    const F shift[2] = {_mm512_permutexvar_ps(first, group.shift),
                        _mm512_permutexvar_ps(second, group.shift)};
    impl::for_each_step([&]<int kStep>() __attribute__((always_inline)) {
      alignas(64) std::uint8_t bytes[64];  // [2 pairs of columns][16 rows][2]
      const __m512i step = C::template bytes<S, kStep>(codes).v;
      _mm512_store_si512(bytes, _mm512_permutexvar_epi64(halves, _mm512_shuffle_epi8(step, order)));
      for (int pair = 0; pair < 2; ++pair)
        _mm512_storeu_si512(
            to + (2 * kStep + pair) * 4 * kTileRows,
            narrow_pair(S::fma(widen_bytes(bytes + 32 * pair), scale[0], shift[0]),
                        S::fma(widen_bytes(bytes + 32 * pair + 16), scale[1], shift[1])));
    });
  }
}

// Lanes are rows already: two columns of one become its pair.
void unpack_rows_bf16(const MatrixView& w, std::int64_t chunk, std::int64_t chunk_end,
                      std::int64_t tile_begin, std::int64_t tile_end, std::int16_t* panel) {
  for (std::int64_t tile = tile_begin; tile < tile_end; ++tile) {
    std::int16_t* to = panel + (tile - tile_begin) * 2 * kTileRows;
    if (holds_integers(w)) {
      impl::with_integers(w,
                          [&]<class C>() { unpack_code_rows<C>(w, tile, chunk, chunk_end, to); });
      continue;
    }
    for (std::int64_t at = chunk; at < chunk_end; ++at) {
      F values[kChunkColumns];
      impl::unpack_chunk<S>(w, tile, at, false, values);
      for (int k = 0; k < kChunkColumns; k += 2, to += 4 * kTileRows)
        _mm512_storeu_si512(to, interleave_bf16(values[k], values[k + 1]));
    }
  }
}

// w as the sum of two bf16, which have the 11 bits of an f16 (16 of an f32's 24).
void unpack_weak_bf16(const MatrixView& w, std::int64_t tile_begin, std::int64_t tile_end,
                      std::int16_t* panel) {
  const __m512i high_half = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  std::int16_t* rest = panel + (w.columns + 1) / 2 * 2 * kChunkColumns;
  const auto load = [&](std::int64_t tile, std::int64_t column) {
    const std::int64_t at = (tile * w.columns + column) * kTileRows;
    return w.storage == Storage::kF32 ? S::load(static_cast<const float*>(w.dense) + at)
                                      : S::load(static_cast<const f16*>(w.dense) + at);
  };
  for (std::int64_t tile = tile_begin; tile < tile_end; ++tile)
    for (std::int64_t column = 0; column < w.columns; column += 2) {
      const F low = load(tile, column);
      const F high = column + 1 < w.columns ? load(tile, column + 1) : S::zero();
      const __m512i both = interleave_bf16(low, high);
      const F low_rest = S::sub(low, reinterpret_cast<F>(_mm512_slli_epi32(both, 16)));
      const F high_rest = S::sub(high, reinterpret_cast<F>(_mm512_and_si512(both, high_half)));
      const std::int64_t at = column * kChunkColumns + (tile - tile_begin) * 2 * kTileRows;
      _mm512_storeu_si512(panel + at, both);
      _mm512_storeu_si512(rest + at, interleave_bf16(low_rest, high_rest));
    }
}

void round_pairs(const float* rows, std::int64_t stride, std::int64_t count, int columns,
                 const RoundedPanels& to) {
  std::int16_t* panel = to.codes;
  for (std::int64_t row = 0; row < count; row += 2, panel += 2 * kChunkColumns)
    for (int column = 0; column < kChunkColumns; column += 16) {
      const float* from = rows + row * stride + column;
      const F even = load_some(from, columns - column);
      const F odd = row + 1 < count ? load_some(from + stride, columns - column) : S::zero();
      _mm512_storeu_si512(panel + 2 * column, interleave_bf16(even, odd));
    }
}

void round_columns(const float* rows, std::int64_t stride, std::int64_t count, std::int64_t columns,
                   const RoundedView& to) {
  for (std::int64_t first = 0; first < count; first += 32)
    for (std::int64_t column = 0; column < columns; column += 16) {
      const std::int64_t width = columns - column < 16 ? columns - column : 16;
      const std::int64_t left = count - first < 32 ? count - first : 32;
      F block[2][16];
      for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 16; ++i) {
          const std::int64_t row = 16 * half + i;
          block[half][i] =
              row < left ? load_some(rows + (first + row) * stride + column, width) : S::zero();
        }
        S::transpose(block[half]);
      }
      const auto padded = static_cast<int>(left + left % 2);
      for (std::int64_t j = 0; j < width; ++j)
        _mm512_mask_storeu_epi16(
            to.row(column + j) + first, padded < 32 ? (1u << padded) - 1 : ~0u,
            reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(block[1][j], block[0][j])));
    }
}

// Up to 32 tokens x 32 columns in four tiles, summed over all rows before they leave them.
constexpr int kGradient = 4, kPanel = 6;  // tiles; sums are 2 * tokens' tile + columns' half
constexpr std::int64_t kDepth = 32;       // rows of a product

struct GradientShape {
  std::int64_t tokens = 0, rows = 0, columns = 0;  // at most 32 each
  bool operator==(const GradientShape&) const = default;
};
tiles::Shapes bf16_shapes(const GradientShape& of) {
  tiles::Shapes shapes;
  for (int i = 0; i < 2; ++i) {
    const std::int64_t tokens = of.tokens - 16 * i < 16 ? of.tokens - 16 * i : 16;
    const std::int64_t columns = of.columns - 16 * i < 16 ? of.columns - 16 * i : 16;
    if (tokens > 0) shapes.set(kGradient + i, tokens, 2 * of.rows);
    if (columns > 0) shapes.set(kPanel + i, of.rows / 2, 4 * columns);
    for (int half = 0; half < 2; ++half) {
      const std::int64_t width = of.columns - 16 * half < 16 ? of.columns - 16 * half : 16;
      if (tokens > 0 && width > 0) shapes.set(2 * i + half, tokens, 4 * width);
    }
  }
  return shapes;
}

// kTokens, kHalves: tiles of 16 tokens and of 16 columns.
template <int kTokenTiles, int kHalves>
void multiply_bf16_block(const std::int16_t* dy, std::int64_t stride, const std::int16_t* panel,
                         std::int64_t rows, std::int64_t depth, float* c, std::int64_t c_stride,
                         bool add) {
  const auto each = [&](const auto& of_tile) __attribute__((always_inline)) {
    of_tile.template operator()<0, 0>();
    if constexpr (kHalves > 1) of_tile.template operator()<0, 1>();
    if constexpr (kTokenTiles > 1) of_tile.template operator()<1, 0>();
    if constexpr (kTokenTiles > 1 && kHalves > 1) of_tile.template operator()<1, 1>();
  };
  const auto at = [&](int t, int half) { return c + 16 * (t * c_stride + half); };
  each([&]<int kT, int kHalf>() __attribute__((always_inline)) {
    if (add)
      tiles::load<2 * kT + kHalf>(at(kT, kHalf), 4 * c_stride);
    else
      tiles::zero<2 * kT + kHalf>();
  });
  // Where new sums will go, asked for in the first eight products: stores that waited for it took a
  // twentieth of a step. Old ones were loaded above.
  float* ahead = c;
  const float* const ahead_end = add ? c : c + 16 * kTokenTiles * c_stride;
  for (std::int64_t row = 0; row < rows; row += depth, panel += 32 * depth) {
    if (ahead < ahead_end)
      for (int i = 0; i < 4; ++i, ahead += c_stride) {
        __builtin_prefetch(ahead, 1);
        if constexpr (kHalves > 1) __builtin_prefetch(ahead + 16, 1);
      }
    const std::int16_t* next = dy + row + depth;
    tiles::load<kPanel>(panel, 128);
    if constexpr (kHalves > 1) tiles::load<kPanel + 1>(panel + 32, 128);
    tiles::load<kGradient>(dy + row, 2 * stride);
    if constexpr (kTokenTiles > 1) tiles::load<kGradient + 1>(dy + row + 16 * stride, 2 * stride);
    each([&]<int kT, int kHalf>() __attribute__((always_inline)) {
      tiles::dot_bf16<2 * kT + kHalf, kGradient + kT, kPanel + kHalf>();
      // The next product's numbers of as many tokens: a load that waits for the second-level cache
      // keeps the products waiting. A step is 1.02 to 1.05 times as fast.
      if constexpr (kHalf == kHalves - 1)
        for (int i = 0; i < 16; ++i, next += stride) {
          asm("" : "+r"(next));  // or GCC keeps 32 addresses
          __builtin_prefetch(next);
        }
    });
  }
  each([&]<int kT, int kHalf>() __attribute__((always_inline)) {
    tiles::store<2 * kT + kHalf>(at(kT, kHalf), 4 * c_stride);
  });
}

void multiply_each(const RoundedView& x, std::int64_t count, std::int64_t all_depth,
                   const std::int16_t* panels, std::int64_t panel_size, std::int64_t columns,
                   float* c, std::int64_t c_stride, bool add) {
  GradientShape shape{};
  const auto block = [&](std::int64_t token, std::int64_t column, std::int64_t first,
                         std::int64_t end, std::int64_t depth, bool add_block) {
    const std::int64_t tokens = count - token < 32 ? count - token : 32;
    const std::int64_t width = columns - column < 32 ? columns - column : 32;
    if (const GradientShape wanted{tokens, depth, width}; wanted != shape) {
      shape = wanted;
      tiles::configure(bf16_shapes(shape));
    }
    const auto multiply =
        tokens > 16 ? (width > 16 ? multiply_bf16_block<2, 2> : multiply_bf16_block<2, 1>)
                    : (width > 16 ? multiply_bf16_block<1, 2> : multiply_bf16_block<1, 1>);
    multiply(x.codes + token * x.stride + first, x.stride,
             panels + column / 32 * panel_size + 32 * first, end - first, depth,
             c + token * c_stride + column, c_stride, add_block);
  };
  const auto part = [&](std::int64_t first, std::int64_t end, std::int64_t depth, bool add_part) {
    for (std::int64_t column = 0; column < columns; column += 32)
      for (std::int64_t token = 0; token < count; token += 32)
        block(token, column, first, end, depth, add_part);
  };
  const std::int64_t whole = all_depth / kDepth * kDepth;
  if (whole > 0) part(0, whole, kDepth, add);
  if (whole < all_depth) part(whole, all_depth, all_depth - whole, add || whole > 0);
  tiles::release();
}

void multiply_panels(const RoundedView& rows, std::int64_t count, std::int64_t depth,
                     const RoundedPanels& panels, std::int64_t columns, float* c,
                     std::int64_t c_stride, bool add) {
  multiply_each(rows, count, depth, panels.codes, panels.size, columns, c, c_stride, add);
}

void multiply_bf16(const RoundedView& dy, const std::int16_t* panel, const float*,
                   std::int64_t rows, std::int64_t token_begin, std::int64_t token_end, float* c,
                   std::int64_t c_stride, int columns, bool add) {
  RoundedView from = dy;
  from.codes += token_begin * dy.stride;
  multiply_each(from, token_end - token_begin, rows, panel, 0, columns, c + token_begin * c_stride,
                c_stride, add);
}

constexpr Kernels make_parts() {
  Kernels k{};
  k.rounded = "bf16";
  k.round_row = round_row;
  k.unpack_columns_rounded = unpack_columns_bf16;
  k.unpack_rows_rounded = unpack_rows_bf16;
  k.unpack_weak_rounded = unpack_weak_bf16;
  k.multiply_rounded = multiply_bf16;
  k.multiply_panels = multiply_panels;
  k.panel_rows = 32;
  k.round_pairs = round_pairs;
  k.round_columns = round_columns;
  return k;
}

}  // namespace

constinit const Kernels kAmxBf16Parts = make_parts();

}  // namespace trimpot
