// SPDX-License-Identifier: GPL-2.0-or-later

#ifndef HIENET_GATE_PLAN_H
#define HIENET_GATE_PLAN_H

#include "gate_kernel.h"

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace hienet {

/// The columns of a gate, checked.
struct GatePlan {
  std::vector<GatedBlock> blocks;
  int64_t n_scalars, n_gates = 0, width_in = 0, width_out = 0;

  /// `blocks`: int64 `[n_blocks, 2]`, 2l+1 and channels. Throws c10::ValueError where `features` do not fit it.
  GatePlan(const at::Tensor &features, const at::Tensor &block_rows, int64_t scalars) :
      n_scalars(scalars)
  {
    const auto dtype = features.scalar_type();
    TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble,
                      "the gate takes float32 or float64, got ", dtype);
    TORCH_CHECK_VALUE(features.dim() == 2 && block_rows.dim() == 2 && block_rows.size(1) == 2 &&
                          n_scalars >= 0,
                      "the gate's features or plan have a wrong shape");
    const at::Tensor table = block_rows.to(at::kCPU, at::kLong).contiguous();
    const auto *const rows = reinterpret_cast<const GatedBlock *>(table.const_data_ptr<int64_t>());
    blocks.assign(rows, rows + table.size(0));
    int64_t gated = 0;
    for (const GatedBlock &block : blocks) {
      TORCH_CHECK_VALUE(block.dim >= 1 && block.channels >= 1,
                        "the gate's features or plan have a wrong shape");
      n_gates += block.channels;
      gated += block.dim * block.channels;
    }
    width_out = n_scalars + gated;
    width_in = width_out + n_gates;
  }

  /// Throws c10::ValueError.
  void check_features(const at::Tensor &features) const
  {
    TORCH_CHECK_VALUE(features.size(1) == width_in, "the gate takes ", width_in, " columns, got ",
                      features.size(1));
  }

  /// Throws c10::ValueError.
  void check_gradient(const at::Tensor &gradient, const at::Tensor &features) const
  {
    TORCH_CHECK_VALUE(gradient.dim() == 2 && gradient.size(0) == features.size(0) &&
                          gradient.size(1) == width_out &&
                          gradient.scalar_type() == features.scalar_type(),
                      "the gradient of the gate's output has a wrong shape or dtype");
  }
};

}    // namespace hienet

#endif
