// SPDX-License-Identifier: GPL-2.0-or-later
// torch.ops.hienet.gate on a GPU.

#include "gate.h"

#include "../differentiable.h"
#include "../gate_plan.h"
#include "device_call.h"
#include "memo.h"

namespace hienet::cuda {

using at::Tensor;

static std::shared_ptr<const GatePlan> plan_of(const Tensor &features, const Tensor &blocks,
                                               int64_t n_scalars)
{
  static Memo<GatePlan, LAYERS> memo;
  const auto plan = memo.get(
      {blocks}, {n_scalars, features.dim(), static_cast<int64_t>(features.scalar_type())}, [&] {
        return GatePlan(features, blocks, n_scalars);
      });
  plan->check_features(features);
  TORCH_CHECK_VALUE(plan->blocks.size() <= LARGEST_BLOCKS, "on a GPU the gate takes up to ",
                    LARGEST_BLOCKS, " blocks, got ", plan->blocks.size());
  return plan;
}

template <typename T>
static Gate<T> view(const GatePlan &plan, const Tensor &features, double scale)
{
  Gate<T> gate = {{},
                  plan.n_scalars,
                  plan.n_gates,
                  static_cast<T>(scale),
                  features.const_data_ptr<T>(),
                  features.stride(0),
                  features.size(0)};
  int64_t gate_start = plan.n_scalars, out = plan.n_scalars, in = plan.n_scalars + plan.n_gates;
  for (size_t b = 0; b < plan.blocks.size(); b++) {
    const auto [dim, channels] = plan.blocks[b];
    gate.blocks[b] = {dim, channels, gate_start, in, out};
    gate_start += channels;
    in += dim * channels;
    out += dim * channels;
  }
  return gate;
}

static Tensor forward(const Tensor &features, const Tensor &blocks, int64_t n_scalars, double scale)
{
  const c10::DeviceGuard guard(features.device());
  const auto plan = plan_of(features, blocks, n_scalars);
  const Tensor in = rows(features);
  const Tensor out = at::empty({in.size(0), plan->width_out}, in.options());
  AT_DISPATCH_FLOATING_TYPES(out.scalar_type(), "gate", [&] {
    gate_forward<scalar_t>(view<scalar_t>(*plan, in, scale), out.data_ptr<scalar_t>(),
                           out.stride(0), current_stream(in.device()));
  });
  return out;
}

static Tensor backward(const Tensor &gradient, const Tensor &features, const Tensor &blocks,
                       int64_t n_scalars, double scale)
{
  const c10::DeviceGuard guard(features.device());
  const auto plan = plan_of(features, blocks, n_scalars);
  plan->check_gradient(gradient, features);
  const Tensor in = rows(features), from = rows(gradient);
  const Tensor to = at::empty({in.size(0), plan->width_in}, in.options());
  AT_DISPATCH_FLOATING_TYPES(to.scalar_type(), "gate", [&] {
    gate_backward<scalar_t>(view<scalar_t>(*plan, in, scale), from.const_data_ptr<scalar_t>(),
                            from.stride(0), to.data_ptr<scalar_t>(), to.stride(0),
                            current_stream(in.device()));
  });
  return to;
}

TORCH_LIBRARY_IMPL(hienet, HIENET_DEVICE_KEY, library)
{
  library.impl("gate", forward);
  library.impl("gate_backward", backward);
}

}    // namespace hienet::cuda
