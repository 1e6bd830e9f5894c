// SPDX-License-Identifier: GPL-2.0-or-later
// Sums of tabulated pair messages on a GPU: what pair_message_sum.cpp asks of pair_message.cu.

#ifndef HIENET_CUDA_PAIR_MESSAGE_H
#define HIENET_CUDA_PAIR_MESSAGE_H

#include "spline.h"

#include <cstdint>

namespace hienet::cuda {

/// Splines of ordered pairs of species: [n_pairs, blocks, n_intervals, SPLINE_COEFFICIENTS, LANES].
template <typename T> struct PairMessages {
  Splines<T> splines;    // of the first pair
  int64_t channels;
  const int64_t *row_start;    // [n_local + 1]: edges of a center
  const int64_t *center;
  const int64_t *pair;    // of each edge
  int64_t n_local, n_edges;
  const T *edges;    // distance first
  int64_t edge_stride;
};

/// Rows of sums of the centers' messages.
template <typename T>
void sum_pair_messages(const PairMessages<T> &messages, T *sums, int64_t sum_stride, Stream stream);

/// The first column of `of_edges` from the gradient of the sums.
template <typename T>
void differentiate_pair_messages(const PairMessages<T> &messages, const T *gradient,
                                 int64_t gradient_stride, T *of_edges, int64_t of_edge_stride,
                                 Stream stream);

}    // namespace hienet::cuda

#endif
