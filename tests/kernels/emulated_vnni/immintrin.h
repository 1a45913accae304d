// AVX-VNNI for the tests of a CPU that has none: what simd/avx2.h uses of it, in AVX2.
#pragma once

#include_next <immintrin.h>

namespace emulated {

// acc + a0 b0 + .. + a3 b3 in each lane of 32 bits, a unsigned and b signed bytes. Pairs of bytes
// as 16-bit numbers, even and odd ones apart: no sum is cut off.
inline __m256i dpbusd(__m256i acc, __m256i a, __m256i b) {
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(a, _mm256_set1_epi16(255)),
                                         _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8));
  return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
}

inline __m256i dpwssd(__m256i acc, __m256i a, __m256i b) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b));
}

}  // namespace emulated

#define _mm256_dpbusd_avx_epi32 emulated::dpbusd
#define _mm256_dpwssd_avx_epi32 emulated::dpwssd
