// AMX on top of AVX-512: products of 16 tokens or more by tiles. The int8 path gives the bits of
// the other instruction sets; input gradients are products of bf16.
//
// A product of two tiles takes 16 cycles whatever it sums: 16 x 16 outputs of a chunk are 8192
// multiply-adds where AVX-512 does 128 a cycle at most. But sums of a chunk have to leave the tile
// to be scaled, and tile stores and vector instructions wait for the tiles' products (measured on
// Granite Rapids: 17 cycles a product, 17 its store, 18 to scale it, one after the other).
#include "kernels/impl/codes.h"
#include "kernels/impl/int8.h"
#include "kernels/isa.h"
#include "kernels/simd/avx512.h"
#include "kernels/simd/tiles.h"

namespace trimpot {
namespace {

using S = Avx512;
using F = S::F;
using impl::Shift;

constexpr std::int64_t kTokens = kTiledTokens;
constexpr std::int64_t kChunkBytes = 512;  // 8 steps of 16 rows x 4 columns: a tile of codes
constexpr std::int64_t kMostChunks = 128;  // unpacked at a time: 4096 columns
constexpr std::int64_t kSums = 256;        // of one product

// Which tiles hold what: the same activations times the codes of two tiles of the matrix.
constexpr int kSum = 0, kInput = 4, kCodes = 6;

tiles::Shapes int8_shapes() {
  tiles::Shapes shapes;
  shapes.set(kInput, kTokens, 32);
  for (int i = 0; i < 2; ++i) {
    shapes.set(kSum + i, kTokens, 64);
    shapes.set(kCodes + i, 8, 64);
  }
  return shapes;
}

// A tile's codes as bytes, [chunks][8 steps][16 rows][4 columns], less the zero-point where the
// whole matrix has one: then they are signed, and the sums need no correction.
template <class C>
void unpack_bytes(const MatrixView& w, std::int64_t tile, std::uint8_t* bytes) {
  const __m512i zero = _mm512_set1_epi8(static_cast<char>(w.has_shifts() ? 0 : C::zero_point(w)));
  const std::uint8_t* codes = w.codes + tile * w.tile_bytes;
  for (std::int64_t chunk = 0; chunk < w.chunks; ++chunk, bytes += kChunkBytes)
    impl::for_each_step([&]<int kStep>() __attribute__((always_inline)) {
      const S::B step = C::template bytes<S, kStep>(codes + chunk * C::kBits * 64);
      S::store_bytes(bytes + 64 * kStep, {_mm512_sub_epi8(step.v, zero)});
    });
}

template <int kTiles>
void unpack_tiles(const MatrixView& w, std::int64_t tile, std::uint8_t* bytes) {
  impl::with_codes(w, [&]<class C>() {
    for (int n = 0; n < kTiles; ++n)
      unpack_bytes<C>(w, tile + n, bytes + n * w.chunks * kChunkBytes);
  });
}

// What multiplies a sum to make it one of levels: NF4's bytes are levels times a factor.
float byte_scale(const MatrixView& w) {
  return w.book == CodeBook::kNf4 ? impl::Nf4::kByteScale : 1.0f;
}

// Sum kOf of 16 tokens, in kInput, with a chunk of codes; kSigned where the zero-point is taken
// off.
template <int kOf, bool kSigned>
[[gnu::always_inline]] inline void multiply_chunk(const std::uint8_t* codes,
                                                  std::int32_t* product) {
  tiles::load<kCodes + kOf>(codes, 64);
  tiles::zero<kSum + kOf>();
  if constexpr (kSigned)
    tiles::dot_signed<kSum + kOf, kInput, kCodes + kOf>();
  else
    tiles::dot_unsigned<kSum + kOf, kInput, kCodes + kOf>();
  tiles::store<kSum + kOf>(product, 64);
}

[[gnu::always_inline]] inline F load_product(const std::int32_t* product, std::int64_t token) {
  return S::to_float({_mm512_load_si512(product + token * kTileRows)});
}

using Registers = F[kTokens];
[[gnu::always_inline]] inline void copy(const F* from, F* to) {
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t) to[t] = from[t];
}
[[gnu::always_inline]] inline void clear(F* to) {
  for (int t = 0; t < kTokens; ++t) to[t] = S::zero();
}

// Chunks whose products are taken before any of them is scaled: they stay in the first-level cache.
constexpr std::int64_t kPhase = 8;

// kTiles tiles of 16 rows for 16 tokens, by the formula of impl/int8.h. kSingle: a group is a
// chunk.
template <Shift kShift, bool kSingle, int kTiles>
struct Block {
  const MatrixView& w;
  const std::uint8_t* codes;  // unpacked, tiles behind each other
  const Int8Tile* x;          // [chunks]
  alignas(64) std::int32_t product[kTiles][kPhase][kSums];
  Registers sum[kTiles];

