// SPDX-License-Identifier: GPL-2.0-or-later
// torch.ops.hienet.edge_geometry: distance and real spherical harmonics of edge vectors.

#include "edge_geometry_kernel.h"

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
  Tensor vectors, terms, coefficients;
  int64_t n_harmonics;

  template <typename T> EdgeGeometry<T> view() const
  {
    return {reinterpret_cast<const RecursionTerm *>(terms.data_ptr<int64_t>()),
            coefficients.data_ptr<T>(),
            terms.size(0),
            n_harmonics,
            vectors.data_ptr<T>(),
            vectors.stride(0)};
  }
};

static EdgeGeometryInputs checked(const Tensor &vectors, const Tensor &terms,
                                  const Tensor &coefficients, int64_t n_harmonics)
{
  const auto dtype = vectors.scalar_type();
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble,
                    "the edge geometry takes float32 or float64, got ", dtype);
  TORCH_CHECK_VALUE(vectors.dim() == 2 && vectors.size(1) == 3,
                    "`edge_vectors` must be [n_edges, 3], got ", vectors.sizes());
  TORCH_CHECK_VALUE(terms.dim() == 2 && terms.size(1) == 3 && coefficients.dim() == 1 &&
                        coefficients.size(0) == terms.size(0) && n_harmonics >= 1 &&
                        n_harmonics <= MAX_HARMONICS,
                    "the plan of the harmonics has a wrong shape");
  EdgeGeometryInputs in{rows(vectors), terms.to(at::kLong).contiguous(),
                        coefficients.to(dtype).contiguous(), n_harmonics};
  const auto *const plan = reinterpret_cast<const RecursionTerm *>(in.terms.data_ptr<int64_t>());
  for (int64_t t = 0; t < terms.size(0); t++)
    TORCH_CHECK_VALUE(plan[t].target > plan[t].source && plan[t].source >= 0 &&
                          plan[t].target < n_harmonics && plan[t].component >= 0 &&
                          plan[t].component < 3,
                      "term ", t, " of the harmonics is out of range");
  return in;
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
  TORCH_CHECK_VALUE(gradient.dim() == 2 && gradient.size(0) == vectors.size(0) &&
                        gradient.size(1) == 1 + n_harmonics &&
                        gradient.scalar_type() == vectors.scalar_type(),
                    "the gradient of the edge geometry has a wrong shape or dtype");
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
}

TORCH_LIBRARY_IMPL(hienet, CPU, library)
{
  library.impl("edge_geometry", forward_cpu);
  library.impl("edge_geometry_backward", backward_cpu);
}

TORCH_LIBRARY_IMPL(hienet, CUDA, library)
{ library.impl("edge_geometry", torch::CppFunction::makeFromBoxedFunction<&refuse_cuda>()); }

TORCH_LIBRARY_IMPL(hienet, Autograd, library)
{ library.impl("edge_geometry", forward_autograd); }

}    // namespace hienet
