// SPDX-License-Identifier: GPL-2.0-or-later
// Sums of messages that are functions of the species of two atoms and of their distance.

#ifndef HIENET_PAIR_MESSAGE_KERNEL_H
#define HIENET_PAIR_MESSAGE_KERNEL_H

#include "variants.h"

#include <cstdint>

namespace hienet {

/// Inputs. Strides count numbers from row to row.
template <typename T> struct PairMessages {
  const T
      *table;    // of every species pair: splines [blocks, n_intervals, SPLINE_COEFFICIENTS, LANES]
  int64_t channels;    // `blocks` = ceil(channels / LANES)
  int64_t n_intervals;
  T intervals_per_length;      // n_intervals / cutoff
  const int64_t *row_start;    // [n_local + 1]: edges of a center
  const int64_t *pair;         // of each edge: which splines
  const T *edges;              // the distance is the first column
  int64_t edge_stride;
};

/// For the centers `first .. last-1`; `scratch` is aligned to 64 bytes and has `scratch_size` numbers.
template <typename T> struct PairMessageKernel {
  int64_t (*scratch_size)(int64_t n_edges);
  /// Rows of the sums.
  void (*forward)(const PairMessages<T> &, T *sums, int64_t sum_stride, int64_t first, int64_t last,
                  T *scratch);
  /// First column of the rows of the gradient with respect to the edges.
  void (*backward)(const PairMessages<T> &, const T *gradient, int64_t gradient_stride, T *of_edges,
                   int64_t of_edge_stride, int64_t first, int64_t last, T *scratch);
};

HIENET_FOR_EACH_VARIANT(extern const PairMessageKernel<float> PAIR_MESSAGE_FLOAT;
                        extern const PairMessageKernel<double> PAIR_MESSAGE_DOUBLE;)

}    // namespace hienet

#endif
