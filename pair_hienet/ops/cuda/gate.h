// SPDX-License-Identifier: GPL-2.0-or-later
// The gate on a GPU: what gate.cpp asks of gate.cu.

#ifndef HIENET_CUDA_GATE_H
#define HIENET_CUDA_GATE_H

#include "kernel_language.h"

#include <cstdint>

namespace hienet::cuda {

/// `dim` rows of `channels`, and the columns at which its gates and its rows begin.
struct GatedColumns {
  int64_t dim, channels;
  int64_t gate_start, in_start, out_start;
};

/// Most blocks of a gate.
constexpr int LARGEST_BLOCKS = 32;

/// Rows: `n_scalars` scalars, a gate for each channel of the blocks, the blocks. Strides count numbers.
template <typename T> struct Gate {
  GatedColumns blocks[LARGEST_BLOCKS];
  int64_t n_scalars, n_gates;
  T scale;    // of SiLU
  const T *in;
  int64_t in_stride, n_rows;
};

template <typename T>
void gate_forward(const Gate<T> &gate, T *out, int64_t out_stride, Stream stream);

template <typename T>
void gate_backward(const Gate<T> &gate, const T *gradient, int64_t gradient_stride, T *of_in,
                   int64_t of_in_stride, Stream stream);

}    // namespace hienet::cuda

#endif
