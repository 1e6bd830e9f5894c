// SPDX-License-Identifier: GPL-2.0-or-later
// The edges of a graph as the kernels read them, and how threads share them.

#ifndef HIENET_EDGE_LIST_H
#define HIENET_EDGE_LIST_H

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cstdint>
#include <vector>

namespace hienet {

/// Edges sorted by center, checked: `neighbor` lies in `0 .. n_nodes-1`.
struct EdgeList {
  at::Tensor neighbor_tensor;        // int64, contiguous
  at::Tensor center_tensor;          // int64, contiguous
  const int64_t *neighbor;           // [n_edges]
  const int64_t *center;             // [n_edges]
  std::vector<int64_t> row_start;    // [n_local + 1], edges of a center
  int64_t n_local, n_edges;
  int64_t largest_degree = 0;

  /// Throws c10::ValueError where `center` is not sorted or an index is out of range.
  EdgeList(const at::Tensor &center, const at::Tensor &neighbor, int64_t n_local, int64_t n_nodes);

  /// Contiguous ranges of centers with about equally many edges, one for each thread: `[parts + 1]`.
  std::vector<int64_t> parts() const;

  /// work(begin, end) for pieces of the centers `first .. last-1` with at most `n` edges, or one center.
  template <typename Work>
  void for_each_piece(int64_t n, int64_t first, int64_t last, const Work &work) const
  {
    while (first < last) {
      const int64_t end = end_of_piece(n, first, last);
      work(first, end);
      first = end;
    }
  }

  /// No piece of `n` edges has more edges, wherever it begins.
  int64_t largest_piece(int64_t n) const;

 private:
  int64_t end_of_piece(int64_t n, int64_t first, int64_t last) const;
};

/// work(part, first, last) for the centers of every part, each on a thread and below autograd.
template <typename Work> void for_each_part(const std::vector<int64_t> &bounds, const Work &work)
{
  at::parallel_for(0, static_cast<int64_t>(bounds.size()) - 1, 1, [&](int64_t begin, int64_t end) {
    // Threads do not inherit this state.
    const at::AutoDispatchBelowAutograd below;
    for (int64_t part = begin; part < end; part++) work(part, bounds[part], bounds[part + 1]);
  });
}

}    // namespace hienet

#endif
