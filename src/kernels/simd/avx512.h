// AVX-512 (F, BW, DQ, VL) with VNNI.
// Operations as in scalar.h, whose results these equal bit for bit.
#pragma once

#include <immintrin.h>

#include <bit>
#include <cstdint>
#include <cstring>

#include "base/half.h"

namespace trimpot {

struct Avx512 {
  static constexpr const char* kName = "avx512";
  static constexpr int kMaxRowsF32 = 12;     // 12 rows x 2 tiles + 2 weights + 1 broadcast, of 32
  static constexpr int kMaxRowsOfTile = 16;  // what a step reads from memory serves 16 weak columns
  static constexpr int kMaxRowsI8 = 6;       // 6 rows x 2 tiles x (int32 + float) = 24 accumulators
  static constexpr int kMaxTiles = 2;
  static constexpr int kVectors = 32;
  static constexpr bool kRoundedProducts = true;  // twice as many a second as f32's
  static constexpr bool kByteProducts = true;
  static constexpr int kMaxRowsRounded = 12, kHalvesRounded = 2;
  static constexpr bool kUnpacksForMany = true;
  static constexpr bool kPairsOfCodes = true;  // 16 vectors of codes fit the registers
  static constexpr bool kWeakForMany = true;
  static constexpr bool kWholeSums = true;
  template <int kBits>
  static constexpr int kPasses = 1;

  using F = __m512;
  // As __m512i, which are 8 lanes, GCC 12 copies each of a product's sums to another register and
  // to the stack at every step: 3.1 instead of 6.2 G products/s with 24 sums.
  typedef std::int32_t Int32 __attribute__((vector_size(64)));
  struct I {
    Int32 v;
    operator __m512i() const { return reinterpret_cast<__m512i>(v); }
    I(__m512i bits) : v(reinterpret_cast<Int32>(bits)) {}
    I() = default;
  };
  struct B {
    __m512i v;
  };

