// SPDX-License-Identifier: GPL-2.0-or-later
// torch.ops.hienet.training_linear: `IrrepsLinear` (hienet/nn/linear.py) of weights that change, and its backward to
// features and weights. Not known to autograd; Python puts them together (hienet/ops/training.py).
//
// `irreps_linear` keeps its matrices in panels, which would have to be filled anew in every step.

#include "differentiable.h"

#include <ATen/ATen.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <vector>

namespace hienet {

using at::Tensor;

/// One irrep of the output: `columns` of an `IrrepsLinear`.
struct LinearColumns {
  int64_t start, fan_in, dim, fan_out, first_weight;
};

/// The columns of a map, and its factor beside 1/sqrt(fan-in).
struct TrainingMap {
  std::vector<LinearColumns> blocks;
  int64_t width_out = 0;
  double factor;

  /// Throws c10::ValueError where the columns do not fit features and weights.
  TrainingMap(const Tensor &features, const Tensor &weights, const Tensor &columns, double scale) :
      factor(scale)
  {
    TORCH_CHECK_VALUE(features.dim() == 2 && weights.dim() == 1 && columns.dim() == 2 &&
                          columns.size(1) == 5 && columns.scalar_type() == at::kLong &&
                          features.scalar_type() == weights.scalar_type(),
                      "the inputs of the linear map have wrong shapes or dtypes");
    const Tensor table = columns.contiguous();
    const auto *const rows =
        reinterpret_cast<const LinearColumns *>(table.const_data_ptr<int64_t>());
    blocks.assign(rows, rows + table.size(0));
    for (const LinearColumns &b : blocks) {
      TORCH_CHECK_VALUE(b.start >= 0 && b.fan_in >= 0 && b.dim >= 1 && b.fan_out >= 1 &&
                            b.start + b.dim * b.fan_in <= features.size(1) && b.first_weight >= 0 &&
                            b.first_weight + b.fan_in * b.fan_out <= weights.size(0),
                        "the columns of the linear map do not fit its features or weights");
      width_out += b.dim * b.fan_out;
    }
  }

  double of(const LinearColumns &b) const
  { return factor / std::sqrt(static_cast<double>(b.fan_in)); }
};

/// work(columns, m, first column of the output) for every component of every irrep that has an input.
template <typename Work> static void each_component(const TrainingMap &map, const Work &work)
{
  int64_t out = 0;
  for (const LinearColumns &b : map.blocks) {
    for (int64_t m = 0; m < b.dim && b.fan_in > 0; m++) work(b, m, out + m * b.fan_out);
    out += b.dim * b.fan_out;
  }
}

static Tensor matrix(const Tensor &weights, const LinearColumns &b)
{ return weights.narrow(0, b.first_weight, b.fan_in * b.fan_out).view({b.fan_in, b.fan_out}); }

static Tensor input(const Tensor &features, const LinearColumns &b, int64_t m)
{ return features.narrow(1, b.start + m * b.fan_in, b.fan_in); }

static bool has_empty_block(const TrainingMap &map)
{
  for (const LinearColumns &b : map.blocks)
    if (b.fan_in == 0) return true;
  return false;
}

static Tensor forward_cpu(const Tensor &features, const Tensor &weights, const Tensor &columns,
                          double scale)
{
  const TrainingMap map(features, weights, columns, scale);
  const std::array<int64_t, 2> shape = {features.size(0), map.width_out};
  const Tensor out = has_empty_block(map) ? at::zeros(shape, features.options())
                                          : at::empty(shape, features.options());
  each_component(map, [&](const LinearColumns &b, int64_t m, int64_t column) {
    Tensor to = out.narrow(1, column, b.fan_out);
    at::addmm_out(to, to, input(features, b, m), matrix(weights, b), 0.0, map.of(b));
  });
  return out;
}

/// With respect to the features, and if `wanted` to the weights; else an empty tensor.
static std::tuple<Tensor, Tensor> backward_cpu(const Tensor &gradient, const Tensor &features,
                                               const Tensor &weights, const Tensor &columns,
                                               double scale, bool wanted)
{
  const TrainingMap map(features, weights, columns, scale);
  TORCH_CHECK_VALUE(gradient.dim() == 2 && gradient.size(0) == features.size(0) &&
                        gradient.size(1) == map.width_out &&
                        gradient.scalar_type() == features.scalar_type(),
                    "the gradient of the linear map's output has a wrong shape or dtype");
  const Tensor from = rows(gradient);
  // Several irreps of the output may read the same columns, and some columns nobody reads.
  const Tensor of_features = at::zeros(features.sizes(), features.options());
  const Tensor of_weights = at::empty({wanted ? weights.size(0) : 0}, weights.options());
  if (wanted) of_weights.zero_();
  each_component(map, [&](const LinearColumns &b, int64_t m, int64_t column) {
    const Tensor of_out = from.narrow(1, column, b.fan_out);
    Tensor to = input(of_features, b, m);
    at::addmm_out(to, to, of_out, matrix(weights, b).t(), 1.0, map.of(b));
    if (wanted) {
      Tensor of_matrix = matrix(of_weights, b);
      at::addmm_out(of_matrix, of_matrix, input(features, b, m).t(), of_out, 1.0, map.of(b));
    }
  });
  return {of_features, of_weights};
}

TORCH_LIBRARY_FRAGMENT(hienet, library)
{
  library.def("training_linear(Tensor features, Tensor weights, Tensor columns, float scale) "
              "-> Tensor");
  library.def("training_linear_backward(Tensor gradient, Tensor features, Tensor weights, "
              "Tensor columns, float scale, bool wanted) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(hienet, CPU, library)
{
  library.impl("training_linear", forward_cpu);
  library.impl("training_linear_backward", backward_cpu);
}

}    // namespace hienet
