// SPDX-License-Identifier: GPL-2.0-or-later

#include "node_rows.h"

#include "warp.h"

namespace hienet::cuda {

constexpr int THREADS = 256;
constexpr int WARPS_OF_A_BLOCK = 4;

template <typename T>
__device__ __forceinline__ T factor_of(const FactorOfEdge<T> &factor, int64_t edge, int64_t m,
                                       int64_t u)
{ return factor.row.first ? factor.row(edge)[m * factor.of_term + u * factor.of_column] : T(1); }

/// A thread has a column of an edge.
template <typename T> __global__ void __launch_bounds__(THREADS) read_rows_kernel(ReadRows<T> r)
{
  const int64_t thread = global_thread();
  if (thread >= r.n_edges * r.width) return;
  const int64_t edge = thread / r.width, u = thread % r.width;
  const T *const row = r.row(edge);
  T total = T(0);
  for (int64_t m = 0; m < r.n_terms; m++)
    total += factor_of(r.factor, edge, m, u) * row[m * r.width + u];
  T *const to = r.to + edge * r.to_stride + u;
  *to = (r.add ? *to : T(0)) + r.scale * total;
}

template <typename T> void read_rows(const ReadRows<T> &rows, Stream stream)
{
  launch(read_rows_kernel<T>, grid_for(rows.n_edges * rows.width, THREADS), stream, rows);
  check_launch("reading rows of nodes");
}

/// A warp has a term of an edge.
template <typename T>
__global__ void __launch_bounds__(WARPS_OF_A_BLOCK *WARP) dot_rows_kernel(DotRows<T> r)
{
  const int64_t warp = global_warp();
  if (warp >= r.n_edges * r.n_terms) return;
  const int64_t edge = warp / r.n_terms, m = warp % r.n_terms;
  const T *const x = r.x(edge) + m * r.x_of_term, *const row = r.row(edge) + m * r.width;
  T total = T(0);
  for (int64_t u = lane_index(); u < r.width; u += WARP) total += x[u] * row[u];
  total = warp_sum(total);
  T *const to = r.to + edge * r.to_stride + m;
  if (lane_index() == 0) *to = (r.add ? *to : T(0)) + r.scale * total;
}

template <typename T> void dot_rows(const DotRows<T> &rows, Stream stream)
{
  launch(dot_rows_kernel<T>, grid_for_warps(rows.n_edges * rows.n_terms, WARPS_OF_A_BLOCK), stream,
         rows);
  check_launch("products of rows");
}

/// A thread has a column of a node.
template <typename T> __global__ void __launch_bounds__(THREADS) sum_rows_kernel(SumRows<T> r)
{
  const int64_t columns = r.n_terms * r.width, thread = global_thread();
  if (thread >= r.edges.n_nodes * columns) return;
  const int64_t node = thread / columns, column = thread % columns;
  const int64_t m = column / r.width, u = column % r.width;
  T total = T(0);
  for (int64_t k = r.edges.start[node]; k < r.edges.start[node + 1]; k++) {
    const int64_t place = k - r.edges.first;
    const int64_t edge = r.edges.order ? r.edges.order[place] : place;
    total += factor_of(r.factor, edge, m, u) * r.row(edge)[u];
  }
  T *const to = r.to + node * r.to_stride + column;
  *to = (r.add ? *to : T(0)) + r.scale * total;
}

template <typename T> void sum_rows(const SumRows<T> &rows, Stream stream)
{
  launch(sum_rows_kernel<T>, grid_for(rows.edges.n_nodes * rows.n_terms * rows.width, THREADS),
         stream, rows);
  check_launch("sums over edges");
}

#define INSTANTIATE(T)                                     \
  template void read_rows<T>(const ReadRows<T> &, Stream); \
  template void dot_rows<T>(const DotRows<T> &, Stream);   \
  template void sum_rows<T>(const SumRows<T> &, Stream);
INSTANTIATE(float)
INSTANTIATE(double)

}    // namespace hienet::cuda
