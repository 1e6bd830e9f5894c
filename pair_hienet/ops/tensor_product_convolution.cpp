// SPDX-License-Identifier: GPL-2.0-or-later
// torch.ops.hienet.tensor_product_convolution: checks, threads and differentiation around convolution_kernel.cpp.

#include "convolution_kernel.h"
#include "edge_list.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <tuple>
#include <vector>

namespace hienet {

using at::Tensor;

// ----------------------------------------------------------------------
// inputs
// ----------------------------------------------------------------------

/// The tensors of one call, in the layout that the kernels read.
struct Inputs {
  EdgeList edges;
  Tensor features, harmonics, weights, paths, terms, coefficients;
  int64_t read_width = 0, out_width = 0, n_couplings = 0, largest_block = 0;

  const Path *path_data() const
  { return reinterpret_cast<const Path *>(paths.data_ptr<int64_t>()); }
};

static Tensor rows(const Tensor &tensor)
{ return tensor.stride(1) == 1 || tensor.size(1) <= 1 ? tensor : tensor.contiguous(); }

/// Every index that the kernels will use lies inside its tensor.
static void check_plan(Inputs &in)
{
  const int64_t n_terms = in.terms.size(0);
  const Path *const paths = in.path_data();
  const int64_t *const terms = in.terms.data_ptr<int64_t>();
  for (int64_t i = 0; i < in.paths.size(0); i++) {
    const Path &p = paths[i];
    bool fits = p.dim_in >= 1 && p.dim_in <= MAX_DIM && p.dim_out >= 1 && p.dim_out <= MAX_DIM &&
        p.dim_in % 2 == 1 && p.dim_out % 2 == 1 && p.channels >= 1 && p.feature_start >= 0 &&
        p.feature_start + p.dim_in * p.channels <= in.features.size(1) && p.weight_start >= 0 &&
        p.weight_start + p.channels <= in.weights.size(1) && p.out_start >= 0 &&
        p.out_channels >= p.channels && p.coupling_start == in.n_couplings && p.term_start >= 0 &&
        p.term_start <= p.term_stop && p.term_stop <= n_terms;
    for (int64_t t = fits ? p.term_start : p.term_stop; t < p.term_stop; t++)
      fits = fits && terms[2 * t] >= 0 && terms[2 * t] < p.dim_in * p.dim_out &&
          terms[2 * t + 1] >= 0 && terms[2 * t + 1] < in.harmonics.size(1);
    TORCH_CHECK_VALUE(fits, "path ", i, " of the convolution does not fit its tensors");
    in.read_width = std::max(in.read_width, p.feature_start + p.dim_in * p.channels);
    in.out_width =
        std::max(in.out_width, p.out_start + (p.dim_out - 1) * p.out_channels + p.channels);
    in.n_couplings += p.dim_in * p.dim_out;
    in.largest_block = std::max(in.largest_block, p.dim_in * (p.channels + MAX_WIDTH));
  }
}

static Inputs checked(const Tensor &features, const Tensor &harmonics, const Tensor &weights,
                      const Tensor &center, const Tensor &neighbor, int64_t n_local,
                      const Tensor &paths, const Tensor &terms, const Tensor &coefficients)
{
  const auto dtype = features.scalar_type();
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble,
                    "the convolution takes float32 or float64, got ", dtype);
  TORCH_CHECK_VALUE(harmonics.scalar_type() == dtype && weights.scalar_type() == dtype,
                    "`features` are ", dtype, ", but `harmonics` ", harmonics.scalar_type(),
                    " and `weights` ", weights.scalar_type());
  TORCH_CHECK_VALUE(features.dim() == 2 && harmonics.dim() == 2 && weights.dim() == 2,
                    "`features`, `harmonics` and `weights` have two dimensions");
  TORCH_CHECK_VALUE(harmonics.size(0) == center.size(0) && weights.size(0) == center.size(0),
                    "`harmonics`, `weights` and `center` must have one row for each edge");
  TORCH_CHECK_VALUE(paths.dim() == 2 && paths.size(1) == PATH_COLUMNS && terms.dim() == 2 &&
                        terms.size(1) == 2 && coefficients.dim() == 1 &&
                        coefficients.size(0) == terms.size(0),
                    "the plan of the convolution has a wrong shape");
  Inputs in{EdgeList(center, neighbor, n_local, features.size(0)),
            rows(features),
            rows(harmonics),
            rows(weights),
            paths.to(at::kLong).contiguous(),
            terms.to(at::kLong).contiguous(),
            coefficients.to(dtype).contiguous()};
  check_plan(in);
  return in;
}

