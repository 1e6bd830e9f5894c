// SPDX-License-Identifier: GPL-2.0-or-later
// One path of the tensor-product convolution, over a block of centers.
//
// For each edge and path the coupling C[m_out][m_in] = sum_m CG Y[m] is a small matrix that all channels share:
//
//   forward     out[m_out]  += w * sum_m_in C[m_out][m_in] x[m_in]           channel by channel
//   backward    s[m_in]      = sum_m_out C[m_out][m_in] g[m_out]
//               dx[m_in]    += w * s[m_in],   dw = sum_m_in x[m_in] * s[m_in]
//               dC[m_out][m_in] = sum over channels of g[m_out] * w * x[m_in],   dY[m] = sum CG dC
//
// w is a spline of the distance, evaluated where it is used; the backward needs dE/d(distance) = sum dw * w'.
//
// Vectors hold channels. Sums over the edges of a center stay in registers, and no message or weight of an edge is
// stored. The paths are the outer loop over a block of centers, so that the splines of one path stay in the cache.
//
// `C` is a `Convolution` or a `TrainingConvolution`: they differ in how splines are written down.

#ifndef HIENET_CONVOLUTION_PATHS_H
#define HIENET_CONVOLUTION_PATHS_H

#include "convolution_kernel.h"

#include "horizontal_sums.h"
#include "spline.h"

