// SPDX-License-Identifier: GPL-2.0-or-later
// A thread has an edge. The recursion Y_l = c Y_(l-1) x u is walked forwards for the harmonics and backwards for their
// gradient; what that gradient has along u is an artefact of leaving the unit sphere and is projected out.

#include "edge_geometry.h"

#include <cmath>

namespace hienet::cuda {

constexpr int THREADS = 128;

/// Numbers of one edge, of at most N harmonics.
template <int N, typename T> struct Edge {
  T distance, u[3];
  T harmonics[N];
};

template <int N, typename T>
__device__ __forceinline__ void find_edge(const EdgeGeometry<T> &g, int64_t e, Edge<N, T> &edge)
{
  // In units of the largest component, whose square is a number for every vector that is one.
  const T *const r = g.vectors + e * g.vector_stride;
  T largest = T(0);
  for (int i = 0; i < 3; i++) {
    const T size = r[i] < T(0) ? -r[i] : r[i];
    largest = size > largest ? size : largest;
  }
  for (int i = 0; i < 3; i++) edge.u[i] = r[i] / largest;
  const T norm = sqrt(edge.u[0] * edge.u[0] + edge.u[1] * edge.u[1] + edge.u[2] * edge.u[2]);
  edge.distance = largest * norm;
  for (int i = 0; i < 3; i++) edge.u[i] /= norm;
  edge.harmonics[0] = T(1);
  for (int64_t m = 1; m < g.n_harmonics; m++) edge.harmonics[m] = T(0);
  for (int64_t t = 0; t < g.n_terms; t++) {
    const RecursionTerm term = g.terms[t];
    edge.harmonics[term.target] +=
        g.coefficients[t] * edge.harmonics[term.source] * edge.u[term.component];
  }
}

template <int N, typename T>
__global__ void __launch_bounds__(THREADS)
    geometry_forward_kernel(EdgeGeometry<T> g, T *out, int64_t out_stride)
{
  const int64_t e = global_thread();
  if (e >= g.n_edges) return;
  Edge<N, T> edge;
  find_edge(g, e, edge);
  T *const row = out + e * out_stride;
  row[0] = edge.distance;
  for (int64_t m = 0; m < g.n_harmonics; m++) row[1 + m] = edge.harmonics[m];
}

template <int N, typename T>
__global__ void __launch_bounds__(THREADS)
    geometry_backward_kernel(EdgeGeometry<T> g, const T *gradient, int64_t gradient_stride,
                             T *of_vectors)
{
  const int64_t e = global_thread();
  if (e >= g.n_edges) return;
  Edge<N, T> edge;
  find_edge(g, e, edge);
  const T *const row = gradient + e * gradient_stride;
  T of_harmonics[N], of_u[3] = {T(0), T(0), T(0)};
  for (int64_t m = 0; m < g.n_harmonics; m++) of_harmonics[m] = row[1 + m];
  for (int64_t t = g.n_terms - 1; t >= 0; t--) {
    const RecursionTerm term = g.terms[t];
    const T of_target = g.coefficients[t] * of_harmonics[term.target];
    of_u[term.component] += of_target * edge.harmonics[term.source];
    of_harmonics[term.source] += of_target * edge.u[term.component];
  }
  const T along = of_u[0] * edge.u[0] + of_u[1] * edge.u[1] + of_u[2] * edge.u[2];
  for (int i = 0; i < 3; i++)
    of_vectors[3 * e + i] = (of_u[i] - along * edge.u[i]) / edge.distance + row[0] * edge.u[i];
}

/// The memory of a thread is for l up to 3, 5 or 11.
template <typename T>
void edge_geometry_forward(const EdgeGeometry<T> &geometry, T *out, int64_t out_stride,
                           Stream stream)
{
  const auto kernel = geometry.n_harmonics <= 16 ? geometry_forward_kernel<16, T>
      : geometry.n_harmonics <= 36               ? geometry_forward_kernel<36, T>
                                                 : geometry_forward_kernel<MAX_HARMONICS, T>;
  launch(kernel, grid_for(geometry.n_edges, THREADS), stream, geometry, out, out_stride);
  check_launch("the edge geometry");
}

template <typename T>
void edge_geometry_backward(const EdgeGeometry<T> &geometry, const T *gradient,
                            int64_t gradient_stride, T *of_vectors, Stream stream)
{
  const auto kernel = geometry.n_harmonics <= 16 ? geometry_backward_kernel<16, T>
      : geometry.n_harmonics <= 36               ? geometry_backward_kernel<36, T>
                                                 : geometry_backward_kernel<MAX_HARMONICS, T>;
  launch(kernel, grid_for(geometry.n_edges, THREADS), stream, geometry, gradient, gradient_stride,
         of_vectors);
  check_launch("the derivative of the edge geometry");
}

#define INSTANTIATE(T)                                                                   \
  template void edge_geometry_forward<T>(const EdgeGeometry<T> &, T *, int64_t, Stream); \
  template void edge_geometry_backward<T>(const EdgeGeometry<T> &, const T *, int64_t, T *, Stream);
INSTANTIATE(float)
INSTANTIATE(double)

}    // namespace hienet::cuda
