// SPDX-License-Identifier: GPL-2.0-or-later
// torch.ops.hienet.network_panels: the weights of edge networks, gathered from the tensors of a model in training into the
// panels that the operators read, and its backward, which hands gradients back to those tensors. Not known to autograd;
// Python puts them together (hienet/ops/training_functions.py).

#include "differentiable.h"
#include "matrix_product_kernel.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <tuple>
#include <vector>

namespace hienet {

using at::Tensor;

/// A matrix that is part of a tensor, and where its panels and those of its transposed begin. Strides count numbers.
struct MatrixView {
  int64_t tensor, offset, row_stride, column_stride, rows, columns, start, transposed_start;
};

/// The same of a vector.
struct VectorView {
  int64_t tensor, offset, stride, width, start;
};

/// The rows of an int64 tensor as structures of as many numbers.
template <typename Row> static std::vector<Row> rows_of(const Tensor &tensor)
{
  constexpr int64_t N = sizeof(Row) / sizeof(int64_t);
  TORCH_CHECK_VALUE(tensor.dim() == 2 && tensor.size(1) == N && tensor.scalar_type() == at::kLong,
                    "the views of weights must be [n, ", N, "] of int64");
  const Tensor table = tensor.contiguous();
  const auto *const first = reinterpret_cast<const Row *>(table.const_data_ptr<int64_t>());
  return {first, first + table.size(0)};
}

/// The views of one call, checked.
struct PanelViews {
  std::vector<MatrixView> matrices;
  std::vector<double> scales;
  std::vector<VectorView> vectors;

  PanelViews(at::TensorList tensors, const Tensor &matrix_rows, const Tensor &matrix_scales,
             const Tensor &vector_rows, at::IntArrayRef sizes) :
      matrices(rows_of<MatrixView>(matrix_rows)), vectors(rows_of<VectorView>(vector_rows))
  {
    TORCH_CHECK_VALUE(sizes.size() == 3 && tensors.size() > 0,
                      "panels need three sizes, and tensors to be gathered from");
    TORCH_CHECK_VALUE(matrix_scales.dim() == 1 && matrix_scales.scalar_type() == at::kDouble &&
                          matrix_scales.size(0) == static_cast<int64_t>(matrices.size()),
                      "each matrix needs a scale");
    const Tensor factors = matrix_scales.contiguous();
    scales.assign(factors.const_data_ptr<double>(),
                  factors.const_data_ptr<double>() + factors.numel());
    const auto dtype = tensors[0].scalar_type();
    TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble,
                      "panels take float32 or float64, got ", dtype);
    for (const Tensor &tensor : tensors)
      TORCH_CHECK_VALUE(tensor.is_contiguous() && tensor.scalar_type() == dtype,
                        "weights must be contiguous and of one dtype");
    const auto fits = [](int64_t start, int64_t size, int64_t total) {
      return start >= 0 && size >= 0 && start <= total - size;
    };
    for (const MatrixView &m : matrices)
      TORCH_CHECK_VALUE(
          m.tensor >= 0 && m.tensor < static_cast<int64_t>(tensors.size()) && m.rows > 0 &&
              m.columns > 0 && m.row_stride >= 0 && m.column_stride >= 0 &&
              fits(m.offset, 1 + (m.rows - 1) * m.row_stride + (m.columns - 1) * m.column_stride,
                   tensors[m.tensor].numel()) &&
              fits(m.start, size_in_panels(m.rows, m.columns), sizes[0]) &&
              fits(m.transposed_start, size_in_panels(m.columns, m.rows), sizes[1]),
          "a view of a matrix does not fit its tensor or its panels");
    for (const VectorView &v : vectors)
      TORCH_CHECK_VALUE(
          v.tensor >= 0 && v.tensor < static_cast<int64_t>(tensors.size()) && v.width > 0 &&
              v.stride >= 0 &&
              fits(v.offset, 1 + (v.width - 1) * v.stride, tensors[v.tensor].numel()) &&
              fits(v.start, v.width, sizes[2]),
          "a view of a vector does not fit its tensor or its place");
  }
};

/// work(row, column, place) for all numbers of a matrix `[rows, columns]` in panels.
template <typename Work> static void each_in_panels(int64_t rows, int64_t columns, const Work &work)
{
  for (int64_t first = 0; first < columns; first += PANEL) {
    const int64_t n = std::min(PANEL, columns - first);
    for (int64_t row = 0; row < rows; row++)
      for (int64_t k = 0; k < n; k++) work(row, first + k, first * rows + row * PANEL + k);
  }
}

