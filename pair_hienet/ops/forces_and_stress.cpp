// SPDX-License-Identifier: GPL-2.0-or-later
// torch.ops.hienet.forces_and_stress: what follows from dE/d(edge_vector) of a batch (hienet/derivatives.py), as a linear
// function of it, and its transpose. For training steps of small models, in which a dozen operators of torch take as long as
// a layer. Not known to autograd.

#include "differentiable.h"

#include <ATen/ATen.h>

#include <cstdint>
#include <tuple>

namespace hienet {

using at::Tensor;

/// The graph of a batch: edges `[n_edges]`, structures of atoms `[n_local]`, volumes `[n_structures]` (Å^3).
struct EdgesOfStructures {
  Tensor vectors, volume, indices[3];
  const int64_t *center, *neighbor, *structure;
  int64_t n_edges, n_local, n_structures;

  /// Throws c10::ValueError where shapes or dtypes do not fit, or an index is out of range.
  EdgesOfStructures(const Tensor &edge_vectors, const Tensor &centers, const Tensor &neighbors,
                    const Tensor &structures, int64_t n_atoms, const Tensor &volumes) :
      vectors(edge_vectors.contiguous()),
      volume(volumes.to(edge_vectors.scalar_type()).contiguous()),
      indices{centers.contiguous(), neighbors.contiguous(), structures.contiguous()},
      n_edges(edge_vectors.size(0)), n_local(n_atoms), n_structures(volumes.size(0))
  {
    TORCH_CHECK_VALUE(vectors.dim() == 2 && vectors.size(1) == 3 && volume.dim() == 1,
                      "`edge_vectors` must be [n_edges, 3] and `volume` [n_structures]");
    for (const Tensor &index : indices)
      TORCH_CHECK_VALUE(index.scalar_type() == at::kLong && index.dim() == 1 &&
                            index.size(0) == (&index == &indices[2] ? n_local : n_edges),
                        "centers, neighbours and structures must be vectors of int64, a number for "
                        "each edge or atom");
    center = indices[0].const_data_ptr<int64_t>();
    neighbor = indices[1].const_data_ptr<int64_t>();
    structure = indices[2].const_data_ptr<int64_t>();
    for (int64_t e = 0; e < n_edges; e++)
      TORCH_CHECK_VALUE(center[e] >= 0 && center[e] < n_local && neighbor[e] >= 0 &&
                            neighbor[e] < n_local,
                        "edge ", e, " belongs to no atom");
    for (int64_t i = 0; i < n_local; i++)
      TORCH_CHECK_VALUE(structure[i] >= 0 && structure[i] < n_structures, "atom ", i,
                        " belongs to no structure");
  }
};

/// Forces `[n_local, 3]` and stresses `[n_structures, 3, 3]`:
/// F_center += g, F_neighbor -= g, stress = sum (r g^T + g r^T) / 2 V.
template <typename T>
static void add_up(const EdgesOfStructures &in, const T *gradient, T *forces, T *stress)
{
  const T *const vectors = in.vectors.const_data_ptr<T>();
  for (int64_t e = 0; e < in.n_edges; e++) {
    const T *const g = gradient + 3 * e, *const r = vectors + 3 * e;
    T *const of_center = forces + 3 * in.center[e];
    T *const of_neighbor = forces + 3 * in.neighbor[e];
    T *const of_structure = stress + 9 * in.structure[in.center[e]];
    for (int i = 0; i < 3; i++) {
      of_center[i] += g[i];
      of_neighbor[i] -= g[i];
      for (int k = 0; k < 3; k++) of_structure[3 * i + k] += r[i] * g[k];
    }
  }
  for (int64_t s = 0; s < in.n_structures; s++) {
    T *const of_structure = stress + 9 * s;
    const T volume = in.volume.const_data_ptr<T>()[s];
    for (int i = 0; i < 3; i++)
      for (int k = 0; k <= i; k++)
        of_structure[3 * i + k] = of_structure[3 * k + i] =
            T(0.5) * (of_structure[3 * i + k] + of_structure[3 * k + i]) / volume;
  }
}

static std::tuple<Tensor, Tensor> forward_cpu(const Tensor &gradient, const Tensor &edge_vectors,
                                              const Tensor &center, const Tensor &neighbor,
                                              const Tensor &structure, int64_t n_local,
                                              const Tensor &volume)
{
  const EdgesOfStructures in(edge_vectors, center, neighbor, structure, n_local, volume);
  TORCH_CHECK_VALUE(gradient.sizes() == edge_vectors.sizes() &&
                        gradient.scalar_type() == edge_vectors.scalar_type(),
                    "the gradient must have the shape and the dtype of `edge_vectors`");
  const Tensor from = gradient.contiguous();
  const Tensor forces = at::zeros({n_local, 3}, from.options());
  const Tensor stress = at::zeros({in.n_structures, 3, 3}, from.options());
  AT_DISPATCH_FLOATING_TYPES(from.scalar_type(), "forces_and_stress", [&] {
    add_up<scalar_t>(in, from.const_data_ptr<scalar_t>(), forces.data_ptr<scalar_t>(),
                     stress.data_ptr<scalar_t>());
  });
  return {forces, stress};
}

template <typename T>
static void hand_down(const EdgesOfStructures &in, const T *of_forces, const T *of_stress,
                      T *of_gradient)
{
  const T *const vectors = in.vectors.const_data_ptr<T>();
  const T *const volume = in.volume.const_data_ptr<T>();
  for (int64_t e = 0; e < in.n_edges; e++) {
    const int64_t s = in.structure[in.center[e]];
    const T *const r = vectors + 3 * e, *const of_structure = of_stress + 9 * s;
    for (int k = 0; k < 3; k++) {
      T along = 0;
      for (int i = 0; i < 3; i++)
        along += (of_structure[3 * i + k] + of_structure[3 * k + i]) * r[i];
      of_gradient[3 * e + k] = of_forces[3 * in.center[e] + k] - of_forces[3 * in.neighbor[e] + k] +
          T(0.5) * along / volume[s];
    }
  }
}

/// The gradient of a loss with respect to dE/d(edge_vector), from those with respect to forces and stresses.
static Tensor backward_cpu(const Tensor &of_forces, const Tensor &of_stress,
                           const Tensor &edge_vectors, const Tensor &center, const Tensor &neighbor,
                           const Tensor &structure, int64_t n_local, const Tensor &volume)
{
  const EdgesOfStructures in(edge_vectors, center, neighbor, structure, n_local, volume);
  const auto dtype = edge_vectors.scalar_type();
  TORCH_CHECK_VALUE(of_forces.dim() == 2 && of_forces.size(0) == n_local &&
                        of_forces.size(1) == 3 && of_stress.numel() == 9 * in.n_structures &&
                        of_forces.scalar_type() == dtype && of_stress.scalar_type() == dtype,
                    "gradients of forces and stresses have wrong shapes or dtypes");
  const Tensor forces = of_forces.contiguous(), stress = of_stress.contiguous();
  const Tensor of_gradient = at::empty_like(in.vectors);
  AT_DISPATCH_FLOATING_TYPES(dtype, "forces_and_stress", [&] {
    hand_down<scalar_t>(in, forces.const_data_ptr<scalar_t>(), stress.const_data_ptr<scalar_t>(),
                        of_gradient.data_ptr<scalar_t>());
  });
  return of_gradient;
}

TORCH_LIBRARY_FRAGMENT(hienet, library)
{
  library.def("forces_and_stress(Tensor gradient, Tensor edge_vectors, Tensor center, "
              "Tensor neighbor, Tensor structure, int n_local, Tensor volume) -> (Tensor, Tensor)");
  library.def("forces_and_stress_backward(Tensor of_forces, Tensor of_stress, Tensor edge_vectors, "
              "Tensor center, Tensor neighbor, Tensor structure, int n_local, Tensor volume) "
              "-> Tensor");
}

TORCH_LIBRARY_IMPL(hienet, CPU, library)
{
  library.impl("forces_and_stress", forward_cpu);
  library.impl("forces_and_stress_backward", backward_cpu);
}

}    // namespace hienet