template <typename T> static Convolution<T> convolution(const Inputs &in)
{
  return {in.path_data(),
          in.paths.size(0),
          reinterpret_cast<const Term *>(in.terms.data_ptr<int64_t>()),
          in.coefficients.data_ptr<T>(),
          in.n_couplings,
          in.harmonics.size(1),
          in.edges.row_start.data(),
          in.edges.neighbor,
          in.features.data_ptr<T>(),
          in.harmonics.data_ptr<T>(),
          in.weights.data_ptr<T>(),
          in.features.stride(0),
          in.harmonics.stride(0),
          in.weights.stride(0)};
}

template <typename T> static const Kernel<T> &kernel();
template <> const Kernel<float> &kernel<float>()
{ return HIENET_CHOSEN(CONVOLUTION_FLOAT); }
template <> const Kernel<double> &kernel<double>()
{ return HIENET_CHOSEN(CONVOLUTION_DOUBLE); }

// ----------------------------------------------------------------------
// threads
// ----------------------------------------------------------------------

/// work(part, scratch) for every part, each on a thread.
template <typename T, typename Work>
static void for_each_part(int64_t n_parts, int64_t scratch_size, const Work &work)
{
  at::parallel_for(0, n_parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; part++) {
      const auto scratch =
          at::empty({scratch_size}, at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value));
      work(part, scratch.template data_ptr<T>());
    }
  });
}

static int64_t scratch_size(const Inputs &in, bool backward)
{
  const int64_t tiles = (in.edges.largest_degree + EDGE_TILE - 1) / EDGE_TILE;
  const int64_t harmonics = in.harmonics.size(1);
  int64_t size = harmonics * EDGE_TILE + tiles * EDGE_TILE * in.n_couplings;
  if (backward)
    size += MAX_DIM * MAX_DIM * MAX_WIDTH + in.largest_block + MAX_WIDTH +
        in.edges.largest_degree * harmonics * MAX_WIDTH;
  return size;
}

/// The nodes that the edges of a part come from, and a row for each: parts write gradients of the same neighbour without
/// waiting for each other.
struct Rows {
  std::vector<int32_t> slot;    // of a node, or -1
  Tensor gradient;

  Rows(const Inputs &in, int64_t first_edge, int64_t last_edge) : slot(in.features.size(0), -1)
  {
    const int64_t *const neighbor = in.edges.neighbor;
    int32_t n = 0;
    for (int64_t e = first_edge; e < last_edge; e++)
      if (slot[neighbor[e]] < 0) slot[neighbor[e]] = n++;
    gradient = at::zeros({n, in.read_width}, in.features.options());
  }
};

// ----------------------------------------------------------------------
// the operator and its derivative
// ----------------------------------------------------------------------

template <typename T> static void run_forward(const Inputs &in, const Tensor &output)
{
  const auto c = convolution<T>(in);
  const auto bounds = in.edges.parts();
  const int64_t n_parts = static_cast<int64_t>(bounds.size()) - 1;
  for_each_part<T>(n_parts, scratch_size(in, false), [&](int64_t part, T *scratch) {
    kernel<T>().forward(c, output.data_ptr<T>(), output.stride(0), bounds[part], bounds[part + 1],
                        scratch);
  });
}

