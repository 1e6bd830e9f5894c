// SPDX-License-Identifier: GPL-2.0-or-later
// The sums of the numbers of several vectors, side by side: a tree of shuffles adds up as many vectors as a vector has
// numbers with a third of the instructions that as many single sums take.

#ifndef HIENET_HORIZONTAL_SUMS_H
#define HIENET_HORIZONTAL_SUMS_H

#include "simd.h"

namespace hienet::HIENET_VARIANT {

#if defined(__AVX512F__)
/// Four sums of four numbers each: of a vector of four quarters, for each of four vectors.
INLINE static inline __m512 sums_of_quarters(__m512 a, __m512 b, __m512 c, __m512 d)
{
  const __m512 ab = _mm512_shuffle_ps(a, b, 0x44) + _mm512_shuffle_ps(a, b, 0xEE);
  const __m512 cd = _mm512_shuffle_ps(c, d, 0x44) + _mm512_shuffle_ps(c, d, 0xEE);
  return _mm512_shuffle_ps(ab, cd, 0x88) + _mm512_shuffle_ps(ab, cd, 0xDD);
}

/// Sums of N <= 16 vectors.
template <int N> INLINE static inline __m512 sums_of(const __m512 *v)
{
  const __m512 none = {};
  const auto halves = [&](int first) INLINE {
    if (first >= N) return none;
    const __m512 second = first + 4 < N ? v[first + 4] : none;
    return _mm512_shuffle_f32x4(v[first], second, 0x44) +
        _mm512_shuffle_f32x4(v[first], second, 0xEE);
  };
  __m512 quarters[4] = {};
  each<4>(4, [&](int k) INLINE {
    if (k >= N) return;
    const __m512 low = halves(k), high = halves(k + 8);
    quarters[k] = _mm512_shuffle_f32x4(low, high, 0x88) + _mm512_shuffle_f32x4(low, high, 0xDD);
  });
  return sums_of_quarters(quarters[0], quarters[1], quarters[2], quarters[3]);
}
#endif

#if defined(__AVX2__)
/// Sums of N <= 8 vectors.
template <int N> INLINE static inline __m256 sums_of(const __m256 *v)
{
  __m256 halves[4] = {};
  each<4>(4, [&](int k) INLINE {
    if (k >= N) return;
    const __m256 second = k + 4 < N ? v[k + 4] : __m256{};
    halves[k] =
        _mm256_permute2f128_ps(v[k], second, 0x20) + _mm256_permute2f128_ps(v[k], second, 0x31);
  });
  return _mm256_hadd_ps(_mm256_hadd_ps(halves[0], halves[1]), _mm256_hadd_ps(halves[2], halves[3]));
}
#endif

/// Write the sums of N vectors to `to`, which has room for whole vectors of them.
template <int N, typename T, typename Vector>
INLINE static inline void store_sums(T *to, const Vector *v)
{
  constexpr int WHOLE = sizeof(Vector) / sizeof(T);
  constexpr bool HAS_TREE = sizeof(T) == 4 && sizeof(Vector) >= 32;
  constexpr bool IN_TREE = HAS_TREE && (N > 2 || sizeof(Vector) < BYTES);
  if constexpr (HAS_TREE && N > WHOLE) {
    store_sums<WHOLE>(to, v);
    store_sums<N - WHOLE>(to + WHOLE, v + WHOLE);
  } else if constexpr (IN_TREE) {
    const auto sums = sums_of<N>(v);
    __builtin_memcpy(to, &sums, sizeof(sums));
  } else {
    each<N>(N, [&](int k) INLINE {
      to[k] = sum<T>(v[k]);
    });
  }
}

}    // namespace hienet::HIENET_VARIANT

#endif
