// SPDX-License-Identifier: GPL-2.0-or-later
// The convolution of a training step, on plain arrays: values and derivatives for energies and forces, and for the
// gradients of weights values with their tangents (hienet/ops/training.py).

#ifndef HIENET_TRAINING_CONVOLUTION_KERNEL_H
#define HIENET_TRAINING_CONVOLUTION_KERNEL_H

#include "convolution_kernel.h"

namespace hienet {

/// Features and edges with their tangents: derivatives along one direction in the space of all edge vectors. Each row of
/// the features is followed by that of their tangents.
template <typename T> struct DualConvolution : TrainingConvolution<T> {
  const T *feature_tangents;    // of the same stride as the features
  const T *edge_tangents;       // of distance and harmonics
  int64_t edge_tangent_stride;
};

/// Messages, or gradients with respect to them, and those of their tangents; rows of the centers of a piece.
template <typename T> struct DualRows {
  T *value, *tangent;
  int64_t stride;
};

/// Where the gradients go. `slot`, if any, says which row of the features belongs to a node.
template <typename T> struct DualGradients {
  T *features, *feature_tangents;
  int64_t feature_stride;
  const int32_t *slot;
  T *table;    // as the table of the splines
};

/// For the centers `first .. last-1`; `scratch` is aligned to 64 bytes and has `scratch_size` numbers. The forward writes
/// rows of messages, the backward adds to the gradients.
template <typename T> struct DualKernel {
  int64_t (*scratch_size)(const DualConvolution<T> &, int64_t n_edges);
  void (*forward)(const DualConvolution<T> &, const DualRows<T> &messages, int64_t first,
                  int64_t last, T *scratch);
  void (*backward)(const DualConvolution<T> &, const DualRows<const T> &gradient,
                   const DualGradients<T> &, int64_t first, int64_t last, T *scratch);
};

template <typename T> using TrainingKernel = Kernel<T, TrainingConvolution<T>>;

HIENET_FOR_EACH_VARIANT(extern const TrainingKernel<float> TRAINING_CONVOLUTION_FLOAT;
                        extern const TrainingKernel<double> TRAINING_CONVOLUTION_DOUBLE;
                        extern const DualKernel<float> DUAL_CONVOLUTION_FLOAT;
                        extern const DualKernel<double> DUAL_CONVOLUTION_DOUBLE;)

}    // namespace hienet

#endif