template <typename T>
static void run_backward(const Inputs &in, const Tensor &gradient, const Tensor &of_features,
                         const Tensor &of_harmonics, const Tensor &of_weights)
{
  const auto c = convolution<T>(in);
  const auto bounds = in.edges.parts();
  const int64_t n_parts = static_cast<int64_t>(bounds.size()) - 1;
  std::vector<std::unique_ptr<Rows>> own(n_parts);
  for_each_part<T>(n_parts, scratch_size(in, true), [&](int64_t part, T *scratch) {
    const int64_t first = bounds[part], last = bounds[part + 1];
    Gradients<T> g = {
        gradient.data_ptr<T>(),   of_features.data_ptr<T>(), of_harmonics.data_ptr<T>(),
        of_weights.data_ptr<T>(), gradient.stride(0),        of_features.stride(0),
        of_harmonics.stride(0),   of_weights.stride(0),      nullptr};
    if (n_parts > 1) {
      own[part] = std::make_unique<Rows>(in, in.edges.row_start[first], in.edges.row_start[last]);
      g.features = own[part]->gradient.template data_ptr<T>();
      g.feature_stride = in.read_width;
      g.slot = own[part]->slot.data();
    }
    kernel<T>().backward(c, g, first, last, scratch);
  });
  if (n_parts == 1) return;
  const int64_t width = in.read_width;
  at::parallel_for(0, of_features.size(0), 16, [&](int64_t first, int64_t last) {
    // Always in the order of the parts, so that a sum does not depend on who is faster.
    for (int64_t node = first; node < last; node++)
      for (const auto &rows : own) {
        if (rows->slot[node] < 0) continue;
        T *const to = of_features.data_ptr<T>() + node * of_features.stride(0);
        const T *const from = rows->gradient.template data_ptr<T>() + rows->slot[node] * width;
        for (int64_t i = 0; i < width; i++) to[i] += from[i];
      }
  });
}

static Tensor forward_cpu(const Tensor &features, const Tensor &harmonics, const Tensor &weights,
                          const Tensor &center, const Tensor &neighbor, int64_t n_local,
                          const Tensor &paths, const Tensor &terms, const Tensor &coefficients)
{
  const Inputs in =
      checked(features, harmonics, weights, center, neighbor, n_local, paths, terms, coefficients);
  const Tensor output = at::empty({n_local, in.out_width}, in.features.options());
  if (features.scalar_type() == at::kFloat)
    run_forward<float>(in, output);
  else
    run_forward<double>(in, output);
  return output;
}

using Gradient = std::tuple<Tensor, Tensor, Tensor>;

static Gradient backward_cpu(const Tensor &gradient, const Tensor &features,
                             const Tensor &harmonics, const Tensor &weights, const Tensor &center,
                             const Tensor &neighbor, int64_t n_local, const Tensor &paths,
                             const Tensor &terms, const Tensor &coefficients)
{
  const Inputs in =
      checked(features, harmonics, weights, center, neighbor, n_local, paths, terms, coefficients);
  TORCH_CHECK_VALUE(gradient.dim() == 2 && gradient.size(0) == n_local &&
                        gradient.size(1) == in.out_width &&
                        gradient.scalar_type() == features.scalar_type(),
                    "the gradient of the convolution's output has a wrong shape or dtype");
  const auto options = in.features.options();
  const Tensor of_features = at::zeros(features.sizes(), options);
  const Tensor of_harmonics = at::empty(harmonics.sizes(), options);
  // A weight that no path uses has no gradient, and no path writes it.
  int64_t used = 0;
  for (int64_t i = 0; i < in.paths.size(0); i++) used += in.path_data()[i].channels;
  const Tensor of_weights = used == weights.size(1) ? at::empty(weights.sizes(), options)
                                                    : at::zeros(weights.sizes(), options);
  if (features.scalar_type() == at::kFloat)
    run_backward<float>(in, gradient.contiguous(), of_features, of_harmonics, of_weights);
  else
    run_backward<double>(in, gradient.contiguous(), of_features, of_harmonics, of_weights);
  return {of_features, of_harmonics, of_weights};
}

