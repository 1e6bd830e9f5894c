// SPDX-License-Identifier: GPL-2.0-or-later
// The tensor-product convolution on a GPU: what interaction.cpp asks of convolution.cu.
//
// A task is a part of the channels of one block of the features, and a warp does one task of one center: it loads a
// neighbour's features once and takes them through all paths that read the block. Nothing that two warps write is the
// same, so that all sums have one order.

#ifndef HIENET_CUDA_CONVOLUTION_H
#define HIENET_CUDA_CONVOLUTION_H

#include "../convolution_kernel.h"
#include "spline.h"

#include <cstdint>

namespace hienet::cuda {

/// Largest 2l+1 of features and messages that a kernel of its own is compiled for.
constexpr int LARGEST_UNROLLED = 7;

/// Channels of a task that a lane takes, WARP apart, by 2l+1 of the features; as many numbers as fit the registers.
__host__ __device__ constexpr int channels_of_a_lane(int dim_in)
{ return dim_in == 1 ? 4 : dim_in == 3 ? 2 : 1; }

/// A path as a task sees it.
struct TaskPath {
  int32_t dim_out;
  int32_t out_start, out_channels;
  int32_t table_start;
  int32_t coupling_start;    // in a row of couplings; whole groups of four
};

struct Task {
  int32_t feature_start, channels;    // of the block
  int32_t first_channel;
  int32_t dim_in;
  int32_t first_path, last_path;    // of `TaskPath`, the last one not included
  int32_t
      sums_start;    // in an edge's row of sums: a number for each coupling of its paths, as they follow each other
  int32_t number;    // of the task
};

/// A sparse matrix by rows: result[r] = sum of coefficients[k] * from[columns[k]], k of row r.
template <typename T> struct SparseRows {
  const int32_t *row_start;    // [n_rows + 1]
  const int32_t *columns;
  const T *coefficients;
  int64_t n_rows;
};

/// One chunk of centers and their edges, `first_edge .. first_edge + n_edges - 1`. Strides count numbers.
template <typename T> struct ConvolutionChunk {
  Splines<T> splines;
  const int64_t *row_start;    // [n_local + 1], of all edges
  const int64_t *neighbor;     // of all edges
  int64_t first_center, n_centers;
  int64_t first_edge, n_edges;
  const T *features;
  int64_t feature_stride;
  const T *edges;    // distance, harmonics; of all edges
  int64_t edge_stride;
  T *couplings;    // [n_edges, coupling_width]
  int64_t coupling_width;
  const TaskPath *paths;
};

/// Tasks of one kind: of equal 2l+1 of the features, or (dim_in = 0) any that has no kernel of its own.
struct Tasks {
  const Task *tasks;
  int64_t n;
  int dim_in;
};

/// What the backward writes, a row for each edge of the chunk.
template <typename T> struct EdgeSums {
  T *features;    // gradient with respect to the neighbour's features
  int64_t feature_width;
  T *couplings;    // [n_edges, coupling_width], by the tasks' `sums_start`
  int64_t coupling_width;
  T *fractions;    // [n_edges, n_tasks]: with respect to the fraction of the interval
  int64_t n_tasks;
};

/// C[m_out][m_in] = sum_m CG Y[m] for each edge and path.
template <typename T>
void make_couplings(const ConvolutionChunk<T> &chunk, const SparseRows<T> &terms, Stream stream);

/// `messages`: [n_centers, message_stride]. Needs couplings.
template <typename T>
void convolution_forward(const ConvolutionChunk<T> &chunk, const Tasks &tasks, T *messages,
                         int64_t message_stride, Stream stream);

template <typename T>
void convolution_backward(const ConvolutionChunk<T> &chunk, const Tasks &tasks, const T *messages,
                          int64_t message_stride, const EdgeSums<T> &sums, Stream stream);

/// The rows of the chunk's edges in `of_edges`, from the sums of all tasks. `terms`: from a row of sums to the harmonics.
template <typename T>
void sum_edge_gradients(const ConvolutionChunk<T> &chunk, const EdgeSums<T> &sums,
                        const SparseRows<T> &terms, T *of_edges, int64_t of_edge_stride,
                        Stream stream);

}    // namespace hienet::cuda

#endif
