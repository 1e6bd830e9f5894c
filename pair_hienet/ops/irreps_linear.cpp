// SPDX-License-Identifier: GPL-2.0-or-later
// torch.ops.hienet.irreps_linear, and the maps that other operators apply to rows in scratch memory.

#include "irreps_linear.h"

#include "differentiable.h"
#include "matrix_product_kernel.h"
#include "pooled_memory.h"

#include <ATen/Parallel.h>

#include <algorithm>

namespace hienet {

using at::Tensor;

template <typename T> static void matrix_product(const MatrixProduct<T> &product);
template <> void matrix_product<float>(const MatrixProduct<float> &product)
{ HIENET_CHOSEN(MATRIX_PRODUCT_FLOAT)(product); }
template <> void matrix_product<double>(const MatrixProduct<double> &product)
{ HIENET_CHOSEN(MATRIX_PRODUCT_DOUBLE)(product); }

IrrepsLinear::IrrepsLinear(const Tensor &plan, const Tensor &weights, const Tensor &transposed) :
    plan_(plan, weights, transposed), weights_(weights.contiguous()),
    transposed_(transposed.contiguous())
{
}

template <typename T>
void IrrepsLinear::run(const Tensor &in, const Tensor &out, bool accumulate) const
{
  for (const LinearPlan::Block &b : plan_.blocks) {
    if (b.fan_in == 0) {
      if (!accumulate) out.narrow(1, b.out_start, b.dim * b.fan_out).zero_();
      continue;
    }
    matrix_product<T>({weights_.data_ptr<T>() + b.weight_start, b.fan_in, b.fan_out, b.dim,
                       in.size(0), in.data_ptr<T>() + b.in_start, in.stride(0),
                       out.data_ptr<T>() + b.out_start, out.stride(0), accumulate});
  }
}

template <typename T>
void IrrepsLinear::run_transposed(const Tensor &gradient, const Tensor &of_in,
                                  bool accumulate) const
{
  if (!accumulate && (!plan_.reads_all || of_in.size(1) > plan_.width_in)) {
    of_in.zero_();
    accumulate = true;
  }
  for (size_t i = 0; i < plan_.blocks.size(); i++) {
    const LinearPlan::Block &b = plan_.blocks[i];
    if (b.fan_in == 0) continue;
    matrix_product<T>({transposed_.data_ptr<T>() + b.transposed_start, b.fan_out, b.fan_in, b.dim,
                       gradient.size(0), gradient.data_ptr<T>() + b.out_start, gradient.stride(0),
                       of_in.data_ptr<T>() + b.in_start, of_in.stride(0),
                       accumulate || !plan_.first_reader[i]});
  }
}

void IrrepsLinear::apply(const Tensor &in, const Tensor &out, bool accumulate) const
{
  if (in.scalar_type() == at::kFloat)
    run<float>(in, out, accumulate);
  else
    run<double>(in, out, accumulate);
}

void IrrepsLinear::apply_transposed(const Tensor &gradient, const Tensor &of_in,
                                    bool accumulate) const
{
  if (gradient.scalar_type() == at::kFloat)
    run_transposed<float>(gradient, of_in, accumulate);
  else
    run_transposed<double>(gradient, of_in, accumulate);
}

// ----------------------------------------------------------------------
// the operator
// ----------------------------------------------------------------------

/// Rows that a thread takes at a time: they stay in the cache while the matrices pass. A multiple of what the kernels
/// keep in registers, 14 or 6.
static constexpr int64_t BLOCK_ROWS = 84;
/// Fewest rows that are worth a thread.
static constexpr int64_t GRAIN = 14;

/// work(first, n) for blocks of the rows; threads share them evenly.
template <typename Work> static void for_each_block_of_rows(int64_t n_rows, const Work &work)
{
  at::parallel_for(0, n_rows, GRAIN, [&](int64_t first, int64_t last) {
    const at::AutoDispatchBelowAutograd below;    // threads do not inherit this state
    for (int64_t row = first; row < last; row += BLOCK_ROWS)
      work(row, std::min(BLOCK_ROWS, last - row));
  });
}

static Tensor checked(const Tensor &rows, int64_t width, const Tensor &weights, const char *what)
{
  check_rows_of_linear_map(rows, width, weights, what);
  return hienet::rows(rows);
}

static Tensor forward_cpu(const Tensor &features, const Tensor &weights, const Tensor &transposed,
                          const Tensor &plan)
{
  const IrrepsLinear map(plan, weights, transposed);
  const Tensor in = checked(features, map.width_in(), weights, "features");
  const Tensor out = pooled_empty({in.size(0), map.width_out()}, in.scalar_type());
  for_each_block_of_rows(in.size(0), [&](int64_t first, int64_t n) {
    map.apply(in.narrow(0, first, n), out.narrow(0, first, n), false);
  });
  return out;
}

/// With respect to the features, which have `width` columns.
static Tensor backward_cpu(const Tensor &gradient, const Tensor &weights, const Tensor &transposed,
                           const Tensor &plan, int64_t width)
{
  const IrrepsLinear map(plan, weights, transposed);
  const Tensor from = checked(gradient, map.width_out(), weights, "gradient");
  const Tensor to = pooled_empty({from.size(0), width}, from.scalar_type());
  for_each_block_of_rows(from.size(0), [&](int64_t first, int64_t n) {
    map.apply_transposed(from.narrow(0, first, n), to.narrow(0, first, n), false);
  });
  return to;
}

struct DifferentiableLinear : torch::autograd::Function<DifferentiableLinear> {
  static Tensor forward(torch::autograd::AutogradContext *context, const Tensor &features,
                        const Tensor &weights, const Tensor &transposed, const Tensor &plan)
  {
    context->save_for_backward({weights, transposed, plan});
    const at::AutoDispatchBelowAutograd below;
    static const auto op = dispatched<decltype(forward_cpu)>("hienet::irreps_linear");
    const Tensor out = op.call(features, weights, transposed, plan);
    context->saved_data["width"] = features.size(1);    // has two dimensions, as the call checked
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list gradients)
  {
    check_differentiated_once();
    const auto s = context->get_saved_variables();
    static const auto op = dispatched<decltype(backward_cpu)>("hienet::irreps_linear_backward");
    return {
        op.call(gradients[0], s[0], s[1], s[2], context->saved_data["width"].toInt()), {}, {}, {}};
  }
};

static Tensor forward_autograd(const Tensor &features, const Tensor &weights,
                               const Tensor &transposed, const Tensor &plan)
{
  check_constant({weights, transposed});
  return DifferentiableLinear::apply(features, weights, transposed, plan);
}

TORCH_LIBRARY_FRAGMENT(hienet, library)
{
  library.def("irreps_linear(Tensor features, Tensor weights, Tensor transposed, Tensor plan) "
              "-> Tensor");
  library.def("irreps_linear_backward(Tensor gradient, Tensor weights, Tensor transposed, "
              "Tensor plan, int width) -> Tensor");
}

TORCH_LIBRARY_IMPL(hienet, CPU, library)
{
  library.impl("irreps_linear", forward_cpu);
  library.impl("irreps_linear_backward", backward_cpu);
}

TORCH_LIBRARY_IMPL(hienet, Autograd, library)
{ library.impl("irreps_linear", forward_autograd); }

}    // namespace hienet
