// SPDX-License-Identifier: GPL-2.0-or-later
// Lanes hold channels: forwards a warp has some channels of a center, backwards it has an edge.

#include "pair_message.h"
#include "warp.h"

namespace hienet::cuda {

constexpr int WARPS_OF_A_BLOCK = 4;

/// Column `u` of the splines of a pair.
template <typename T>
__device__ __forceinline__ const T *column_of_pair(const PairMessages<T> &m, int64_t pair,
                                                   int64_t u)
{
  const int64_t blocks = (m.channels + LANES - 1) / LANES;
  return column_of(m.splines, pair * blocks, u);
}

template <typename T>
__global__ void __launch_bounds__(WARPS_OF_A_BLOCK *WARP)
    sums_kernel(PairMessages<T> m, int64_t parts, T *sums, int64_t sum_stride)
{
  const int64_t warp = global_warp();
  if (warp >= m.n_local * parts) return;
  const int64_t center = warp / parts, u = warp % parts * WARP + lane_index();
  if (u >= m.channels) return;
  T total = T(0);
  for (int64_t e = m.row_start[center]; e < m.row_start[center + 1]; e++)
    total += spline_value(column_of_pair(m, m.pair[e], u),
                          place_of(m.splines, m.edges[e * m.edge_stride]));
  sums[center * sum_stride + u] = total;
}

template <typename T>
void sum_pair_messages(const PairMessages<T> &messages, T *sums, int64_t sum_stride, Stream stream)
{
  const int64_t parts = (messages.channels + WARP - 1) / WARP;
  launch(sums_kernel<T>, grid_for_warps(messages.n_local * parts, WARPS_OF_A_BLOCK), stream,
         messages, parts, sums, sum_stride);
  check_launch("the sum of pair messages");
}

template <typename T>
__global__ void __launch_bounds__(WARPS_OF_A_BLOCK *WARP)
    slopes_kernel(PairMessages<T> m, const T *gradient, int64_t gradient_stride, T *of_edges,
                  int64_t of_edge_stride)
{
  const int64_t e = global_warp();
  if (e >= m.n_edges) return;
  const T *const g = gradient + m.center[e] * gradient_stride;
  const auto place = place_of(m.splines, m.edges[e * m.edge_stride]);
  T of_fraction = T(0);
  for (int64_t u = lane_index(); u < m.channels; u += WARP)
    of_fraction += g[u] * spline_slope(column_of_pair(m, m.pair[e], u), place);
  of_fraction = warp_sum(of_fraction);
  if (lane_index() == 0)
    of_edges[e * of_edge_stride] = of_fraction * m.splines.intervals_per_length;
}

template <typename T>
void differentiate_pair_messages(const PairMessages<T> &messages, const T *gradient,
                                 int64_t gradient_stride, T *of_edges, int64_t of_edge_stride,
                                 Stream stream)
{
  launch(slopes_kernel<T>, grid_for_warps(messages.n_edges, WARPS_OF_A_BLOCK), stream, messages,
         gradient, gradient_stride, of_edges, of_edge_stride);
  check_launch("the derivative of pair messages");
}

#define INSTANTIATE(T)                                                                           \
  template void sum_pair_messages<T>(const PairMessages<T> &, T *, int64_t, Stream);             \
  template void differentiate_pair_messages<T>(const PairMessages<T> &, const T *, int64_t, T *, \
                                               int64_t, Stream);
INSTANTIATE(float)
INSTANTIATE(double)

}    // namespace hienet::cuda
