// SPDX-License-Identifier: GPL-2.0-or-later
// torch.ops.hienet.gate: SiLU on scalars, and blocks of l > 0 times SiLU of extra scalars, in one pass.

#include "gate_plan.h"

#include "differentiable.h"
#include "pooled_memory.h"

#include <ATen/Parallel.h>

namespace hienet {

using at::Tensor;

template <typename T> static const GateKernel<T> &kernel();
template <> const GateKernel<float> &kernel<float>()
{ return HIENET_CHOSEN(GATE_FLOAT); }
template <> const GateKernel<double> &kernel<double>()
{ return HIENET_CHOSEN(GATE_DOUBLE); }

struct GateInputs {
  Tensor features;
  GatePlan plan;
  double scale;

  GateInputs(const Tensor &inputs, const Tensor &blocks, int64_t n_scalars, double factor) :
      plan(inputs, blocks, n_scalars), scale(factor)
  {
    plan.check_features(inputs);
    features = hienet::rows(inputs);
  }

  template <typename T> GateRows<T> rows() const
  {
    return {plan.blocks.data(),    static_cast<int64_t>(plan.blocks.size()),
            plan.n_scalars,        plan.n_gates,
            static_cast<T>(scale), features.data_ptr<T>(),
            features.stride(0)};
  }
};

/// work(first, last) for ranges of rows, each on a thread.
template <typename Work> static void for_rows(int64_t n, const Work &work)
{ at::parallel_for(0, n, 16, work); }

static Tensor forward_cpu(const Tensor &features, const Tensor &blocks, int64_t n_scalars,
                          double scale)
{
  const GateInputs in(features, blocks, n_scalars, scale);
  const Tensor out = pooled_empty({features.size(0), in.plan.width_out}, features.scalar_type());
  AT_DISPATCH_FLOATING_TYPES(out.scalar_type(), "gate", [&] {
    for_rows(out.size(0), [&](int64_t first, int64_t last) {
      kernel<scalar_t>().forward(in.rows<scalar_t>(), out.data_ptr<scalar_t>(), out.stride(0),
                                 first, last);
    });
  });
  return out;
}

static Tensor backward_cpu(const Tensor &gradient, const Tensor &features, const Tensor &blocks,
                           int64_t n_scalars, double scale)
{
  const GateInputs in(features, blocks, n_scalars, scale);
  in.plan.check_gradient(gradient, features);
  const Tensor from = rows(gradient);
  const Tensor to = pooled_empty({features.size(0), in.plan.width_in}, features.scalar_type());
  AT_DISPATCH_FLOATING_TYPES(to.scalar_type(), "gate", [&] {
    for_rows(to.size(0), [&](int64_t first, int64_t last) {
      kernel<scalar_t>().backward(in.rows<scalar_t>(), from.data_ptr<scalar_t>(), from.stride(0),
                                  to.data_ptr<scalar_t>(), to.stride(0), first, last);
    });
  });
  return to;
}

// ----------------------------------------------------------------------
// with tangents, for training; not known to autograd
// ----------------------------------------------------------------------

template <typename T> static const DualGateKernel<T> &dual_kernel();
template <> const DualGateKernel<float> &dual_kernel<float>()
{ return HIENET_CHOSEN(DUAL_GATE_FLOAT); }
template <> const DualGateKernel<double> &dual_kernel<double>()
{ return HIENET_CHOSEN(DUAL_GATE_DOUBLE); }

/// `[n, 2, width]` as `[n, 2 width]`.
static Tensor pairs_of_rows(const Tensor &jets, const char *name)
{
  TORCH_CHECK_VALUE(jets.dim() == 3 && jets.size(1) == 2, "`", name, "` must be [n, 2, width]");
  return jets.contiguous().flatten(1);
}

/// What a row of values fits, and the rows of both.
static GateInputs dual_inputs(const Tensor &features, const Tensor &blocks, int64_t n_scalars,
                              double scale)
{
  const Tensor pairs = pairs_of_rows(features, "features");
  GateInputs in(pairs.narrow(1, 0, features.size(2)), blocks, n_scalars, scale);
  in.features = pairs;
  return in;
}

static Tensor dual_forward_cpu(const Tensor &features, const Tensor &blocks, int64_t n_scalars,
                               double scale)
{
  const GateInputs in = dual_inputs(features, blocks, n_scalars, scale);
  const int64_t width_in = in.plan.width_in, width_out = in.plan.width_out;
  const Tensor out = pooled_empty({features.size(0), 2, width_out}, features.scalar_type());
  AT_DISPATCH_FLOATING_TYPES(out.scalar_type(), "dual_gate", [&] {
    for_rows(out.size(0), [&](int64_t first, int64_t last) {
      dual_kernel<scalar_t>().forward(in.rows<scalar_t>(), width_in, width_out,
                                      out.data_ptr<scalar_t>(), out.stride(0), first, last);
    });
  });
  return out;
}

static Tensor dual_backward_cpu(const Tensor &gradient, const Tensor &features,
                                const Tensor &blocks, int64_t n_scalars, double scale)
{
  const GateInputs in = dual_inputs(features, blocks, n_scalars, scale);
  const int64_t width_in = in.plan.width_in, width_out = in.plan.width_out;
  const Tensor from = pairs_of_rows(gradient, "gradient");
  in.plan.check_gradient(from.narrow(1, 0, gradient.size(2)), in.features);
  const Tensor to = pooled_empty({features.size(0), 2, width_in}, features.scalar_type());
  AT_DISPATCH_FLOATING_TYPES(to.scalar_type(), "dual_gate", [&] {
    for_rows(to.size(0), [&](int64_t first, int64_t last) {
      dual_kernel<scalar_t>().backward(in.rows<scalar_t>(), width_in, width_out,
                                       from.data_ptr<scalar_t>(), from.stride(0),
                                       to.data_ptr<scalar_t>(), to.stride(0), first, last);
    });
  });
  return to;
}

struct DifferentiableGate : torch::autograd::Function<DifferentiableGate> {
  static Tensor forward(torch::autograd::AutogradContext *context, const Tensor &features,
                        const Tensor &blocks, int64_t n_scalars, double scale)
  {
    context->save_for_backward({features, blocks});
    context->saved_data["n_scalars"] = n_scalars;
    context->saved_data["scale"] = scale;
    const at::AutoDispatchBelowAutograd below;
    static const auto op = dispatched<decltype(forward_cpu)>("hienet::gate");
    return op.call(features, blocks, n_scalars, scale);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list gradients)
  {
    check_differentiated_once();
    const auto s = context->get_saved_variables();
    static const auto op = dispatched<decltype(backward_cpu)>("hienet::gate_backward");
    return {op.call(gradients[0], s[0], s[1], context->saved_data["n_scalars"].toInt(),
                    context->saved_data["scale"].toDouble()),
            {},
            {},
            {}};
  }
};

static Tensor forward_autograd(const Tensor &features, const Tensor &blocks, int64_t n_scalars,
                               double scale)
{ return DifferentiableGate::apply(features, blocks, n_scalars, scale); }

TORCH_LIBRARY_FRAGMENT(hienet, library)
{
  library.def("gate(Tensor features, Tensor blocks, int n_scalars, float scale) -> Tensor");
  library.def("gate_backward(Tensor gradient, Tensor features, Tensor blocks, int n_scalars, "
              "float scale) -> Tensor");
  library.def("dual_gate(Tensor features, Tensor blocks, int n_scalars, float scale) -> Tensor");
  library.def("dual_gate_backward(Tensor gradient, Tensor features, Tensor blocks, int n_scalars, "
              "float scale) -> Tensor");
}

TORCH_LIBRARY_IMPL(hienet, CPU, library)
{
  library.impl("gate", forward_cpu);
  library.impl("gate_backward", backward_cpu);
  library.impl("dual_gate", dual_forward_cpu);
  library.impl("dual_gate_backward", dual_backward_cpu);
}

TORCH_LIBRARY_IMPL(hienet, Autograd, library)
{ library.impl("gate", forward_autograd); }

}    // namespace hienet
