// SPDX-License-Identifier: GPL-2.0-or-later

#include "edge_list.h"

#include "edge_list_checks.h"

#include <algorithm>

namespace hienet {

EdgeList::EdgeList(const at::Tensor &centers, const at::Tensor &neighbors, int64_t n_centers,
                   int64_t n_nodes) : n_local(n_centers)
{
  check_edge_lists(centers, neighbors, n_local, n_nodes);
  neighbor_tensor = neighbors.to(at::kLong).contiguous();
  neighbor = neighbor_tensor.data_ptr<int64_t>();
  n_edges = neighbor_tensor.size(0);
  center_tensor = centers.to(at::kLong).contiguous();
  center = center_tensor.data_ptr<int64_t>();
  row_start.assign(n_local + 1, 0);
  for (int64_t e = 0; e < n_edges; e++) {
    check_edge(center, neighbor, e, n_local, n_nodes);
    row_start[center[e] + 1]++;
  }
  for (int64_t i = 0; i < n_local; i++) {
    largest_degree = std::max(largest_degree, row_start[i + 1]);
    row_start[i + 1] += row_start[i];
  }
}

std::vector<int64_t> EdgeList::parts() const
{
  const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  const int64_t n = std::max<int64_t>(1, std::min(threads, n_local));
  std::vector<int64_t> bounds(n + 1, n_local);
  bounds[0] = 0;
  for (int64_t k = 1; k < n; k++) {
    const auto found = std::lower_bound(row_start.begin(), row_start.end(), n_edges * k / n);
    bounds[k] = std::clamp<int64_t>(found - row_start.begin(), bounds[k - 1], n_local);
  }
  return bounds;
}

int64_t EdgeList::end_of_piece(int64_t n, int64_t first, int64_t last) const
{
  const auto begin = row_start.begin();
  const auto end = std::upper_bound(begin + first + 1, begin + last + 1, row_start[first] + n);
  return std::max(first + 1, static_cast<int64_t>(end - begin) - 1);
}

int64_t EdgeList::largest_piece(int64_t n) const
{ return std::max(largest_degree, std::min(n, n_edges)); }

}    // namespace hienet