template <typename Signature> static auto operation(const char *name)
{ return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>(); }

/// The derivative as an operator of its own: it runs below autograd, and refuses to be differentiated.
struct Backward : torch::autograd::Function<Backward> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext *,
                                                const Tensor &gradient, const Tensor &features,
                                                const Tensor &harmonics, const Tensor &weights,
                                                const Tensor &center, const Tensor &neighbor,
                                                int64_t n_local, const Tensor &paths,
                                                const Tensor &terms, const Tensor &coefficients)
  {
    const at::AutoDispatchBelowAutograd below;
    static const auto op =
        operation<decltype(backward_cpu)>("hienet::tensor_product_convolution_backward");
    auto [a, b, c] = op.call(gradient, features, harmonics, weights, center, neighbor, n_local,
                             paths, terms, coefficients);
    return {a, b, c};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *,
                                                 torch::autograd::variable_list)
  {
    TORCH_CHECK(false,
                "the compiled convolution can be differentiated once only; train the model "
                "that it was deployed from, or deploy with `--no-compile`");
  }
};

struct Forward : torch::autograd::Function<Forward> {
  static Tensor forward(torch::autograd::AutogradContext *context, const Tensor &features,
                        const Tensor &harmonics, const Tensor &weights, const Tensor &center,
                        const Tensor &neighbor, int64_t n_local, const Tensor &paths,
                        const Tensor &terms, const Tensor &coefficients)
  {
    context->save_for_backward(
        {features, harmonics, weights, center, neighbor, paths, terms, coefficients});
    context->saved_data["n_local"] = n_local;
    const at::AutoDispatchBelowAutograd below;
    static const auto op = operation<decltype(forward_cpu)>("hienet::tensor_product_convolution");
    return op.call(features, harmonics, weights, center, neighbor, n_local, paths, terms,
                   coefficients);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list gradients)
  {
    const auto saved = context->get_saved_variables();
    const auto found =
        Backward::apply(gradients[0], saved[0], saved[1], saved[2], saved[3], saved[4],
                        context->saved_data["n_local"].toInt(), saved[5], saved[6], saved[7]);
    return {found[0], found[1], found[2], {}, {}, {}, {}, {}, {}};
  }
};

static Tensor forward_autograd(const Tensor &features, const Tensor &harmonics,
                               const Tensor &weights, const Tensor &center, const Tensor &neighbor,
                               int64_t n_local, const Tensor &paths, const Tensor &terms,
                               const Tensor &coefficients)
{
  return Forward::apply(features, harmonics, weights, center, neighbor, n_local, paths, terms,
                        coefficients);
}

static Tensor forward_cuda(const Tensor &, const Tensor &, const Tensor &, const Tensor &,
                           const Tensor &, int64_t, const Tensor &, const Tensor &, const Tensor &)
{
  TORCH_CHECK_NOT_IMPLEMENTED(false,
                              "the compiled convolution runs on the CPU only; deploy with "
                              "`--no-compile` for a GPU");
}

TORCH_LIBRARY_FRAGMENT(hienet, library)
{
  library.def("tensor_product_convolution(Tensor features, Tensor harmonics, Tensor weights, "
              "Tensor center, Tensor neighbor, int n_local, Tensor paths, Tensor terms, "
              "Tensor coefficients) -> Tensor");
  library.def("tensor_product_convolution_backward(Tensor gradient, Tensor features, "
              "Tensor harmonics, Tensor weights, Tensor center, Tensor neighbor, int n_local, "
              "Tensor paths, Tensor terms, Tensor coefficients) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(hienet, CPU, library)
{
  library.impl("tensor_product_convolution", forward_cpu);
  library.impl("tensor_product_convolution_backward", backward_cpu);
}

TORCH_LIBRARY_IMPL(hienet, CUDA, library)
{ library.impl("tensor_product_convolution", forward_cuda); }

TORCH_LIBRARY_IMPL(hienet, Autograd, library)
{ library.impl("tensor_product_convolution", forward_autograd); }

}    // namespace hienet