/// `weights`, `transposed` and `vectors` of the given sizes; matrices are multiplied by their scales.
static std::tuple<Tensor, Tensor, Tensor> forward_cpu(at::TensorList tensors,
                                                      const Tensor &matrices, const Tensor &scales,
                                                      const Tensor &vectors, at::IntArrayRef sizes)
{
  const PanelViews views(tensors, matrices, scales, vectors, sizes);
  const auto options = tensors[0].options().requires_grad(false);
  const Tensor weights = at::zeros({sizes[0]}, options),
               transposed = at::zeros({sizes[1]}, options);
  const Tensor numbers = at::zeros({sizes[2]}, options);
  AT_DISPATCH_FLOATING_TYPES(tensors[0].scalar_type(), "network_panels", [&] {
    for (size_t i = 0; i < views.matrices.size(); i++) {
      const MatrixView &m = views.matrices[i];
      const scalar_t *const from = tensors[m.tensor].const_data_ptr<scalar_t>() + m.offset;
      const auto scale = static_cast<scalar_t>(views.scales[i]);
      scalar_t *const to = weights.data_ptr<scalar_t>() + m.start;
      scalar_t *const turned = transposed.data_ptr<scalar_t>() + m.transposed_start;
      each_in_panels(m.rows, m.columns, [&](int64_t row, int64_t column, int64_t place) {
        to[place] = scale * from[row * m.row_stride + column * m.column_stride];
      });
      each_in_panels(m.columns, m.rows, [&](int64_t column, int64_t row, int64_t place) {
        turned[place] = scale * from[row * m.row_stride + column * m.column_stride];
      });
    }
    for (const VectorView &v : views.vectors)
      for (int64_t k = 0; k < v.width; k++)
        numbers.data_ptr<scalar_t>()[v.start + k] =
            tensors[v.tensor].const_data_ptr<scalar_t>()[v.offset + k * v.stride];
  });
  return {weights, transposed, numbers};
}

/// Gradients of the tensors, from those of `weights` and `vectors`.
static std::vector<Tensor> backward_cpu(const Tensor &of_weights, const Tensor &of_vectors,
                                        at::TensorList tensors, const Tensor &matrices,
                                        const Tensor &scales, const Tensor &vectors)
{
  const int64_t n_weights = of_weights.numel();
  // The transposed are a copy: nobody gives a gradient with respect to them.
  const std::array<int64_t, 3> sizes = {n_weights, INT64_MAX / 2, of_vectors.numel()};
  const PanelViews views(tensors, matrices, scales, vectors, sizes);
  TORCH_CHECK_VALUE(of_weights.scalar_type() == tensors[0].scalar_type() &&
                        of_vectors.scalar_type() == tensors[0].scalar_type(),
                    "gradients of panels have the dtype of the weights");
  const Tensor from_weights = of_weights.contiguous(), from_vectors = of_vectors.contiguous();
  std::vector<Tensor> result;
  for (const Tensor &tensor : tensors)
    result.push_back(at::zeros(tensor.sizes(), tensor.options().requires_grad(false)));
  AT_DISPATCH_FLOATING_TYPES(tensors[0].scalar_type(), "network_panels", [&] {
    for (size_t i = 0; i < views.matrices.size(); i++) {
      const MatrixView &m = views.matrices[i];
      const scalar_t *const from = from_weights.const_data_ptr<scalar_t>() + m.start;
      scalar_t *const to = result[m.tensor].template data_ptr<scalar_t>() + m.offset;
      const auto scale = static_cast<scalar_t>(views.scales[i]);
      each_in_panels(m.rows, m.columns, [&](int64_t row, int64_t column, int64_t place) {
        to[row * m.row_stride + column * m.column_stride] += scale * from[place];
      });
    }
    for (const VectorView &v : views.vectors)
      for (int64_t k = 0; k < v.width; k++)
        result[v.tensor].template data_ptr<scalar_t>()[v.offset + k * v.stride] +=
            from_vectors.const_data_ptr<scalar_t>()[v.start + k];
  });
  return result;
}

TORCH_LIBRARY_FRAGMENT(hienet, library)
{
  library.def("network_panels(Tensor[] tensors, Tensor matrices, Tensor scales, Tensor vectors, "
              "int[] sizes) -> (Tensor, Tensor, Tensor)");
  library.def("network_panels_backward(Tensor of_weights, Tensor of_vectors, Tensor[] tensors, "
              "Tensor matrices, Tensor scales, Tensor vectors) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(hienet, CPU, library)
{
  library.impl("network_panels", forward_cpu);
  library.impl("network_panels_backward", backward_cpu);
}

}    // namespace hienet
