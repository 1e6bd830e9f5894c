// SPDX-License-Identifier: GPL-2.0-or-later
// The edges of a graph on a device, as the kernels read them.

#ifndef HIENET_CUDA_DEVICE_EDGES_H
#define HIENET_CUDA_DEVICE_EDGES_H

#include "memo.h"

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <vector>

namespace hienet::cuda {

/// The edges of one chunk in the order of their neighbours: edge `order[k]`, from the chunk's first, for
/// k = start[node] .. start[node + 1] - 1 ends at a node.
struct EdgesByNeighbor {
  at::Tensor order, start;    // int64
};

/// Edges sorted by center, checked; nothing of it waits for the device but the check.
class DeviceEdges {
 public:
  at::Tensor center, neighbor;    // int64, contiguous
  at::Tensor row_start;           // int64, [n_local + 1]: edges of a center
  int64_t n_local, n_nodes, n_edges;

  /// Those of these tensors, made and checked when they are new. Throws c10::ValueError where `center` is not sorted or an
  /// index is out of range.
  static std::shared_ptr<const DeviceEdges> of(const at::Tensor &center, const at::Tensor &neighbor,
                                               int64_t n_local, int64_t n_nodes);

  /// The first edge of each of these centers, on the host. Waits for the device, unless they are 0 and `n_local`.
  std::vector<int64_t> first_edges(const std::vector<int64_t> &centers) const;

  /// Of the edges `first .. last-1`.
  EdgesByNeighbor by_neighbor(int64_t first, int64_t last) const;

 private:
  DeviceEdges(const at::Tensor &center, const at::Tensor &neighbor, int64_t n_local,
              int64_t n_nodes);
};

}    // namespace hienet::cuda

#endif
