// SPDX-License-Identifier: GPL-2.0-or-later
// What every device asks of the edges of a graph.

#ifndef HIENET_EDGE_LIST_CHECKS_H
#define HIENET_EDGE_LIST_CHECKS_H

#include <ATen/ATen.h>

#include <cstdint>

namespace hienet {

/// Throws c10::ValueError for shapes that do not fit each other.
inline void check_edge_lists(const at::Tensor &centers, const at::Tensor &neighbors,
                             int64_t n_local, int64_t n_nodes)
{
  TORCH_CHECK_VALUE(centers.dim() == 1 && neighbors.dim() == 1 &&
                        centers.size(0) == neighbors.size(0),
                    "`center` and `neighbor` must be two lists of equal length");
  TORCH_CHECK_VALUE(n_local >= 0 && n_local <= n_nodes, "`n_local` is ", n_local,
                    ", but there are ", n_nodes, " nodes");
}

/// Throws c10::ValueError where edge `e` is not sorted or leads out of the nodes.
inline void check_edge(const int64_t *center, const int64_t *neighbor, int64_t e, int64_t n_local,
                       int64_t n_nodes)
{
  TORCH_CHECK_VALUE(center[e] >= (e > 0 ? center[e - 1] : 0) && center[e] < n_local,
                    "`center` must be sorted and below `n_local` (", n_local, "), got ", center[e],
                    " for edge ", e);
  TORCH_CHECK_VALUE(neighbor[e] >= 0 && neighbor[e] < n_nodes, "`neighbor` must be below ", n_nodes,
                    ", got ", neighbor[e], " for edge ", e);
}

}    // namespace hienet

#endif
