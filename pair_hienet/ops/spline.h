// SPDX-License-Identifier: GPL-2.0-or-later
// Quintic splines of a distance, many columns at a time (hienet/ops/spline.py).
//
// A table is [blocks of LANES columns, n_intervals, SPLINE_COEFFICIENTS, LANES].

#ifndef HIENET_SPLINE_H
#define HIENET_SPLINE_H

#include "simd.h"
#include "spline_layout.h"

namespace hienet::HIENET_VARIANT {

/// Where a distance lies in a table.
template <typename T> struct SplinePosition {
  int64_t offset;    // of its interval in a block of columns
  T fraction;        // of the interval
};

/// What is not a number stays inside the table, and its fraction makes the values not a number.
template <typename T>
INLINE static inline SplinePosition<T> position_of(T distance, T intervals_per_length,
                                                   int64_t n_intervals)
{
  const T position = distance * intervals_per_length;
  int64_t interval = position > 0 ? n_intervals - 1 : 0;
  if (position > 0 && position < n_intervals - 1) interval = static_cast<int64_t>(position);
  return {interval * SPLINE_COEFFICIENTS * LANES, position - interval};
}

/// A vector of channels of the splines at `s`.
template <typename T> INLINE static inline V<T> spline_value(const T *s, T fraction)
{
  V<T> value = load(s + 5 * LANES);
  for (int power = 4; power >= 0; power--) value = load(s + power * LANES) + value * fraction;
  return value;
}

/// Also the derivative with respect to the fraction.
template <typename T> struct ValueAndSlope {
  V<T> value, slope;
};
template <typename T> INLINE static inline ValueAndSlope<T> spline_both(const T *s, T fraction)
{
  V<T> value = load(s + 5 * LANES), slope = value;
  value = load(s + 4 * LANES) + value * fraction;
  for (int power = 3; power >= 0; power--) {
    slope = value + slope * fraction;
    value = load(s + power * LANES) + value * fraction;
  }
  return {value, slope};
}

/// The derivative alone.
template <typename T> INLINE static inline V<T> spline_slope(const T *s, T fraction)
{
  V<T> slope = T(5) * load(s + 5 * LANES);
  for (int power = 4; power > 0; power--)
    slope = T(power) * load(s + power * LANES) + slope * fraction;
  return slope;
}

}    // namespace hienet::HIENET_VARIANT

#endif
