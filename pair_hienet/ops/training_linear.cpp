// SPDX-License-Identifier: GPL-2.0-or-later
// torch.ops.hienet.training_linear: `IrrepsLinear` (hienet/nn/linear.py) of weights that change, and its backward to
// features and weights. Not known to autograd; Python puts them together (hienet/ops/training.py).
//
// Large matrices are left to torch's products, which rearrange them at every call. Small ones, whose products are over
// before such a call has begun, are put into panels here and go through the kernel of `irreps_linear`.

#include "differentiable.h"
#include "matrix_product_kernel.h"
#include "pooled_memory.h"

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

// ----------------------------------------------------------------------
// small matrices
// ----------------------------------------------------------------------

/// Numbers of the largest matrix that is small.
static constexpr int64_t SMALL = 96 * 96;
/// Products that are worth a thread.
static constexpr int64_t WORTH_A_THREAD = 1 << 20;

static void product(const MatrixProduct<float> &p)
{ HIENET_CHOSEN(MATRIX_PRODUCT_FLOAT)(p); }
static void product(const MatrixProduct<double> &p)
{ HIENET_CHOSEN(MATRIX_PRODUCT_DOUBLE)(p); }
static void gradient_of(const MatrixGradient<float> &p)
{ HIENET_CHOSEN(MATRIX_GRADIENT_FLOAT)(p); }
static void gradient_of(const MatrixGradient<double> &p)
{ HIENET_CHOSEN(MATRIX_GRADIENT_DOUBLE)(p); }

static bool is_small(const TrainingMap &map)
{
  for (const LinearColumns &b : map.blocks)
    if (b.fan_in * b.fan_out > SMALL) return false;
  return true;
}

/// Products of all matrices with a row.
static int64_t work_of_row(const TrainingMap &map)
{
  int64_t work = 1;
  for (const LinearColumns &b : map.blocks) work += b.dim * b.fan_in * b.fan_out;
  return work;
}

/// Where the panels of the blocks begin, and how many numbers all take.
struct PanelPlaces {
  std::vector<int64_t> start;
  int64_t size = 0;

  PanelPlaces(const TrainingMap &map, bool transposed)
  {
    for (const LinearColumns &b : map.blocks) {
      start.push_back(size);
      size += transposed ? size_in_panels(b.fan_out, b.fan_in)
                         : size_in_panels(b.fan_in, b.fan_out);
    }
  }
};

/// A matrix `[rows, columns]` of these strides times a factor, in panels.
template <typename T>
static void fill_panels(const T *from, int64_t rows, int64_t columns, int64_t row_stride,
                        int64_t column_stride, T factor, T *to)
{
  for (int64_t first = 0; first < columns; first += PANEL)
    for (int64_t row = 0; row < rows; row++)
      for (int64_t k = 0; k < PANEL; k++)
        *to++ = first + k < columns ? factor * from[row * row_stride + (first + k) * column_stride]
                                    : T(0);
}

/// out += map(in) or, transposed, in += map^T(out), row by row.
template <typename T>
static void small_products(const TrainingMap &map, const T *weights, bool transposed, const T *from,
                           int64_t from_stride, T *to, int64_t to_stride, int64_t n)
{
  const PanelPlaces places(map, transposed);
  const Tensor memory = pooled_empty({places.size}, c10::CppTypeToScalarType<T>::value);
  T *const panels = memory.data_ptr<T>();
  for (size_t i = 0; i < map.blocks.size(); i++) {
    const LinearColumns &b = map.blocks[i];
    if (b.fan_in == 0) continue;
    const auto factor = static_cast<T>(map.of(b));
    const T *const matrix = weights + b.first_weight;
    if (transposed)
      fill_panels(matrix, b.fan_out, b.fan_in, int64_t(1), b.fan_out, factor,
                  panels + places.start[i]);
    else
      fill_panels(matrix, b.fan_in, b.fan_out, b.fan_out, int64_t(1), factor,
                  panels + places.start[i]);
  }
  at::parallel_for(0, n, WORTH_A_THREAD / work_of_row(map) + 1, [&](int64_t first, int64_t last) {
    size_t i = 0;
    int64_t column = 0;
    for (const LinearColumns &b : map.blocks) {
      const T *const own = panels + places.start[i++];
      if (b.fan_in > 0) {
        if (transposed)
          product(MatrixProduct<T>{own, b.fan_out, b.fan_in, b.dim, last - first,
                                   from + first * from_stride + column, from_stride,
                                   to + first * to_stride + b.start, to_stride, true});
        else
          product(MatrixProduct<T>{own, b.fan_in, b.fan_out, b.dim, last - first,
                                   from + first * from_stride + b.start, from_stride,
                                   to + first * to_stride + column, to_stride, false});
      }
      column += b.dim * b.fan_out;
    }
  });
}

