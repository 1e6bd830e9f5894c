// SPDX-License-Identifier: GPL-2.0-or-later
// Gradients of what neighbours are read for, summed by several threads.

#ifndef HIENET_OWN_ROWS_H
#define HIENET_OWN_ROWS_H

#include "edge_list.h"
#include "pooled_memory.h"

#include <cstdint>
#include <vector>

namespace hienet {

/// Rows of gradients of nodes for the parts behind the first, which write what belongs to the same neighbour without
/// waiting for each other. The first part writes into the result.
struct OwnRows {
  std::vector<std::vector<int32_t>> slot;    // of a part and node, or -1
  std::vector<int64_t> first_row;            // of a part
  at::Tensor gradient;

  /// `width` columns for each of `n_nodes` nodes.
  OwnRows(const EdgeList &list, const std::vector<int64_t> &bounds, int64_t n_nodes, int64_t width,
          at::ScalarType dtype) : slot(bounds.size() - 1), first_row(bounds.size(), 0)
  {
    for_each_part(bounds, [&](int64_t part, int64_t first, int64_t last) {
      if (part == 0) return;
      slot[part].assign(n_nodes, -1);
      int32_t n = 0;
      for (int64_t e = list.row_start[first]; e < list.row_start[last]; e++) {
        int32_t &place = slot[part][list.neighbor[e]];
        if (place < 0) place = n++;
      }
      first_row[part + 1] = n;
    });
    for (size_t part = 1; part < first_row.size(); part++) first_row[part] += first_row[part - 1];
    gradient = pooled_zeros({first_row.back(), width}, dtype);
  }

  template <typename T> T *rows(int64_t part) const
  { return gradient.data_ptr<T>() + first_row[part] * gradient.stride(0); }

  /// Always in the order of the parts, so that a sum does not depend on who is faster.
  template <typename T> void add_to(const at::Tensor &of_nodes) const
  {
    const int64_t width = gradient.size(1);
    at::parallel_for(0, of_nodes.size(0), 16, [&](int64_t first, int64_t last) {
      for (int64_t node = first; node < last; node++)
        for (size_t part = 1; part < slot.size(); part++) {
          if (slot[part][node] < 0) continue;
          T *const to = of_nodes.data_ptr<T>() + node * of_nodes.stride(0);
          const T *const from = rows<T>(part) + slot[part][node] * width;
          for (int64_t i = 0; i < width; i++) to[i] += from[i];
        }
    });
  }
};

}    // namespace hienet

#endif