  Block(const MatrixView& w, const std::uint8_t* codes) : w(w), codes(codes) {}

  // All addresses are worked out first: a load between these would wait for the tile's store before
  // it, and the next products for the load (113 cycles a product and tile instead of 70).
  void multiply(std::int64_t chunk, std::int64_t count) {
    constexpr bool kSigned = kShift == Shift::kConstant;
    const std::int64_t next_tile = (kTiles - 1) * w.chunks * kChunkBytes;
    const std::uint8_t* from = codes + chunk * kChunkBytes;
    const Int8Tile* inputs = x + chunk;
    std::int32_t* to = product[0][0];
    for (const Int8Tile* end = inputs + count; inputs != end; ++inputs) {
      tiles::load<kInput>(inputs->codes, 32);
      multiply_chunk<0, kSigned>(from, to);
      if constexpr (kTiles == 2) multiply_chunk<1, kSigned>(from + next_tile, to + kPhase * kSums);
      from += kChunkBytes;
      to += kSums;
    }
  }

  // part[t] += x.scale * product of the chunk, which is number i of its phase
  [[gnu::always_inline]] void scale_input(int n, std::int64_t chunk, std::int64_t i, F* part) {
    const float* scales = x[chunk].scales;
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t)
      part[t] = S::fma(load_product(product[n][i], t), S::set(scales[t]), part[t]);
  }

  // value[t] += scale * part[t] and what zeros or offsets add to x_sums, those of the group
  [[gnu::always_inline]] void scale_group(std::int64_t tile, std::int64_t group,
                                          const float* x_sums, F* part, F* value) {
    const std::int64_t at = (tile * w.groups + group) * kTileRows;
    F scale = S::load(w.scales + at), shift = S::zero();
    if constexpr (kShift == Shift::kConstant) scale = S::mul(scale, S::set(byte_scale(w)));
    if constexpr (kShift == Shift::kZeros) shift = S::sub(S::zero(), S::load(w.zeros + at));
    if constexpr (kShift == Shift::kOffsets) shift = S::load(w.offsets + at);
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
      if constexpr (kShift == Shift::kZeros) part[t] = S::fma(shift, S::set(x_sums[t]), part[t]);
      value[t] = S::fma(part[t], scale, value[t]);
      if constexpr (kShift == Shift::kOffsets)
        value[t] = S::fma(shift, S::set(x_sums[t]), value[t]);
    }
  }

  void run_singles(std::int64_t tile) {
    for (std::int64_t chunk = 0; chunk < w.chunks; chunk += kPhase) {
      const std::int64_t count = w.chunks - chunk < kPhase ? w.chunks - chunk : kPhase;
      multiply(chunk, count);
      for (int n = 0; n < kTiles; ++n) {
        Registers value;
        copy(sum[n], value);
        for (std::int64_t i = 0; i < count; ++i) {
          Registers part;
          clear(part);
          scale_input(n, chunk + i, i, part);
          scale_group(tile + n, chunk + i, x[chunk + i].scaled_sums, part, value);
        }
        copy(value, sum[n]);
      }
    }
  }

  void run_groups(std::int64_t tile) {
    Registers part[kTiles];
    alignas(64) float x_sums[kTokens];
    for (std::int64_t group = 0; group < w.groups; ++group) {
      const std::int64_t begin = group * w.group_chunks, left = w.chunks - begin;
      const std::int64_t end = begin + (left < w.group_chunks ? left : w.group_chunks);
      F x_sum = S::zero();
      if constexpr (kShift != Shift::kConstant)
        for (std::int64_t i = begin; i < end; ++i) x_sum = S::add(x_sum, S::load(x[i].scaled_sums));
      S::store(x_sums, x_sum);
      for (auto& of_tile : part) clear(of_tile);
      for (std::int64_t chunk = begin; chunk < end; chunk += kPhase) {
        const std::int64_t count = end - chunk < kPhase ? end - chunk : kPhase;
        multiply(chunk, count);
        for (int n = 0; n < kTiles; ++n) {
          Registers value;
          copy(part[n], value);
          for (std::int64_t i = 0; i < count; ++i) scale_input(n, chunk + i, i, value);
          if (chunk + count < end)
            copy(value, part[n]);
          else
            scale_group(tile + n, group, x_sums, value, sum[n]);
        }
      }
    }
  }

  void run(std::int64_t tile) {
    for (auto& of_tile : sum) clear(of_tile);
    if constexpr (kSingle)
      run_singles(tile);
    else
      run_groups(tile);
  }
};

