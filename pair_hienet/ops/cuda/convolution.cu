// SPDX-License-Identifier: GPL-2.0-or-later
// Lanes hold channels. With C[m_out][m_in] the couplings of an edge and a path, w a path weight and g the gradient of a
// center's message:
//
//   forward     out[m_out] += C[m_out][m_in] w x[m_in]
//   backward    s[m_in]     = sum_m_out C[m_out][m_in] g[m_out]
//               dx[m_in]   += w s[m_in],   dw = sum_m_in x[m_in] s[m_in]
//               dC[m_out][m_in] = sum over channels of g[m_out] w x[m_in]

#include "convolution.h"
#include "warp.h"

namespace hienet::cuda {

constexpr int WARPS_OF_A_BLOCK = 4;

/// Numbers that one instruction loads.
template <typename T> struct alignas(16) Quad {
  static constexpr int N = 16 / sizeof(T);
  T lane[N];
};

/// N numbers that all lanes read, from whole groups of four.
template <int N, typename T> __device__ __forceinline__ void read_couplings(const T *from, T *to)
{
  constexpr int STEP = Quad<T>::N;
  HIENET_UNROLL
  for (int first = 0; first < N; first += STEP) {
    const Quad<T> quad = *reinterpret_cast<const Quad<T> *>(from + first);
    HIENET_UNROLL
    for (int i = 0; i < STEP; i++)
      if (first + i < N) to[first + i] = quad.lane[i];
  }
}

/// The task and the center of this warp; no lane goes on where there is none.
struct Work {
  int64_t center, first_edge, last_edge;
  Task task;
  bool none;
};

template <typename T>
__device__ __forceinline__ Work find_work(const ConvolutionChunk<T> &chunk, const Tasks &tasks)
{
  const int64_t warp = global_warp();
  if (warp >= chunk.n_centers * tasks.n) return {0, 0, 0, {}, true};
  const int64_t center = chunk.first_center + warp / tasks.n;
  return {center, chunk.row_start[center], chunk.row_start[center + 1], tasks.tasks[warp % tasks.n],
          false};
}

/// Channel `v` of this lane in a task; lanes beyond the block's last channel have none.
__device__ __forceinline__ int channel(const Task &task, int v)
{ return task.first_channel + v * WARP + lane_index(); }

// ----------------------------------------------------------------------
// forward
// ----------------------------------------------------------------------

/// Dimensions that the compiler knows.
template <int D_IN, int D_OUT, typename T>
__device__ __forceinline__ void forward_path(const ConvolutionChunk<T> &chunk, const Work &work,
                                             const TaskPath &path, T *message)
{
  constexpr int V = channels_of_a_lane(D_IN);
  const Task &task = work.task;
  const T *splines[V];
  bool own[V];
  T total[D_OUT][V];
  HIENET_UNROLL
  for (int v = 0; v < V; v++) {
    own[v] = channel(task, v) < task.channels;
    splines[v] = column_of(chunk.splines, path.table_start, own[v] ? channel(task, v) : 0);
    HIENET_UNROLL
    for (int o = 0; o < D_OUT; o++) total[o][v] = T(0);
  }
  for (int64_t e = work.first_edge; e < work.last_edge; e++) {
    const auto place = place_of(chunk.splines, chunk.edges[e * chunk.edge_stride]);
    const T *const x =
        chunk.features + chunk.neighbor[e] * chunk.feature_stride + task.feature_start;
    T coupling[D_OUT * D_IN];
    read_couplings<D_OUT * D_IN>(chunk.couplings + (e - chunk.first_edge) * chunk.coupling_width +
                                     path.coupling_start,
                                 coupling);
    HIENET_UNROLL
    for (int v = 0; v < V; v++) {
      if (!own[v]) continue;
      const T w = spline_value(splines[v], place);
      HIENET_UNROLL
      for (int i = 0; i < D_IN; i++) {
        const T sent = w * x[i * task.channels + channel(task, v)];
        HIENET_UNROLL
        for (int o = 0; o < D_OUT; o++) total[o][v] += coupling[o * D_IN + i] * sent;
      }
    }
  }
  HIENET_UNROLL
  for (int v = 0; v < V; v++)
    if (own[v]) HIENET_UNROLL
  for (int o = 0; o < D_OUT; o++)
    message[path.out_start + o * path.out_channels + channel(task, v)] = total[o][v];
}

template <int D_IN, typename T>
__global__ void __launch_bounds__(WARPS_OF_A_BLOCK *WARP)
    forward_kernel(ConvolutionChunk<T> chunk, Tasks tasks, T *messages, int64_t message_stride)
{
  const Work work = find_work(chunk, tasks);
  if (work.none) return;
  T *const message = messages + (work.center - chunk.first_center) * message_stride;
  for (int p = work.task.first_path; p < work.task.last_path; p++) {
    const TaskPath path = chunk.paths[p];
    switch (path.dim_out) {
      case 1:
        forward_path<D_IN, 1>(chunk, work, path, message);
        break;
      case 3:
        forward_path<D_IN, 3>(chunk, work, path, message);
        break;
      case 5:
        forward_path<D_IN, 5>(chunk, work, path, message);
        break;
      default:
        forward_path<D_IN, 7>(chunk, work, path, message);
    }
  }
}

/// Any dimensions.
template <typename T>
__global__ void __launch_bounds__(WARPS_OF_A_BLOCK *WARP)
    forward_any_kernel(ConvolutionChunk<T> chunk, Tasks tasks, T *messages, int64_t message_stride)
{
  const Work work = find_work(chunk, tasks);
  if (work.none) return;
  const Task &task = work.task;
  const int u = channel(task, 0);
  if (u >= task.channels) return;
  T *const message = messages + (work.center - chunk.first_center) * message_stride;
  for (int p = task.first_path; p < task.last_path; p++) {
    const TaskPath path = chunk.paths[p];
    const T *const spline = column_of(chunk.splines, path.table_start, u);
    T total[MAX_DIM];
    for (int o = 0; o < path.dim_out; o++) total[o] = T(0);
    for (int64_t e = work.first_edge; e < work.last_edge; e++) {
      const auto place = place_of(chunk.splines, chunk.edges[e * chunk.edge_stride]);
      const T *const x =
          chunk.features + chunk.neighbor[e] * chunk.feature_stride + task.feature_start + u;
      const T *const coupling =
          chunk.couplings + (e - chunk.first_edge) * chunk.coupling_width + path.coupling_start;
      const T w = spline_value(spline, place);
      for (int i = 0; i < task.dim_in; i++) {
        const T sent = w * x[i * task.channels];
        for (int o = 0; o < path.dim_out; o++) total[o] += coupling[o * task.dim_in + i] * sent;
      }
    }
    for (int o = 0; o < path.dim_out; o++)
      message[path.out_start + o * path.out_channels + u] = total[o];
  }
}

template <typename T>
void convolution_forward(const ConvolutionChunk<T> &chunk, const Tasks &tasks, T *messages,
                         int64_t message_stride, Stream stream)
{
  const Grid grid = grid_for_warps(chunk.n_centers * tasks.n, WARPS_OF_A_BLOCK);
  const auto kernel = tasks.dim_in == 1 ? forward_kernel<1, T>
      : tasks.dim_in == 3               ? forward_kernel<3, T>
      : tasks.dim_in == 5               ? forward_kernel<5, T>
      : tasks.dim_in == 7               ? forward_kernel<7, T>
                                        : forward_any_kernel<T>;
  launch(kernel, grid, stream, chunk, tasks, messages, message_stride);
  check_launch("the convolution");
}

// ----------------------------------------------------------------------
// backward
// ----------------------------------------------------------------------

/// One edge's features and what becomes of them, of a lane's channels.
template <int D_IN, typename T> struct EdgeState {
  static constexpr int V = channels_of_a_lane(D_IN);
  T x[D_IN][V], of_x[D_IN][V];
  T of_fraction;
};

template <int D_IN, int D_OUT, typename T>
__device__ __forceinline__ void backward_path(const ConvolutionChunk<T> &chunk, const Task &task,
                                              const TaskPath &path, const T *gradient,
                                              const T *couplings, const SplinePlace<T> &place,
                                              EdgeState<D_IN, T> &state, T *of_couplings)
{
  constexpr int V = channels_of_a_lane(D_IN);
  T coupling[D_OUT * D_IN], of_coupling[D_OUT * D_IN];
  read_couplings<D_OUT * D_IN>(couplings + path.coupling_start, coupling);
  HIENET_UNROLL
  for (int k = 0; k < D_OUT * D_IN; k++) of_coupling[k] = T(0);
  HIENET_UNROLL
  for (int v = 0; v < V; v++) {
    const int u = channel(task, v);
    if (u >= task.channels) continue;
    const auto w = spline_both(column_of(chunk.splines, path.table_start, u), place);
    T s[D_IN], weighted[D_IN];
    HIENET_UNROLL
    for (int i = 0; i < D_IN; i++) {
      s[i] = T(0);
      weighted[i] = w.value * state.x[i][v];
    }
    HIENET_UNROLL
    for (int o = 0; o < D_OUT; o++) {
      const T g = gradient[path.out_start + o * path.out_channels + u];
      HIENET_UNROLL
      for (int i = 0; i < D_IN; i++) {
        s[i] += coupling[o * D_IN + i] * g;
        of_coupling[o * D_IN + i] += g * weighted[i];
      }
    }
    T of_weight = T(0);
    HIENET_UNROLL
    for (int i = 0; i < D_IN; i++) {
      state.of_x[i][v] += w.value * s[i];
      of_weight += state.x[i][v] * s[i];
    }
    state.of_fraction += of_weight * w.slope;
  }
  write_warp_sums<D_OUT * D_IN>(of_coupling, of_couplings);
}

template <int D_IN, typename T>
__global__ void __launch_bounds__(WARPS_OF_A_BLOCK *WARP)
    backward_kernel(ConvolutionChunk<T> chunk, Tasks tasks, const T *messages,
                    int64_t message_stride, EdgeSums<T> sums)
{
  constexpr int V = channels_of_a_lane(D_IN);
  const Work work = find_work(chunk, tasks);
  if (work.none) return;
  const Task &task = work.task;
  const T *const gradient = messages + (work.center - chunk.first_center) * message_stride;
  for (int64_t e = work.first_edge; e < work.last_edge; e++) {
    const int64_t row = e - chunk.first_edge;
    const auto place = place_of(chunk.splines, chunk.edges[e * chunk.edge_stride]);
    const T *const x =
        chunk.features + chunk.neighbor[e] * chunk.feature_stride + task.feature_start;
    const T *const couplings = chunk.couplings + row * chunk.coupling_width;
    T *of_couplings = sums.couplings + row * sums.coupling_width + task.sums_start;
    EdgeState<D_IN, T> state;
    state.of_fraction = T(0);
    HIENET_UNROLL
    for (int v = 0; v < V; v++) HIENET_UNROLL
    for (int i = 0; i < D_IN; i++) {
      const bool own = channel(task, v) < task.channels;
      state.x[i][v] = own ? x[i * task.channels + channel(task, v)] : T(0);
      state.of_x[i][v] = T(0);
    }
    for (int p = task.first_path; p < task.last_path; p++) {
      const TaskPath path = chunk.paths[p];
      switch (path.dim_out) {
        case 1:
          backward_path<D_IN, 1>(chunk, task, path, gradient, couplings, place, state,
                                 of_couplings);
          break;
        case 3:
          backward_path<D_IN, 3>(chunk, task, path, gradient, couplings, place, state,
                                 of_couplings);
          break;
        case 5:
          backward_path<D_IN, 5>(chunk, task, path, gradient, couplings, place, state,
                                 of_couplings);
          break;
        default:
          backward_path<D_IN, 7>(chunk, task, path, gradient, couplings, place, state,
                                 of_couplings);
      }
      of_couplings += D_IN * path.dim_out;
    }
    T *const of_features = sums.features + row * sums.feature_width + task.feature_start;
    HIENET_UNROLL
    for (int v = 0; v < V; v++)
      if (channel(task, v) < task.channels) HIENET_UNROLL
    for (int i = 0; i < D_IN; i++)
      of_features[i * task.channels + channel(task, v)] = state.of_x[i][v];
    const T of_fraction = warp_sum(state.of_fraction);
    if (lane_index() == 0) sums.fractions[row * sums.n_tasks + task.number] = of_fraction;
  }
}

template <typename T>
__global__ void __launch_bounds__(WARPS_OF_A_BLOCK *WARP)
    backward_any_kernel(ConvolutionChunk<T> chunk, Tasks tasks, const T *messages,
                        int64_t message_stride, EdgeSums<T> sums)
{
  const Work work = find_work(chunk, tasks);
  if (work.none) return;
  const Task &task = work.task;
  const int u = channel(task, 0);
  const bool own = u < task.channels;
  const T *const gradient = messages + (work.center - chunk.first_center) * message_stride;
  for (int64_t e = work.first_edge; e < work.last_edge; e++) {
    const int64_t row = e - chunk.first_edge;
    const auto place = place_of(chunk.splines, chunk.edges[e * chunk.edge_stride]);
    const T *const x =
        chunk.features + chunk.neighbor[e] * chunk.feature_stride + task.feature_start + u;
    T *of_couplings = sums.couplings + row * sums.coupling_width + task.sums_start;
    T *const of_features = sums.features + row * sums.feature_width + task.feature_start + u;
    T of_x[MAX_DIM], of_fraction = T(0);
    for (int i = 0; i < task.dim_in; i++) of_x[i] = T(0);
    for (int p = task.first_path; p < task.last_path; p++) {
      const TaskPath path = chunk.paths[p];
      const T *const coupling = chunk.couplings + row * chunk.coupling_width + path.coupling_start;
      ValueAndSlope<T> w = {T(0), T(0)};
      if (own) w = spline_both(column_of(chunk.splines, path.table_start, u), place);
      T of_weight = T(0);
      for (int i = 0; i < task.dim_in; i++) {
        T s = T(0);
        const T of_channel = own ? x[i * task.channels] : T(0);
        for (int o = 0; o < path.dim_out; o++) {
          const T g = own ? gradient[path.out_start + o * path.out_channels + u] : T(0);
          s += coupling[o * task.dim_in + i] * g;
          const T of_coupling = warp_sum(g * w.value * of_channel);
          if (lane_index() == 0) of_couplings[o * task.dim_in + i] = of_coupling;
        }
        of_x[i] += w.value * s;
        of_weight += of_channel * s;
      }
      of_fraction += of_weight * w.slope;
      of_couplings += task.dim_in * path.dim_out;
    }
    if (own)
      for (int i = 0; i < task.dim_in; i++) of_features[i * task.channels] = of_x[i];
    of_fraction = warp_sum(of_fraction);
    if (lane_index() == 0) sums.fractions[row * sums.n_tasks + task.number] = of_fraction;
  }
}

template <typename T>
void convolution_backward(const ConvolutionChunk<T> &chunk, const Tasks &tasks, const T *messages,
                          int64_t message_stride, const EdgeSums<T> &sums, Stream stream)
{
  const Grid grid = grid_for_warps(chunk.n_centers * tasks.n, WARPS_OF_A_BLOCK);
  const auto kernel = tasks.dim_in == 1 ? backward_kernel<1, T>
      : tasks.dim_in == 3               ? backward_kernel<3, T>
      : tasks.dim_in == 5               ? backward_kernel<5, T>
      : tasks.dim_in == 7               ? backward_kernel<7, T>
                                        : backward_any_kernel<T>;
  launch(kernel, grid, stream, chunk, tasks, messages, message_stride, sums);
  check_launch("the derivative of the convolution");
}

// ----------------------------------------------------------------------
// before and after
// ----------------------------------------------------------------------

constexpr int THREADS = 256;

template <typename T>
__global__ void __launch_bounds__(THREADS)
    couplings_kernel(ConvolutionChunk<T> chunk, SparseRows<T> terms)
{
  const int64_t thread = global_thread(), width = terms.n_rows;
  if (thread >= chunk.n_edges * width) return;
  const int64_t row = thread / width, k = thread % width;
  const T *const harmonics = chunk.edges + (chunk.first_edge + row) * chunk.edge_stride + 1;
  T coupling = T(0);
  for (int32_t t = terms.row_start[k]; t < terms.row_start[k + 1]; t++)
    coupling += terms.coefficients[t] * harmonics[terms.columns[t]];
  chunk.couplings[row * chunk.coupling_width + k] = coupling;
}

template <typename T>
void make_couplings(const ConvolutionChunk<T> &chunk, const SparseRows<T> &terms, Stream stream)
{
  launch(couplings_kernel<T>, grid_for(chunk.n_edges * terms.n_rows, THREADS), stream, chunk,
         terms);
  check_launch("the couplings of edges");
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
    edge_gradients_kernel(ConvolutionChunk<T> chunk, EdgeSums<T> sums, SparseRows<T> terms,
                          T *of_edges, int64_t of_edge_stride)
{
  const int64_t thread = global_thread(), width = terms.n_rows + 1;
  if (thread >= chunk.n_edges * width) return;
  const int64_t row = thread / width, column = thread % width;
  T total = T(0);
  if (column == 0) {
    for (int64_t task = 0; task < sums.n_tasks; task++)
      total += sums.fractions[row * sums.n_tasks + task];
    total *= chunk.splines.intervals_per_length;
  } else {
    const T *const from = sums.couplings + row * sums.coupling_width;
    for (int32_t t = terms.row_start[column - 1]; t < terms.row_start[column]; t++)
      total += terms.coefficients[t] * from[terms.columns[t]];
  }
  of_edges[(chunk.first_edge + row) * of_edge_stride + column] = total;
}

template <typename T>
void sum_edge_gradients(const ConvolutionChunk<T> &chunk, const EdgeSums<T> &sums,
                        const SparseRows<T> &terms, T *of_edges, int64_t of_edge_stride,
                        Stream stream)
{
  launch(edge_gradients_kernel<T>, grid_for(chunk.n_edges * (terms.n_rows + 1), THREADS), stream,
         chunk, sums, terms, of_edges, of_edge_stride);
  check_launch("the gradients of edges");
}

#define INSTANTIATE(T)                                                                           \
  template void make_couplings<T>(const ConvolutionChunk<T> &, const SparseRows<T> &, Stream);   \
  template void convolution_forward<T>(const ConvolutionChunk<T> &, const Tasks &, T *, int64_t, \
                                       Stream);                                                  \
  template void convolution_backward<T>(const ConvolutionChunk<T> &, const Tasks &, const T *,   \
                                        int64_t, const EdgeSums<T> &, Stream);                   \
  template void sum_edge_gradients<T>(const ConvolutionChunk<T> &, const EdgeSums<T> &,          \
                                      const SparseRows<T> &, T *, int64_t, Stream);
INSTANTIATE(float)
INSTANTIATE(double)

}    // namespace hienet::cuda
