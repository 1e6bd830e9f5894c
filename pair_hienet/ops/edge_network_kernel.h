// SPDX-License-Identifier: GPL-2.0-or-later
// A network that runs on every edge, as a list of instructions that the kernel follows for a few edges at a time.

#ifndef HIENET_EDGE_NETWORK_KERNEL_H
#define HIENET_EDGE_NETWORK_KERNEL_H

#include "variants.h"

#include <cstdint>

namespace hienet {

/// What an instruction does; the numbers are those of hienet/ops/edge_network.py. In the formulas x is the first value
/// that it reads, y the second, z what it writes, a, b, c its numbers and s its scale; `C` are channels, z's width or x's.
enum class EdgeOperation : int64_t {
  EDGE = 0,            // z = edge's columns from a on
  CENTER = 1,          // z = center's columns from a on
  NEIGHBOR = 2,        // z = neighbour's columns from a on
  ADD_CENTER = 3,      // z += those columns
  ADD_NEIGHBOR = 4,    // z += those columns
  LINEAR = 5,    // z = x W + bias; W from a on, its transposed from b on, bias from c on or c = -1
  ADD_LINEAR = 6,              // z += x W; a, b as above
  ADD = 7,                     // z = s (x + y)
  MULTIPLY = 8,                // z = s x y; y may have one column for all of x's
  SILU = 9,                    // z = s SiLU(x)
  SIGMOID = 10,                // z = s sigmoid(x)
  TANH = 11,                   // z = s tanh(x)
  LAYER_NORM = 12,             // z = LayerNorm(x); gain from a on, bias from b on, epsilon s
  JOIN = 13,                   // z = [x, y]
  GROUP_SUM = 14,              // z_g = sum of group g of x; groups are contiguous and equally large
  GROUP_MULTIPLY = 15,         // z = y, each group multiplied by x_g
  SUM = 16,                    // sum over the center's edges, columns from a on, += x
  STORE = 17,                  // result for the edge, columns from a on, = x
  CENTER_ALONG_EDGE = 18,      // z_C = s sum_m edge[b + m] center[a + m C], m < c
  NEIGHBOR_ALONG_EDGE = 19,    // the same of the neighbour
  CENTER_DOT_NEIGHBOR = 20,    // z_C = sum_m center[a + m C] neighbor[b + m C], m < c
  SUM_DIRECTED = 21,    // sum over the center's edges, columns a + m C, += s edge[b + m] x, m < c
  SUM_PASSED = 22,    // sum over the center's edges, columns a + m C, += neighbor[b + m C] x, m < c
  // For training on CPUs, where programs carry derivatives along a direction.
  SOFTPLUS = 23,         // z = s log(1 + exp(x))
  SILU_SLOPE = 24,       // z = s d SiLU(x) / dx
  SIGMOID_SLOPE = 25,    // z = s d sigmoid(x) / dx
  TANH_SLOPE = 26,       // z = s d tanh(x) / dx
  LAYER_NORM_TANGENT =
      27,               // z = the derivative of LayerNorm at x along y; gain from a on, epsilon s
  ADD_MULTIPLY = 28,    // z += s x y; as MULTIPLY
};
constexpr int64_t EDGE_OPERATIONS = 29;

/// A row of the program.
struct EdgeInstruction {
  int64_t operation, result, first, second;    // values, or -1
  int64_t a, b, c;
  int64_t kept;    // where the result is kept for the backward, if anything is: first column, or -1
};
constexpr int64_t EDGE_INSTRUCTION_COLUMNS = 8;

/// Where a value lies in the memory of a block of n edges: an array of `stride` numbers for each edge begins at n * `start`,
/// and the value is `width` of its columns from `column` on.
struct EdgeValue {
  int64_t start, stride, column, width;
};
constexpr int64_t EDGE_VALUE_COLUMNS = 4;

/// What the backward makes of an instruction, beside adding to the gradients of the values that it reads.
struct EdgeBackwardStep {
  bool repeated[2];                // its result is needed, without and with what was kept
  bool needed;                     // its result leads somewhere
  bool sets_first, sets_second;    // nothing is there yet: it writes instead of adding
  bool clears_first,
      clears_second;    // the same, but the value is part of another: zeros come first
};

/// Inputs. Strides count numbers from row to row.
template <typename T> struct EdgeNetwork {
  const EdgeInstruction *program;
  const double *scales;    // of the instructions
  int64_t n_instructions;
  const EdgeValue *values;
  int64_t value_size;    // numbers of all values of an edge
  const T *weights, *transposed, *vectors;
  const int64_t *center, *neighbor;    // of each edge
  const T *centers, *neighbors, *edges;
  int64_t center_stride, neighbor_stride, edge_stride;
  T *kept;    // of the first `n_kept` edges: the forward writes, the backward reads
  int64_t kept_stride, n_kept;
};

/// Rows that belong to centers and edges.
template <typename T> struct EdgeNetworkOutputs {
  T *sums, *edges;
  int64_t sum_stride, edge_stride;
};

/// What comes back: gradients of outputs, to which inputs' gradients are added.
template <typename T> struct EdgeNetworkGradients {
  const EdgeBackwardStep *steps;    // of the instructions
  const T *sums, *edges_out;
  int64_t sum_stride, edge_out_stride;
  T *centers, *neighbors, *edges;
  int64_t center_stride, neighbor_stride, edge_stride;
  const int32_t *slot;    // row of `neighbors` for a node; null where it is the node itself
  // Of `weights`, in their panels, and of `vectors`; null where they are not wanted.
  T *weights, *vectors;
};

/// For the edges `first .. first+n-1`, where `n` is at most `capacity`. `scratch` is aligned to 64 bytes and has
/// `capacity * value_size` numbers in the forward, twice as many in the backward.
template <typename T> struct EdgeNetworkKernel {
  void (*forward)(const EdgeNetwork<T> &, const EdgeNetworkOutputs<T> &, int64_t first, int64_t n,
                  int64_t capacity, T *scratch);
  void (*backward)(const EdgeNetwork<T> &, const EdgeNetworkGradients<T> &, int64_t first,
                   int64_t n, int64_t capacity, T *scratch);
};

HIENET_FOR_EACH_VARIANT(extern const EdgeNetworkKernel<float> EDGE_NETWORK_FLOAT;
                        extern const EdgeNetworkKernel<double> EDGE_NETWORK_DOUBLE;)

}    // namespace hienet

#endif
