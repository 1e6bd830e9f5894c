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
    plan_(plan.to(at::kLong).contiguous()), weights_(weights.contiguous()),
    transposed_(transposed.contiguous())
{
  TORCH_CHECK_VALUE(plan.dim() == 2 && plan.size(1) == PLAN_COLUMNS && weights.dim() == 1 &&
                        transposed.dim() == 1,
                    "the plan of a linear map has a wrong shape");
  const Block *const rows = reinterpret_cast<const Block *>(plan_.data_ptr<int64_t>());
  blocks_.assign(rows, rows + plan_.size(0));
  int64_t read = 0;
  for (size_t i = 0; i < blocks_.size(); i++) {
    const Block &b = blocks_[i];
    TORCH_CHECK_VALUE(
        b.in_start >= 0 && b.fan_in >= 0 && b.dim >= 1 && b.fan_out >= 1 &&
            b.out_start == width_out_ && b.weight_start >= 0 &&
            b.weight_start + size_in_panels(b.fan_in, b.fan_out) <= weights_.numel() &&
            b.transposed_start >= 0 &&
            b.transposed_start + size_in_panels(b.fan_out, b.fan_in) <= transposed_.numel(),
        "block ", i, " of a linear map does not fit its weights");
    width_out_ += b.dim * b.fan_out;
    width_in_ = std::max(width_in_, b.in_start + b.dim * b.fan_in);
    bool again = false;
    for (size_t j = 0; j < i; j++) {
      const Block &earlier = blocks_[j];
      const int64_t start = std::max(b.in_start, earlier.in_start);
      const int64_t stop =
          std::min(b.in_start + b.dim * b.fan_in, earlier.in_start + earlier.dim * earlier.fan_in);
      if (start >= stop) continue;
      // The first of them sets the gradient of the features, the others add to it.
      TORCH_CHECK_VALUE(
          b.in_start == earlier.in_start && b.dim == earlier.dim && b.fan_in == earlier.fan_in,
          "block ", i, " of a linear map reads columns that block ", j, " reads in another shape");
      again = true;
    }
    first_reader_.push_back(!again);
    if (!again) read += b.dim * b.fan_in;
  }
  reads_all_ = read == width_in_;
}

template <typename T>
void IrrepsLinear::run(const Tensor &in, const Tensor &out, bool accumulate) const
{
  for (const Block &b : blocks_) {
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
  if (!accumulate && (!reads_all_ || of_in.size(1) > width_in_)) {
    of_in.zero_();
    accumulate = true;
  }
  for (size_t i = 0; i < blocks_.size(); i++) {
    const Block &b = blocks_[i];
    if (b.fan_in == 0) continue;
    matrix_product<T>({transposed_.data_ptr<T>() + b.transposed_start, b.fan_out, b.fan_in, b.dim,
                       gradient.size(0), gradient.data_ptr<T>() + b.out_start, gradient.stride(0),
                       of_in.data_ptr<T>() + b.in_start, of_in.stride(0),
                       accumulate || !first_reader_[i]});
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
  const auto dtype = rows.scalar_type();
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble,
                    "the linear map takes float32 or float64, got ", dtype);
  TORCH_CHECK_VALUE(weights.scalar_type() == dtype, "`", what, "` is ", dtype,
                    ", but the weights are ", weights.scalar_type());
  TORCH_CHECK_VALUE(rows.dim() == 2 && rows.size(1) >= width, "`", what,
                    "` must have two dimensions and ", width, " columns, got ", rows.sizes());
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

TORCH_LIBRARY_IMPL(hienet, CUDA, library)
{ library.impl("irreps_linear", torch::CppFunction::makeFromBoxedFunction<&refuse_cuda>()); }

TORCH_LIBRARY_IMPL(hienet, Autograd, library)
{ library.impl("irreps_linear", forward_autograd); }

}    // namespace hienet
