// AVX-512 for the tests of a CPU that has none: what simd/avx512.h uses of <immintrin.h>, from
// SIMDe (Debian's libsimde-dev), and as loops what its version 0.7.4 gives no name.
#pragma once

#include_next <immintrin.h>
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

namespace emulated {

template <class To, int kLanes>
struct Lanes {
  To lane[kLanes];
};

template <class T, class V>
inline auto lanes_of(V v) {
  Lanes<T, sizeof(V) / sizeof(T)> lanes;
  __builtin_memcpy(&lanes, &v, sizeof v);
  return lanes;
}

template <class V, class T, int kLanes>
inline V vector_of(const Lanes<T, kLanes>& lanes) {
  static_assert(sizeof(V) == sizeof lanes);
  V v;
  __builtin_memcpy(&v, &lanes, sizeof v);
  return v;
}

// Lane by lane from one type of 16 numbers to another.
template <class To, class Out, class From, class In>
inline Out convert(In in) {
  const auto from = lanes_of<From>(in);
  Lanes<To, 16> to;
  for (int i = 0; i < 16; ++i) to.lane[i] = static_cast<To>(from.lane[i]);
  return vector_of<Out>(to);
}

inline __m512i join(__m256i low, __m256i high) {
  const Lanes<__m256i, 2> halves{{low, high}};
  return vector_of<__m512i>(halves);
}

template <class T, class V>
inline V load_some(unsigned mask, const void* from) {
  Lanes<T, 16> to{};
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) __builtin_memcpy(to.lane + i, static_cast<const T*>(from) + i, sizeof(T));
  return vector_of<V>(to);
}

inline void store_some(float* to, unsigned mask, __m512 a) {
  const auto lanes = lanes_of<float>(a);
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) to[i] = lanes.lane[i];
}

inline __m512 half_to_float(__m256i a) {
  const Lanes<__m256, 2> halves{{_mm256_cvtph_ps(_mm256_castsi256_si128(a)),
                                 _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1))}};
  return vector_of<__m512>(halves);
}

inline __m256i float_to_half(__m512 a) {
  const auto halves = lanes_of<__m256>(a);
  return _mm256_set_m128i(_mm256_cvtps_ph(halves.lane[1], 0), _mm256_cvtps_ph(halves.lane[0], 0));
}

inline __m512i round_to_int(__m512 a) {
  const auto halves = lanes_of<__m256>(a);
  return join(_mm256_cvtps_epi32(halves.lane[0]), _mm256_cvtps_epi32(halves.lane[1]));
}

inline float highest(__m512 a) {
  const auto lanes = lanes_of<float>(a);
  float most = lanes.lane[0];
  for (const float lane : lanes.lane) most = lane > most ? lane : most;
  return most;
}

inline int highest_int(__m512i a) {
  const auto lanes = lanes_of<int>(a);
  int most = lanes.lane[0];
  for (const int lane : lanes.lane) most = lane > most ? lane : most;
  return most;
}

inline int sum_int(__m512i a) {
  int sum = 0;
  for (const int lane : lanes_of<int>(a).lane) sum += lane;
  return sum;
}

template <class V>
inline void store_some_halves(void* to, unsigned mask, V a) {
  const auto lanes = lanes_of<short>(a);
  for (unsigned i = 0; i < sizeof(V) / 2; ++i)
    if (mask >> i & 1) __builtin_memcpy(static_cast<short*>(to) + i, &lanes.lane[i], 2);
}

inline __m256i to_bf16(__m512 a) {
  const auto from = lanes_of<unsigned>(a);
  Lanes<unsigned short, 16> to;
  for (int i = 0; i < 16; ++i) {
    const unsigned bits = from.lane[i];
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    to.lane[i] = nan ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  }
  return vector_of<__m256i>(to);
}

inline __m512i two_to_bf16(__m512 high, __m512 low) { return join(to_bf16(low), to_bf16(high)); }

inline __m512 permute_in_fours(__m512 a, int order) {
  const auto from = lanes_of<float>(a);
  Lanes<float, 16> to;
  for (int i = 0; i < 16; ++i) to.lane[i] = from.lane[(i & ~3) + (order >> (2 * (i & 3)) & 3)];
  return vector_of<__m512>(to);
}

inline __m512 pick_fours(__m512 a, __m512 b, int order) {
  const auto from_a = lanes_of<__m128>(a), from_b = lanes_of<__m128>(b);
  Lanes<__m128, 4> to;
  for (int i = 0; i < 4; ++i) to.lane[i] = (i < 2 ? from_a : from_b).lane[order >> (2 * i) & 3];
  return vector_of<__m512>(to);
}

// SIMDe multiplies by the power, which 32 bits may not hold.
inline __m512 scale_by_power(__m512 a, __m512 n) {
  auto lanes = lanes_of<float>(a);
  const auto powers = lanes_of<float>(n);
  for (int i = 0; i < 16; ++i)
    lanes.lane[i] = __builtin_ldexpf(lanes.lane[i], static_cast<int>(powers.lane[i]));
  return vector_of<__m512>(lanes);
}

}  // namespace emulated

// Macros of GCC's at -O0.
#undef _mm512_cvtps_ph
#undef _mm512_extractf32x8_ps
#undef _mm512_permute_ps
#undef _mm512_scalef_ps
#undef _mm512_shuffle_f32x4
#define _mm512_extractf32x8_ps(a, half) (emulated::lanes_of<__m256>(a).lane[half])
#define _mm512_reduce_max_ps emulated::highest
#define _mm512_reduce_max_epi32 emulated::highest_int
#define _mm512_reduce_add_epi32 emulated::sum_int
#define _mm256_maskz_loadu_epi16 emulated::load_some<short, __m256i>
#define _mm512_maskz_loadu_ps emulated::load_some<float, __m512>
#define _mm512_mask_storeu_ps emulated::store_some
#define _mm512_cvtepi32_epi16 emulated::convert<short, __m256i, int>
#define _mm512_cvtepi32_epi8 emulated::convert<signed char, __m128i, int>
#define _mm512_cvtepi32_ps emulated::convert<float, __m512, int>
#define _mm512_cvtepu16_epi32 emulated::convert<int, __m512i, unsigned short>
#define _mm512_cvtepu8_epi32 emulated::convert<int, __m512i, unsigned char>
#define _mm512_cvtepi8_epi32 emulated::convert<int, __m512i, signed char>
#define _mm512_cvtph_ps emulated::half_to_float
#define _mm512_cvtps_ph(a, rounding) emulated::float_to_half(a)
#define _mm512_cvtps_epi32 emulated::round_to_int
#define _mm512_permute_ps emulated::permute_in_fours
#define _mm512_scalef_ps emulated::scale_by_power
#define _mm512_shuffle_f32x4 emulated::pick_fours
#define _mm256_mask_storeu_epi16 emulated::store_some_halves
#define _mm512_mask_storeu_epi16 emulated::store_some_halves
#define _mm512_cvtneps_pbh emulated::to_bf16
#define _mm512_cvtne2ps_pbh emulated::two_to_bf16
