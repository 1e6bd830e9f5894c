// SPDX-License-Identifier: GPL-2.0-or-later
// Vectors hold edges. The recursion Y_l = c Y_(l-1) x u is walked forwards for the harmonics and backwards for their
// gradient; what that gradient has along u is an artefact of leaving the unit sphere and is projected out.

#include "edge_geometry_kernel.h"

#include "simd.h"

namespace hienet::HIENET_VARIANT {

template <typename T> struct Tile {
  V<T> distance, u[3];
  V<T> harmonics[MAX_HARMONICS];
};

template <typename T>
static void make_tile(const EdgeGeometry<T> &g, int64_t first, int64_t n, Tile<T> &tile)
{
  const V<T> zero = {};
  V<T> r[3] = {};
  for (int64_t e = 0; e < WIDTH<T>; e++)
    for (int i = 0; i < 3; i++)
      r[i][e] = e < n ? g.vectors[(first + e) * g.vector_stride + i] : T(i == 0);
  // In units of the largest component, whose square is a number for every vector that is one.
  V<T> largest = {};
  for (int i = 0; i < 3; i++) {
    const V<T> size = r[i] < zero ? -r[i] : r[i];
    largest = size > largest ? size : largest;
  }
  for (int i = 0; i < 3; i++) tile.u[i] = r[i] / largest;
  const V<T> squared = tile.u[0] * tile.u[0] + tile.u[1] * tile.u[1] + tile.u[2] * tile.u[2];
  V<T> norm;
  for (int64_t e = 0; e < WIDTH<T>; e++) {
    if constexpr (sizeof(T) == 4)
      norm[e] = __builtin_sqrtf(squared[e]);
    else
      norm[e] = __builtin_sqrt(squared[e]);
  }
  tile.distance = largest * norm;
  for (int i = 0; i < 3; i++) tile.u[i] /= norm;
  tile.harmonics[0] = zero + T(1);
  for (int64_t m = 1; m < g.n_harmonics; m++) tile.harmonics[m] = zero;
  for (int64_t t = 0; t < g.n_terms; t++) {
    const RecursionTerm term = g.terms[t];
    tile.harmonics[term.target] +=
        g.coefficients[t] * tile.harmonics[term.source] * tile.u[term.component];
  }
}

template <typename T>
static void forward(const EdgeGeometry<T> &g, T *out, int64_t out_stride, int64_t first,
                    int64_t last)
{
  Tile<T> tile;
  for (int64_t start = first; start < last; start += WIDTH<T>) {
    const int64_t n = last - start < WIDTH<T> ? last - start : WIDTH<T>;
    make_tile(g, start, n, tile);
    for (int64_t e = 0; e < n; e++) {
      T *const row = out + (start + e) * out_stride;
      row[0] = tile.distance[e];
      for (int64_t m = 0; m < g.n_harmonics; m++) row[1 + m] = tile.harmonics[m][e];
    }
  }
}

template <typename T>
static void backward(const EdgeGeometry<T> &g, const T *gradient, int64_t gradient_stride,
                     T *of_vectors, int64_t first, int64_t last)
{
  Tile<T> tile;
  V<T> of_harmonics[MAX_HARMONICS];
  for (int64_t start = first; start < last; start += WIDTH<T>) {
    const int64_t n = last - start < WIDTH<T> ? last - start : WIDTH<T>;
    make_tile(g, start, n, tile);
    V<T> of_distance = {}, of_u[3] = {};
    for (int64_t m = 0; m < g.n_harmonics; m++) of_harmonics[m] = V<T>{};
    for (int64_t e = 0; e < n; e++) {
      const T *const row = gradient + (start + e) * gradient_stride;
      of_distance[e] = row[0];
      for (int64_t m = 0; m < g.n_harmonics; m++) of_harmonics[m][e] = row[1 + m];
    }
    for (int64_t t = g.n_terms - 1; t >= 0; t--) {
      const RecursionTerm term = g.terms[t];
      const V<T> of_target = g.coefficients[t] * of_harmonics[term.target];
      of_u[term.component] += of_target * tile.harmonics[term.source];
      of_harmonics[term.source] += of_target * tile.u[term.component];
    }
    const V<T> along = of_u[0] * tile.u[0] + of_u[1] * tile.u[1] + of_u[2] * tile.u[2];
    for (int i = 0; i < 3; i++) {
      const V<T> of_vector =
          (of_u[i] - along * tile.u[i]) / tile.distance + of_distance * tile.u[i];
      for (int64_t e = 0; e < n; e++) of_vectors[3 * (start + e) + i] = of_vector[e];
    }
  }
}

template <typename T>
static void tangents(const EdgeGeometry<T> &g, const T *directions, int64_t direction_stride,
                     T *out, int64_t out_stride, int64_t first, int64_t last)
{
  Tile<T> tile;
  V<T> moved[MAX_HARMONICS];
  for (int64_t start = first; start < last; start += WIDTH<T>) {
    const int64_t n = last - start < WIDTH<T> ? last - start : WIDTH<T>;
    make_tile(g, start, n, tile);
    V<T> direction[3] = {}, turned[3];
    for (int64_t e = 0; e < n; e++)
      for (int i = 0; i < 3; i++) direction[i][e] = directions[(start + e) * direction_stride + i];
    const V<T> along =
        direction[0] * tile.u[0] + direction[1] * tile.u[1] + direction[2] * tile.u[2];
    for (int i = 0; i < 3; i++) turned[i] = (direction[i] - along * tile.u[i]) / tile.distance;
    for (int64_t m = 0; m < g.n_harmonics; m++) moved[m] = V<T>{};
    for (int64_t t = 0; t < g.n_terms; t++) {
      const RecursionTerm term = g.terms[t];
      moved[term.target] += g.coefficients[t] *
          (moved[term.source] * tile.u[term.component] +
           tile.harmonics[term.source] * turned[term.component]);
    }
    for (int64_t e = 0; e < n; e++) {
      T *const row = out + (start + e) * out_stride;
      row[0] = along[e];
      for (int64_t m = 0; m < g.n_harmonics; m++) row[1 + m] = moved[m][e];
    }
  }
}

template <typename T>
static constexpr EdgeGeometryKernel<T> EDGE_GEOMETRY = {forward<T>, backward<T>, tangents<T>};

extern const EdgeGeometryKernel<float> EDGE_GEOMETRY_FLOAT = EDGE_GEOMETRY<float>;
extern const EdgeGeometryKernel<double> EDGE_GEOMETRY_DOUBLE = EDGE_GEOMETRY<double>;

}    // namespace hienet::HIENET_VARIANT
