// SPDX-License-Identifier: GPL-2.0-or-later
// Distances and spherical harmonics on a GPU: what edge_geometry.cpp asks of edge_geometry.cu.

#ifndef HIENET_CUDA_EDGE_GEOMETRY_H
#define HIENET_CUDA_EDGE_GEOMETRY_H

#include "../edge_geometry_kernel.h"
#include "kernel_language.h"

#include <cstdint>

namespace hienet::cuda {

/// As the one of the CPU's kernels.
template <typename T> struct EdgeGeometry {
  const RecursionTerm *terms;
  const T *coefficients;
  int64_t n_terms, n_harmonics;
  const T *vectors;    // [n_edges, 3]
  int64_t vector_stride, n_edges;
};

/// Rows of distance and harmonics.
template <typename T>
void edge_geometry_forward(const EdgeGeometry<T> &geometry, T *out, int64_t out_stride,
                           Stream stream);

/// The gradient with respect to the vectors, [n_edges, 3].
template <typename T>
void edge_geometry_backward(const EdgeGeometry<T> &geometry, const T *gradient,
                            int64_t gradient_stride, T *of_vectors, Stream stream);

}    // namespace hienet::cuda

#endif