template <typename T>
static void small_gradients(const TrainingMap &map, const T *in, int64_t in_stride, const T *out,
                            int64_t out_stride, int64_t n, T *of_weights)
{
  const PanelPlaces places(map, false);
  const Tensor memory = pooled_zeros({places.size}, c10::CppTypeToScalarType<T>::value);
  std::vector<int64_t> column;
  int64_t width = 0;
  for (const LinearColumns &b : map.blocks) {
    column.push_back(width);
    width += b.dim * b.fan_out;
  }
  const int64_t n_blocks = static_cast<int64_t>(map.blocks.size());
  const int64_t grain = n * work_of_row(map) < WORTH_A_THREAD ? n_blocks : 1;
  at::parallel_for(0, n_blocks, grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      const LinearColumns &b = map.blocks[i];
      if (b.fan_in == 0) continue;
      T *const panels = memory.data_ptr<T>() + places.start[i];
      gradient_of(MatrixGradient<T>{panels, b.fan_in, b.fan_out, b.dim, n, in + b.start, in_stride,
                                    out + column[i], out_stride});
      const auto factor = static_cast<T>(map.of(b));
      T *const to = of_weights + b.first_weight;
      for (int64_t row = 0; row < b.fan_in; row++)
        for (int64_t k = 0; k < b.fan_out; k++)
          to[row * b.fan_out + k] =
              factor * panels[k / PANEL * b.fan_in * PANEL + row * PANEL + k % PANEL];
    }
  });
}

// ----------------------------------------------------------------------
// large matrices
// ----------------------------------------------------------------------

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
  const Tensor out = has_empty_block(map) ? pooled_zeros(shape, features.scalar_type())
                                          : pooled_empty(shape, features.scalar_type());
  if (is_small(map)) {
    const Tensor from = rows(features), constant = weights.contiguous();
    AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), "training_linear", [&] {
      small_products<scalar_t>(map, constant.const_data_ptr<scalar_t>(), false,
                               from.const_data_ptr<scalar_t>(), from.stride(0),
                               out.data_ptr<scalar_t>(), out.stride(0), from.size(0));
    });
    return out;
  }
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
  const Tensor of_features = pooled_zeros(features.sizes(), features.scalar_type());
  const Tensor of_weights = at::zeros({wanted ? weights.size(0) : 0}, weights.options());
  if (is_small(map)) {
    const Tensor in = rows(features), constant = weights.contiguous();
    AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), "training_linear", [&] {
      small_products<scalar_t>(
          map, constant.const_data_ptr<scalar_t>(), true, from.const_data_ptr<scalar_t>(),
          from.stride(0), of_features.data_ptr<scalar_t>(), of_features.stride(0), from.size(0));
      if (wanted)
        small_gradients<scalar_t>(map, in.const_data_ptr<scalar_t>(), in.stride(0),
                                  from.const_data_ptr<scalar_t>(), from.stride(0), from.size(0),
                                  of_weights.data_ptr<scalar_t>());
    });
    return {of_features, of_weights};
  }
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
