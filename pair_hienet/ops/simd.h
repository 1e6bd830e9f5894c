// SPDX-License-Identifier: GPL-2.0-or-later
// Vectors of the instruction set that the including file is compiled for. `a * b + c` on them is one instruction where
// the processor has it.
//
// Everything is static or in the variant's namespace, and nothing of the standard library is instantiated: the linker
// must never take code for one instruction set into another.

#ifndef HIENET_SIMD_H
#define HIENET_SIMD_H

#include <cstdint>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

// Inlined at once, so that accumulators become registers.
#define INLINE __attribute__((always_inline))

namespace hienet::HIENET_VARIANT {

#if defined(__AVX512F__)
constexpr int BYTES = 64;
constexpr int REGISTERS = 32;
constexpr int VECTORS = 2;          // of channels in one block
constexpr int ACCUMULATORS = 25;    // in sums of products
#elif defined(__AVX2__)
constexpr int BYTES = 32;
constexpr int REGISTERS = 16;
constexpr int VECTORS = 1;
constexpr int ACCUMULATORS = 9;
#else
constexpr int BYTES = 16;
constexpr int REGISTERS = 16;
constexpr int VECTORS = 1;
constexpr int ACCUMULATORS = 9;
#endif

template <typename T> struct Vector;
template <> struct Vector<float> {
  typedef float Type __attribute__((vector_size(BYTES)));
  typedef float Unaligned __attribute__((vector_size(BYTES), aligned(4), may_alias));
};
template <> struct Vector<double> {
  typedef double Type __attribute__((vector_size(BYTES)));
  typedef double Unaligned __attribute__((vector_size(BYTES), aligned(8), may_alias));
};
template <typename T> using V = typename Vector<T>::Type;
template <typename T> constexpr int64_t WIDTH = BYTES / sizeof(T);

template <typename T> static inline V<T> load(const T *p)
{ return *reinterpret_cast<const typename Vector<T>::Unaligned *>(p); }

template <typename T> static inline void store(T *p, V<T> v)
{ *reinterpret_cast<typename Vector<T>::Unaligned *>(p) = v; }

// The first n numbers only; the others are zero, or left as they are.
#if defined(__AVX512F__)
static inline V<float> load_first(const float *p, int64_t n)
{ return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p); }
static inline V<double> load_first(const double *p, int64_t n)
{ return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1u), p); }
static inline void store_first(float *p, V<float> v, int64_t n)
{ _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), v); }
static inline void store_first(double *p, V<double> v, int64_t n)
{ _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1u), v); }
#elif defined(__AVX2__)
static inline __m256i lanes(float, int64_t n)
{
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline __m256i lanes(double, int64_t n)
{ return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3)); }
static inline V<float> load_first(const float *p, int64_t n)
{ return _mm256_maskload_ps(p, lanes(0.0f, n)); }
static inline V<double> load_first(const double *p, int64_t n)
{ return _mm256_maskload_pd(p, lanes(0.0, n)); }
static inline void store_first(float *p, V<float> v, int64_t n)
{ _mm256_maskstore_ps(p, lanes(0.0f, n), v); }
static inline void store_first(double *p, V<double> v, int64_t n)
{ _mm256_maskstore_pd(p, lanes(0.0, n), v); }
#else
template <typename T> static inline V<T> load_first(const T *p, int64_t n)
{
  V<T> v = {};
  for (int64_t i = 0; i < n; i++) v[i] = p[i];
  return v;
}
template <typename T> static inline void store_first(T *p, V<T> v, int64_t n)
{
  for (int64_t i = 0; i < n; i++) p[i] = v[i];
}
#endif

/// All of a vector, or its first n numbers.
template <typename T, bool PARTIAL> static inline V<T> read(const T *p, int64_t n)
{
  if constexpr (PARTIAL)
    return load_first(p, n);
  else
    return load(p);
}

template <typename T, bool PARTIAL> static inline void write(T *p, V<T> v, int64_t n)
{
  if constexpr (PARTIAL)
    store_first(p, v, n);
  else
    store(p, v);
}

/// work<PARTIAL>(u, n) for every vector of `channels` numbers, u its first and n how many of it exist.
template <typename T, typename Work>
INLINE static inline void each_vector(int64_t channels, const Work &work)
{
  int64_t u = 0;
  for (; u + WIDTH<T> <= channels; u += WIDTH<T>) work.template operator()<false>(u, WIDTH<T>);
  if (u < channels) work.template operator()<true>(u, channels - u);
}

// In halves: v[i] + v[i + half].
#if defined(__AVX512F__)
// Left to itself the compiler goes through memory.
template <typename T> static inline T sum(V<T> v);
template <> inline float sum<float>(V<float> v)
{ return _mm512_reduce_add_ps(v); }
template <> inline double sum<double>(V<double> v)
{ return _mm512_reduce_add_pd(v); }
#else
template <typename T> static inline T sum(V<T> v)
{
  for (int64_t half = WIDTH<T> / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; i++) v[i] += v[i + half];
  return v[0];
}
#endif

template <int... I> struct Indices {};
template <int N, int... I> struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I> struct MakeIndices<0, I...> {
  using Type = Indices<I...>;
};

template <typename F, int... I> INLINE static inline void each_of(F &&f, Indices<I...>)
{ (f(I), ...); }

/// f(0) .. f(N-1) without a loop; with N = 0, f(0) .. f(n-1) in one.
template <int N, typename F> INLINE static inline void each(int n, F &&f)
{
  if constexpr (N > 0)
    each_of(f, typename MakeIndices<N>::Type());
  else
    for (int i = 0; i < n; i++) f(i);
}

}    // namespace hienet::HIENET_VARIANT

#endif
