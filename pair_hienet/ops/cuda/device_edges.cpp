// SPDX-License-Identifier: GPL-2.0-or-later

#include "device_edges.h"

#include "../edge_list_checks.h"

namespace hienet::cuda {

using at::Tensor;

/// Throws for the first edge that is wrong.
static void explain(const DeviceEdges &edges)
{
  const Tensor center = edges.center.cpu(), neighbor = edges.neighbor.cpu();
  for (int64_t e = 0; e < edges.n_edges; e++)
    check_edge(center.const_data_ptr<int64_t>(), neighbor.const_data_ptr<int64_t>(), e,
               edges.n_local, edges.n_nodes);
}

static bool is_right(const DeviceEdges &edges)
{
  if (edges.n_edges == 0) return true;
  const Tensor &i = edges.center, &j = edges.neighbor;
  // One number comes to the host.
  const Tensor wrong = (i < 0)
                           .logical_or(i >= edges.n_local)
                           .any()
                           .logical_or((j < 0).logical_or(j >= edges.n_nodes).any());
  const Tensor unsorted =
      (i.narrow(0, 1, edges.n_edges - 1) < i.narrow(0, 0, edges.n_edges - 1)).any();
  return !wrong.logical_or(unsorted).item<bool>();
}

DeviceEdges::DeviceEdges(const Tensor &centers, const Tensor &neighbors, int64_t n_centers,
                         int64_t n_all) : n_local(n_centers), n_nodes(n_all)
{
  check_edge_lists(centers, neighbors, n_local, n_nodes);
  center = centers.to(at::kLong).contiguous();
  neighbor = neighbors.to(at::kLong).contiguous();
  n_edges = center.size(0);
  if (!is_right(*this)) explain(*this);
  row_start = at::searchsorted(center, at::arange(n_local + 1, center.options()));
}

std::shared_ptr<const DeviceEdges> DeviceEdges::of(const Tensor &center, const Tensor &neighbor,
                                                   int64_t n_local, int64_t n_nodes)
{
  static Memo<DeviceEdges, GRAPHS> memo;
  return memo.get({center, neighbor}, {n_local, n_nodes}, [&] {
    return DeviceEdges(center, neighbor, n_local, n_nodes);
  });
}

std::vector<int64_t> DeviceEdges::first_edges(const std::vector<int64_t> &centers) const
{
  if (centers.size() == 2 && centers[0] == 0 && centers[1] == n_local) return {0, n_edges};
  const Tensor chosen =
      row_start.index_select(0, at::tensor(centers, at::kLong).to(row_start.device())).cpu();
  const int64_t *const first = chosen.const_data_ptr<int64_t>();
  return {first, first + chosen.numel()};
}

EdgesByNeighbor DeviceEdges::by_neighbor(int64_t first, int64_t last) const
{
  const auto [sorted, order] =
      at::sort(neighbor.narrow(0, first, last - first), /*stable=*/true, 0, false);
  return {order, at::searchsorted(sorted, at::arange(n_nodes + 1, sorted.options()))};
}

}    // namespace hienet::cuda