// Tokens [begin, end) of a product, and where they go.
struct Tokens {
  Int8View x;
  std::int64_t begin, end;
  float* y;
  std::int64_t y_stride;
  bool add;
};

// Those of 16 tokens from `first` on that are wanted.
void store_sums(const MatrixView& w, const Tokens& tokens, const F* sum, std::int64_t first,
                std::int64_t tile) {
  const std::int64_t row = tile * kTileRows, left = w.rows - row;
  const int rows = static_cast<int>(left < kTileRows ? left : kTileRows);
  const std::int64_t begin = first < tokens.begin ? tokens.begin - first : 0;
  const std::int64_t end = tokens.end - first < kTokens ? tokens.end - first : kTokens;
  float* to = tokens.y + (first + begin) * tokens.y_stride + row;
  for (std::int64_t t = begin; t < end; ++t, to += tokens.y_stride) {
    if (rows == kTileRows)
      S::store(to, tokens.add ? S::add(S::load(to), sum[t]) : sum[t]);
    else
      S::store_first(to, tokens.add ? S::add(S::load_first(to, rows), sum[t]) : sum[t], rows);
  }
}

template <Shift kShift, bool kSingle>
void linear_tiles(const MatrixView& w, const Tokens& tokens, std::int64_t tile,
                  std::int64_t tile_end) {
  alignas(64) std::uint8_t codes[2 * kMostChunks * kChunkBytes];
  const auto next = [&]<int kTiles>() {
    unpack_tiles<kTiles>(w, tile, codes);
    Block<kShift, kSingle, kTiles> block(w, codes);
    for (std::int64_t first = tokens.begin / kTokens * kTokens; first < tokens.end;
         first += kTokens) {
      block.x = tokens.x.tiles + first / kTokens * tokens.x.blocks;
      block.run(tile);
      for (int n = 0; n < kTiles; ++n) store_sums(w, tokens, block.sum[n], first, tile + n);
    }
    tile += kTiles;
  };
  while (tile + 2 <= tile_end) next.template operator()<2>();
  if (tile < tile_end) next.template operator()<1>();
}

void linear_int8(const MatrixView& w, const Int8View& x, std::int64_t token_begin,
                 std::int64_t token_end, std::int64_t tile_begin, std::int64_t tile_end,
                 const GroupArrays* of_token, const WeakPart* weak, float* y, std::int64_t y_stride,
                 bool add) {
  if (x.tiles == nullptr || token_end - token_begin < kTokens || of_token != nullptr ||
      weak != nullptr || w.chunks > kMostChunks)
    return kAvx512Kernels.linear_int8(w, x, token_begin, token_end, tile_begin, tile_end, of_token,
                                      weak, y, y_stride, add);
  const auto of_shift = [&]<Shift kShift>() {
    return w.group_chunks == 1 ? linear_tiles<kShift, true> : linear_tiles<kShift, false>;
  };
  const auto run = w.zeros != nullptr     ? of_shift.operator()<Shift::kZeros>()
                   : w.offsets != nullptr ? of_shift.operator()<Shift::kOffsets>()
                                          : of_shift.operator()<Shift::kConstant>();
  tiles::configure(int8_shapes());
  run(w, {x, token_begin, token_end, y, y_stride, add}, tile_begin, tile_end);
  tiles::release();
}

