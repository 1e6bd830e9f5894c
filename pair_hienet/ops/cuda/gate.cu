// SPDX-License-Identifier: GPL-2.0-or-later
// A thread has a scalar, or a gate and all that it multiplies.

#include "gate.h"

#include <cmath>

namespace hienet::cuda {

constexpr int THREADS = 256;

/// The row and the column (a scalar, or a gate) of this thread.
template <typename T> struct Place {
  int64_t row, column;
  bool none;
};
template <typename T> __device__ __forceinline__ Place<T> find_place(const Gate<T> &g)
{
  const int64_t width = g.n_scalars + g.n_gates, thread = global_thread();
  return {thread / width, thread % width, thread >= g.n_rows * width};
}

template <typename T> __device__ __forceinline__ T sigmoid(T x)
{ return T(1) / (T(1) + exp(-x)); }

/// The block to which a gate belongs.
template <typename T>
__device__ __forceinline__ GatedColumns block_of(const Gate<T> &g, int64_t column)
{
  int b = 0;
  while (column >= g.blocks[b].gate_start + g.blocks[b].channels) b++;
  return g.blocks[b];
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
    gate_forward_kernel(Gate<T> g, T *out, int64_t out_stride)
{
  const auto place = find_place(g);
  if (place.none) return;
  const T *const in = g.in + place.row * g.in_stride;
  T *const to = out + place.row * out_stride;
  const T x = in[place.column], factor = g.scale * x * sigmoid(x);
  if (place.column < g.n_scalars) {
    to[place.column] = factor;
    return;
  }
  const GatedColumns block = block_of(g, place.column);
  const int64_t u = place.column - block.gate_start;
  for (int64_t i = u; i < block.dim * block.channels; i += block.channels)
    to[block.out_start + i] = factor * in[block.in_start + i];
}

template <typename T>
void gate_forward(const Gate<T> &gate, T *out, int64_t out_stride, Stream stream)
{
  launch(gate_forward_kernel<T>, grid_for(gate.n_rows * (gate.n_scalars + gate.n_gates), THREADS),
         stream, gate, out, out_stride);
  check_launch("the gate");
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
    gate_backward_kernel(Gate<T> g, const T *gradient, int64_t gradient_stride, T *of_in,
                         int64_t of_in_stride)
{
  const auto place = find_place(g);
  if (place.none) return;
  const T *const in = g.in + place.row * g.in_stride;
  const T *const from = gradient + place.row * gradient_stride;
  T *const to = of_in + place.row * of_in_stride;
  const T x = in[place.column], s = sigmoid(x);
  const T factor = g.scale * x * s, slope = g.scale * s * (T(1) + x * (T(1) - s));
  if (place.column < g.n_scalars) {
    to[place.column] = slope * from[place.column];
    return;
  }
  const GatedColumns block = block_of(g, place.column);
  const int64_t u = place.column - block.gate_start;
  T of_factor = T(0);
  for (int64_t i = u; i < block.dim * block.channels; i += block.channels) {
    const T of_out = from[block.out_start + i];
    of_factor += of_out * in[block.in_start + i];
    to[block.in_start + i] = factor * of_out;
  }
  to[place.column] = slope * of_factor;
}

template <typename T>
void gate_backward(const Gate<T> &gate, const T *gradient, int64_t gradient_stride, T *of_in,
                   int64_t of_in_stride, Stream stream)
{
  launch(gate_backward_kernel<T>, grid_for(gate.n_rows * (gate.n_scalars + gate.n_gates), THREADS),
         stream, gate, gradient, gradient_stride, of_in, of_in_stride);
  check_launch("the derivative of the gate");
}

#define INSTANTIATE(T)                                                  \
  template void gate_forward<T>(const Gate<T> &, T *, int64_t, Stream); \
  template void gate_backward<T>(const Gate<T> &, const T *, int64_t, T *, int64_t, Stream);
INSTANTIATE(float)
INSTANTIATE(double)

}    // namespace hienet::cuda
