// SPDX-License-Identifier: GPL-2.0-or-later
// Equivariant linear maps of constant weights: channels of one irrep are mixed, nothing else.

#ifndef HIENET_IRREPS_LINEAR_H
#define HIENET_IRREPS_LINEAR_H

#include "linear_plan.h"

#include <ATen/ATen.h>

#include <cstdint>

namespace hienet {

/// The maps of a `LinearPlan`.
class IrrepsLinear {
 public:
  /// Throws c10::ValueError where the plan does not fit the weights.
  IrrepsLinear(const at::Tensor &plan, const at::Tensor &weights, const at::Tensor &transposed);

  /// Columns that the maps read and write.
  int64_t width_in() const { return plan_.width_in; }
  int64_t width_out() const { return plan_.width_out; }

  /// out = map(in), or out += map(in), for rows of two-dimensional tensors whose columns are contiguous.
  void apply(const at::Tensor &in, const at::Tensor &out, bool accumulate) const;

  /// The transpose of it: from the gradient of the output to that of the input.
  void apply_transposed(const at::Tensor &gradient, const at::Tensor &of_in, bool accumulate) const;

 private:
  LinearPlan plan_;
  at::Tensor weights_, transposed_;

  template <typename T>
  void run(const at::Tensor &in, const at::Tensor &out, bool accumulate) const;
  template <typename T>
  void run_transposed(const at::Tensor &gradient, const at::Tensor &of_in, bool accumulate) const;
};

}    // namespace hienet

#endif
