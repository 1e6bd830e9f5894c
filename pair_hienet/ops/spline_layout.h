// SPDX-License-Identifier: GPL-2.0-or-later

#ifndef HIENET_SPLINE_LAYOUT_H
#define HIENET_SPLINE_LAYOUT_H

#include <cstdint>

namespace hienet {

/// Columns of a table that stand side by side. No vector is longer.
constexpr int64_t LANES = 16;
/// Coefficients of one interval: powers 0 to 5 of the fraction of the interval.
constexpr int64_t SPLINE_COEFFICIENTS = 6;

}    // namespace hienet

#endif