void quantize(const float* x, std::int64_t stride, std::int64_t columns, std::int64_t begin,
              std::int64_t end, const Int8View& out) {
  kAvx512Kernels.quantize(x, stride, columns, begin, end, out);
  if (out.tiles == nullptr) return;
  for (std::int64_t token = begin; token < end; ++token) {
    const Int8Block* from = out.row(token);
    Int8Tile* to = out.tiles + token / kTokens * out.blocks;
    const std::int64_t t = token % kTokens;
    for (std::int64_t i = 0; i < out.blocks; ++i) {
      __builtin_memcpy(to[i].codes[t], from[i].codes, sizeof from[i].codes);
      to[i].scales[t] = from[i].scale;
      to[i].scaled_sums[t] = from[i].scaled_sum;
    }
  }
}

// Products of bf16.

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

// Lanes of a column are rows, two of which become one 32-bit number: a transposition of 16 columns
// and their second half gives the pairs of rows.
void unpack_columns_bf16(const MatrixView& w, std::int64_t chunk, std::int64_t tile_begin,
                         std::int64_t tile_end, std::int16_t* panel, float*) {
  constexpr int kHalf = kChunkColumns / 2, kPairs = kTileRows / 2;
  for (std::int64_t tile = tile_begin; tile < tile_end; ++tile) {
    F values[kChunkColumns], pairs[kHalf];
    impl::unpack_chunk<S>(w, tile, chunk, false, values);
    for (int k = 0; k < kHalf; ++k)
      pairs[k] = reinterpret_cast<F>(_mm512_cvtne2ps_pbh(values[k + kHalf], values[k]));
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
  return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder),
                                  reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
}

// Lanes are rows already: two columns of one become its pair.
void unpack_rows_bf16(const MatrixView& w, std::int64_t chunk, std::int64_t chunk_end,
                      std::int64_t tile_begin, std::int64_t tile_end, std::int16_t* panel) {
  for (std::int64_t tile = tile_begin; tile < tile_end; ++tile) {
    std::int16_t* to = panel + (tile - tile_begin) * 2 * kTileRows;
    for (std::int64_t at = chunk; at < chunk_end; ++at) {
      F values[kChunkColumns];
      impl::unpack_chunk<S>(w, tile, at, false, values);
      for (int k = 0; k < kChunkColumns; k += 2, to += 4 * kTileRows)
        _mm512_storeu_si512(to, interleave_bf16(values[k], values[k + 1]));
    }
  }
}

void round_pairs(const float* rows, std::int64_t stride, std::int64_t count, int columns,
                 std::int16_t* panel) {
  for (std::int64_t row = 0; row < count; row += 2, panel += 2 * kChunkColumns)
    for (int column = 0; column < kChunkColumns; column += 16) {
      const float* from = rows + row * stride + column;
      const F even = load_some(from, columns - column);
      const F odd = row + 1 < count ? load_some(from + stride, columns - column) : S::zero();
      _mm512_storeu_si512(panel + 2 * column, interleave_bf16(even, odd));
    }
}

void round_columns(const float* rows, std::int64_t stride, std::int64_t count, std::int64_t columns,
                   std::int16_t* to) {
  for (std::int64_t column = 0; column < columns; column += 16) {
    const std::int64_t width = columns - column < 16 ? columns - column : 16;
    F block[2][16];
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 16; ++i) {
        const std::int64_t row = 16 * half + i;
        block[half][i] = row < count ? load_some(rows + row * stride + column, width) : S::zero();
      }
      S::transpose(block[half]);
    }
    for (std::int64_t j = 0; j < width; ++j)
      _mm512_storeu_ps(to + (column + j) * 32,
                       reinterpret_cast<F>(_mm512_cvtne2ps_pbh(block[1][j], block[0][j])));
  }
}

// Up to 32 tokens x 32 columns in four tiles, summed over all rows before they leave them.
constexpr int kGradient = 4, kPanel = 6;  // tiles; sums are 2 * tokens' tile + columns' half
constexpr std::int64_t kDepth = 32;       // rows of a product

