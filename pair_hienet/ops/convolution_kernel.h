// SPDX-License-Identifier: GPL-2.0-or-later
// The arithmetic of the tensor-product convolution, on plain arrays: what tensor_product_convolution.cpp asks of
// convolution_kernel.cpp, which is compiled once for each instruction set.

#ifndef HIENET_CONVOLUTION_KERNEL_H
#define HIENET_CONVOLUTION_KERNEL_H

#include "spline_layout.h"
#include "variants.h"

#include <cstdint>

namespace hienet {

/// Edges whose couplings are computed together; a multiple of every vector length.
constexpr int64_t EDGE_TILE = 16;
/// Largest 2l+1 of features and messages: l = 11.
constexpr int64_t MAX_DIM = 23;

/// Rows of a training table that a spline of degree 5 reads at an edge.
constexpr int64_t BASIS_ROWS = 6;

/// One path (irrep of the features) x (l of the harmonics) -> (irrep of the message). The tensor `paths` has these
/// columns.
struct Path {
  int64_t feature_start;    // first column of the features' block, [dim_in, channels]
  int64_t dim_in;           // 2l+1 of the features
  int64_t channels;
  int64_t table_start;    // first block of LANES columns of its weights' splines
  int64_t out_start;    // first column of its output; row m of the block follows out_channels later
  int64_t out_channels;
  int64_t dim_out;       // 2l+1 of the message
  int64_t term_start;    // its terms, of all Clebsch-Gordan coefficients
  int64_t term_stop;
};
constexpr int64_t PATH_COLUMNS = 9;

/// A non-zero Clebsch-Gordan coefficient: coupling[index] += coefficient * harmonics[harmonic].
struct Term {
  int64_t index;    // of a path's couplings, m_out * dim_in + m_in
  int64_t harmonic;
};

/// Inputs, and what does not depend on the direction. Strides count numbers from row to row.
template <typename T> struct ConvolutionInputs {
  using Number = T;

  const Path *paths;
  int64_t n_paths;
  const Term *terms;
  const T *coefficients;    // of the terms
  int64_t n_harmonics;
  const T *table;              // splines of the path weights
  const int64_t *row_start;    // [n_local + 1]: edges of a center
  const int64_t *neighbor;
  const T *features;
  const T *edges;    // distance, harmonics
  int64_t feature_stride, edge_stride;
};

/// For inference: splines as powers of the fraction of an interval, each interval with its own coefficients. The table is
/// [blocks, n_intervals, SPLINE_COEFFICIENTS, LANES].
template <typename T> struct Convolution : ConvolutionInputs<T> {
  int64_t n_intervals;
  T intervals_per_length;    // n_intervals / cutoff
};

/// For training: at each edge a spline is a sum of BASIS_ROWS rows, which follow each other, of a table [blocks, n_rows,
/// LANES]. It is small and quickly made, and a gradient with respect to its rows is again a table.
template <typename T> struct TrainingConvolution : ConvolutionInputs<T> {
  int64_t n_rows;
  const int64_t *first_row;    // of each edge
  const T *
      basis;    // [n_edges, 2, BASIS_ROWS]: factors of the value, and of its derivative by the distance
};

/// Where the gradients go. `slot`, if any, says which row of `features` belongs to a node.
template <typename T> struct Gradients {
  T *features, *edges;
  int64_t feature_stride, edge_stride;
  const int32_t *slot;
};

/// Forward and backward for the centers `first .. last-1`, whose rows of messages, or of their gradient, are `messages`.
///
/// `scratch` is aligned to 64 bytes and has `scratch_size` numbers. The forward writes rows of messages, the backward
/// adds to rows of the gradients.
template <typename T, typename C = Convolution<T>> struct Kernel {
  int64_t (*scratch_size)(const C &, int64_t n_edges);
  void (*forward)(const C &, T *messages, int64_t message_stride, int64_t first, int64_t last,
                  T *scratch);
  void (*backward)(const C &, const T *messages, int64_t message_stride, const Gradients<T> &,
                   int64_t first, int64_t last, T *scratch);
};

HIENET_FOR_EACH_VARIANT(extern const Kernel<float> CONVOLUTION_FLOAT;
                        extern const Kernel<double> CONVOLUTION_DOUBLE;)

}    // namespace hienet

#endif
