// SPDX-License-Identifier: GPL-2.0-or-later
// torch.ops.hienet.edge_geometry on a GPU.

#include "edge_geometry.h"

#include "../differentiable.h"
#include "../harmonics_plan.h"
#include "device_call.h"
#include "memo.h"

namespace hienet::cuda {

using at::Tensor;

/// The recursion on a device.
struct Harmonics {
  Tensor terms, coefficients;
};

static std::shared_ptr<const Harmonics> harmonics_of(const Tensor &vectors, const Tensor &terms,
                                                     const Tensor &coefficients,
                                                     int64_t n_harmonics)
{
  check_edge_geometry(vectors, terms, coefficients, n_harmonics);
  static Memo<Harmonics, LAYERS> memo;
  return memo.get(
      {terms, coefficients}, {n_harmonics, static_cast<int64_t>(vectors.scalar_type())}, [&] {
        recursion_terms(terms, n_harmonics);
        return Harmonics{terms.to(at::kLong, false, true).contiguous(),
                         coefficients.to(vectors.scalar_type(), false, true).contiguous()};
      });
}

template <typename T>
static EdgeGeometry<T> view(const Harmonics &harmonics, const Tensor &vectors, int64_t n_harmonics)
{
  return {reinterpret_cast<const RecursionTerm *>(harmonics.terms.const_data_ptr<int64_t>()),
          harmonics.coefficients.const_data_ptr<T>(),
          harmonics.terms.size(0),
          n_harmonics,
          vectors.const_data_ptr<T>(),
          vectors.stride(0),
          vectors.size(0)};
}

static Tensor forward(const Tensor &edge_vectors, const Tensor &terms, const Tensor &coefficients,
                      int64_t n_harmonics)
{
  const c10::DeviceGuard guard(edge_vectors.device());
  const auto harmonics = harmonics_of(edge_vectors, terms, coefficients, n_harmonics);
  const Tensor vectors = rows(edge_vectors);
  const Tensor out = at::empty({vectors.size(0), 1 + n_harmonics}, vectors.options());
  AT_DISPATCH_FLOATING_TYPES(out.scalar_type(), "edge_geometry", [&] {
    edge_geometry_forward<scalar_t>(view<scalar_t>(*harmonics, vectors, n_harmonics),
                                    out.data_ptr<scalar_t>(), out.stride(0),
                                    current_stream(vectors.device()));
  });
  return out;
}

static Tensor backward(const Tensor &gradient, const Tensor &edge_vectors, const Tensor &terms,
                       const Tensor &coefficients, int64_t n_harmonics)
{
  const c10::DeviceGuard guard(edge_vectors.device());
  const auto harmonics = harmonics_of(edge_vectors, terms, coefficients, n_harmonics);
  check_gradient_of_edge_geometry(gradient, edge_vectors, n_harmonics);
  const Tensor vectors = rows(edge_vectors), from = rows(gradient);
  const Tensor to = at::empty({vectors.size(0), 3}, vectors.options());
  AT_DISPATCH_FLOATING_TYPES(to.scalar_type(), "edge_geometry", [&] {
    edge_geometry_backward<scalar_t>(view<scalar_t>(*harmonics, vectors, n_harmonics),
                                     from.const_data_ptr<scalar_t>(), from.stride(0),
                                     to.data_ptr<scalar_t>(), current_stream(vectors.device()));
  });
  return to;
}

TORCH_LIBRARY_IMPL(hienet, HIENET_DEVICE_KEY, library)
{
  library.impl("edge_geometry", forward);
  library.impl("edge_geometry_backward", backward);
}

}    // namespace hienet::cuda
