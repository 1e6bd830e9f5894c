// SPDX-License-Identifier: GPL-2.0-or-later

#ifndef HIENET_CUDA_PANELS_H
#define HIENET_CUDA_PANELS_H

#include "../matrix_product_kernel.h"

#include <ATen/ATen.h>

#include <cstdint>

namespace hienet::cuda {

/// The matrix `[fan_in, fan_out]` that lies in panels (matrix_product_kernel.h) from `start` on, as torch multiplies it;
/// a copy.
inline at::Tensor matrix_of_panels(const at::Tensor &weights, int64_t start, int64_t fan_in,
                                   int64_t fan_out)
{
  return weights.reshape({-1})
      .narrow(0, start, size_in_panels(fan_in, fan_out))
      .view({(fan_out + PANEL - 1) / PANEL, fan_in, PANEL})
      .transpose(0, 1)
      .flatten(1)
      .narrow(1, 0, fan_out)
      .clone(at::MemoryFormat::Contiguous);
}

}    // namespace hienet::cuda

#endif
