// SPDX-License-Identifier: GPL-2.0-or-later
// Equivariant linear maps on a device, by torch's matrix products (cuBLAS on a GPU; TF32 where torch is told to use it).

#ifndef HIENET_CUDA_DEVICE_LINEAR_H
#define HIENET_CUDA_DEVICE_LINEAR_H

#include "../linear_plan.h"

#include <ATen/ATen.h>

#include <memory>
#include <vector>

namespace hienet::cuda {

/// The maps of a `LinearPlan`, with their matrices as torch multiplies them.
class DeviceLinear {
 public:
  /// Those of these tensors. Throws c10::ValueError where the plan does not fit the weights.
  static std::shared_ptr<const DeviceLinear> of(const at::Tensor &plan, const at::Tensor &weights,
                                                const at::Tensor &transposed);

  int64_t width_in() const { return plan_.width_in; }
  int64_t width_out() const { return plan_.width_out; }

  /// out = map(in), or out += map(in), for rows of two-dimensional tensors whose columns are contiguous.
  void apply(const at::Tensor &in, const at::Tensor &out, bool accumulate) const;

  /// The transpose of it: from the gradient of the output to that of the input, which is set.
  void apply_transposed(const at::Tensor &gradient, const at::Tensor &of_in) const;

 private:
  LinearPlan plan_;
  std::vector<at::Tensor> matrices_;    // [fan_in, fan_out] of each block

  DeviceLinear(const at::Tensor &plan, const at::Tensor &weights, const at::Tensor &transposed);
};

}    // namespace hienet::cuda

#endif
