// AVX2, FMA and F16C, with or without AVX-VNNI: products of bytes and of 16-bit numbers that are
// added to 32-bit sums in one instruction. Operations as in scalar.h, whose results these equal bit
// for bit.
#pragma once

#include <immintrin.h>

#include <bit>
#include <cstdint>
#include <cstring>

#include "base/half.h"

namespace trimpot {

template <bool kVnni>
struct Avx2Lanes {
  static constexpr const char* kName = kVnni ? "avxvnni" : "avx2";
  // A tile is 2 of 16 registers: 6 rows take 12, beside 2 weights and a broadcast.
  static constexpr int kMaxRowsF32 = 6;
  static constexpr int kMaxRowsOfTile = 6;
  // With AVX-VNNI 12 sums hide the 5 cycles that each waits for itself, and no temporaries are
  // left.
  static constexpr int kMaxRowsI8 = kVnni ? 6 : 4;
  static constexpr int kMaxTiles = 1;
  static constexpr int kVectors = 8;  // of 16 lanes
  // 16 products and an addition for each two vectors take 0.69 of the time of f32's (Zen 3).
  static constexpr bool kRoundedProducts = true;
  static constexpr bool kByteProducts = false;  // AVX2's sums of bytes overflow 16 bits
  static constexpr int kMaxRowsRounded = 6, kHalvesRounded = 1;
  static constexpr bool kUnpacksForMany = true;
  static constexpr bool kPairsOfCodes = false;  // 16 vectors of codes fit the registers
  static constexpr bool kWeakForMany = false;
  static constexpr bool kWholeSums = kVnni;
  template <int kBits>
  static constexpr int kPasses = kBits > 4 && !kVnni ? 2 : 1;

  struct F {
    __m256 low, high;
  };
  struct I {
    __m256i low, high;
  };
  struct B {
    __m256i low, high;
  };

