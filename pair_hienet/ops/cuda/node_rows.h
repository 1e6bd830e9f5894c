// SPDX-License-Identifier: GPL-2.0-or-later
// What edges read of rows of nodes, and what nodes sum over their edges: products of rows that stand for edges with rows
// that stand for nodes, none of which is gathered or stored. Every number is written by one thread or one warp, so that
// all sums have one order.

#ifndef HIENET_CUDA_NODE_ROWS_H
#define HIENET_CUDA_NODE_ROWS_H

#include "kernel_language.h"

#include <cstdint>

namespace hienet::cuda {

/// A row of numbers for each edge: its own, or that of a node. Strides count numbers.
template <typename T> struct RowOfEdge {
  const T *first = nullptr;
  int64_t stride = 0;
  const int64_t *node = nullptr;    // of each edge; null where rows are the edges' own

  __device__ __forceinline__ const T *operator()(int64_t edge) const
  { return first + (node ? node[edge] : edge) * stride; }
};

/// A factor for column u of term m: number m * of_term + u * of_column of the edge's row; one, where there are no rows.
template <typename T> struct FactorOfEdge {
  RowOfEdge<T> row;
  int64_t of_term = 0, of_column = 0;
};

/// Columns of `to`, [n_edges, to_stride], of `width` columns: (add: + ) scale sum_m factor[m, u] row[m width + u].
template <typename T> struct ReadRows {
  RowOfEdge<T> row;
  FactorOfEdge<T> factor;
  T scale;
  int64_t n_terms, width;
  T *to;
  int64_t to_stride, n_edges;
  bool add;
};
template <typename T> void read_rows(const ReadRows<T> &rows, Stream stream);

/// Number m of `to`, [n_edges, to_stride], m < n_terms: (add: + ) scale sum_u x[m x_of_term + u] row[m width + u].
template <typename T> struct DotRows {
  RowOfEdge<T> x;
  int64_t x_of_term;
  RowOfEdge<T> row;
  T scale;
  int64_t n_terms, width;
  T *to;
  int64_t to_stride, n_edges;
  bool add;
};
template <typename T> void dot_rows(const DotRows<T> &rows, Stream stream);

/// Which edges a node has: order[k - first], or k - first itself, for k = start[node] .. start[node + 1] - 1.
struct EdgesOfNodes {
  const int64_t *start;    // [n_nodes + 1]
  int64_t n_nodes;
  int64_t first;
  const int64_t *order;    // or null
};

/// Column m width + u of a node's row of `to`, m < n_terms: (add: + ) the sum over its edges, as they follow each other,
/// of scale factor[m, u] row[u].
template <typename T> struct SumRows {
  EdgesOfNodes edges;
  RowOfEdge<T> row;
  FactorOfEdge<T> factor;
  T scale;
  int64_t n_terms, width;
  T *to;
  int64_t to_stride;
  bool add;
};
template <typename T> void sum_rows(const SumRows<T> &rows, Stream stream);

}    // namespace hienet::cuda

#endif
