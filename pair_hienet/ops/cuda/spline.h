// SPDX-License-Identifier: GPL-2.0-or-later
// Quintic splines of a distance, a channel at a time; the tables are those of ../spline_layout.h.

#ifndef HIENET_CUDA_SPLINE_H
#define HIENET_CUDA_SPLINE_H

#include "../spline_layout.h"
#include "kernel_language.h"

namespace hienet::cuda {

/// Tables `[blocks, n_intervals, SPLINE_COEFFICIENTS, LANES]`.
template <typename T> struct Splines {
  const T *table;
  int64_t n_intervals;
  T intervals_per_length;    // n_intervals / cutoff
};

/// Where a distance lies in a table.
template <typename T> struct SplinePlace {
  int64_t offset;    // of its interval in a block of columns
  T fraction;        // of the interval
};

/// What is not a number stays inside the table, and its fraction makes the values not a number.
template <typename T>
__device__ __forceinline__ SplinePlace<T> place_of(const Splines<T> &splines, T distance)
{
  const T position = distance * splines.intervals_per_length;
  int64_t interval = position > 0 ? splines.n_intervals - 1 : 0;
  if (position > 0 && position < static_cast<T>(splines.n_intervals - 1))
    interval = static_cast<int64_t>(position);
  return {interval * SPLINE_COEFFICIENTS * LANES, position - static_cast<T>(interval)};
}

/// The splines of column `u` of the blocks from `block` on, in the first interval.
template <typename T>
__device__ __forceinline__ const T *column_of(const Splines<T> &splines, int64_t block, int64_t u)
{
  return splines.table + (block + u / LANES) * splines.n_intervals * SPLINE_COEFFICIENTS * LANES +
      u % LANES;
}

template <typename T>
__device__ __forceinline__ T spline_value(const T *column, const SplinePlace<T> &place)
{
  const T *const s = column + place.offset;
  T value = s[5 * LANES];
  HIENET_UNROLL
  for (int power = 4; power >= 0; power--) value = s[power * LANES] + value * place.fraction;
  return value;
}

/// With respect to the fraction.
template <typename T>
__device__ __forceinline__ T spline_slope(const T *column, const SplinePlace<T> &place)
{
  const T *const s = column + place.offset;
  T slope = T(5) * s[5 * LANES];
  HIENET_UNROLL
  for (int power = 4; power > 0; power--)
    slope = T(power) * s[power * LANES] + slope * place.fraction;
  return slope;
}

template <typename T> struct ValueAndSlope {
  T value, slope;
};
template <typename T>
__device__ __forceinline__ ValueAndSlope<T> spline_both(const T *column,
                                                        const SplinePlace<T> &place)
{
  const T *const s = column + place.offset;
  T slope = s[5 * LANES];
  T value = s[4 * LANES] + slope * place.fraction;
  HIENET_UNROLL
  for (int power = 3; power >= 0; power--) {
    slope = value + slope * place.fraction;
    value = s[power * LANES] + value * place.fraction;
  }
  return {value, slope};
}

}    // namespace hienet::cuda

#endif