struct GradientShape {
  std::int64_t tokens, rows, columns;  // at most 32 each
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
  for (std::int64_t row = 0; row < rows; row += depth, panel += 32 * depth) {
    tiles::load<kPanel>(panel, 128);
    if constexpr (kHalves > 1) tiles::load<kPanel + 1>(panel + 32, 128);
    tiles::load<kGradient>(dy + row, 2 * stride);
    if constexpr (kTokenTiles > 1) tiles::load<kGradient + 1>(dy + row + 16 * stride, 2 * stride);
    each([&]<int kT, int kHalf>() __attribute__((always_inline)) {
      tiles::dot_bf16<2 * kT + kHalf, kGradient + kT, kPanel + kHalf>();
    });
  }
  each([&]<int kT, int kHalf>() __attribute__((always_inline)) {
    tiles::store<2 * kT + kHalf>(at(kT, kHalf), 4 * c_stride);
  });
}

void multiply_bf16(const RoundedView& dy, const std::int16_t* panel, const float*,
                   std::int64_t rows, std::int64_t token_begin, std::int64_t token_end, float* c,
                   std::int64_t c_stride, int columns, bool add) {
  const auto part = [&](std::int64_t first, std::int64_t count, std::int64_t depth, bool add_part) {
    GradientShape shape{0, depth, columns};
    for (std::int64_t token = token_begin; token < token_end; token += 32) {
      const std::int64_t tokens = token_end - token < 32 ? token_end - token : 32;
      if (tokens != shape.tokens) {
        shape.tokens = tokens;
        tiles::configure(bf16_shapes(shape));
      }
      const auto multiply =
          tokens > 16 ? (columns > 16 ? multiply_bf16_block<2, 2> : multiply_bf16_block<2, 1>)
                      : (columns > 16 ? multiply_bf16_block<1, 2> : multiply_bf16_block<1, 1>);
      multiply(dy.codes + token * dy.stride + first, dy.stride, panel + 32 * first, count, depth,
               c + token * c_stride, c_stride, add_part);
    }
  };
  const std::int64_t whole = rows / kDepth * kDepth;
  if (whole > 0) part(0, whole, kDepth, add);
  if (whole < rows) part(whole, rows - whole, rows - whole, add || whole > 0);
  tiles::release();
}

// What a core can do at most: four tiles of sums.
template <bool kBytes>
float peak(std::int64_t rounds, float start) {
  alignas(64) float numbers[kSums];
  for (float& number : numbers) number = start;
  tiles::Shapes shapes;
  for (int i = 0; i < 8; ++i) shapes.set(i, 16, 64);
  tiles::configure(shapes);
  const auto fill = [&]<int... kTile>() {
    (tiles::zero<kTile>(), ...);
    (tiles::load<4 + kTile>(numbers, 64), ...);
  };
  fill.template operator()<0, 1, 2, 3>();
  for (std::int64_t round = 0; round < rounds; ++round) {
    if constexpr (kBytes) {
      tiles::dot_unsigned<0, 4, 6>();
      tiles::dot_unsigned<1, 4, 7>();
      tiles::dot_unsigned<2, 5, 6>();
      tiles::dot_unsigned<3, 5, 7>();
    } else {
      tiles::dot_bf16<0, 4, 6>();
      tiles::dot_bf16<1, 4, 7>();
      tiles::dot_bf16<2, 5, 6>();
      tiles::dot_bf16<3, 5, 7>();
    }
  }
  tiles::store<3>(numbers, 64);
  tiles::release();
  return numbers[0];
}

constexpr Kernels make_parts() {
  Kernels k{};
  k.name = "amx";
  k.tiled = true;
  k.quantize = quantize;
  k.linear_int8 = linear_int8;
  k.rounded = "bf16";
  k.round_row = round_row;
  k.unpack_columns_rounded = unpack_columns_bf16;
  k.unpack_rows_rounded = unpack_rows_bf16;
  k.multiply_rounded = multiply_bf16;
  k.round_pairs = round_pairs;
  k.round_columns = round_columns;
  k.peak_int8 = {peak<true>, 4 * 16384};
  k.peak_rounded = {peak<false>, 4 * 8192};
  return k;
}

}  // namespace

constinit const Kernels kAmxParts = make_parts();

}  // namespace trimpot
