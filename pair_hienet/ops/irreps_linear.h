// SPDX-License-Identifier: GPL-2.0-or-later
// Equivariant linear maps of constant weights: channels of one irrep are mixed, nothing else.

#ifndef HIENET_IRREPS_LINEAR_H
#define HIENET_IRREPS_LINEAR_H

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace hienet {

/// One or several maps of the same features, whose outputs stand side by side. Features of an irrep are stored
/// `[2l+1, channels]`.
///
/// The tensor `plan` has a row for each irrep of an output, as in `Block`. `weights` and `transposed` are vectors that
/// hold its matrix and the transpose of it in panels (matrix_product_kernel.h).
class IrrepsLinear {
 public:
  /// Throws c10::ValueError where the plan does not fit the weights.
  IrrepsLinear(const at::Tensor &plan, const at::Tensor &weights, const at::Tensor &transposed);

  /// Columns that the maps read and write.
  int64_t width_in() const { return width_in_; }
  int64_t width_out() const { return width_out_; }

  /// out = map(in), or out += map(in), for rows of two-dimensional tensors whose columns are contiguous.
  void apply(const at::Tensor &in, const at::Tensor &out, bool accumulate) const;

  /// The transpose of it: from the gradient of the output to that of the input.
  void apply_transposed(const at::Tensor &gradient, const at::Tensor &of_in, bool accumulate) const;

 private:
  struct Block {
    int64_t in_start, fan_in;
    int64_t dim;    // 2l+1
    int64_t out_start, fan_out;
    int64_t weight_start, transposed_start;
  };
  static constexpr int64_t PLAN_COLUMNS = 7;

  at::Tensor plan_, weights_, transposed_;
  std::vector<Block> blocks_;
  std::vector<bool> first_reader_;    // of its features
  int64_t width_in_ = 0, width_out_ = 0;
  bool reads_all_ = false;

  template <typename T>
  void run(const at::Tensor &in, const at::Tensor &out, bool accumulate) const;
  template <typename T>
  void run_transposed(const at::Tensor &gradient, const at::Tensor &of_in, bool accumulate) const;
};

}    // namespace hienet

#endif
