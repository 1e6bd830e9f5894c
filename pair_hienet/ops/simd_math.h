// SPDX-License-Identifier: GPL-2.0-or-later
// Functions of vectors that the processor has no instruction for.

#ifndef HIENET_SIMD_MATH_H
#define HIENET_SIMD_MATH_H

#include "simd.h"

namespace hienet::HIENET_VARIANT {

/// What the exponential needs to know of a type of numbers.
template <typename T> struct Exponential;
template <> struct Exponential<float> {
  typedef int32_t Integers __attribute__((vector_size(BYTES)));
  static constexpr float ROUND =
      12582912.0f;    // 1.5 * 2^23: adding it rounds to an integer in the low bits
  static constexpr float LOG2_HIGH = 0.693359375f, LOG2_LOW = -2.12194440e-4f;
  static constexpr float SMALLEST = -87.0f, LARGEST = 88.0f;
  static constexpr int TERMS = 7, BIAS = 127, MANTISSA = 23;
};
template <> struct Exponential<double> {
  typedef int64_t Integers __attribute__((vector_size(BYTES)));
  static constexpr double ROUND = 6755399441055744.0;    // 1.5 * 2^52
  static constexpr double LOG2_HIGH = 6.93145751953125e-1, LOG2_LOW = 1.42860682030941723212e-6;
  static constexpr double SMALLEST = -708.0, LARGEST = 709.0;
  static constexpr int TERMS = 13, BIAS = 1023, MANTISSA = 52;
};

/// exp(x), to about two units in the last place; beyond what numbers can hold, the smallest or largest. NaN stays NaN.
template <typename T> static inline V<T> exponential(V<T> x)
{
  using E = Exponential<T>;
  typedef typename E::Integers Integers;
  const V<T> zero = {};
  x = x < zero + E::SMALLEST ? zero + E::SMALLEST : x;
  x = x > zero + E::LARGEST ? zero + E::LARGEST : x;
  // x = n log 2 + rest, |rest| <= log(2)/2
  const V<T> shifted = x * static_cast<T>(1.4426950408889634) + E::ROUND;
  const V<T> n = shifted - E::ROUND;
  const V<T> rest = (x - n * E::LOG2_HIGH) - n * E::LOG2_LOW;
  V<T> sum = zero + T(1);
  for (int k = E::TERMS; k > 0; k--) sum = sum * rest * (T(1) / T(k)) + T(1);
  const Integers power = (Integers) shifted - (Integers) (zero + E::ROUND) + E::BIAS;
  return sum * (V<T>) (power << E::MANTISSA);
}

template <typename T> static inline V<T> sigmoid(V<T> x)
{ return T(1) / (T(1) + exponential<T>(-x)); }

/// log(1 + exp(x)) = max(x, 0) + log(1 + e), e = exp(-|x|), and log(1 + e) = 2 artanh(e / (2 + e)): a series of odd powers
/// of at most 1/3.
template <typename T> static inline V<T> softplus(V<T> x)
{
  constexpr int TERMS = sizeof(T) == 4 ? 8 : 17;
  const V<T> zero = {};
  const V<T> e = exponential<T>(x > zero ? -x : x);
  const V<T> ratio = e / (T(2) + e), square = ratio * ratio;
  V<T> sum = zero + T(1) / T(2 * TERMS + 1);
  for (int k = TERMS - 1; k >= 0; k--) sum = sum * square + T(1) / T(2 * k + 1);
  return (x > zero ? x : zero) + T(2) * ratio * sum;
}

}    // namespace hienet::HIENET_VARIANT

#endif
