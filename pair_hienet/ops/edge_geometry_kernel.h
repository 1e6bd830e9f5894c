// SPDX-License-Identifier: GPL-2.0-or-later
// Distances and spherical harmonics of edges, many edges at a time.

#ifndef HIENET_EDGE_GEOMETRY_KERNEL_H
#define HIENET_EDGE_GEOMETRY_KERNEL_H

#include "variants.h"

#include <cstdint>

namespace hienet {

/// Most harmonics: l up to 11.
constexpr int64_t MAX_HARMONICS = 144;

/// harmonics[target] += coefficient * harmonics[source] * u[component]; sources come before their targets.
struct RecursionTerm {
  int64_t target, source, component;
};

/// Strides count numbers from row to row.
template <typename T> struct EdgeGeometry {
  const RecursionTerm *terms;
  const T *coefficients;    // of the terms
  int64_t n_terms, n_harmonics;
  const T *vectors;    // [n_edges, 3]
  int64_t vector_stride;
};

template <typename T> struct EdgeGeometryKernel {
  /// Rows `first .. last-1` of the output: distance, harmonics.
  void (*forward)(const EdgeGeometry<T> &, T *out, int64_t out_stride, int64_t first, int64_t last);
  /// The same rows of the gradient with respect to the vectors, `[n_edges, 3]`.
  void (*backward)(const EdgeGeometry<T> &, const T *gradient, int64_t gradient_stride,
                   T *of_vectors, int64_t first, int64_t last);
  /// The same rows of the derivative of the output along directions of the vectors, `[n_edges, 3]`.
  void (*tangents)(const EdgeGeometry<T> &, const T *directions, int64_t direction_stride, T *out,
                   int64_t out_stride, int64_t first, int64_t last);
};

HIENET_FOR_EACH_VARIANT(extern const EdgeGeometryKernel<float> EDGE_GEOMETRY_FLOAT;
                        extern const EdgeGeometryKernel<double> EDGE_GEOMETRY_DOUBLE;)

}    // namespace hienet

#endif
