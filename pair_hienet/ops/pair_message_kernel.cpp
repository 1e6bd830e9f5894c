// SPDX-License-Identifier: GPL-2.0-or-later
// Vectors hold channels; the channels are the outer loop, so that a slice of the splines stays in the cache.

#include "pair_message_kernel.h"

#include "spline.h"

namespace hienet::HIENET_VARIANT {

/// Where each edge lies in the splines of its pair.
template <typename T> struct Places {
  int64_t *offset;
  T *fraction;
};

static inline int64_t padded(int64_t n_edges)
{ return (n_edges + LANES - 1) / LANES * LANES; }

template <typename T> static int64_t scratch_size(int64_t n_edges)
{
  // Offsets are 64 bit, which is two or one numbers; the backward has a vector for each edge.
  return padded(n_edges) * 3 + n_edges * WIDTH<T>;
}

template <typename T>
static Places<T> find_places(const PairMessages<T> &p, int64_t first, int64_t last, T *&scratch)
{
  const int64_t blocks = (p.channels + LANES - 1) / LANES;
  const int64_t size = blocks * p.n_intervals * SPLINE_COEFFICIENTS * LANES;
  const Places<T> places = {reinterpret_cast<int64_t *>(scratch),
                            scratch + 2 * padded(last - first)};
  for (int64_t e = first; e < last; e++) {
    const auto place =
        position_of<T>(p.edges[e * p.edge_stride], p.intervals_per_length, p.n_intervals);
    places.offset[e - first] = p.pair[e] * size + place.offset;
    places.fraction[e - first] = place.fraction;
  }
  scratch = places.fraction + padded(last - first);
  return places;
}

/// The splines of the channels from `u` on.
template <typename T> INLINE static inline const T *columns(const PairMessages<T> &p, int64_t u)
{ return p.table + u / LANES * p.n_intervals * SPLINE_COEFFICIENTS * LANES + u % LANES; }

template <typename T>
static void forward(const PairMessages<T> &p, T *sums, int64_t sum_stride, int64_t first,
                    int64_t last, T *scratch)
{
  const int64_t begin = p.row_start[first];
  const Places<T> places = find_places(p, begin, p.row_start[last], scratch);
  for (int64_t u = 0; u < p.channels; u += WIDTH<T>) {
    const T *const splines = columns(p, u);
    for (int64_t i = first; i < last; i++) {
      V<T> total = {};
      for (int64_t e = p.row_start[i] - begin; e < p.row_start[i + 1] - begin; e++)
        total += spline_value(splines + places.offset[e], places.fraction[e]);
      T *const to = sums + i * sum_stride + u;
      if (u + WIDTH<T> <= p.channels)
        store(to, total);
      else
        store_first(to, total, p.channels - u);
    }
  }
}

template <typename T>
static void backward(const PairMessages<T> &p, const T *gradient, int64_t gradient_stride,
                     T *of_edges, int64_t of_edge_stride, int64_t first, int64_t last, T *scratch)
{
  const int64_t begin = p.row_start[first], n_edges = p.row_start[last] - begin;
  const Places<T> places = find_places(p, begin, p.row_start[last], scratch);
  T *const of_fraction = scratch;
  for (int64_t i = 0; i < n_edges * WIDTH<T>; i++) of_fraction[i] = 0;
  for (int64_t u = 0; u < p.channels; u += WIDTH<T>) {
    const T *const splines = columns(p, u);
    for (int64_t i = first; i < last; i++) {
      const T *const from = gradient + i * gradient_stride + u;
      const V<T> g = u + WIDTH<T> <= p.channels ? load(from) : load_first(from, p.channels - u);
      for (int64_t e = p.row_start[i] - begin; e < p.row_start[i + 1] - begin; e++) {
        T *const to = of_fraction + e * WIDTH<T>;
        const V<T> slope = spline_slope(splines + places.offset[e], places.fraction[e]);
        store(to, load(to) + g * slope);
      }
    }
  }
  for (int64_t e = 0; e < n_edges; e++)
    of_edges[(begin + e) * of_edge_stride] =
        sum<T>(load(of_fraction + e * WIDTH<T>)) * p.intervals_per_length;
}

extern const PairMessageKernel<float> PAIR_MESSAGE_FLOAT = {scratch_size<float>, forward<float>,
                                                            backward<float>};
extern const PairMessageKernel<double> PAIR_MESSAGE_DOUBLE = {scratch_size<double>, forward<double>,
                                                              backward<double>};

}    // namespace hienet::HIENET_VARIANT
