// SPDX-License-Identifier: GPL-2.0-or-later
// The gate of equivariant features, row by row.

#ifndef HIENET_GATE_KERNEL_H
#define HIENET_GATE_KERNEL_H

#include "variants.h"

#include <cstdint>

namespace hienet {

/// A block that a gate multiplies: `dim` rows of `channels`. The tensor `blocks` has these columns.
struct GatedBlock {
  int64_t dim, channels;
};

/// Rows: `n_scalars` scalars, then a gate for each channel of the blocks, then the blocks.
template <typename T> struct GateRows {
  const GatedBlock *blocks;
  int64_t n_blocks, n_scalars, n_gates;
  T scale;    // of SiLU
  const T *in;
  int64_t in_stride;
};

template <typename T> struct GateKernel {
  /// Rows `first .. last-1` of the output.
  void (*forward)(const GateRows<T> &, T *out, int64_t out_stride, int64_t first, int64_t last);
  /// The same rows of the gradient with respect to the input.
  void (*backward)(const GateRows<T> &, const T *gradient, int64_t gradient_stride, T *of_in,
                   int64_t of_in_stride, int64_t first, int64_t last);
};

/// The same for rows each of which is followed by the row of its tangents, `width` numbers further; strides lead from pair
/// to pair.
template <typename T> struct DualGateKernel {
  void (*forward)(const GateRows<T> &, int64_t width_in, int64_t width_out, T *out,
                  int64_t out_stride, int64_t first, int64_t last);
  void (*backward)(const GateRows<T> &, int64_t width_in, int64_t width_out, const T *gradient,
                   int64_t gradient_stride, T *of_in, int64_t of_in_stride, int64_t first,
                   int64_t last);
};

HIENET_FOR_EACH_VARIANT(extern const GateKernel<float> GATE_FLOAT;
                        extern const GateKernel<double> GATE_DOUBLE;
                        extern const DualGateKernel<float> DUAL_GATE_FLOAT;
                        extern const DualGateKernel<double> DUAL_GATE_DOUBLE;)

}    // namespace hienet

#endif
