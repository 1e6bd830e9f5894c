// SPDX-License-Identifier: GPL-2.0-or-later
// What edge_network asks of its tensors on every device, and for how many edges it keeps results.

#ifndef HIENET_EDGE_NETWORK_CHECKS_H
#define HIENET_EDGE_NETWORK_CHECKS_H

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>

namespace hienet {

/// Throws c10::ValueError for a dtype or a shape of edge_network's tensors that does not fit the others.
inline void check_edge_network(const at::Tensor &centers, const at::Tensor &neighbors,
                               const at::Tensor &edges, const at::Tensor &weights,
                               const at::Tensor &transposed, const at::Tensor &vectors,
                               const at::Tensor &center)
{
  const auto dtype = edges.scalar_type();
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble,
                    "the edge network takes float32 or float64, got ", dtype);
  for (const at::Tensor &tensor : {centers, neighbors, weights, transposed, vectors})
    TORCH_CHECK_VALUE(tensor.scalar_type() == dtype, "`edges` are ", dtype,
                      ", but another tensor of the edge network is ", tensor.scalar_type());
  TORCH_CHECK_VALUE(centers.dim() == 2 && neighbors.dim() == 2 && edges.dim() == 2,
                    "`centers`, `neighbors` and `edges` have two dimensions");
  TORCH_CHECK_VALUE(edges.size(0) == center.size(0), "`edges` must have one row for each edge (",
                    center.size(0), "), got ", edges.size(0));
}

/// Throws c10::ValueError where gradients of the results, or what was kept, have a wrong shape or dtype.
inline void check_gradients_of_edge_network(const at::Tensor &of_sums,
                                            const at::Tensor &of_edges_out, const at::Tensor &kept,
                                            const at::Tensor &centers, const at::Tensor &edges,
                                            int64_t sum_width, int64_t edge_width,
                                            int64_t kept_width)
{
  const auto dtype = edges.scalar_type();
  TORCH_CHECK_VALUE(of_sums.dim() == 2 && of_sums.size(0) == centers.size(0) &&
                        of_sums.size(1) == sum_width && of_sums.scalar_type() == dtype &&
                        of_edges_out.dim() == 2 && of_edges_out.size(0) == edges.size(0) &&
                        of_edges_out.size(1) == edge_width && of_edges_out.scalar_type() == dtype,
                    "a gradient of the edge network's results has a wrong shape or dtype");
  TORCH_CHECK_VALUE(kept.dim() == 2 && kept.size(0) <= edges.size(0) &&
                        kept.size(1) == kept_width && kept.scalar_type() == dtype &&
                        kept.is_contiguous(),
                    "what was kept of the edge network has a wrong shape or dtype");
}

/// Memory that a call may use to keep what the backward needs; of more edges than fit, it computes everything again.
constexpr int64_t KEPT_BYTES = int64_t(1) << 29;

/// Of how many edges `kept_width` numbers each are kept, the first ones.
inline int64_t edges_kept(int64_t n_edges, int64_t kept_width, const at::Tensor &edges)
{
  const int64_t bytes = kept_width * static_cast<int64_t>(edges.element_size());
  return bytes == 0 ? 0 : std::min(n_edges, KEPT_BYTES / bytes);
}

}    // namespace hienet

#endif
