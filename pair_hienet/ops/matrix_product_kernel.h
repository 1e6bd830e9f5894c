// SPDX-License-Identifier: GPL-2.0-or-later
// Products of rows with a constant matrix that lies ready in panels: what the linear maps of a deployed model are made of.

#ifndef HIENET_MATRIX_PRODUCT_KERNEL_H
#define HIENET_MATRIX_PRODUCT_KERNEL_H

#include "variants.h"

#include <cstdint>

namespace hienet {

/// Columns of a panel; every vector length divides it.
constexpr int64_t PANEL = 16;

/// Numbers that a matrix takes in panels.
constexpr int64_t size_in_panels(int64_t fan_in, int64_t fan_out)
{ return (fan_out + PANEL - 1) / PANEL * PANEL * fan_in; }

/// out[r] = in[r] M, or out[r] += in[r] M, for the rows r of `n_nodes` nodes with `dim` rows each.
///
/// `panels` is M, `[fan_in, fan_out]`, as `[ceil(fan_out / PANEL), fan_in, PANEL]` with zeros for missing columns.
template <typename T> struct MatrixProduct {
  const T *panels;
  int64_t fan_in, fan_out;
  int64_t dim;    // rows of a node follow each other: fan_in and fan_out numbers apart
  int64_t n_nodes;
  const T *in;
  int64_t in_stride;    // numbers from node to node
  T *out;
  int64_t out_stride;
  bool accumulate;
};

/// M += in^T out: what the matrix gets of the gradients `out` of its products, in panels like it.
template <typename T> struct MatrixGradient {
  T *panels;
  int64_t fan_in, fan_out;
  int64_t dim, n_nodes;    // as above
  const T *in;
  int64_t in_stride;
  const T *out;
  int64_t out_stride;
};

HIENET_FOR_EACH_VARIANT(
    extern void (*const MATRIX_PRODUCT_FLOAT)(const MatrixProduct<float> &);
    extern void (*const MATRIX_PRODUCT_DOUBLE)(const MatrixProduct<double> &);
    extern void (*const MATRIX_GRADIENT_FLOAT)(const MatrixGradient<float> &);
    extern void (*const MATRIX_GRADIENT_DOUBLE)(const MatrixGradient<double> &);)

}    // namespace hienet

#endif
