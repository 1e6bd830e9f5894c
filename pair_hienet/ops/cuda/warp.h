// SPDX-License-Identifier: GPL-2.0-or-later
// Sums over the lanes of a warp, always in the same order.

#ifndef HIENET_CUDA_WARP_H
#define HIENET_CUDA_WARP_H

#include "kernel_language.h"

namespace hienet::cuda {

/// The sum of all lanes' numbers, in every lane.
template <typename T> __device__ __forceinline__ T warp_sum(T value)
{
  HIENET_UNROLL
  for (int mask = WARP / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

__host__ __device__ constexpr int next_power_of_two(int n)
{
  int power = 1;
  while (power < n) power *= 2;
  return power;
}

/// A lane gives away half of its numbers and keeps the sums of the others, until one is left. A recursion, because the
/// compiler keeps an array in registers only where it unrolls every loop over it.
template <int HALF, typename T> __device__ __forceinline__ void fold(T *kept)
{
  if constexpr (HALF > 0) {
    const bool upper = (lane_index() & HALF) != 0;
    HIENET_UNROLL
    for (int i = 0; i < HALF; i++) {
      const T low = kept[i], high = kept[i + HALF];
      kept[i] = (upper ? high : low) + shuffle_xor(upper ? low : high, HALF);
    }
    fold<HALF / 2>(kept);
  }
}

/// N sums at once, N <= 32: lane i, i < N, returns the sum of all lanes' `values[i]`; 31 shuffles for 32 sums, where one
/// sum after the other would take 160.
template <int N, typename T> __device__ __forceinline__ T warp_sums(const T *values)
{
  constexpr int P = next_power_of_two(N);
  T kept[P];
  HIENET_UNROLL
  for (int i = 0; i < P; i++) kept[i] = i < N ? values[i] : T(0);
  fold<P / 2>(kept);
  T sum = kept[0];
  HIENET_UNROLL
  for (int mask = P; mask < WARP; mask *= 2) sum += shuffle_xor(sum, mask);
  return sum;
}

/// Any number of sums, of which lane i writes numbers i, i + 32, ...
template <int N, typename T> __device__ __forceinline__ void write_warp_sums(const T *values, T *to)
{
  HIENET_UNROLL
  for (int first = 0; first + WARP <= N; first += WARP)
    to[first + lane_index()] = warp_sums<WARP>(values + first);
  if constexpr (N % WARP > 0) {
    const T sum = warp_sums<N % WARP>(values + N / WARP * WARP);
    if (lane_index() < N % WARP) to[N / WARP * WARP + lane_index()] = sum;
  }
}

}    // namespace hienet::cuda

#endif