  static F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static F set(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
  static F load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
  static F load(const f16* from) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))),
            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 8)))};
  }
  static F load(const std::int8_t* from) {
    const auto widen = [](const std::int8_t* eight) {
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(eight));
      return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    };
    return {widen(from), widen(from + 8)};
  }
  static F load_bf16(const bf16* from) {
    const auto widen = [](const bf16* half) {
      const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(half));
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
    };
    return {widen(from), widen(from + 8)};
  }
  static F load_first(const float* from, int count) {
    float lanes[16] = {};
    for (int i = 0; i < count; ++i) lanes[i] = from[i];
    return load(lanes);
  }
  static F load_first(const f16* from, int count) {
    f16 lanes[16] = {};
    for (int i = 0; i < count; ++i) lanes[i] = from[i];
    return load(lanes);
  }
  static void store(float* to, F a) {
    _mm256_storeu_ps(to, a.low);
    _mm256_storeu_ps(to + 8, a.high);
  }
  static void store(f16* to, F a) {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(a.low, kNearest));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 8), _mm256_cvtps_ph(a.high, kNearest));
  }
  static void store_first(float* to, F a, int count) {
    float lanes[16];
    store(lanes, a);
    for (int i = 0; i < count; ++i) to[i] = lanes[i];
  }
  static F add(F a, F b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
  static F sub(F a, F b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
  static F mul(F a, F b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
  static F div(F a, F b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
  static F fma(F a, F b, F c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  static F max(F a, F b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
  static F min(F a, F b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
  static F abs(F a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
  }
  static F round(F a) {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.low, kNearest), _mm256_round_ps(a.high, kNearest)};
  }
  static F unless_below(F a, F least, F then) {
    return {_mm256_and_ps(_mm256_cmp_ps(a.low, least.low, _CMP_NLT_UQ), then.low),
            _mm256_and_ps(_mm256_cmp_ps(a.high, least.high, _CMP_NLT_UQ), then.high)};
  }
  static F scale_by_power(F a, F n) {
    const auto power = [](__m256i exponent) {
      const __m256i biased = _mm256_add_epi32(exponent, _mm256_set1_epi32(127));
      return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
    };
    const auto scaled = [&](__m256 x, __m256 by) {
      const __m256i whole = _mm256_cvtps_epi32(by), half = _mm256_srai_epi32(whole, 1);
      return _mm256_mul_ps(_mm256_mul_ps(x, power(half)), power(_mm256_sub_epi32(whole, half)));
    };
    return {scaled(a.low, n.low), scaled(a.high, n.high)};
  }
  static float sum(F a) {
    const __m256 eight = _mm256_add_ps(a.low, a.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
  static F swap_pairs(F a) {
    return {_mm256_permute_ps(a.low, 0xb1), _mm256_permute_ps(a.high, 0xb1)};
  }
  static float highest(F a) {
    const __m256 eight = _mm256_max_ps(a.low, a.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
  }

  static I zero_int() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static I set_int(std::int32_t value) {
    return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)};
  }
  static I add(I a, I b) {
    return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
  }
  static I sub(I a, I b) {
    return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)};
  }
  static F to_float(I a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
  static I store_int8(std::int8_t* to, F a, F b) {
    // Packing keeps to the halves of its operands: fours of codes come out as 0 2 4 6 1 3 5 7.
    const __m256i words_a =
        _mm256_packs_epi32(_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high));
    const __m256i words_b =
        _mm256_packs_epi32(_mm256_cvtps_epi32(b.low), _mm256_cvtps_epi32(b.high));
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words_a, words_b),
                                                      _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
    const __m256i quads = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    return {quads, _mm256_setzero_si256()};
  }
  static F highest_of_each(const F* v) {
    float lanes[16];
    for (int i = 0; i < 16; ++i) lanes[i] = highest(v[i]);
    return load(lanes);
  }
  static I sum_of_each(const I* v) {
    const auto eight = [](const I* of) {  // sums of four lanes: of[0], of[1], .. in each half
      const auto add = [](const I& a) { return _mm256_add_epi32(a.low, a.high); };
      const __m256i first = _mm256_hadd_epi32(_mm256_hadd_epi32(add(of[0]), add(of[1])),
                                              _mm256_hadd_epi32(add(of[2]), add(of[3])));
      const __m256i second = _mm256_hadd_epi32(_mm256_hadd_epi32(add(of[4]), add(of[5])),
                                               _mm256_hadd_epi32(add(of[6]), add(of[7])));
      return _mm256_add_epi32(_mm256_permute2x128_si256(first, second, 0x20),
                              _mm256_permute2x128_si256(first, second, 0x31));
    };
    return {eight(v), eight(v + 8)};
  }
  static void store(std::int32_t* to, I a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), a.low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 8), a.high);
  }

  static B load_bytes(const std::uint8_t* from) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 32))};
  }
  static void store_bytes(std::uint8_t* to, B a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), a.low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 32), a.high);
  }
  static B broadcast4(const std::int8_t* from) {
    std::int32_t four;
    std::memcpy(&four, from, 4);
    return {_mm256_set1_epi32(four), _mm256_set1_epi32(four)};
  }
  static B low_nibbles(B a) {
    const __m256i mask = _mm256_set1_epi8(0x0f);
    return {_mm256_and_si256(a.low, mask), _mm256_and_si256(a.high, mask)};
  }
  static B high_nibbles(B a) {
    return low_nibbles({_mm256_srli_epi16(a.low, 4), _mm256_srli_epi16(a.high, 4)});
  }
  template <int kFrom, int kCount>
  static B field(B a) {
    const auto take = [](__m256i v) {
      return _mm256_and_si256(kFrom > 0 ? _mm256_srli_epi16(v, kFrom) : v,
                              _mm256_set1_epi8((1 << kCount) - 1));
    };
    return {take(a.low), take(a.high)};
  }
  template <int kBit, int kTo>
  static B move_bit(B a) {
    const __m256i mask = _mm256_set1_epi8(1 << kTo);
    const auto move = [](__m256i v) {
      return kBit <= kTo ? _mm256_slli_epi16(v, kBit <= kTo ? kTo - kBit : 0)
                         : _mm256_srli_epi16(v, kBit > kTo ? kBit - kTo : 0);
    };
    return {_mm256_and_si256(move(a.low), mask), _mm256_and_si256(move(a.high), mask)};
  }
  static B bit_or(B a, B b) {
    return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)};
  }
  static B lookup(const std::uint8_t* table, B a) {
    const __m256i entries =
        _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
    return {_mm256_shuffle_epi8(entries, a.low), _mm256_shuffle_epi8(entries, a.high)};
  }
  // 16 bits hold 8 sums of 2 products of up to 4 bits, 8 * 2 * 15 * 127 = 30480, or 4 of 5 bits,
  // 4 * 2 * 31 * 127 = 31496: 32-bit lanes are made once per pass. 8 bits are two passes of 4.
  // AVX-VNNI needs no passes.
  template <int kBits, int kPass>
  static constexpr bool takes(int step) {
    return kVnni || kBits != 5 || step / 4 == kPass;
  }
  template <int kBits, int kPass>
  static B part(B codes) {
    if constexpr (kVnni || kBits != 8) return codes;
    return kPass == 0 ? low_nibbles(codes) : high_nibbles(codes);
  }
  static I dot(I acc, B codes, B activations) {
    if constexpr (kVnni)
      return {_mm256_dpbusd_avx_epi32(acc.low, codes.low, activations.low),
              _mm256_dpbusd_avx_epi32(acc.high, codes.high, activations.high)};
    return {
        _mm256_add_epi16(acc.low, _mm256_maddubs_epi16(codes.low, activations.low)),
        _mm256_add_epi16(acc.high, _mm256_maddubs_epi16(codes.high, activations.high)),
    };
  }
  template <int kBits, int kPass>
  static I total(I acc) {
    if constexpr (kVnni) return acc;
    const __m256i weight = _mm256_set1_epi16(kBits == 8 && kPass == 1 ? 16 : 1);
    return {_mm256_madd_epi16(acc.low, weight), _mm256_madd_epi16(acc.high, weight)};
  }
  template <int kByte>
  static F byte_to_float(B a) {
    const auto pick = [](__m256i v) {
      const __m256i byte =
          _mm256_and_si256(_mm256_srli_epi32(v, 8 * kByte), _mm256_set1_epi32(255));
      return _mm256_cvtepi32_ps(byte);
    };
    return {pick(a.low), pick(a.high)};
  }
  template <int kByte>
  static F byte_to_entry(const float* table, B a) {
    const __m256 first = _mm256_loadu_ps(table), second = _mm256_loadu_ps(table + 8);
    const auto pick = [&](__m256i v) {
      // Permutations look at 3 bits of an index; the fourth, as a sign, chooses between halves.
      const __m256i index = _mm256_srli_epi32(v, 8 * kByte);
      return _mm256_blendv_ps(_mm256_permutevar8x32_ps(first, index),
                              _mm256_permutevar8x32_ps(second, index),
                              _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
    };
    return {pick(a.low), pick(a.high)};
  }
  static void store_int16(std::int16_t* to, F a, F b) {  // 32 numbers
    const auto pack = [](std::int16_t* half, F of) {
      const __m256i lanes =
          _mm256_packs_epi32(_mm256_cvtps_epi32(of.low), _mm256_cvtps_epi32(of.high));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(half), _mm256_permute4x64_epi64(lanes, 0xd8));
    };
    pack(to, a);
    pack(to + 16, b);
  }
  // The bits of magnitudes: those of numbers are in their order, infinity and NaN above them.
  static I max_bits(I most, F a) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    const auto larger = [&](__m256i old, __m256 of) {
      return _mm256_max_epi32(old, _mm256_and_si256(_mm256_castps_si256(of), magnitude));
    };
    return {larger(most.low, a.low), larger(most.high, a.high)};
  }
  static float highest_bits(I most) {
    const __m256i eight = _mm256_max_epi32(most.low, most.high);
    const __m128i four =
        _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return std::bit_cast<float>(_mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1))));
  }
  // Pairs of neighbouring rows (2i, 2i+1), interleaved per column: the operand of dot_pairs.
  static void store_int16_pairs(std::int16_t* to, F even, F odd) {
    const auto pair = [](std::int16_t* half, __m256 low, __m256 high) {
      const __m256i above = _mm256_slli_epi32(_mm256_cvtps_epi32(high), 16);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(half),
                          _mm256_blend_epi16(_mm256_cvtps_epi32(low), above, 0xaa));
    };
    pair(to, even.low, odd.low);
    pair(to + 16, even.high, odd.high);
  }
  // From the 8 steps of a chunk, [16 rows][4 columns] each: the codes of rows 2p and 2p + 1 in
  // columns 16 h .. 16 h + 15 as bytes 0 and 3 of each lane of pairs[2 p + h]; the others are 0.
  static void row_pairs(const B (&step)[8], B (&pairs)[16]) {
    __m256 rows[16];  // of 8 steps, 4 codes each: 32 columns
    for (int i = 0; i < 8; ++i) {
      rows[i] = _mm256_castsi256_ps(step[i].low);
      rows[8 + i] = _mm256_castsi256_ps(step[i].high);
    }
    transpose8([&](int row) -> __m256& { return rows[row]; });
    transpose8([&](int row) -> __m256& { return rows[8 + row]; });
    for (int p = 0; p < 8; ++p) {
      const __m256i even = _mm256_castps_si256(rows[2 * p]),
                    odd = _mm256_castps_si256(rows[2 * p + 1]);
      const auto of = [](__m128i low, __m128i high) {
        return _mm256_or_si256(_mm256_cvtepu8_epi32(low),
                               _mm256_slli_epi32(_mm256_cvtepu8_epi32(high), 24));
      };
      const auto half = [&](__m128i a, __m128i b) -> B {
        return {of(a, b), of(_mm_srli_si128(a, 8), _mm_srli_si128(b, 8))};
      };
      pairs[2 * p] = half(_mm256_castsi256_si128(even), _mm256_castsi256_si128(odd));
      pairs[2 * p + 1] = half(_mm256_extracti128_si256(even, 1), _mm256_extracti128_si256(odd, 1));
    }
  }
  // acc[i] += pairs[2i] * two[0] + pairs[2i+1] * two[1]
  static I dot_pairs(I acc, const std::int16_t* pairs, const std::int16_t* two) {
    std::int32_t both;
    std::memcpy(&both, two, 4);
    const __m256i factor = _mm256_set1_epi32(both);
    const auto load = [](const std::int16_t* from) {
      return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    };
    if constexpr (kVnni)
      return {_mm256_dpwssd_avx_epi32(acc.low, load(pairs), factor),
              _mm256_dpwssd_avx_epi32(acc.high, load(pairs + 16), factor)};
    const __m256i low = _mm256_madd_epi16(load(pairs), factor),
                  high = _mm256_madd_epi16(load(pairs + 16), factor);
    // Sums stay in their registers. GCC would copy each for every step, and of 6 x 2 some to the
    // stack: 45 instead of 72 G multiply-adds/s.
    asm("vpaddd %1, %0, %0" : "+x"(acc.low) : "x"(low));
    asm("vpaddd %1, %0, %0" : "+x"(acc.high) : "x"(high));
    return acc;
  }
  // Four blocks of 8 x 8, those off the diagonal change places.
  static void transpose(F* rows) {
    for (int i = 0; i < 16; i += 8) {
      transpose8([&](int row) -> __m256& { return rows[i + row].low; });
      transpose8([&](int row) -> __m256& { return rows[i + row].high; });
    }
    for (int i = 0; i < 8; ++i) {
      const __m256 high = rows[i].high;
      rows[i].high = rows[8 + i].low;
      rows[8 + i].low = high;
    }
  }

 private:
  template <class Row>
  static void transpose8(Row row) {
    __m256 pairs[8], fours[8];
    for (int i = 0; i < 8; i += 2) {
      pairs[i] = _mm256_unpacklo_ps(row(i), row(i + 1));
      pairs[i + 1] = _mm256_unpackhi_ps(row(i), row(i + 1));
    }
    for (int i = 0; i < 8; i += 4)
      for (int j = 0; j < 2; ++j) {
        fours[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0x44);
        fours[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0xee);
      }
    for (int i = 0; i < 4; ++i) {
      row(i) = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
      row(i + 4) = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
    }
  }
};
using Avx2 = Avx2Lanes<false>;
using AvxVnni = Avx2Lanes<true>;

}  // namespace trimpot
