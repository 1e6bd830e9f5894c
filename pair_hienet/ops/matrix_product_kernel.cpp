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

extern void (*const MATRIX_PRODUCT_FLOAT)(const MatrixProduct<float> &) = product<float>;
extern void (*const MATRIX_PRODUCT_DOUBLE)(const MatrixProduct<double> &) = product<double>;

}    // namespace hienet::HIENET_VARIANT
