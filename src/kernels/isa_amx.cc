// AMX on top of AVX-512: int8 products of 16 tokens or more by tiles, with the bits of the other
// instruction sets.
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
  k.peak_int8 = {peak<true>, 4 * 16384};
  k.peak_rounded = {peak<false>, 4 * 8192};
  return k;
}

}  // namespace

constinit const Kernels kAmxParts = make_parts();

}  // namespace trimpot
