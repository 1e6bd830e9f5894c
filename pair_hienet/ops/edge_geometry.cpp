// SPDX-License-Identifier: GPL-2.0-or-later
// torch.ops.hienet.edge_geometry: distance and real spherical harmonics of edge vectors.

#include "harmonics_plan.h"

#include "differentiable.h"
#include "pooled_memory.h"

#include <ATen/Parallel.h>

namespace hienet {

using at::Tensor;

template <typename T> static const EdgeGeometryKernel<T> &kernel();
template <> const EdgeGeometryKernel<float> &kernel<float>()
{ return HIENET_CHOSEN(EDGE_GEOMETRY_FLOAT); }
template <> const EdgeGeometryKernel<double> &kernel<double>()
{ return HIENET_CHOSEN(EDGE_GEOMETRY_DOUBLE); }

/// Edges that a thread takes at least.
static constexpr int64_t GRAIN = 1024;

struct EdgeGeometryInputs {
  Tensor vectors, coefficients;
  std::vector<RecursionTerm> terms;
  int64_t n_harmonics;

  template <typename T> EdgeGeometry<T> view() const
  {
    return {terms.data(), coefficients.data_ptr<T>(), static_cast<int64_t>(terms.size()),
            n_harmonics,  vectors.data_ptr<T>(),      vectors.stride(0)};
  }
};

static EdgeGeometryInputs checked(const Tensor &vectors, const Tensor &terms,
                                  const Tensor &coefficients, int64_t n_harmonics)
{
  check_edge_geometry(vectors, terms, coefficients, n_harmonics);
  return {rows(vectors), coefficients.to(vectors.scalar_type()).contiguous(),
          recursion_terms(terms, n_harmonics), n_harmonics};
}

static Tensor forward_cpu(const Tensor &vectors, const Tensor &terms, const Tensor &coefficients,
                          int64_t n_harmonics)
{
  const auto in = checked(vectors, terms, coefficients, n_harmonics);
  const Tensor out = pooled_empty({vectors.size(0), 1 + n_harmonics}, vectors.scalar_type());
  AT_DISPATCH_FLOATING_TYPES(out.scalar_type(), "edge_geometry", [&] {
    at::parallel_for(0, out.size(0), GRAIN, [&](int64_t first, int64_t last) {
      kernel<scalar_t>().forward(in.view<scalar_t>(), out.data_ptr<scalar_t>(), out.stride(0),
                                 first, last);
    });
  });
  return out;
}

static Tensor backward_cpu(const Tensor &gradient, const Tensor &vectors, const Tensor &terms,
                           const Tensor &coefficients, int64_t n_harmonics)
{
  const auto in = checked(vectors, terms, coefficients, n_harmonics);
  check_gradient_of_edge_geometry(gradient, vectors, n_harmonics);
  const Tensor from = rows(gradient);
  const Tensor to = pooled_empty({vectors.size(0), 3}, vectors.scalar_type());
  AT_DISPATCH_FLOATING_TYPES(to.scalar_type(), "edge_geometry", [&] {
    at::parallel_for(0, to.size(0), GRAIN, [&](int64_t first, int64_t last) {
      kernel<scalar_t>().backward(in.view<scalar_t>(), from.data_ptr<scalar_t>(), from.stride(0),
                                  to.data_ptr<scalar_t>(), first, last);
    });
  });
  return to;
}

/// How distance and harmonics move when the vectors move along `directions`, for training steps. Not known to autograd.
static Tensor tangents_cpu(const Tensor &vectors, const Tensor &directions, const Tensor &terms,
                           const Tensor &coefficients, int64_t n_harmonics)
{
  const auto in = checked(vectors, terms, coefficients, n_harmonics);
  TORCH_CHECK_VALUE(directions.sizes() == vectors.sizes() &&
                        directions.scalar_type() == vectors.scalar_type(),
                    "`directions` must have the shape and the dtype of `edge_vectors`");
  const Tensor along = rows(directions);
  const Tensor out = pooled_empty({vectors.size(0), 1 + n_harmonics}, vectors.scalar_type());
  AT_DISPATCH_FLOATING_TYPES(out.scalar_type(), "edge_geometry", [&] {
    at::parallel_for(0, out.size(0), GRAIN, [&](int64_t first, int64_t last) {
      kernel<scalar_t>().tangents(in.view<scalar_t>(), along.data_ptr<scalar_t>(), along.stride(0),
                                  out.data_ptr<scalar_t>(), out.stride(0), first, last);
    });
  });
  return out;
}

struct DifferentiableEdgeGeometry : torch::autograd::Function<DifferentiableEdgeGeometry> {
  static Tensor forward(torch::autograd::AutogradContext *context, const Tensor &vectors,
                        const Tensor &terms, const Tensor &coefficients, int64_t n_harmonics)
  {
    context->save_for_backward({vectors, terms, coefficients});
    context->saved_data["n_harmonics"] = n_harmonics;
    const at::AutoDispatchBelowAutograd below;
    static const auto op = dispatched<decltype(forward_cpu)>("hienet::edge_geometry");
    return op.call(vectors, terms, coefficients, n_harmonics);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list gradients)
  {
    check_differentiated_once();
    const auto s = context->get_saved_variables();
    static const auto op = dispatched<decltype(backward_cpu)>("hienet::edge_geometry_backward");
    return {op.call(gradients[0], s[0], s[1], s[2], context->saved_data["n_harmonics"].toInt()),
            {},
            {},
            {}};
  }
};

static Tensor forward_autograd(const Tensor &vectors, const Tensor &terms,
                               const Tensor &coefficients, int64_t n_harmonics)
{ return DifferentiableEdgeGeometry::apply(vectors, terms, coefficients, n_harmonics); }

TORCH_LIBRARY_FRAGMENT(hienet, library)
{
  library.def("edge_geometry(Tensor edge_vectors, Tensor terms, Tensor coefficients, "
              "int n_harmonics) -> Tensor");
  library.def("edge_geometry_backward(Tensor gradient, Tensor edge_vectors, Tensor terms, "
              "Tensor coefficients, int n_harmonics) -> Tensor");
  library.def("edge_geometry_tangents(Tensor edge_vectors, Tensor directions, Tensor terms, "
              "Tensor coefficients, int n_harmonics) -> Tensor");
}

TORCH_LIBRARY_IMPL(hienet, CPU, library)
{
  library.impl("edge_geometry", forward_cpu);
  library.impl("edge_geometry_backward", backward_cpu);
  library.impl("edge_geometry_tangents", tangents_cpu);
}

TORCH_LIBRARY_IMPL(hienet, Autograd, library)
{ library.impl("edge_geometry", forward_autograd); }

}    // namespace hienet
