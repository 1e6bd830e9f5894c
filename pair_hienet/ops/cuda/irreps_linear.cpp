// SPDX-License-Identifier: GPL-2.0-or-later
// torch.ops.hienet.irreps_linear on a GPU.

#include "../differentiable.h"
#include "device_call.h"
#include "device_linear.h"

namespace hienet::cuda {

using at::Tensor;

static Tensor forward(const Tensor &features, const Tensor &weights, const Tensor &transposed,
                      const Tensor &plan)
{
  const c10::DeviceGuard guard(features.device());
  const auto map = DeviceLinear::of(plan, weights, transposed);
  check_rows_of_linear_map(features, map->width_in(), weights, "features");
  const Tensor in = rows(features);
  const Tensor out = at::empty({in.size(0), map->width_out()}, in.options());
  map->apply(in, out, false);
  return out;
}

static Tensor backward(const Tensor &gradient, const Tensor &weights, const Tensor &transposed,
                       const Tensor &plan, int64_t width)
{
  const c10::DeviceGuard guard(gradient.device());
  const auto map = DeviceLinear::of(plan, weights, transposed);
  check_rows_of_linear_map(gradient, map->width_out(), weights, "gradient");
  const Tensor from = rows(gradient);
  const Tensor to = at::empty({from.size(0), width}, from.options());
  map->apply_transposed(from, to);
  return to;
}

TORCH_LIBRARY_IMPL(hienet, HIENET_DEVICE_KEY, library)
{
  library.impl("irreps_linear", forward);
  library.impl("irreps_linear_backward", backward);
}

}    // namespace hienet::cuda
