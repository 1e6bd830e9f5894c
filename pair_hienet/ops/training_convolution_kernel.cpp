// SPDX-License-Identifier: GPL-2.0-or-later
// The first two functions are those of inference with other tables. With tangents (marked ') along a direction that moves
// every edge, and C, w as in convolution_paths.h:
//
//   forward     out  += C (w x)
//               out' += C (w' x + w x') + C' (w x)                    w' = d' dw/dd, C' = sum_m CG Y'[m]
//   backward    s = C^T g + C'^T g',  s' = C^T g'                     of gradients g of out, and g' of out'
//               dx += w s + w' s',  dx' += w s'
//               dw = x s + x' s',   dw' = x s'                        into the rows that the spline reads
//
// Edges are constants here: their gradients are not wanted.

#include "training_convolution_kernel.h"

#include "convolution_paths.h"

namespace hienet::HIENET_VARIANT {

/// Vectors of channels in one block of the dual functions: sums for `dim` components and their tangents must fit the
/// registers.
template <int DIM> constexpr int DUAL_VECTORS = DIM > 0 && 4 * DIM + 4 <= REGISTERS ? VECTORS : 1;

/// The couplings of a path and their tangents, for the edges of a piece.
template <typename T> struct DualBlock {
  Block<T> value, tangent;

  /// Where those of an edge begin; each is EDGE_TILE numbers behind the one before.
  static const T *couplings(const Block<T> &block, int64_t place, int64_t n_couplings)
  { return block.couplings + place / EDGE_TILE * EDGE_TILE * n_couplings + place % EDGE_TILE; }
};

template <typename T> static int64_t dual_scratch_size(const DualConvolution<T> &c, int64_t n_edges)
{
  const TrainingConvolution<T> &plain = c;
  return 2 * whole_tiles(n_edges) * (3 + c.n_harmonics + largest_coupling(plain));
}

template <typename T>
static DualBlock<T> make_dual_block(const DualConvolution<T> &c, int64_t first, int64_t last,
                                    T *scratch)
{
  TrainingConvolution<T> of_tangents = c;
  of_tangents.edges = c.edge_tangents;
  of_tangents.edge_stride = c.edge_tangent_stride;
  const TrainingConvolution<T> &of_values = c;
  const Block<T> value = make_block(of_values, c.row_start[first], c.row_start[last], scratch);
  return {value, make_block(of_tangents, c.row_start[first], c.row_start[last], scratch)};
}

/// w and w' at an edge, N vectors from those of `splines` on.
template <typename T, int N, int B> struct DualWeights {
  Sized<T, B> value[N], tangent[N];

  INLINE DualWeights(const DualConvolution<T> &c, const T *const *splines, int64_t e)
  {
    const BasisPlace<T> place = {c.first_row[e] * LANES, c.basis + e * 2 * BASIS_ROWS};
    const T rate = c.edge_tangents[e * c.edge_tangent_stride];
    each<N>(N, [&](int v) INLINE {
      const auto both = place.template both<B>(splines[v]);
      value[v] = both.value;
      tangent[v] = rate * both.slope;
    });
  }
};

// ----------------------------------------------------------------------
// forward
// ----------------------------------------------------------------------

/// N vectors of channels, from channel `u` on, of one path and center.
template <typename T, int D_IN, int D_OUT, Shape SHAPE, int N, bool PARTIAL, int B>
static void dual_forward_block(const DualConvolution<T> &c, const Path &path,
                               const DualBlock<T> &block, int64_t center, T *value, T *tangent,
                               int64_t u)
{
  constexpr int64_t W = SIZED_WIDTH<T, B>;
  const int dim_in = dimension<D_IN>(path.dim_in), dim_out = dimension<D_OUT>(path.dim_out);
  const int64_t rest = path.channels - u, n_couplings = dim_in * dim_out;
  const int64_t start = path.feature_start + u;
  const T *splines[N];
  each<N>(N, [&](int v) INLINE {
    splines[v] = splines_of<TrainingConvolution<T>>(c, path, u + v * W);
  });
  Sized<T, B> total[SIZE<D_OUT>][N] = {}, total_tangent[SIZE<D_OUT>][N] = {};
  for (int64_t e = c.row_start[center]; e < c.row_start[center + 1]; e++) {
    const T *const x = c.features + start + c.neighbor[e] * c.feature_stride;
    const T *const x_tangent = c.feature_tangents + start + c.neighbor[e] * c.feature_stride;
    const int64_t place = e - block.value.first;
    const T *const coupling = DualBlock<T>::couplings(block.value, place, n_couplings);
    const T *const coupling_tangent = DualBlock<T>::couplings(block.tangent, place, n_couplings);
    const DualWeights<T, N, B> w(c, splines, e);
    each<D_IN>(dim_in, [&](int i) INLINE {
      Sized<T, B> sent[N], sent_tangent[N];
      each<N>(N, [&](int v) INLINE {
        const int64_t at = i * path.channels + v * W;
        const Sized<T, B> here = read<T, PARTIAL, B>(x + at, rest);
        sent[v] = w.value[v] * here;
        sent_tangent[v] =
            w.tangent[v] * here + w.value[v] * read<T, PARTIAL, B>(x_tangent + at, rest);
      });
      each_coupled<SHAPE, D_OUT>(dim_out, i, [&](int o) INLINE {
        const T factor = coupling[(o * dim_in + i) * EDGE_TILE];
        const T factor_tangent = coupling_tangent[(o * dim_in + i) * EDGE_TILE];
        each<N>(N, [&](int v) INLINE {
          total[o][v] += factor * sent[v];
          total_tangent[o][v] += factor * sent_tangent[v] + factor_tangent * sent[v];
        });
      });
    });
  }
  each<D_OUT>(dim_out, [&](int o) INLINE {
    each<N>(N, [&](int v) INLINE {
      const int64_t at = path.out_start + u + o * path.out_channels + v * W;
      write<T, PARTIAL, B>(value + at, total[o][v], rest);
      write<T, PARTIAL, B>(tangent + at, total_tangent[o][v], rest);
    });
  });
}

template <typename T, int D_IN, int D_OUT, Shape SHAPE, bool HALF>
static void dual_forward_path(const DualConvolution<T> &c, const Path &path,
                              const DualBlock<T> &block, const DualRows<T> &rows, int64_t first,
                              int64_t last)
{
  each_block<T, DUAL_VECTORS<D_OUT>, HALF>(path, [&]<int COUNT, bool PARTIAL>(int64_t u) INLINE {
    for (int64_t i = first; i < last; i++)
      dual_forward_block<T, D_IN, D_OUT, SHAPE, COUNT, PARTIAL, BYTES_OF<HALF>>(
          c, path, block, i, rows.value + (i - first) * rows.stride,
          rows.tangent + (i - first) * rows.stride, u);
  });
}

// ----------------------------------------------------------------------
// backward
// ----------------------------------------------------------------------

/// Adds what N vectors of channels of one path and center give.
template <typename T, int D_IN, int D_OUT, Shape SHAPE, int N, bool PARTIAL, int B>
static void dual_backward_block(const DualConvolution<T> &convolution, const Path &of_all,
                                const DualBlock<T> &piece, int64_t center, const T *value,
                                const T *tangent, const DualGradients<T> &gradients, int64_t u)
{
  // Copies: what is written through pointers might be any of these, for all that the compiler knows.
  const DualConvolution<T> c = convolution;
  const Path path = of_all;
  const DualBlock<T> block = piece;
  const DualGradients<T> to = gradients;
  constexpr int64_t W = SIZED_WIDTH<T, B>;
  const int dim_in = dimension<D_IN>(path.dim_in), dim_out = dimension<D_OUT>(path.dim_out);
  const int64_t rest = path.channels - u, n_couplings = dim_in * dim_out;
  const int64_t start = path.feature_start + u;
  const T *splines[N];
  each<N>(N, [&](int v) INLINE {
    splines[v] = splines_of<TrainingConvolution<T>>(c, path, u + v * W);
  });
  value += path.out_start + u;
  tangent += path.out_start + u;
  for (int64_t e = c.row_start[center]; e < c.row_start[center + 1]; e++) {
    const int64_t node = c.neighbor[e], place = e - block.value.first;
    const T *const coupling = DualBlock<T>::couplings(block.value, place, n_couplings);
    const T *const coupling_tangent = DualBlock<T>::couplings(block.tangent, place, n_couplings);
    Sized<T, B> s[SIZE<D_IN>][N] = {}, s_tangent[SIZE<D_IN>][N] = {};
    each<D_OUT>(dim_out, [&](int o) INLINE {
      Sized<T, B> g[N], g_tangent[N];
      each<N>(N, [&](int v) INLINE {
        g[v] = read<T, PARTIAL, B>(value + o * path.out_channels + v * W, rest);
        g_tangent[v] = read<T, PARTIAL, B>(tangent + o * path.out_channels + v * W, rest);
      });
      each_coupled<SHAPE, D_IN>(dim_in, o, [&](int i) INLINE {
        const T factor = coupling[(o * dim_in + i) * EDGE_TILE];
        const T factor_tangent = coupling_tangent[(o * dim_in + i) * EDGE_TILE];
        each<N>(N, [&](int v) INLINE {
          s[i][v] += factor * g[v] + factor_tangent * g_tangent[v];
          s_tangent[i][v] += factor * g_tangent[v];
        });
      });
    });

    const DualWeights<T, N, B> w(c, splines, e);
    const int64_t row = to.slot ? to.slot[node] : node;
    T *const dx = to.features + row * to.feature_stride + start;
    T *const dx_tangent = to.feature_tangents + row * to.feature_stride + start;
    const T *const x = c.features + node * c.feature_stride + start;
    const T *const x_tangent = c.feature_tangents + node * c.feature_stride + start;
    const T *const basis = c.basis + e * 2 * BASIS_ROWS;
    const T rate = c.edge_tangents[e * c.edge_tangent_stride];
    each<N>(N, [&](int v) INLINE {
      Sized<T, B> of_value = {}, of_tangent = {};
      each<D_IN>(dim_in, [&](int i) INLINE {
        const int64_t at = i * path.channels + v * W;
        const Sized<T, B> here = read<T, PARTIAL, B>(x + at, rest);
        of_value += here * s[i][v] + read<T, PARTIAL, B>(x_tangent + at, rest) * s_tangent[i][v];
        of_tangent += here * s_tangent[i][v];
        write<T, PARTIAL, B>(dx + at,
                             read<T, PARTIAL, B>(dx + at, rest) + w.value[v] * s[i][v] +
                                 w.tangent[v] * s_tangent[i][v],
                             rest);
        write<T, PARTIAL, B>(
            dx_tangent + at,
            read<T, PARTIAL, B>(dx_tangent + at, rest) + w.value[v] * s_tangent[i][v], rest);
      });
      of_tangent *= rate;
      T *const rows = to.table + (splines[v] - c.table) + c.first_row[e] * LANES;
      for (int k = 0; k < BASIS_ROWS; k++)
        store<B>(rows + k * LANES,
                 load<B>(rows + k * LANES) + basis[k] * of_value +
                     basis[BASIS_ROWS + k] * of_tangent);
    });
  }
}

template <typename T, int D_IN, int D_OUT, Shape SHAPE, bool HALF>
static void dual_backward_path(const DualConvolution<T> &c, const Path &path,
                               const DualBlock<T> &block, const DualRows<const T> &rows,
                               const DualGradients<T> &to, int64_t first, int64_t last)
{
  each_block<T, DUAL_VECTORS<D_IN>, HALF>(path, [&]<int COUNT, bool PARTIAL>(int64_t u) INLINE {
    for (int64_t i = first; i < last; i++)
      dual_backward_block<T, D_IN, D_OUT, SHAPE, COUNT, PARTIAL, BYTES_OF<HALF>>(
          c, path, block, i, rows.value + (i - first) * rows.stride,
          rows.tangent + (i - first) * rows.stride, to, u);
  });
}

// ----------------------------------------------------------------------
// all paths of all centers
// ----------------------------------------------------------------------

template <typename T>
using DualForwardPath = void (*)(const DualConvolution<T> &, const Path &, const DualBlock<T> &,
                                 const DualRows<T> &, int64_t, int64_t);
template <typename T>
using DualBackwardPath = void (*)(const DualConvolution<T> &, const Path &, const DualBlock<T> &,
                                  const DualRows<const T> &, const DualGradients<T> &, int64_t,
                                  int64_t);

template <typename T>
static constexpr FormsOfBoth<DualForwardPath<T>> DUAL_FORWARD =
    FORMS_OF_BOTH(dual_forward_path, T, IN_HALVES<TrainingConvolution<T>>);
template <typename T>
static constexpr FormsOfBoth<DualBackwardPath<T>> DUAL_BACKWARD =
    FORMS_OF_BOTH(dual_backward_path, T, IN_HALVES<TrainingConvolution<T>>);

template <typename T>
static void dual_forward(const DualConvolution<T> &c, const DualRows<T> &messages, int64_t first,
                         int64_t last, T *scratch)
{
  const DualBlock<T> block = make_dual_block(c, first, last, scratch);
  const TrainingConvolution<T> &plain = c;
  for (int64_t p = 0; p < c.n_paths; p++) {
    make_couplings(plain, c.paths[p], block.value);
    make_couplings(plain, c.paths[p], block.tangent);
    form_of(plain, c.paths[p], DUAL_FORWARD<T>)(c, c.paths[p], block, messages, first, last);
  }
}

template <typename T>
static void dual_backward(const DualConvolution<T> &c, const DualRows<const T> &gradient,
                          const DualGradients<T> &to, int64_t first, int64_t last, T *scratch)
{
  const DualBlock<T> block = make_dual_block(c, first, last, scratch);
  const TrainingConvolution<T> &plain = c;
  for (int64_t p = 0; p < c.n_paths; p++) {
    make_couplings(plain, c.paths[p], block.value);
    make_couplings(plain, c.paths[p], block.tangent);
    form_of(plain, c.paths[p], DUAL_BACKWARD<T>)(c, c.paths[p], block, gradient, to, first, last);
  }
}

template <typename T>
static constexpr TrainingKernel<T> TRAINING_KERNEL = {scratch_size<TrainingConvolution<T>>,
                                                      forward<TrainingConvolution<T>>,
                                                      backward<TrainingConvolution<T>>};
template <typename T>
static constexpr DualKernel<T> DUAL_KERNEL = {dual_scratch_size<T>, dual_forward<T>,
                                              dual_backward<T>};

extern const TrainingKernel<float> TRAINING_CONVOLUTION_FLOAT = TRAINING_KERNEL<float>;
extern const TrainingKernel<double> TRAINING_CONVOLUTION_DOUBLE = TRAINING_KERNEL<double>;
extern const DualKernel<float> DUAL_CONVOLUTION_FLOAT = DUAL_KERNEL<float>;
extern const DualKernel<double> DUAL_CONVOLUTION_DOUBLE = DUAL_KERNEL<double>;

}    // namespace hienet::HIENET_VARIANT