  static F zero() { return _mm512_setzero_ps(); }
  static F set(float value) { return _mm512_set1_ps(value); }
  static F load(const float* from) { return _mm512_loadu_ps(from); }
  static F load(const f16* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static F load(const std::int8_t* from) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
  }
  static F load_bf16(const bf16* from) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static __mmask16 first(int count) { return static_cast<__mmask16>((1u << count) - 1); }
  static F load_first(const float* from, int count) {
    return _mm512_maskz_loadu_ps(first(count), from);
  }
  static F load_first(const f16* from, int count) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count), from));
  }
  static void store(float* to, F a) { _mm512_storeu_ps(to, a); }
  static void store(f16* to, F a) {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(a, kNearest));
  }
  static void store_first(float* to, F a, int count) { _mm512_mask_storeu_ps(to, first(count), a); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F abs(F a) { return _mm512_abs_ps(a); }
  static F round(F a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static F unless_below(F a, F least, F then) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, least, _CMP_NLT_UQ), then);
  }
  static F scale_by_power(F a, F n) { return _mm512_scalef_ps(a, n); }
  static float sum(F a) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
  static F swap_pairs(F a) { return _mm512_permute_ps(a, 0xb1); }
  static float highest(F a) { return _mm512_reduce_max_ps(a); }

  static I zero_int() { return {_mm512_setzero_si512()}; }
  static I set_int(std::int32_t value) { return {_mm512_set1_epi32(value)}; }
  static I add(I a, I b) { return {_mm512_add_epi32(a, b)}; }
  static I sub(I a, I b) { return {_mm512_sub_epi32(a, b)}; }
  static F to_float(I a) { return _mm512_cvtepi32_ps(a); }
  static I store_int8(std::int8_t* to, F a, F b) {
    const __m512i low = _mm512_cvtps_epi32(a), high = _mm512_cvtps_epi32(b);
    const __m256i bytes = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm512_cvtepi32_epi8(low)),
                                                  _mm512_cvtepi32_epi8(high), 1);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes);
    return _mm512_add_epi32(low, high);
  }
  // Lane i of the result comes from v[i]: in four rounds two halves of two vectors become one.
  template <class Reduce>
  static __m512 reduce_each(const __m512* v, Reduce reduce) {
    __m512 eight[8], four[4], two[2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const __m512 a = v[i % 4 + i / 4 * 8], b = v[i % 4 + i / 4 * 8 + 4];
      eight[i] = reduce(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      four[i] = reduce(_mm512_shuffle_f32x4(eight[i], eight[i + 4], 0x88),
                       _mm512_shuffle_f32x4(eight[i], eight[i + 4], 0xdd));
    for (int i = 0; i < 2; ++i)
      two[i] = reduce(_mm512_unpacklo_ps(four[2 * i], four[2 * i + 1]),
                      _mm512_unpackhi_ps(four[2 * i], four[2 * i + 1]));
    return reduce(_mm512_shuffle_ps(two[0], two[1], 0x44), _mm512_shuffle_ps(two[0], two[1], 0xee));
  }
  static F highest_of_each(const F* v) {
    return reduce_each(v, [](__m512 a, __m512 b) { return _mm512_max_ps(a, b); });
  }
  static I sum_of_each(const I* v) {
    const auto add = [](__m512 a, __m512 b) {
      return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
    };
    return _mm512_castps_si512(reduce_each(reinterpret_cast<const __m512*>(v), add));
  }
  static void store(std::int32_t* to, I a) { _mm512_storeu_si512(to, a); }

  static void store_bytes(std::uint8_t* to, B a) { _mm512_storeu_si512(to, a.v); }
  static B load_bytes(const std::uint8_t* from) { return {_mm512_loadu_si512(from)}; }
  static B broadcast4(const std::int8_t* from) {
    std::int32_t four;
    std::memcpy(&four, from, 4);
    return {_mm512_set1_epi32(four)};
  }
  static B low_nibbles(B a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(0x0f))}; }
  static B high_nibbles(B a) { return low_nibbles({_mm512_srli_epi16(a.v, 4)}); }
  template <int kFrom, int kCount>
  static B field(B a) {
    const __m512i moved = kFrom > 0 ? _mm512_srli_epi16(a.v, kFrom) : a.v;
    return {_mm512_and_si512(moved, _mm512_set1_epi8((1 << kCount) - 1))};
  }
  template <int kBit, int kTo>
  static B move_bit(B a) {
    const __m512i moved = kBit <= kTo ? _mm512_slli_epi16(a.v, kBit <= kTo ? kTo - kBit : 0)
                                      : _mm512_srli_epi16(a.v, kBit > kTo ? kBit - kTo : 0);
    return {_mm512_and_si512(moved, _mm512_set1_epi8(1 << kTo))};
  }
  static B bit_or(B a, B b) { return {_mm512_or_si512(a.v, b.v)}; }
  static B lookup(const std::uint8_t* table, B a) {
    const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(entries), a.v)};
  }
  template <int kBits, int kPass>
  static constexpr bool takes(int) {
    return true;
  }
  template <int kBits, int kPass>
  static B part(B codes) {
    return codes;
  }
  static I dot(I acc, B codes, B activations) {
    return {_mm512_dpbusd_epi32(acc, codes.v, activations.v)};
  }
  template <int kBits, int kPass>
  static I total(I acc) {
    return acc;
  }
  template <int kByte>
  static F byte_to_float(B a) {
    const __m512i moved = _mm512_srli_epi32(a.v, 8 * kByte);
    return _mm512_cvtepi32_ps(kByte == 3 ? moved : _mm512_and_si512(moved, _mm512_set1_epi32(255)));
  }
  template <int kByte>
  static F byte_to_entry(const float* table, B a) {
    // A permutation looks at the low 4 bits of an index.
    return _mm512_permutexvar_ps(_mm512_srli_epi32(a.v, 8 * kByte), _mm512_loadu_ps(table));
  }
  static void store_int16(std::int16_t* to, F a, F b) {  // 32 numbers
    const __m512i lanes = _mm512_packs_epi32(_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b));
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    _mm512_storeu_si512(to, _mm512_permutexvar_epi64(order, lanes));
  }
  // The bits of magnitudes: those of numbers are in their order, infinity and NaN above them.
  static I max_bits(I most, F a) {
    return _mm512_max_epi32(
        most, _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fffffff)));
  }
  static float highest_bits(I most) { return std::bit_cast<float>(_mm512_reduce_max_epi32(most)); }
  // Pairs of neighbouring rows (2i, 2i+1), interleaved per column: the operand of dot_pairs.
  static void store_int16_pairs(std::int16_t* to, F even, F odd) {
    const __m512i high = _mm512_slli_epi32(_mm512_cvtps_epi32(odd), 16);
    _mm512_storeu_si512(to, _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_cvtps_epi32(even), high));
  }
  // Four neighbouring rows of numbers from 0 to 255, interleaved per column: the operand of dot().
  static void store_byte_rows(std::uint8_t* to, F a, F b, F c, F d) {
    const auto at = [](F row, int bits) {
      return _mm512_slli_epi32(_mm512_cvtps_epi32(row), bits);
    };
    const __m512i low = _mm512_or_si512(_mm512_cvtps_epi32(a), at(b, 8));
    _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_or_si512(at(c, 16), at(d, 24))));
  }
  static std::int32_t sum_int(I a) { return _mm512_reduce_add_epi32(a); }
  template <int kWhich>
  static __m512i shuffle_lanes(__m512i a, __m512i b) {
    return _mm512_castps_si512(
        _mm512_shuffle_f32x4(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), kWhich));
  }
  // From the 8 steps of a chunk, [16 rows][4 columns] each: the codes of rows 2p and 2p + 1 in
  // columns 16 h .. 16 h + 15 as bytes 0 and 3 of each lane of pairs[2 p + h]; the others are 0.
  static void row_pairs(const B (&step)[8], B (&pairs)[16]) {
    // Two rows of a step are 8 bytes. Steps l and l + 4 next to each other, for every other pair.
    __m512i both[2][4];
#pragma GCC unroll 4
    for (int l = 0; l < 4; ++l) {
      both[0][l] = _mm512_unpacklo_epi64(step[l].v, step[l + 4].v);
      both[1][l] = _mm512_unpackhi_epi64(step[l].v, step[l + 4].v);
    }
    const __m512i low = _mm512_set4_epi32(0x07808003, 0x06808002, 0x05808001, 0x04808000);
    const __m512i high = _mm512_set4_epi32(0x0f80800b, 0x0e80800a, 0x0d808009, 0x0c808008);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m512i* of = both[h];  // lane p / 2 of each has pair p
      const __m512i a = shuffle_lanes<0x44>(of[0], of[1]), b = shuffle_lanes<0x44>(of[2], of[3]);
      const __m512i c = shuffle_lanes<0xee>(of[0], of[1]), d = shuffle_lanes<0xee>(of[2], of[3]);
      const __m512i pair[4] = {shuffle_lanes<0x88>(a, b), shuffle_lanes<0xdd>(a, b),
                               shuffle_lanes<0x88>(c, d), shuffle_lanes<0xdd>(c, d)};
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        pairs[4 * i + 2 * h] = {_mm512_shuffle_epi8(pair[i], low)};
        pairs[4 * i + 2 * h + 1] = {_mm512_shuffle_epi8(pair[i], high)};
      }
    }
  }
  // acc[i] += pairs[2i] * two[0] + pairs[2i+1] * two[1]
  static I dot_pairs(I acc, const std::int16_t* pairs, const std::int16_t* two) {
    std::int32_t both;
    std::memcpy(&both, two, 4);
    return {_mm512_dpwssd_epi32(acc, _mm512_loadu_si512(pairs), _mm512_set1_epi32(both))};
  }

  // 16 x 16 floats in four rounds of shuffles.
  static void transpose(F* r) {
    F t[16];
    for (int i = 0; i < 16; i += 4) {
      const F a = _mm512_unpacklo_ps(r[i], r[i + 1]), b = _mm512_unpackhi_ps(r[i], r[i + 1]);
      const F c = _mm512_unpacklo_ps(r[i + 2], r[i + 3]),
              d = _mm512_unpackhi_ps(r[i + 2], r[i + 3]);
      t[i] = _mm512_shuffle_ps(a, c, 0x44);
      t[i + 1] = _mm512_shuffle_ps(a, c, 0xee);
      t[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
      t[i + 3] = _mm512_shuffle_ps(b, d, 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      const F a = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x88);
      const F b = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd);
      const F c = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0x88);
      const F d = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0xdd);
      r[i] = _mm512_shuffle_f32x4(a, c, 0x88);
      r[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
      r[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
      r[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
  }
};

}  // namespace trimpot
