// SPDX-License-Identifier: GPL-2.0-or-later
// For each edge and path the coupling C[m_out][m_in] = sum_m CG Y[m] is a small matrix that all channels share:
//
//   forward     out[m_out]  += w * sum_m_in C[m_out][m_in] x[m_in]           channel by channel
//   backward    s[m_in]      = sum_m_out C[m_out][m_in] g[m_out]
//               dx[m_in]    += w * s[m_in],   dw = sum_m_in x[m_in] * s[m_in]
//               dC[m_out][m_in] = sum over channels of g[m_out] * w * x[m_in],   dY[m] = sum CG dC
//
// Vectors hold channels. Sums over the edges of a center stay in registers, and no message is stored.

#include "convolution_kernel.h"

#include "simd.h"

// Inlined at once, so that accumulators become registers.
#define INLINE __attribute__((always_inline))

namespace hienet::HIENET_VARIANT {

template <int... I> struct Indices {};
template <int N, int... I> struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I> struct MakeIndices<0, I...> {
  using Type = Indices<I...>;
};

template <typename F, int... I> INLINE static inline void each_of(F &&f, Indices<I...>)
{ (f(I), ...); }

/// f(0) .. f(N-1) without a loop; with N = 0, f(0) .. f(n-1) in one.
template <int N, typename F> INLINE static inline void each(int n, F &&f)
{
  if constexpr (N > 0)
    each_of(f, typename MakeIndices<N>::Type());
  else
    for (int i = 0; i < n; i++) f(i);
}

/// A dimension that the compiler knows, or (0) that of the path.
template <int D> constexpr int SIZE = D > 0 ? D : MAX_DIM;
template <int D> static inline int dimension(int64_t of_path)
{ return D > 0 ? D : static_cast<int>(of_path); }

// ----------------------------------------------------------------------
// couplings
// ----------------------------------------------------------------------

/// Couplings of the edges `first .. last-1`: `[tiles, n_couplings, EDGE_TILE]`.
template <typename T>
static void make_couplings(const Convolution<T> &c, int64_t first, int64_t last, T *couplings,
                           T *transposed)
{
  for (int64_t start = first; start < last; start += EDGE_TILE) {
    const int64_t n = last - start < EDGE_TILE ? last - start : EDGE_TILE;
    for (int64_t m = 0; m < c.n_harmonics; m++) {
      for (int64_t e = 0; e < n; e++)
        transposed[m * EDGE_TILE + e] = c.harmonics[(start + e) * c.harmonic_stride + m];
      for (int64_t e = n; e < EDGE_TILE; e++) transposed[m * EDGE_TILE + e] = 0;
    }
    for (int64_t i = 0; i < c.n_couplings * EDGE_TILE; i++) couplings[i] = 0;
    for (int64_t p = 0; p < c.n_paths; p++) {
      T *own = couplings + c.paths[p].coupling_start * EDGE_TILE;
      for (int64_t t = c.paths[p].term_start; t < c.paths[p].term_stop; t++) {
        const V<T> coefficient = c.coefficients[t] - V<T>{};
        const T *from = transposed + c.terms[t].harmonic * EDGE_TILE;
        T *to = own + c.terms[t].index * EDGE_TILE;
        for (int64_t e = 0; e < EDGE_TILE; e += WIDTH<T>)
          store(to + e, load(to + e) + coefficient * load(from + e));
      }
    }
    couplings += c.n_couplings * EDGE_TILE;
  }
}

// ----------------------------------------------------------------------
// forward
// ----------------------------------------------------------------------

/// The edges of one center, as the forward of a path reads them.
template <typename T> struct Receiver {
  int64_t first, last;
  const T *couplings;
  T *output;
};

/// N vectors of channels, from channel `u` on, of one path and center.
template <typename T, int D_IN, int D_OUT, int N, bool PARTIAL>
static void forward_block(const Convolution<T> &c, const Path &path, const Receiver<T> &r,
                          int64_t u)
{
  constexpr int64_t W = WIDTH<T>;
  const int dim_in = dimension<D_IN>(path.dim_in), dim_out = dimension<D_OUT>(path.dim_out);
  const int64_t rest = path.channels - u;
  const T *const features = c.features + path.feature_start + u;
  const T *weights = c.weights + r.first * c.weight_stride + path.weight_start + u;
  // The weights of the next center stream into the cache while this one is computed.
  const int64_t ahead = (r.last - r.first) * c.weight_stride;
  V<T> total[SIZE<D_OUT>][N] = {};
  for (int64_t e = r.first; e < r.last; e++, weights += c.weight_stride) {
    const T *const x = features + c.neighbor[e] * c.feature_stride;
    const int64_t place = e - r.first;
    const T *const coupling = r.couplings + place / EDGE_TILE * EDGE_TILE * c.n_couplings +
        path.coupling_start * EDGE_TILE + place % EDGE_TILE;
    V<T> w[N];
    each<N>(N, [&](int v) INLINE {
      w[v] = read<T, PARTIAL>(weights + v * W, rest);
      __builtin_prefetch(weights + ahead + v * W, 0, 2);
    });
    if (dim_in <= dim_out) {
      each<D_IN>(dim_in, [&](int i) INLINE {
        V<T> sent[N];
        each<N>(N, [&](int v) INLINE {
          sent[v] = w[v] * read<T, PARTIAL>(x + i * path.channels + v * W, rest);
        });
        each<D_OUT>(dim_out, [&](int o) INLINE {
          const T factor = coupling[(o * dim_in + i) * EDGE_TILE];
          each<N>(N, [&](int v) INLINE {
            total[o][v] += factor * sent[v];
          });
        });
      });
    } else {
      V<T> message[SIZE<D_OUT>][N] = {};
      each<D_IN>(dim_in, [&](int i) INLINE {
        V<T> sent[N];
        each<N>(N, [&](int v) INLINE {
          sent[v] = read<T, PARTIAL>(x + i * path.channels + v * W, rest);
        });
        each<D_OUT>(dim_out, [&](int o) INLINE {
          const T factor = coupling[(o * dim_in + i) * EDGE_TILE];
          each<N>(N, [&](int v) INLINE {
            message[o][v] += factor * sent[v];
          });
        });
      });
      each<D_OUT>(dim_out, [&](int o) INLINE {
        each<N>(N, [&](int v) INLINE {
          total[o][v] += w[v] * message[o][v];
        });
      });
    }
  }
  T *const out = r.output + path.out_start + u;
  each<D_OUT>(dim_out, [&](int o) INLINE {
    each<N>(N, [&](int v) INLINE {
      write<T, PARTIAL>(out + o * path.out_channels + v * W, total[o][v], rest);
    });
  });
}

template <typename T, int D_IN, int D_OUT>
static void forward_path(const Convolution<T> &c, const Path &path, const Receiver<T> &r)
{
  constexpr int64_t W = WIDTH<T>;
  constexpr int N = D_IN ? VECTORS : 1;
  int64_t u = 0;
  for (; u + N * W <= path.channels; u += N * W)
    forward_block<T, D_IN, D_OUT, N, false>(c, path, r, u);
  if constexpr (N > 1)
    for (; u + W <= path.channels; u += W) forward_block<T, D_IN, D_OUT, 1, false>(c, path, r, u);
  if (u < path.channels) forward_block<T, D_IN, D_OUT, 1, true>(c, path, r, u);
}

// ----------------------------------------------------------------------
// backward
// ----------------------------------------------------------------------

/// One edge, as the backward of a path reads and writes it.
template <typename T> struct Edge {
  const T *coupling;    // every EDGE_TILE-th number
  const T *features, *weights, *gradient;
  T *feature_gradient, *weight_gradient;
  T *weighted;             // scratch: w * x, [dim_in, padded channels]
  T *coupling_gradient;    // scratch: a vector for each coupling of the path
  T *harmonic_gradient;    // a vector for each harmonic; their numbers are yet to be summed
};

/// Sums of vectors for each coupling of a path, whose numbers are yet to be summed.
template <typename T, int D_IN, int D_OUT> struct CouplingSums {
  V<T> of[D_OUT > 0 ? D_OUT : 1][D_IN > 0 ? D_IN : 1] = {};
};

/// dx and dw for N vectors of channels, and dC (FUSED) or else w * x, from which `coupling_rows` makes it.
template <typename T, int D_IN, int D_OUT, int N, bool FUSED, bool PARTIAL>
INLINE static inline void backward_block(const Path &path, const Edge<T> &edge, int64_t u,
                                         int64_t padded, CouplingSums<T, D_IN, D_OUT> &sums)
{
  constexpr int64_t W = WIDTH<T>;
  const int dim_in = dimension<D_IN>(path.dim_in), dim_out = dimension<D_OUT>(path.dim_out);
  const int64_t rest = path.channels - u;
  const T *const coupling = edge.coupling + path.coupling_start * EDGE_TILE;
  const T *const gradient = edge.gradient + path.out_start + u;
  const T *const features = edge.features + path.feature_start + u;
  const T *const weights = edge.weights + path.weight_start + u;
  V<T> weighted[SIZE<D_IN>][N];
  each<N>(N, [&](int v) INLINE {
    const V<T> w = read<T, PARTIAL>(weights + v * W, rest);
    each<D_IN>(dim_in, [&](int i) INLINE {
      weighted[i][v] = w * read<T, PARTIAL>(features + i * path.channels + v * W, rest);
      if constexpr (!FUSED) store(edge.weighted + i * padded + u + v * W, weighted[i][v]);
    });
  });
  V<T> s[SIZE<D_IN>][N] = {};
  each<D_OUT>(dim_out, [&](int o) INLINE {
    V<T> g[N];
    each<N>(N, [&](int v) INLINE {
      g[v] = read<T, PARTIAL>(gradient + o * path.out_channels + v * W, rest);
    });
    each<D_IN>(dim_in, [&](int i) INLINE {
      const T factor = coupling[(o * dim_in + i) * EDGE_TILE];
      each<N>(N, [&](int v) INLINE {
        s[i][v] += factor * g[v];
        if constexpr (FUSED) sums.of[o][i] += g[v] * weighted[i][v];
      });
    });
  });
  each<N>(N, [&](int v) INLINE {
    const V<T> w = read<T, PARTIAL>(weights + v * W, rest);
    V<T> of_weight = {};
    each<D_IN>(dim_in, [&](int i) INLINE {
      const int64_t place = i * path.channels + v * W;
      T *const dx = edge.feature_gradient + path.feature_start + u + place;
      of_weight += s[i][v] * read<T, PARTIAL>(features + place, rest);
      write<T, PARTIAL>(dx, read<T, PARTIAL>(dx, rest) + w * s[i][v], rest);
    });
    write<T, PARTIAL>(edge.weight_gradient + path.weight_start + u + v * W, of_weight, rest);
  });
}

/// Rows `row .. row+ROWS-1` of dC: sums of vectors of channels, whose numbers are yet to be summed.
template <typename T, int D_IN, int ROWS>
static void coupling_rows(const Path &path, const Edge<T> &edge, int row, int64_t padded)
{
  constexpr int64_t W = WIDTH<T>;
  const int dim_in = dimension<D_IN>(path.dim_in);
  // Several independent sums hide the latency of the additions.
  constexpr int CHAINS = ROWS * SIZE<D_IN> <= 4 ? 4 : ROWS * SIZE<D_IN> <= 9 ? 2 : 1;
  const T *const gradient = edge.gradient + path.out_start + row * path.out_channels;
  V<T> total[CHAINS][ROWS][SIZE<D_IN>] = {};
  const auto add = [&]<bool PARTIAL>(int chain, int64_t u) INLINE {
    each<ROWS>(ROWS, [&](int o) INLINE {
      const V<T> g = read<T, PARTIAL>(gradient + o * path.out_channels + u, path.channels - u);
      each<D_IN>(dim_in, [&](int i) INLINE {
        total[chain][o][i] += g * load(edge.weighted + i * padded + u);
      });
    });
  };
  int64_t u = 0;
  for (; u + CHAINS * W <= path.channels; u += CHAINS * W)
    each<CHAINS>(CHAINS, [&](int chain) INLINE {
      add.template operator()<false>(chain, u + chain * W);
    });
  if constexpr (CHAINS > 1)
    for (; u + W <= path.channels; u += W) add.template operator()<false>(0, u);
  if (u < path.channels) add.template operator()<true>(0, u);
  each<ROWS>(ROWS, [&](int o) INLINE {
    each<D_IN>(dim_in, [&](int i) INLINE {
      for (int chain = 1; chain < CHAINS; chain++) total[0][o][i] += total[chain][o][i];
      store(edge.coupling_gradient + ((row + o) * dim_in + i) * W, total[0][o][i]);
    });
  });
}

/// Whether w * x, s, g and the sums of dC fit the registers for N vectors of channels.
constexpr bool fits_registers(int d_in, int d_out, int n)
{ return d_in > 0 && 2 * n * d_in + d_in * d_out + n <= REGISTERS - 2; }

template <typename T, int D_IN, int D_OUT>
static void backward_path(const Convolution<T> &c, const Path &path, const Edge<T> &edge)
{
  constexpr int64_t W = WIDTH<T>;
  constexpr bool FUSED = fits_registers(D_IN, D_OUT, 1);
  constexpr int N = D_IN == 0 || (FUSED && !fits_registers(D_IN, D_OUT, VECTORS)) ? 1 : VECTORS;
  const int64_t padded = (path.channels + W - 1) / W * W;
  CouplingSums<T, D_IN, D_OUT> sums;
  int64_t u = 0;
  for (; u + N * W <= path.channels; u += N * W)
    backward_block<T, D_IN, D_OUT, N, FUSED, false>(path, edge, u, padded, sums);
  if constexpr (N > 1)
    for (; u + W <= path.channels; u += W)
      backward_block<T, D_IN, D_OUT, 1, FUSED, false>(path, edge, u, padded, sums);
  if (u < path.channels)
    backward_block<T, D_IN, D_OUT, 1, FUSED, true>(path, edge, u, padded, sums);

  if constexpr (FUSED) {
    each<D_OUT>(D_OUT, [&](int o) INLINE {
      each<D_IN>(D_IN, [&](int i) INLINE {
        store(edge.coupling_gradient + (o * D_IN + i) * W, sums.of[o][i]);
      });
    });
  } else if constexpr (D_IN > 0) {
    constexpr int FIT = ACCUMULATORS / D_IN > 0 ? ACCUMULATORS / D_IN : 1;
    constexpr int ROWS = FIT < D_OUT ? FIT : D_OUT;
    constexpr int REST = D_OUT % ROWS;
    for (int row = 0; row + ROWS <= D_OUT; row += ROWS)
      coupling_rows<T, D_IN, ROWS>(path, edge, row, padded);
    if constexpr (REST > 0) coupling_rows<T, D_IN, REST>(path, edge, D_OUT - REST, padded);
  } else {
    for (int row = 0; row < path.dim_out; row++) coupling_rows<T, 0, 1>(path, edge, row, padded);
  }

  // Terms are sorted by harmonic. Two sums, for the latency.
  for (int64_t t = path.term_start; t < path.term_stop;) {
    const int64_t harmonic = c.terms[t].harmonic;
    T *const to = edge.harmonic_gradient + harmonic * W;
    V<T> even = load(to), odd = {};
    for (; t + 1 < path.term_stop && c.terms[t + 1].harmonic == harmonic; t += 2) {
      even += c.coefficients[t] * load(edge.coupling_gradient + c.terms[t].index * W);
      odd += c.coefficients[t + 1] * load(edge.coupling_gradient + c.terms[t + 1].index * W);
    }
    if (t < path.term_stop && c.terms[t].harmonic == harmonic) {
      even += c.coefficients[t] * load(edge.coupling_gradient + c.terms[t].index * W);
      t++;
    }
    store(to, even + odd);
  }
}

// ----------------------------------------------------------------------
// all paths of all centers
// ----------------------------------------------------------------------

template <typename T>
using ForwardPath = void (*)(const Convolution<T> &, const Path &, const Receiver<T> &);
template <typename T>
using BackwardPath = void (*)(const Convolution<T> &, const Path &, const Edge<T> &);

/// Specialised for 2l+1 = 1, 3, 5, 7 on both sides.
#define TABLE(function)                                                               \
  {                                                                                   \
    {function<T, 1, 1>, function<T, 1, 3>, function<T, 1, 5>, function<T, 1, 7>},     \
        {function<T, 3, 1>, function<T, 3, 3>, function<T, 3, 5>, function<T, 3, 7>}, \
        {function<T, 5, 1>, function<T, 5, 3>, function<T, 5, 5>, function<T, 5, 7>}, \
    { function<T, 7, 1>, function<T, 7, 3>, function<T, 7, 5>, function<T, 7, 7> }    \
  }

template <typename T> static ForwardPath<T> forward_of(const Path &path)
{
  static constexpr ForwardPath<T> table[4][4] = TABLE(forward_path);
  if (path.dim_in > 7 || path.dim_out > 7) return forward_path<T, 0, 0>;
  return table[path.dim_in / 2][path.dim_out / 2];
}

template <typename T> static BackwardPath<T> backward_of(const Path &path)
{
  static constexpr BackwardPath<T> table[4][4] = TABLE(backward_path);
  if (path.dim_in > 7 || path.dim_out > 7) return backward_path<T, 0, 0>;
  return table[path.dim_in / 2][path.dim_out / 2];
}

template <typename T>
static void forward(const Convolution<T> &c, T *output, int64_t output_stride, int64_t first,
                    int64_t last, T *scratch)
{
  T *const couplings = scratch + c.n_harmonics * EDGE_TILE;
  for (int64_t i = first; i < last; i++) {
    const Receiver<T> receiver = {c.row_start[i], c.row_start[i + 1], couplings,
                                  output + i * output_stride};
    make_couplings(c, receiver.first, receiver.last, couplings, scratch);
    for (int64_t p = 0; p < c.n_paths; p++) forward_of<T>(c.paths[p])(c, c.paths[p], receiver);
  }
}

/// The paths of one irrep of the features are done together, edge by edge: what they read of the gradient of the output
/// fits the first cache.
template <typename T>
static void backward(const Convolution<T> &c, const Gradients<T> &g, int64_t first, int64_t last,
                     T *scratch)
{
  constexpr int64_t W = WIDTH<T>;
  int64_t largest = 0;
  for (int64_t p = 0; p < c.n_paths; p++) {
    const int64_t size = c.paths[p].dim_in * (c.paths[p].channels + MAX_WIDTH);
    if (size > largest) largest = size;
  }
  T *const coupling_gradient = scratch + c.n_harmonics * EDGE_TILE;
  T *const weighted = coupling_gradient + MAX_DIM * MAX_DIM * MAX_WIDTH;
  T *const rest = weighted + (largest + MAX_WIDTH - 1) / MAX_WIDTH * MAX_WIDTH;
  for (int64_t center = first; center < last; center++) {
    const int64_t begin = c.row_start[center], end = c.row_start[center + 1];
    T *const harmonic_gradient = rest;
    T *const couplings = rest + (end - begin) * c.n_harmonics * MAX_WIDTH;
    make_couplings(c, begin, end, couplings, scratch);
    for (int64_t i = 0; i < (end - begin) * c.n_harmonics * W; i++) harmonic_gradient[i] = 0;
    for (int64_t p = 0; p < c.n_paths;) {
      int64_t stop = p + 1;
      while (stop < c.n_paths && c.paths[stop].feature_start == c.paths[p].feature_start) stop++;
      for (int64_t e = begin; e < end; e++) {
        const int64_t node = c.neighbor[e], place = e - begin;
        const Edge<T> edge = {couplings + place / EDGE_TILE * EDGE_TILE * c.n_couplings +
                                  place % EDGE_TILE,
                              c.features + node * c.feature_stride,
                              c.weights + e * c.weight_stride,
                              g.output + center * g.output_stride,
                              g.features + (g.slot ? g.slot[node] : node) * g.feature_stride,
                              g.weights + e * g.weight_stride,
                              weighted,
                              coupling_gradient,
                              harmonic_gradient + place * c.n_harmonics * W};
        for (int64_t q = p; q < stop; q++) backward_of<T>(c.paths[q])(c, c.paths[q], edge);
      }
      p = stop;
    }
    for (int64_t e = begin; e < end; e++)
      for (int64_t m = 0; m < c.n_harmonics; m++)
        g.harmonics[e * g.harmonic_stride + m] =
            sum<T>(load(harmonic_gradient + ((e - begin) * c.n_harmonics + m) * W));
  }
}

extern const Kernel<float> CONVOLUTION_FLOAT = {forward<float>, backward<float>};
extern const Kernel<double> CONVOLUTION_DOUBLE = {forward<double>, backward<double>};

}    // namespace hienet::HIENET_VARIANT
