// SPDX-License-Identifier: GPL-2.0-or-later
// ROWS rows times two vectors of columns stay in registers while the sum runs over all of fan_in. A general matrix product
// would rearrange the matrix at every call; here it lies in panels from the start, which matters for the few rows of a
// block of atoms.

#include "matrix_product_kernel.h"

#include "simd.h"

namespace hienet::HIENET_VARIANT {

/// Rows whose sums fit the registers beside two vectors of the matrix and one number of each row.
constexpr int ROWS = (REGISTERS - 4) / 2;

template <typename T, int N, bool PARTIAL>
INLINE static inline void store_sum(T *to, const V<T> *total, bool accumulate, int64_t rest)
{
  for (int v = 0; v < N; v++) {
    T *const place = to + v * WIDTH<T>;
    const V<T> before = accumulate ? read<T, PARTIAL>(place, rest) : V<T>{};
    write<T, PARTIAL>(place, before + total[v], rest);
  }
}

/// R rows from row `first` on, N vectors of columns from column `u` on.
template <typename T, int R, int N, bool PARTIAL>
static void block(const MatrixProduct<T> &p, int64_t first, int64_t u)
{
  const T *in[R];
  T *out[R];
  each<R>(R, [&](int r) INLINE {
    const int64_t node = (first + r) / p.dim, m = (first + r) % p.dim;
    in[r] = p.in + node * p.in_stride + m * p.fan_in;
    out[r] = p.out + node * p.out_stride + m * p.fan_out + u;
  });
  const T *columns[N];
  each<N>(N, [&](int v) INLINE {
    const int64_t column = u + v * WIDTH<T>;
    columns[v] = p.panels + column / PANEL * p.fan_in * PANEL + column % PANEL;
  });
  V<T> total[R][N] = {};
  for (int64_t k = 0; k < p.fan_in; k++) {
    V<T> m[N];
    each<N>(N, [&](int v) INLINE {
      m[v] = load(columns[v] + k * PANEL);
    });
    each<R>(R, [&](int r) INLINE {
      const T factor = in[r][k];
      each<N>(N, [&](int v) INLINE {
        total[r][v] += factor * m[v];
      });
    });
  }
  each<R>(R, [&](int r) INLINE {
    store_sum<T, N, PARTIAL>(out[r], total[r], p.accumulate, p.fan_out - u);
  });
}

template <typename T, int R> static void rows(const MatrixProduct<T> &p, int64_t first, int64_t u)
{
  constexpr int64_t W = WIDTH<T>;
  if (u + 2 * W <= p.fan_out)
    block<T, R, 2, false>(p, first, u);
  else if (u + W == p.fan_out)
    block<T, R, 1, false>(p, first, u);
  else if (u + W > p.fan_out)
    block<T, R, 1, true>(p, first, u);
  else {
    block<T, R, 1, false>(p, first, u);
    block<T, R, 1, true>(p, first, u + W);
  }
}

/// The last rows, fewer than ROWS.
template <typename T, int R>
static void rest_of_rows(const MatrixProduct<T> &p, int64_t first, int64_t n, int64_t u)
{
  if constexpr (R > 0) {
    if (n == R)
      rows<T, R>(p, first, u);
    else
      rest_of_rows<T, R - 1>(p, first, n, u);
  }
}

template <typename T> static void product(const MatrixProduct<T> &p)
{
  const int64_t n = p.n_nodes * p.dim;
  for (int64_t u = 0; u < p.fan_out; u += 2 * WIDTH<T>) {
    int64_t first = 0;
    for (; first + ROWS <= n; first += ROWS) rows<T, ROWS>(p, first, u);
    rest_of_rows<T, ROWS - 1>(p, first, n - first, u);
  }
}

// ----------------------------------------------------------------------
// the matrix's gradient
// ----------------------------------------------------------------------

/// R rows of the matrix from row `k` on, N vectors of columns from column `u` on: sums over all rows of the nodes.
template <typename T, int R, int N, bool PARTIAL>
static void gradient_block(const MatrixGradient<T> &p, int64_t k, int64_t u)
{
  const int64_t rest = p.fan_out - u;
  V<T> total[R][N] = {};
  for (int64_t node = 0; node < p.n_nodes; node++) {
    const T *in = p.in + node * p.in_stride + k, *out = p.out + node * p.out_stride + u;
    for (int64_t m = 0; m < p.dim; m++, in += p.fan_in, out += p.fan_out) {
      V<T> from[N];
      each<N>(N, [&](int v) INLINE {
        from[v] = read<T, PARTIAL>(out + v * WIDTH<T>, rest);
      });
      each<R>(R, [&](int r) INLINE {
        each<N>(N, [&](int v) INLINE {
          total[r][v] += in[r] * from[v];
        });
      });
    }
  }
  each<N>(N, [&](int v) INLINE {
    const int64_t column = u + v * WIDTH<T>;
    T *const to = p.panels + column / PANEL * p.fan_in * PANEL + column % PANEL;
    each<R>(R, [&](int r) INLINE {
      T *const place = to + (k + r) * PANEL;
      store(place, load(place) + total[r][v]);
    });
  });
}

template <typename T, int R> static void gradient_rows(const MatrixGradient<T> &p, int64_t k)
{
  constexpr int64_t W = WIDTH<T>;
  int64_t u = 0;
  for (; u + 2 * W <= p.fan_out; u += 2 * W) gradient_block<T, R, 2, false>(p, k, u);
  if (u + W <= p.fan_out) {
    gradient_block<T, R, 1, false>(p, k, u);
    u += W;
  }
  if (u < p.fan_out) gradient_block<T, R, 1, true>(p, k, u);
}

/// The last rows, fewer than ROWS.
template <typename T, int R>
static void last_gradient_rows(const MatrixGradient<T> &p, int64_t k, int64_t n)
{
  if constexpr (R > 0) {
    if (n == R)
      gradient_rows<T, R>(p, k);
    else
      last_gradient_rows<T, R - 1>(p, k, n);
  }
}

template <typename T> static void gradient(const MatrixGradient<T> &p)
{
  int64_t k = 0;
  for (; k + ROWS <= p.fan_in; k += ROWS) gradient_rows<T, ROWS>(p, k);
  last_gradient_rows<T, ROWS - 1>(p, k, p.fan_in - k);
}

extern void (*const MATRIX_GRADIENT_FLOAT)(const MatrixGradient<float> &) = gradient<float>;
extern void (*const MATRIX_GRADIENT_DOUBLE)(const MatrixGradient<double> &) = gradient<double>;

extern void (*const MATRIX_PRODUCT_FLOAT)(const MatrixProduct<float> &) = product<float>;
extern void (*const MATRIX_PRODUCT_DOUBLE)(const MatrixProduct<double> &) = product<double>;

}    // namespace hienet::HIENET_VARIANT
