// SPDX-License-Identifier: GPL-2.0-or-later

#include "gate_kernel.h"

#include "simd_math.h"

namespace hienet::HIENET_VARIANT {

template <typename T>
static void forward(const GateRows<T> &r, T *output, int64_t out_stride, int64_t first,
                    int64_t last)
{
  for (int64_t row = first; row < last; row++) {
    const T *const in = r.in + row * r.in_stride;
    T *const out = output + row * out_stride;
    each_vector<T>(r.n_scalars, [&]<bool PARTIAL>(int64_t u, int64_t n) INLINE {
      const V<T> x = read<T, PARTIAL>(in + u, n);
      write<T, PARTIAL>(out + u, r.scale * x * sigmoid<T>(x), n);
    });
    const T *gates = in + r.n_scalars, *block_in = gates + r.n_gates;
    T *block_out = out + r.n_scalars;
    for (int64_t b = 0; b < r.n_blocks; b++) {
      const GatedBlock block = r.blocks[b];
      each_vector<T>(block.channels, [&]<bool PARTIAL>(int64_t u, int64_t n) INLINE {
        const V<T> x = read<T, PARTIAL>(gates + u, n);
        const V<T> factor = r.scale * x * sigmoid<T>(x);
        for (int64_t i = u; i < block.dim * block.channels; i += block.channels)
          write<T, PARTIAL>(block_out + i, factor * read<T, PARTIAL>(block_in + i, n), n);
      });
      gates += block.channels;
      block_in += block.dim * block.channels;
      block_out += block.dim * block.channels;
    }
  }
}

template <typename T>
static void backward(const GateRows<T> &r, const T *gradient, int64_t gradient_stride, T *of_in,
                     int64_t of_in_stride, int64_t first, int64_t last)
{
  for (int64_t row = first; row < last; row++) {
    const T *const in = r.in + row * r.in_stride;
    const T *const g = gradient + row * gradient_stride;
    T *const to = of_in + row * of_in_stride;
    each_vector<T>(r.n_scalars, [&]<bool PARTIAL>(int64_t u, int64_t n) INLINE {
      const V<T> x = read<T, PARTIAL>(in + u, n);
      const V<T> s = sigmoid<T>(x);
      const V<T> slope = r.scale * s * (T(1) + x * (T(1) - s));
      write<T, PARTIAL>(to + u, slope * read<T, PARTIAL>(g + u, n), n);
    });
    int64_t gate = r.n_scalars, block_in = r.n_scalars + r.n_gates, block_out = r.n_scalars;
    for (int64_t b = 0; b < r.n_blocks; b++) {
      const GatedBlock block = r.blocks[b];
      each_vector<T>(block.channels, [&]<bool PARTIAL>(int64_t u, int64_t n) INLINE {
        const V<T> x = read<T, PARTIAL>(in + gate + u, n);
        const V<T> s = sigmoid<T>(x);
        const V<T> factor = r.scale * x * s;
        V<T> of_factor = {};
        for (int64_t i = u; i < block.dim * block.channels; i += block.channels) {
          const V<T> of_out = read<T, PARTIAL>(g + block_out + i, n);
          of_factor += of_out * read<T, PARTIAL>(in + block_in + i, n);
          write<T, PARTIAL>(to + block_in + i, factor * of_out, n);
        }
        const V<T> slope = r.scale * s * (T(1) + x * (T(1) - s));
        write<T, PARTIAL>(to + gate + u, slope * of_factor, n);
      });
      gate += block.channels;
      block_in += block.dim * block.channels;
      block_out += block.dim * block.channels;
    }
  }
}

// ----------------------------------------------------------------------
// with tangents
// ----------------------------------------------------------------------

/// SiLU times the scale, and its first two derivatives.
template <typename T> struct Activation {
  V<T> value, slope, curvature;

  INLINE Activation(V<T> x, T scale)
  {
    const V<T> s = sigmoid<T>(x), rest = T(1) - s;
    value = scale * x * s;
    slope = scale * s * (T(1) + x * rest);
    curvature = scale * s * rest * (T(2) + x * (rest - s));
  }
};

template <typename T>
static void dual_forward(const GateRows<T> &r, int64_t width_in, int64_t width_out, T *output,
                         int64_t out_stride, int64_t first, int64_t last)
{
  for (int64_t row = first; row < last; row++) {
    const T *const in = r.in + row * r.in_stride, *const in_tangent = in + width_in;
    T *const out = output + row * out_stride, *const out_tangent = out + width_out;
    each_vector<T>(r.n_scalars, [&]<bool PARTIAL>(int64_t u, int64_t n) INLINE {
      const Activation<T> f(read<T, PARTIAL>(in + u, n), r.scale);
      write<T, PARTIAL>(out + u, f.value, n);
      write<T, PARTIAL>(out_tangent + u, f.slope * read<T, PARTIAL>(in_tangent + u, n), n);
    });
    int64_t gate = r.n_scalars, block_in = r.n_scalars + r.n_gates, block_out = r.n_scalars;
    for (int64_t b = 0; b < r.n_blocks; b++) {
      const GatedBlock block = r.blocks[b];
      each_vector<T>(block.channels, [&]<bool PARTIAL>(int64_t u, int64_t n) INLINE {
        const Activation<T> f(read<T, PARTIAL>(in + gate + u, n), r.scale);
        const V<T> moved = f.slope * read<T, PARTIAL>(in_tangent + gate + u, n);
        for (int64_t i = u; i < block.dim * block.channels; i += block.channels) {
          const V<T> value = read<T, PARTIAL>(in + block_in + i, n);
          const V<T> tangent = read<T, PARTIAL>(in_tangent + block_in + i, n);
          write<T, PARTIAL>(out + block_out + i, f.value * value, n);
          write<T, PARTIAL>(out_tangent + block_out + i, f.value * tangent + moved * value, n);
        }
      });
      gate += block.channels;
      block_in += block.dim * block.channels;
      block_out += block.dim * block.channels;
    }
  }
}

template <typename T>
static void dual_backward(const GateRows<T> &r, int64_t width_in, int64_t width_out,
                          const T *gradient, int64_t gradient_stride, T *of_in,
                          int64_t of_in_stride, int64_t first, int64_t last)
{
  for (int64_t row = first; row < last; row++) {
    const T *const in = r.in + row * r.in_stride, *const in_tangent = in + width_in;
    const T *const g = gradient + row * gradient_stride, *const g_tangent = g + width_out;
    T *const to = of_in + row * of_in_stride, *const to_tangent = to + width_in;
    each_vector<T>(r.n_scalars, [&]<bool PARTIAL>(int64_t u, int64_t n) INLINE {
      const Activation<T> f(read<T, PARTIAL>(in + u, n), r.scale);
      const V<T> of_tangent = read<T, PARTIAL>(g_tangent + u, n);
      const V<T> moved = f.curvature * read<T, PARTIAL>(in_tangent + u, n);
      write<T, PARTIAL>(to + u, f.slope * read<T, PARTIAL>(g + u, n) + moved * of_tangent, n);
      write<T, PARTIAL>(to_tangent + u, f.slope * of_tangent, n);
    });
    int64_t gate = r.n_scalars, block_in = r.n_scalars + r.n_gates, block_out = r.n_scalars;
    for (int64_t b = 0; b < r.n_blocks; b++) {
      const GatedBlock block = r.blocks[b];
      each_vector<T>(block.channels, [&]<bool PARTIAL>(int64_t u, int64_t n) INLINE {
        const Activation<T> f(read<T, PARTIAL>(in + gate + u, n), r.scale);
        const V<T> x_tangent = read<T, PARTIAL>(in_tangent + gate + u, n);
        const V<T> moved = f.slope * x_tangent;
        V<T> of_factor = {}, of_moved = {};
        for (int64_t i = u; i < block.dim * block.channels; i += block.channels) {
          const V<T> value = read<T, PARTIAL>(in + block_in + i, n);
          const V<T> tangent = read<T, PARTIAL>(in_tangent + block_in + i, n);
          const V<T> of_value = read<T, PARTIAL>(g + block_out + i, n);
          const V<T> of_tangent = read<T, PARTIAL>(g_tangent + block_out + i, n);
          of_factor += value * of_value + tangent * of_tangent;
          of_moved += value * of_tangent;
          write<T, PARTIAL>(to + block_in + i, f.value * of_value + moved * of_tangent, n);
          write<T, PARTIAL>(to_tangent + block_in + i, f.value * of_tangent, n);
        }
        write<T, PARTIAL>(to + gate + u, f.slope * of_factor + f.curvature * x_tangent * of_moved,
                          n);
        write<T, PARTIAL>(to_tangent + gate + u, f.slope * of_moved, n);
      });
      gate += block.channels;
      block_in += block.dim * block.channels;
      block_out += block.dim * block.channels;
    }
  }
}

extern const DualGateKernel<float> DUAL_GATE_FLOAT = {dual_forward<float>, dual_backward<float>};
extern const DualGateKernel<double> DUAL_GATE_DOUBLE = {dual_forward<double>,
                                                        dual_backward<double>};
extern const GateKernel<float> GATE_FLOAT = {forward<float>, backward<float>};
extern const GateKernel<double> GATE_DOUBLE = {forward<double>, backward<double>};

}    // namespace hienet::HIENET_VARIANT