namespace hienet::HIENET_VARIANT {

/// A dimension that the compiler knows, or (0) that of the path.
template <int D> constexpr int SIZE = D > 0 ? D : MAX_DIM;
template <int D> static inline int dimension(int64_t of_path)
{ return D > 0 ? D : static_cast<int>(of_path); }

// ----------------------------------------------------------------------
// vectors of some size
// ----------------------------------------------------------------------

/// Vectors of B bytes: all that a register has, or half of it.
template <typename T, int B> struct SizedVector {
  typedef T Type __attribute__((vector_size(B)));
  typedef T Unaligned __attribute__((vector_size(B), aligned(alignof(T)), may_alias));
};
template <typename T, int B> using Sized = typename SizedVector<T, B>::Type;
template <typename T, int B> constexpr int64_t SIZED_WIDTH = B / sizeof(T);

template <int B, typename T> static inline Sized<T, B> load(const T *p)
{ return *reinterpret_cast<const typename SizedVector<T, B>::Unaligned *>(p); }

template <int B, typename T> static inline void store(T *p, Sized<T, B> v)
{ *reinterpret_cast<typename SizedVector<T, B>::Unaligned *>(p) = v; }

/// All of a vector, or the first n numbers of a whole one.
template <typename T, bool PARTIAL, int B> static inline Sized<T, B> read(const T *p, int64_t n)
{
  if constexpr (PARTIAL)
    return load_first(p, n);
  else
    return load<B>(p);
}

template <typename T, bool PARTIAL, int B> static inline void write(T *p, Sized<T, B> v, int64_t n)
{
  if constexpr (PARTIAL)
    store_first(p, v, n);
  else
    store<B>(p, v);
}

template <typename T, int B> struct SizedValueAndSlope {
  Sized<T, B> value, slope;
};

/// Whether a path is computed in halves of vectors: where all its channels fill one, a whole one would be half empty, and
/// masked. Only in training, and only for vectors that many processors compute in two halves anyway.
template <typename C> constexpr bool IN_HALVES = false;
template <> constexpr bool IN_HALVES<TrainingConvolution<float>> = BYTES >= 64;
template <typename C> static bool is_half(const Path &path)
{ return IN_HALVES<C> && 2 * path.channels == WIDTH<typename C::Number>; }
template <bool HALF> constexpr int BYTES_OF = HALF ? BYTES / 2 : BYTES;

// ----------------------------------------------------------------------
// shapes of couplings
// ----------------------------------------------------------------------

/// Which couplings of a path may differ from zero: all, or, where the harmonic is the constant one, l = 0, those of a
/// component with itself.
enum Shape { DENSE, DIAGONAL };

template <typename C> static Shape shape_of(const C &c, const Path &path)
{
  if (path.dim_in != path.dim_out || path.dim_in == 1 || path.dim_in > 7) return DENSE;
  for (int64_t t = path.term_start; t < path.term_stop; t++)
    if (c.terms[t].index % (path.dim_in + 1) != 0) return DENSE;
  return DIAGONAL;
}

/// f(k) for each of the n components that component `of` is coupled with; D is n, or 0 where the compiler does not know.
template <Shape SHAPE, int D, typename F>
INLINE static inline void each_coupled(int n, int of, F &&f)
{
  if constexpr (SHAPE == DIAGONAL)
    f(of);
  else
    each<D>(n, f);
}

// ----------------------------------------------------------------------
// edges
// ----------------------------------------------------------------------

/// Where an edge lies in a table of `Convolution`.
template <typename T> struct PolynomialPlace {
  int64_t offset;    // of its interval in a block of columns
  T fraction;

  template <int B> INLINE V<T> value(const T *splines) const
  { return spline_value(splines + offset, fraction); }
  template <int B> INLINE ValueAndSlope<T> both(const T *splines) const
  { return spline_both(splines + offset, fraction); }
};

/// Where an edge lies in a table of `TrainingConvolution`.
template <typename T> struct BasisPlace {
  int64_t offset;    // of its first row in a block of columns
  const T *basis;    // BASIS_ROWS values, then as many slopes

  template <int B> INLINE Sized<T, B> value(const T *splines) const
  {
    Sized<T, B> value = basis[0] * load<B>(splines + offset);
    for (int k = 1; k < BASIS_ROWS; k++) value += basis[k] * load<B>(splines + offset + k * LANES);
    return value;
  }
  template <int B> INLINE SizedValueAndSlope<T, B> both(const T *splines) const
  {
    const Sized<T, B> first = load<B>(splines + offset);
    Sized<T, B> value = basis[0] * first, slope = basis[BASIS_ROWS] * first;
    for (int k = 1; k < BASIS_ROWS; k++) {
      const Sized<T, B> row = load<B>(splines + offset + k * LANES);
      value += basis[k] * row;
      slope += basis[BASIS_ROWS + k] * row;
    }
    return {value, slope};
  }
};

/// The edges `first .. last-1` of a block of centers, in tiles of EDGE_TILE.
template <typename T> struct Block {
  int64_t first, last;
  int64_t *interval;    // of a `Convolution`: offset of the edge's interval in a block of columns
  T *fraction;          // and its fraction
  T *harmonics;         // [tiles, n_harmonics, EDGE_TILE]
  T *couplings;         // of one path: [tiles, dim_out * dim_in, EDGE_TILE]

  int64_t tiles() const { return (last - first + EDGE_TILE - 1) / EDGE_TILE; }
};

static inline int64_t tiles_of(int64_t n_edges)
{ return (n_edges + EDGE_TILE - 1) / EDGE_TILE; }

/// `n` numbers or edges, with room for whole vectors or tiles.
static inline int64_t whole_tiles(int64_t n)
{ return tiles_of(n) * EDGE_TILE; }

/// The largest size(path).
template <typename C, typename F> static int64_t largest_of_paths(const C &c, const F &size)
{
  int64_t largest = 0;
  for (int64_t p = 0; p < c.n_paths; p++) {
    const int64_t of_path = size(c.paths[p]);
    if (of_path > largest) largest = of_path;
  }
  return largest;
}

template <typename C> static int64_t largest_coupling(const C &c)
{
  return largest_of_paths(c, [](const Path &path) {
    return path.dim_in * path.dim_out;
  });
}

/// Largest w * x of an edge and path, with room for whole vectors.
template <typename C> static int64_t largest_weighted(const C &c)
{
  return whole_tiles(largest_of_paths(c, [](const Path &path) {
    return path.dim_in * (path.channels + LANES);
  }));
}

template <typename T>
static void find_place(const Convolution<T> &c, const Block<T> &block, int64_t e, T distance)
{
  const auto place = position_of<T>(distance, c.intervals_per_length, c.n_intervals);
  block.interval[e] = place.offset;
  block.fraction[e] = place.fraction;
}
template <typename T>
static void find_place(const TrainingConvolution<T> &, const Block<T> &, int64_t, T)
{
}

template <typename T>
INLINE static inline PolynomialPlace<T> place_at(const Convolution<T> &, const Block<T> &block,
                                                 int64_t place)
{ return {block.interval[place], block.fraction[place]}; }
template <typename T>
INLINE static inline BasisPlace<T> place_at(const TrainingConvolution<T> &c, const Block<T> &block,
                                            int64_t place)
{
  const int64_t e = block.first + place;
  return {c.first_row[e] * LANES, c.basis + e * 2 * BASIS_ROWS};
}

/// Numbers in a block of columns of the table.
template <typename T> static int64_t block_of_table(const Convolution<T> &c)
{ return c.n_intervals * SPLINE_COEFFICIENTS * LANES; }
template <typename T> static int64_t block_of_table(const TrainingConvolution<T> &c)
{ return c.n_rows * LANES; }

/// How much the argument of the splines changes with the distance.
template <typename T> static T argument_per_length(const Convolution<T> &c)
{ return c.intervals_per_length; }
template <typename T> static T argument_per_length(const TrainingConvolution<T> &)
{ return 1; }

/// Where each edge lies in the splines, and the harmonics edge by edge in vectors. Moves `scratch` on.
template <typename C, typename T = typename C::Number>
static Block<T> make_block(const C &c, int64_t first, int64_t last, T *&scratch)
{
  const int64_t padded = whole_tiles(last - first);
  Block<T> block;
  block.first = first;
  block.last = last;
  block.interval = reinterpret_cast<int64_t *>(scratch);
  block.fraction = scratch + 2 * padded;
  block.harmonics = block.fraction + padded;
  block.couplings = block.harmonics + padded * c.n_harmonics;
  scratch = block.couplings + padded * largest_coupling(c);
  for (int64_t tile = 0; tile < padded; tile += EDGE_TILE) {
    T *const to = block.harmonics + tile * c.n_harmonics;
    const T *const edges = c.edges + (first + tile) * c.edge_stride;
    const int64_t n = last - first - tile < EDGE_TILE ? last - first - tile : EDGE_TILE;
    for (int64_t e = 0; e < EDGE_TILE; e++)
      find_place(c, block, tile + e, e < n ? edges[e * c.edge_stride] : T(0));
    if (n == EDGE_TILE) {
      for (int64_t m = 0; m < c.n_harmonics; m++)
        for (int64_t e = 0; e < EDGE_TILE; e++)
          to[m * EDGE_TILE + e] = edges[e * c.edge_stride + 1 + m];
    } else {
      for (int64_t m = 0; m < c.n_harmonics; m++)
        for (int64_t e = 0; e < EDGE_TILE; e++)
          to[m * EDGE_TILE + e] = e < n ? edges[e * c.edge_stride + 1 + m] : T(0);
    }
  }
  return block;
}

template <typename C, typename T>
static void make_couplings(const C &c, const Path &path, const Block<T> &block)
{
  const int64_t size = path.dim_in * path.dim_out * EDGE_TILE;
  for (int64_t tile = 0; tile < block.tiles(); tile++) {
    T *const couplings = block.couplings + tile * size;
    const T *const harmonics = block.harmonics + tile * c.n_harmonics * EDGE_TILE;
    for (int64_t i = 0; i < size; i++) couplings[i] = 0;
    for (int64_t t = path.term_start; t < path.term_stop; t++) {
      const V<T> coefficient = c.coefficients[t] - V<T>{};
      const T *from = harmonics + c.terms[t].harmonic * EDGE_TILE;
      T *to = couplings + c.terms[t].index * EDGE_TILE;
      for (int64_t e = 0; e < EDGE_TILE; e += WIDTH<T>)
        store(to + e, load(to + e) + coefficient * load(from + e));
    }
  }
}

/// Bytes of a vector of harmonics: a whole one would be half empty.
constexpr int TERM_BYTES = BYTES >= 64 ? BYTES / 2 : BYTES;
/// Edges whose sums over couplings are formed together, so that they need not wait for each other.
constexpr int TERM_EDGES = 8;

/// The Clebsch-Gordan coefficients of a path from `first_harmonic` on, zeros included: a row of one vector for each
/// coupling that its shape has; those of the next harmonics follow when all couplings have had theirs.
template <typename T> struct CouplingTerms {
  int64_t first_harmonic, n_harmonics, n_couplings;
  const T *rows;
};

/// The harmonics of a path's terms: `first .. last-1`.
struct HarmonicRange {
  int64_t first, last;
};

template <typename C> static HarmonicRange harmonics_of(const C &c, const Path &path)
{
  if (path.term_start == path.term_stop) return {0, 0};
  HarmonicRange range = {c.n_harmonics, 0};
  for (int64_t t = path.term_start; t < path.term_stop; t++) {
    const int64_t harmonic = c.terms[t].harmonic;
    if (harmonic < range.first) range.first = harmonic;
    if (harmonic >= range.last) range.last = harmonic + 1;
  }
  return range;
}

/// Numbers for the rows of a path whose terms have these harmonics.
template <typename T> static int64_t coupling_terms_size(const Path &path, HarmonicRange range)
{
  constexpr int64_t W = SIZED_WIDTH<T, TERM_BYTES>;
  return path.dim_in * path.dim_out * ((range.last - range.first + W - 1) / W * W);
}

template <typename C> static int64_t largest_coupling_terms(const C &c)
{
  return whole_tiles(largest_of_paths(c, [&](const Path &path) {
    return coupling_terms_size<typename C::Number>(path, harmonics_of(c, path));
  }));
}

/// `rows`: memory of `coupling_terms_size`.
template <Shape SHAPE, typename C, typename T>
static CouplingTerms<T> make_coupling_terms(const C &c, const Path &path, T *rows)
{
  constexpr int64_t W = SIZED_WIDTH<T, TERM_BYTES>;
  const HarmonicRange range = harmonics_of(c, path);
  const int64_t step = SHAPE == DIAGONAL ? path.dim_in + 1 : 1;
  const int64_t n_couplings = SHAPE == DIAGONAL ? path.dim_in : path.dim_in * path.dim_out;
  for (int64_t k = 0; k < coupling_terms_size<T>(path, range); k++) rows[k] = 0;
  for (int64_t t = path.term_start; t < path.term_stop; t++) {
    const int64_t m = c.terms[t].harmonic - range.first;
    rows[(m / W * n_couplings + c.terms[t].index / step) * W + m % W] += c.coefficients[t];
  }
  return {range.first, range.last - range.first, n_couplings, rows};
}

/// The splines of the channels from `u` on.
template <typename C>
INLINE static inline const typename C::Number *splines_of(const C &c, const Path &path, int64_t u)
{ return c.table + (path.table_start + u / LANES) * block_of_table(c) + u % LANES; }

/// work<COUNT, PARTIAL>(u) for the channels of a path, COUNT vectors at a time.
template <typename T, int N, bool HALF, typename Work>
INLINE static inline void each_block(const Path &path, const Work &work)
{
  if constexpr (HALF) {
    work.template operator()<1, false>(0);
  } else {
    constexpr int64_t W = WIDTH<T>;
    int64_t u = 0;
    for (; u + N * W <= path.channels; u += N * W) work.template operator()<N, false>(u);
    if constexpr (N > 1)
      for (; u + W <= path.channels; u += W) work.template operator()<1, false>(u);
    if (u < path.channels) work.template operator()<1, true>(u);
  }
}

// ----------------------------------------------------------------------
// forward
// ----------------------------------------------------------------------

/// N vectors of channels, from channel `u` on, of one path and center.
template <typename C, int D_IN, int D_OUT, Shape SHAPE, int N, bool PARTIAL, int B,
          typename T = typename C::Number>
static void forward_block(const C &c, const Path &path, const Block<T> &block, int64_t center,
                          T *output, int64_t u)
{
  constexpr int64_t W = SIZED_WIDTH<T, B>;
  const int dim_in = dimension<D_IN>(path.dim_in), dim_out = dimension<D_OUT>(path.dim_out);
  const int64_t rest = path.channels - u;
  const int64_t n_couplings = dim_in * dim_out;
  const T *const features = c.features + path.feature_start + u;
  const T *splines[N];
  each<N>(N, [&](int v) INLINE {
    splines[v] = splines_of(c, path, u + v * W);
  });
  Sized<T, B> total[SIZE<D_OUT>][N] = {};
  for (int64_t e = c.row_start[center]; e < c.row_start[center + 1]; e++) {
    const T *const x = features + c.neighbor[e] * c.feature_stride;
    const int64_t place = e - block.first;
    const T *const coupling =
        block.couplings + place / EDGE_TILE * EDGE_TILE * n_couplings + place % EDGE_TILE;
    const auto at = place_at(c, block, place);
    Sized<T, B> w[N];
    each<N>(N, [&](int v) INLINE {
      w[v] = at.template value<B>(splines[v]);
    });
    if (dim_in <= dim_out) {
      each<D_IN>(dim_in, [&](int i) INLINE {
        Sized<T, B> sent[N];
        each<N>(N, [&](int v) INLINE {
          sent[v] = w[v] * read<T, PARTIAL, B>(x + i * path.channels + v * W, rest);
        });
        each_coupled<SHAPE, D_OUT>(dim_out, i, [&](int o) INLINE {
          const T factor = coupling[(o * dim_in + i) * EDGE_TILE];
          each<N>(N, [&](int v) INLINE {
            total[o][v] += factor * sent[v];
          });
        });
      });
    } else {
      Sized<T, B> message[SIZE<D_OUT>][N] = {};
      each<D_IN>(dim_in, [&](int i) INLINE {
        Sized<T, B> sent[N];
        each<N>(N, [&](int v) INLINE {
          sent[v] = read<T, PARTIAL, B>(x + i * path.channels + v * W, rest);
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
  T *const out = output + path.out_start + u;
  each<D_OUT>(dim_out, [&](int o) INLINE {
    each<N>(N, [&](int v) INLINE {
      write<T, PARTIAL, B>(out + o * path.out_channels + v * W, total[o][v], rest);
    });
  });
}

/// The rows of messages of the centers `first .. last-1`.
template <typename T> struct Rows {
  int64_t first, last;
  T *data;
  int64_t stride;
};

template <typename C, int D_IN, int D_OUT, Shape SHAPE, bool HALF, typename T = typename C::Number>
static void forward_path(const C &c, const Path &path, const Block<T> &block, const Rows<T> &rows)
{
  constexpr int N = D_IN && !HALF ? VECTORS : 1;
  each_block<T, N, HALF>(path, [&]<int COUNT, bool PARTIAL>(int64_t u) INLINE {
    for (int64_t i = rows.first; i < rows.last; i++)
      forward_block<C, D_IN, D_OUT, SHAPE, COUNT, PARTIAL, BYTES_OF<HALF>>(
          c, path, block, i, rows.data + (i - rows.first) * rows.stride, u);
  });
}

// ----------------------------------------------------------------------
// backward
// ----------------------------------------------------------------------

/// One edge, as the backward of a path reads and writes it.
template <typename T, typename Place> struct Edge {
  const T *coupling;    // every EDGE_TILE-th number
  Place place;
  const T *features, *gradient;
  T *feature_gradient;
  T *weighted;             // scratch: w * x, [dim_in, padded channels]
  T *coupling_gradient;    // scratch: dC, row after row
  T *of_fraction;          // scratch: dE/d(fraction), a vector whose numbers are yet to be summed
};

template <typename C, typename T = typename C::Number>
using EdgeOf = Edge<T,
                    decltype(place_at(*static_cast<const C *>(nullptr),
                                      *static_cast<const Block<T> *>(nullptr), 0))>;

/// Sums of vectors for each coupling of a path, whose numbers are yet to be summed.
template <typename T, int D_IN, int D_OUT, Shape SHAPE, int B> struct CouplingSums {
  static constexpr int ROWS = D_OUT > 0 ? D_OUT : 1;
  static constexpr int COLUMNS = SHAPE == DIAGONAL || D_IN == 0 ? 1 : D_IN;
  Sized<T, B> of[ROWS][COLUMNS] = {};

  INLINE Sized<T, B> &at(int o, int i) { return of[o][SHAPE == DIAGONAL ? 0 : i]; }
};

/// dx and dE/d(fraction) for N vectors of channels, and dC (FUSED) or else w * x, from which `coupling_rows` makes it.
template <typename C, int D_IN, int D_OUT, Shape SHAPE, int N, bool FUSED, bool PARTIAL, int B,
          typename T, typename Place>
INLINE static inline void backward_block(const C &c, const Path &path, const Edge<T, Place> &edge,
                                         int64_t u, int64_t padded, Sized<T, B> &of_fraction,
                                         CouplingSums<T, D_IN, D_OUT, SHAPE, B> &sums)
{
  constexpr int64_t W = SIZED_WIDTH<T, B>;
  const int dim_in = dimension<D_IN>(path.dim_in), dim_out = dimension<D_OUT>(path.dim_out);
  const int64_t rest = path.channels - u;
  const T *const gradient = edge.gradient + path.out_start + u;
  const T *const features = edge.features + path.feature_start + u;
  Sized<T, B> weighted[SIZE<D_IN>][N], w[N], slope[N];
  each<N>(N, [&](int v) INLINE {
    const auto both = edge.place.template both<B>(splines_of(c, path, u + v * W));
    w[v] = both.value;
    slope[v] = both.slope;
    each<D_IN>(dim_in, [&](int i) INLINE {
      weighted[i][v] = w[v] * read<T, PARTIAL, B>(features + i * path.channels + v * W, rest);
      if constexpr (!FUSED) store<B>(edge.weighted + i * padded + u + v * W, weighted[i][v]);
    });
  });
  Sized<T, B> s[SIZE<D_IN>][N] = {};
  each<D_OUT>(dim_out, [&](int o) INLINE {
    Sized<T, B> g[N];
    each<N>(N, [&](int v) INLINE {
      g[v] = read<T, PARTIAL, B>(gradient + o * path.out_channels + v * W, rest);
    });
    each_coupled<SHAPE, D_IN>(dim_in, o, [&](int i) INLINE {
      const T factor = edge.coupling[(o * dim_in + i) * EDGE_TILE];
      each<N>(N, [&](int v) INLINE {
        s[i][v] += factor * g[v];
        if constexpr (FUSED) sums.at(o, i) += g[v] * weighted[i][v];
      });
    });
  });
  each<N>(N, [&](int v) INLINE {
    Sized<T, B> of_weight = {};
    each<D_IN>(dim_in, [&](int i) INLINE {
      const int64_t place = i * path.channels + v * W;
      T *const dx = edge.feature_gradient + path.feature_start + u + place;
      of_weight += s[i][v] * read<T, PARTIAL, B>(features + place, rest);
      write<T, PARTIAL, B>(dx, read<T, PARTIAL, B>(dx, rest) + w[v] * s[i][v], rest);
    });
    of_fraction += of_weight * slope[v];
  });
}

/// Rows `row .. row+ROWS-1` of dC.
template <int D_IN, int ROWS, int B, typename T, typename Place>
INLINE static inline void coupling_rows(const Path &path, const Edge<T, Place> &edge, int row,
                                        int64_t padded)
{
  constexpr int64_t W = SIZED_WIDTH<T, B>;
  const int dim_in = dimension<D_IN>(path.dim_in);
  // Several independent sums hide the latency of the additions.
  constexpr int CHAINS = ROWS * SIZE<D_IN> <= 4 ? 4 : ROWS * SIZE<D_IN> <= 9 ? 2 : 1;
  const T *const gradient = edge.gradient + path.out_start + row * path.out_channels;
  Sized<T, B> total[CHAINS][ROWS][SIZE<D_IN>] = {};
  const auto add = [&]<bool PARTIAL>(int chain, int64_t u) INLINE {
    each<ROWS>(ROWS, [&](int o) INLINE {
      const Sized<T, B> g =
          read<T, PARTIAL, B>(gradient + o * path.out_channels + u, path.channels - u);
      each<D_IN>(dim_in, [&](int i) INLINE {
        total[chain][o][i] += g * load<B>(edge.weighted + i * padded + u);
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
  if constexpr (B == BYTES)
    if (u < path.channels) add.template operator()<true>(0, u);
  for (int chain = 1; chain < CHAINS; chain++)
    each<ROWS>(ROWS, [&](int o) INLINE {
      each<D_IN>(dim_in, [&](int i) INLINE {
        total[0][o][i] += total[chain][o][i];
      });
    });
  T *const to = edge.coupling_gradient + row * dim_in;
  if constexpr (D_IN > 0)
    store_sums<ROWS * D_IN>(to, &total[0][0][0]);
  else
    for (int i = 0; i < dim_in; i++) store_sums<1>(to + i, &total[0][0][i]);
}

/// Whether w * x, s, g and the sums of dC fit the registers for N vectors of channels.
constexpr bool fits_registers(Shape shape, int d_in, int d_out, int n)
{
  const int sums = shape == DIAGONAL ? d_in : d_in * d_out;
  return d_in > 0 && 2 * n * d_in + sums + n <= REGISTERS - 2;
}

/// One edge.
template <typename C, int D_IN, int D_OUT, Shape SHAPE, bool HALF, typename T, typename Place>
INLINE static inline void backward_edge(const C &c, const Path &path, const Edge<T, Place> &edge)
{
  constexpr int B = BYTES_OF<HALF>;
  constexpr int64_t W = SIZED_WIDTH<T, B>;
  constexpr bool FUSED = SHAPE == DIAGONAL || fits_registers(SHAPE, D_IN, D_OUT, 1);
  constexpr bool ONE = D_IN == 0 || (FUSED && !fits_registers(SHAPE, D_IN, D_OUT, VECTORS));
  constexpr int N = ONE ? 1 : VECTORS;
  const int64_t padded = (path.channels + W - 1) / W * W;
  using Sums = CouplingSums<T, D_IN, D_OUT, SHAPE, B>;
  Sums sums;
  Sized<T, B> of_fraction = {};
  each_block<T, N, HALF>(path, [&]<int COUNT, bool PARTIAL>(int64_t u) INLINE {
    backward_block<C, D_IN, D_OUT, SHAPE, COUNT, FUSED, PARTIAL, B>(c, path, edge, u, padded,
                                                                    of_fraction, sums);
  });
  store<B>(edge.of_fraction, load<B>(edge.of_fraction) + of_fraction);
  if constexpr (FUSED) {
    store_sums<Sums::ROWS * Sums::COLUMNS>(edge.coupling_gradient, &sums.of[0][0]);
  } else if constexpr (D_IN > 0) {
    constexpr int FIT = ACCUMULATORS / D_IN > 0 ? ACCUMULATORS / D_IN : 1;
    constexpr int ROWS = FIT < D_OUT ? FIT : D_OUT;
    constexpr int REST = D_OUT % ROWS;
    for (int row = 0; row + ROWS <= D_OUT; row += ROWS)
      coupling_rows<D_IN, ROWS, B>(path, edge, row, padded);
    if constexpr (REST > 0) coupling_rows<D_IN, REST, B>(path, edge, D_OUT - REST, padded);
  } else {
    for (int row = 0; row < path.dim_out; row++) coupling_rows<0, 1, B>(path, edge, row, padded);
  }
}

/// Memory of the backward of a piece of edges.
template <typename T> struct BackwardScratch {
  T *weighted;             // of an edge, as in `Edge`
  T *coupling_gradient;    // [EDGE_TILE, coupling_stride]
  T *terms;                // of a path, as in `CouplingTerms`
  T *edge_gradient;        // [n_edges, edge_stride]: dE/d(fraction), dY
  int64_t coupling_stride, edge_stride;
};

/// dY of the edges of a tile from their dC.
template <int EDGES, typename T>
INLINE static inline void
add_harmonic_gradients(const CouplingTerms<T> &terms, const T *coupling_gradient,
                       int64_t coupling_stride, T *edge_gradient, int64_t edge_stride)
{
  constexpr int64_t W = SIZED_WIDTH<T, TERM_BYTES>;
  for (int64_t m = 0; m < terms.n_harmonics; m += W) {
    const T *const rows = terms.rows + m * terms.n_couplings;
    Sized<T, TERM_BYTES> total[EDGES];
    T *const to = edge_gradient + LANES + terms.first_harmonic + m;
    each<EDGES>(EDGES, [&](int e) INLINE {
      total[e] = load<TERM_BYTES>(to + e * edge_stride);
    });
    for (int64_t k = 0; k < terms.n_couplings; k++) {
      const Sized<T, TERM_BYTES> row = load<TERM_BYTES>(rows + k * W);
      each<EDGES>(EDGES, [&](int e) INLINE {
        total[e] += coupling_gradient[e * coupling_stride + k] * row;
      });
    }
    each<EDGES>(EDGES, [&](int e) INLINE {
      store<TERM_BYTES>(to + e * edge_stride, total[e]);
    });
  }
}

/// The edges of the centers `rows.first .. rows.last-1`, of whose messages `rows` are the gradients.
template <typename C, int D_IN, int D_OUT, Shape SHAPE, bool HALF, typename T = typename C::Number>
static void backward_path(const C &convolution, const Path &of_all, const Block<T> &piece,
                          const Rows<const T> &messages, const Gradients<T> &gradients,
                          const BackwardScratch<T> &memory)
{
  // Copies: what is written through pointers might be any of these, for all that the compiler knows.
  const C c = convolution;
  const Path path = of_all;
  const Block<T> block = piece;
  const Rows<const T> rows = messages;
  const Gradients<T> g = gradients;
  const BackwardScratch<T> scratch = memory;
  const CouplingTerms<T> terms = make_coupling_terms<SHAPE>(c, path, scratch.terms);
  const int64_t n_couplings = path.dim_in * path.dim_out, n_edges = block.last - block.first;
  int64_t center = rows.first;
  for (int64_t tile = 0; tile < n_edges; tile += EDGE_TILE) {
    const int64_t n = n_edges - tile < EDGE_TILE ? n_edges - tile : EDGE_TILE;
    T *const edge_gradient = scratch.edge_gradient + tile * scratch.edge_stride;
    for (int64_t i = 0; i < n; i++) {
      const int64_t place = tile + i, e = block.first + place, node = c.neighbor[e];
      while (e >= c.row_start[center + 1]) center++;
      const EdgeOf<C> edge = {block.couplings + tile * n_couplings + i,
                              place_at(c, block, place),
                              c.features + node * c.feature_stride,
                              rows.data + (center - rows.first) * rows.stride,
                              g.features + (g.slot ? g.slot[node] : node) * g.feature_stride,
                              scratch.weighted,
                              scratch.coupling_gradient + i * scratch.coupling_stride,
                              edge_gradient + i * scratch.edge_stride};
      backward_edge<C, D_IN, D_OUT, SHAPE, HALF>(c, path, edge);
    }
    const auto add = [&]<int EDGES>(int64_t i) INLINE {
      add_harmonic_gradients<EDGES>(terms, scratch.coupling_gradient + i * scratch.coupling_stride,
                                    scratch.coupling_stride,
                                    edge_gradient + i * scratch.edge_stride, scratch.edge_stride);
    };
    int64_t i = 0;
    for (; i + TERM_EDGES <= n; i += TERM_EDGES) add.template operator()<TERM_EDGES>(i);
    for (; i < n; i++) add.template operator()<1>(i);
  }
}

// ----------------------------------------------------------------------
// memory
// ----------------------------------------------------------------------

/// Numbers for dC of an edge and path: sums are written in whole vectors.
template <typename C> static int64_t largest_coupling_gradient(const C &c)
{ return whole_tiles(largest_coupling(c) + LANES); }

/// Numbers for dE/d(fraction) of an edge, a vector whose numbers are yet to be summed, and for dY behind it.
template <typename C> static int64_t edge_gradient_size(const C &c)
{ return LANES + whole_tiles(c.n_harmonics) + LANES; }

template <typename C> static int64_t scratch_size(const C &c, int64_t n_edges)
{
  // Offsets are 64 bit, which is two or one numbers.
  const int64_t per_edge = 2 + 1 + c.n_harmonics + largest_coupling(c) + edge_gradient_size(c);
  const int64_t of_tile = EDGE_TILE * largest_coupling_gradient(c);
  return whole_tiles(n_edges) * per_edge + of_tile + largest_coupling_terms(c) +
      largest_weighted(c);
}

// ----------------------------------------------------------------------
// all paths of all centers
// ----------------------------------------------------------------------

template <typename C, typename T = typename C::Number>
using ForwardPath = void (*)(const C &, const Path &, const Block<T> &, const Rows<T> &);
template <typename C, typename T = typename C::Number>
using BackwardPath = void (*)(const C &, const Path &, const Block<T> &, const Rows<const T> &,
                              const Gradients<T> &, const BackwardScratch<T> &);

/// The forms of a function of a path: for 2l+1 = 1, 3, 5, 7 on both sides, and any.
template <typename F> struct Forms {
  F dense[4][4], diagonal[4], any;

  F of(Shape shape, const Path &path) const
  {
    if (path.dim_in > 7 || path.dim_out > 7) return any;
    return shape == DIAGONAL ? diagonal[path.dim_in / 2] : dense[path.dim_in / 2][path.dim_out / 2];
  }
};
#define FORMS_OF_INPUT(function, C, D_IN, HALF)                          \
  {function<C, D_IN, 1, DENSE, HALF>, function<C, D_IN, 3, DENSE, HALF>, \
   function<C, D_IN, 5, DENSE, HALF>, function<C, D_IN, 7, DENSE, HALF>}
#define FORMS(function, C, HALF)                                                   \
  {{FORMS_OF_INPUT(function, C, 1, HALF), FORMS_OF_INPUT(function, C, 3, HALF),    \
    FORMS_OF_INPUT(function, C, 5, HALF), FORMS_OF_INPUT(function, C, 7, HALF)},   \
   {nullptr, function<C, 3, 3, DIAGONAL, HALF>, function<C, 5, 5, DIAGONAL, HALF>, \
    function<C, 7, 7, DIAGONAL, HALF>},                                            \
   function<C, 0, 0, DENSE, false>}

/// Those for whole vectors, and for halves where there are such.
template <typename F> struct FormsOfBoth {
  Forms<F> whole, halves;
};
#define FORMS_OF_BOTH(function, C, HALVES) {FORMS(function, C, false), FORMS(function, C, HALVES)}

template <typename C, typename F>
static F form_of(const C &c, const Path &path, const FormsOfBoth<F> &forms)
{ return (is_half<C>(path) ? forms.halves : forms.whole).of(shape_of(c, path), path); }

template <typename C>
static constexpr FormsOfBoth<ForwardPath<C>> FORWARD = FORMS_OF_BOTH(forward_path, C, IN_HALVES<C>);
template <typename C>
static constexpr FormsOfBoth<BackwardPath<C>> BACKWARD =
    FORMS_OF_BOTH(backward_path, C, IN_HALVES<C>);

template <typename C, typename T = typename C::Number>
static void forward(const C &c, T *messages, int64_t message_stride, int64_t first, int64_t last,
                    T *scratch)
{
  const Block<T> block = make_block(c, c.row_start[first], c.row_start[last], scratch);
  const Rows<T> rows = {first, last, messages, message_stride};
  for (int64_t p = 0; p < c.n_paths; p++) {
    make_couplings(c, c.paths[p], block);
    form_of(c, c.paths[p], FORWARD<C>)(c, c.paths[p], block, rows);
  }
}

template <typename C, typename T = typename C::Number>
static void backward(const C &c, const T *messages, int64_t message_stride, const Gradients<T> &g,
                     int64_t first, int64_t last, T *scratch)
{
  const Block<T> block = make_block(c, c.row_start[first], c.row_start[last], scratch);
  const int64_t n_edges = block.last - block.first;
  BackwardScratch<T> s;
  s.coupling_stride = largest_coupling_gradient(c);
  s.edge_stride = edge_gradient_size(c);
  s.coupling_gradient = scratch;
  s.terms = s.coupling_gradient + EDGE_TILE * s.coupling_stride;
  s.weighted = s.terms + largest_coupling_terms(c);
  s.edge_gradient = s.weighted + largest_weighted(c);
  for (int64_t i = 0; i < n_edges * s.edge_stride; i++) s.edge_gradient[i] = 0;
  const Rows<const T> rows = {first, last, messages, message_stride};
  for (int64_t p = 0; p < c.n_paths; p++) {
    make_couplings(c, c.paths[p], block);
    form_of(c, c.paths[p], BACKWARD<C>)(c, c.paths[p], block, rows, g, s);
  }
  for (int64_t e = 0; e < n_edges; e++) {
    T *const to = g.edges + (block.first + e) * g.edge_stride;
    const T *const from = s.edge_gradient + e * s.edge_stride;
    to[0] += sum<T>(load(from)) * argument_per_length(c);
    for (int64_t m = 0; m < c.n_harmonics; m++) to[1 + m] += from[LANES + m];
  }
}

}    // namespace hienet::HIENET_VARIANT

#endif
