// SPDX-License-Identifier: GPL-2.0-or-later
// The edges of a graph as the kernels read them, and how threads share them.

#ifndef HIENET_EDGE_LIST_H
#define HIENET_EDGE_LIST_H

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace hienet {

/// Edges sorted by center, checked: `neighbor` lies in `0 .. n_nodes-1`.
struct EdgeList {
  at::Tensor neighbor_tensor;        // int64, contiguous
  const int64_t *neighbor;           // [n_edges]
  std::vector<int64_t> row_start;    // [n_local + 1], edges of a center
  int64_t n_local, n_edges;
  int64_t largest_degree = 0;

  /// Throws c10::ValueError where `center` is not sorted or an index is out of range.
  EdgeList(const at::Tensor &center, const at::Tensor &neighbor, int64_t n_local, int64_t n_nodes);

  /// Contiguous ranges of centers with about equally many edges, one for each thread: `[parts + 1]`.
  std::vector<int64_t> parts() const;
};

}    // namespace hienet

#endif
