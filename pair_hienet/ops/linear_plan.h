// SPDX-License-Identifier: GPL-2.0-or-later
// The plan of equivariant linear maps, checked against its weights.

#ifndef HIENET_LINEAR_PLAN_H
#define HIENET_LINEAR_PLAN_H

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace hienet {

/// One or several maps of the same features, whose outputs stand side by side. Features of an irrep are stored
/// `[2l+1, channels]`. The tensor `plan` has a row for each irrep of an output, as in `Block`.
struct LinearPlan {
  struct Block {
    int64_t in_start, fan_in;
    int64_t dim;    // 2l+1
    int64_t out_start, fan_out;
    int64_t weight_start, transposed_start;
  };
  static constexpr int64_t COLUMNS = 7;

  std::vector<Block> blocks;
  std::vector<bool>
      first_reader;    // of its features: it sets their gradient, the others add to it
  int64_t width_in = 0, width_out = 0;
  bool reads_all = false;    // of the columns up to `width_in`

  /// `weights` and `transposed` are vectors that hold each block's matrix and the transpose of it in panels
  /// (matrix_product_kernel.h). Throws c10::ValueError where the plan does not fit them.
  LinearPlan(const at::Tensor &plan, const at::Tensor &weights, const at::Tensor &transposed);
};

/// Throws c10::ValueError for rows that a map of these weights with `width` columns cannot read.
void check_rows_of_linear_map(const at::Tensor &rows, int64_t width, const at::Tensor &weights,
                              const char *what);

}    // namespace hienet

#endif
