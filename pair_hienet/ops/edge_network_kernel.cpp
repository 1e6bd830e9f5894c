// SPDX-License-Identifier: GPL-2.0-or-later
// Vectors hold channels. Values of a block of edges stay in the cache. The backward computes them again, all but those
// that take long and were kept.

#include "edge_network_kernel.h"

#include "matrix_product_kernel.h"
#include "simd_math.h"

namespace hienet::HIENET_VARIANT {

/// A block of edges, its values, and their gradients in the backward.
template <typename T> struct EdgeBlock {
  const EdgeNetwork<T> &net;
  int64_t first, n, capacity;
  T *scratch;

  /// Row r of value v, or of its gradient.
  T *value(int64_t v, int64_t r) const
  {
    const EdgeValue &at = net.values[v];
    return scratch + at.start * capacity + r * at.stride + at.column;
  }
  T *gradient(int64_t v, int64_t r) const { return value(v, r) + capacity * net.value_size; }
  int64_t width(int64_t v) const { return net.values[v].width; }
  int64_t stride(int64_t v) const { return net.values[v].stride; }

  const T *center(int64_t r) const
  { return net.centers + net.center[first + r] * net.center_stride; }
  const T *neighbor(int64_t r) const
  { return net.neighbors + net.neighbor[first + r] * net.neighbor_stride; }
  const T *edge(int64_t r) const { return net.edges + (first + r) * net.edge_stride; }
  T *kept(int64_t r) const { return net.kept + (first + r) * net.kept_stride; }
  /// Whether results are kept, for all edges of the block.
  bool is_kept() const { return first + n <= net.n_kept; }
};

// Of the same instruction set.
extern void (*const MATRIX_PRODUCT_FLOAT)(const MatrixProduct<float> &);
extern void (*const MATRIX_PRODUCT_DOUBLE)(const MatrixProduct<double> &);

extern void (*const MATRIX_GRADIENT_FLOAT)(const MatrixGradient<float> &);
extern void (*const MATRIX_GRADIENT_DOUBLE)(const MatrixGradient<double> &);

static void run(const MatrixProduct<float> &product)
{ MATRIX_PRODUCT_FLOAT(product); }
static void run(const MatrixProduct<double> &product)
{ MATRIX_PRODUCT_DOUBLE(product); }
static void run(const MatrixGradient<float> &gradient)
{ MATRIX_GRADIENT_FLOAT(gradient); }
static void run(const MatrixGradient<double> &gradient)
{ MATRIX_GRADIENT_DOUBLE(gradient); }

// ----------------------------------------------------------------------
// rows of numbers
// ----------------------------------------------------------------------

template <typename T> static inline void copy(T *to, const T *from, int64_t n)
{
  each_vector<T>(n, [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
    write<T, PARTIAL>(to + u, read<T, PARTIAL>(from + u, k), k);
  });
}

/// What is added to: zeros where nothing is there yet.
template <typename T, bool PARTIAL>
INLINE static inline V<T> before(const T *to, int64_t k, bool sets)
{
  const V<T> nothing = {};
  return sets ? nothing : read<T, PARTIAL>(to, k);
}

/// to += factor from, or to = factor from
template <typename T>
static inline void add(T *to, const T *from, int64_t n, T factor, bool sets = false)
{
  each_vector<T>(n, [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
    write<T, PARTIAL>(
        to + u, before<T, PARTIAL>(to + u, k, sets) + factor * read<T, PARTIAL>(from + u, k), k);
  });
}

template <typename T> static inline T dot(const T *x, const T *y, int64_t n)
{
  V<T> total = {};
  each_vector<T>(n, [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
    total += read<T, PARTIAL>(x + u, k) * read<T, PARTIAL>(y + u, k);
  });
  return sum<T>(total);
}

template <typename T> static inline T total(const T *x, int64_t n)
{
  V<T> result = {};
  each_vector<T>(n, [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
    result += read<T, PARTIAL>(x + u, k);
  });
  return sum<T>(result);
}

static inline float square_root(float x)
{ return __builtin_sqrtf(x); }
static inline double square_root(double x)
{ return __builtin_sqrt(x); }

template <typename T> struct Moments {
  T mean, inverse_deviation;
};
template <typename T> static inline Moments<T> moments(const T *x, int64_t n, T epsilon)
{
  const T mean = total(x, n) / n;
  V<T> squares = {};
  each_vector<T>(n, [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
    V<T> deviation = read<T, PARTIAL>(x + u, k) - mean;
    if constexpr (PARTIAL)
      for (int64_t i = k; i < WIDTH<T>; i++) deviation[i] = 0;
    squares += deviation * deviation;
  });
  return {mean, T(1) / square_root(sum<T>(squares) / n + epsilon)};
}

// ----------------------------------------------------------------------
// functions of one number
// ----------------------------------------------------------------------

/// Where the exponential ends (|x| > 88 in float32) it is x times a number so small that it is no normal one.
struct SiLU {
  template <typename T> static V<T> value(V<T> x) { return x * sigmoid<T>(x); }
  template <typename T> static V<T> slope(V<T> x)
  {
    const V<T> s = sigmoid<T>(x);
    return s * (T(1) + x * (T(1) - s));
  }
  template <typename T> static V<T> curvature(V<T> x)
  {
    const V<T> s = sigmoid<T>(x), rest = T(1) - s;
    return s * rest * (T(2) + x * (rest - s));
  }
};

struct Sigmoid {
  template <typename T> static V<T> value(V<T> x) { return sigmoid<T>(x); }
  template <typename T> static V<T> slope(V<T> x)
  {
    const V<T> s = sigmoid<T>(x);
    return s * (T(1) - s);
  }
  template <typename T> static V<T> curvature(V<T> x)
  {
    const V<T> s = sigmoid<T>(x);
    return s * (T(1) - s) * (T(1) - T(2) * s);
  }
};

struct Tanh {
  template <typename T> static V<T> value(V<T> x) { return T(2) * sigmoid<T>(T(2) * x) - T(1); }
  template <typename T> static V<T> slope(V<T> x)
  {
    const V<T> s = sigmoid<T>(T(2) * x);
    return T(4) * s * (T(1) - s);
  }
  template <typename T> static V<T> curvature(V<T> x) { return T(-2) * value<T>(x) * slope<T>(x); }
};

struct Softplus {
  template <typename T> static V<T> value(V<T> x) { return softplus<T>(x); }
  template <typename T> static V<T> slope(V<T> x) { return sigmoid<T>(x); }
};

/// The derivative of one of these as a function of its own.
template <typename F> struct Slope {
  template <typename T> static V<T> value(V<T> x) { return F::template slope<T>(x); }
  template <typename T> static V<T> slope(V<T> x) { return F::template curvature<T>(x); }
};

template <typename F, typename T>
static void activate(const EdgeBlock<T> &block, const EdgeInstruction &i, T scale)
{
  for (int64_t r = 0; r < block.n; r++) {
    const T *const x = block.value(i.first, r);
    T *const z = block.value(i.result, r);
    each_vector<T>(block.width(i.result), [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
      write<T, PARTIAL>(z + u, scale * F::template value<T>(read<T, PARTIAL>(x + u, k)), k);
    });
  }
}

template <typename F, typename T>
static void activate_backward(const EdgeBlock<T> &block, const EdgeInstruction &i, T scale,
                              bool sets)
{
  for (int64_t r = 0; r < block.n; r++) {
    const T *const x = block.value(i.first, r), *const g = block.gradient(i.result, r);
    T *const to = block.gradient(i.first, r);
    each_vector<T>(block.width(i.result), [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
      const V<T> slope = scale * F::template slope<T>(read<T, PARTIAL>(x + u, k));
      write<T, PARTIAL>(
          to + u, before<T, PARTIAL>(to + u, k, sets) + slope * read<T, PARTIAL>(g + u, k), k);
    });
  }
}

// ----------------------------------------------------------------------
// instructions that have more to them
// ----------------------------------------------------------------------

/// z (+)= x W, for all edges of the block.
template <typename T>
static void linear(const EdgeBlock<T> &block, const EdgeInstruction &i, bool accumulate)
{
  run(MatrixProduct<T>{block.net.weights + i.a, block.width(i.first), block.width(i.result), 1,
                       block.n, block.value(i.first, 0), block.stride(i.first),
                       block.value(i.result, 0), block.stride(i.result), accumulate});
}

template <typename T>
static void linear_backward(const EdgeBlock<T> &block, const EdgeInstruction &i, bool sets)
{
  run(MatrixProduct<T>{block.net.transposed + i.b, block.width(i.result), block.width(i.first), 1,
                       block.n, block.gradient(i.result, 0), block.stride(i.result),
                       block.gradient(i.first, 0), block.stride(i.first), !sets});
}

/// What a map's weights, and its bias if it has one, get of the block.
template <typename T>
static void linear_weights(const EdgeBlock<T> &block, const EdgeInstruction &i,
                           const EdgeNetworkGradients<T> &to)
{
  run(MatrixGradient<T>{to.weights + i.a, block.width(i.first), block.width(i.result), 1, block.n,
                        block.value(i.first, 0), block.stride(i.first), block.gradient(i.result, 0),
                        block.stride(i.result)});
  if (static_cast<EdgeOperation>(i.operation) == EdgeOperation::LINEAR && i.c >= 0)
    for (int64_t r = 0; r < block.n; r++)
      add(to.vectors + i.c, block.gradient(i.result, r), block.width(i.result), T(1));
}

template <typename T>
static void layer_norm(const EdgeBlock<T> &block, const EdgeInstruction &i, T epsilon)
{
  const int64_t width = block.width(i.result);
  const T *const gain = block.net.vectors + i.a, *const bias = block.net.vectors + i.b;
  for (int64_t r = 0; r < block.n; r++) {
    const T *const x = block.value(i.first, r);
    T *const z = block.value(i.result, r);
    const Moments<T> m = moments(x, width, epsilon);
    each_vector<T>(width, [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
      const V<T> normal = (read<T, PARTIAL>(x + u, k) - m.mean) * m.inverse_deviation;
      write<T, PARTIAL>(z + u,
                        normal * read<T, PARTIAL>(gain + u, k) + read<T, PARTIAL>(bias + u, k), k);
    });
  }
}

template <typename T>
static void layer_norm_backward(const EdgeBlock<T> &block, const EdgeInstruction &i, T epsilon,
                                bool sets, T *of_vectors)
{
  const int64_t width = block.width(i.result);
  const T *const gain = block.net.vectors + i.a;
  for (int64_t r = 0; r < block.n; r++) {
    const T *const x = block.value(i.first, r), *const g = block.gradient(i.result, r);
    T *const to = block.gradient(i.first, r);
    const Moments<T> m = moments(x, width, epsilon);
    if (of_vectors) {
      add(of_vectors + i.b, g, width, T(1));
      each_vector<T>(width, [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
        T *const of_gain = of_vectors + i.a + u;
        const V<T> normal = (read<T, PARTIAL>(x + u, k) - m.mean) * m.inverse_deviation;
        write<T, PARTIAL>(of_gain,
                          read<T, PARTIAL>(of_gain, k) + normal * read<T, PARTIAL>(g + u, k), k);
      });
    }
    V<T> slopes = {}, products = {};
    each_vector<T>(width, [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
      const V<T> of_normal = read<T, PARTIAL>(g + u, k) * read<T, PARTIAL>(gain + u, k);
      slopes += of_normal;
      products += of_normal * (read<T, PARTIAL>(x + u, k) - m.mean);
    });
    const T slope = sum<T>(slopes) / width;
    const T product = sum<T>(products) * m.inverse_deviation * m.inverse_deviation / width;
    each_vector<T>(width, [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
      const V<T> of_normal = read<T, PARTIAL>(g + u, k) * read<T, PARTIAL>(gain + u, k);
      const V<T> deviation = read<T, PARTIAL>(x + u, k) - m.mean;
      const V<T> change = (of_normal - slope - deviation * product) * m.inverse_deviation;
      write<T, PARTIAL>(to + u, before<T, PARTIAL>(to + u, k, sets) + change, k);
    });
  }
}

/// What the derivative of LayerNorm at x along y consists of: gain / deviation (y - mean - n mean(n y)), n normalised x.
template <typename T> struct NormTangent {
  Moments<T> x;
  T mean, product;    // of y, and of n y

  NormTangent(const T *x_row, const T *y_row, int64_t width, T epsilon) :
      x(moments(x_row, width, epsilon)), mean(total(y_row, width) / width)
  {
    V<T> products = {};
    each_vector<T>(width, [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
      products += (read<T, PARTIAL>(x_row + u, k) - x.mean) * read<T, PARTIAL>(y_row + u, k);
    });
    product = sum<T>(products) * x.inverse_deviation / width;
  }
};

template <typename T>
static void layer_norm_tangent(const EdgeBlock<T> &block, const EdgeInstruction &i, T epsilon)
{
  const int64_t width = block.width(i.result);
  const T *const gain = block.net.vectors + i.a;
  for (int64_t r = 0; r < block.n; r++) {
    const T *const x = block.value(i.first, r), *const y = block.value(i.second, r);
    T *const z = block.value(i.result, r);
    const NormTangent<T> t(x, y, width, epsilon);
    each_vector<T>(width, [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
      const V<T> normal = (read<T, PARTIAL>(x + u, k) - t.x.mean) * t.x.inverse_deviation;
      const V<T> moved = read<T, PARTIAL>(y + u, k) - t.mean - normal * t.product;
      write<T, PARTIAL>(z + u, read<T, PARTIAL>(gain + u, k) * t.x.inverse_deviation * moved, k);
    });
  }
}

/// With P the map from y to z without the gain, which is symmetric, a = gain g, and N columns:
///
///   dy = P a,   dx = P q - (a . P y) n / (deviation N),   q = -(a mean(n y) + y mean(n a)) / deviation
template <typename T>
static void layer_norm_tangent_backward(const EdgeBlock<T> &block, const EdgeInstruction &i,
                                        T epsilon, const EdgeBackwardStep &step, T *of_vectors)
{
  const int64_t width = block.width(i.result);
  const T *const gain = block.net.vectors + i.a;
  for (int64_t r = 0; r < block.n; r++) {
    const T *const x = block.value(i.first, r), *const y = block.value(i.second, r);
    const T *const g = block.gradient(i.result, r);
    T *const of_x = block.gradient(i.first, r), *const of_y = block.gradient(i.second, r);
    const NormTangent<T> t(x, y, width, epsilon);
    const T inverse = t.x.inverse_deviation;
    const auto normal = [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
      return (read<T, PARTIAL>(x + u, k) - t.x.mean) * inverse;
    };
    V<T> a_sum = {}, a_normal = {}, a_moved = {};
    each_vector<T>(width, [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
      const V<T> n = normal.template operator()<PARTIAL>(u, k);
      const V<T> moved = inverse * (read<T, PARTIAL>(y + u, k) - t.mean - n * t.product);
      const V<T> of_z = read<T, PARTIAL>(g + u, k), a = of_z * read<T, PARTIAL>(gain + u, k);
      a_sum += a;
      a_normal += a * n;
      a_moved += a * moved;
      if (of_vectors) {
        T *const of_gain = of_vectors + i.a + u;
        write<T, PARTIAL>(of_gain, read<T, PARTIAL>(of_gain, k) + of_z * moved, k);
      }
    });
    const T a_mean = sum<T>(a_sum) / width, a_product = sum<T>(a_normal) / width;
    const T along = sum<T>(a_moved) / width;
    const auto q = [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
      const V<T> a = read<T, PARTIAL>(g + u, k) * read<T, PARTIAL>(gain + u, k);
      return -inverse * (a * t.product + read<T, PARTIAL>(y + u, k) * a_product);
    };
    V<T> q_sum = {}, q_normal = {};
    each_vector<T>(width, [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
      const V<T> here = q.template operator()<PARTIAL>(u, k);
      q_sum += here;
      q_normal += here * normal.template operator()<PARTIAL>(u, k);
    });
    const T q_mean = sum<T>(q_sum) / width, q_product = sum<T>(q_normal) / width;
    each_vector<T>(width, [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
      const V<T> n = normal.template operator()<PARTIAL>(u, k);
      const V<T> a = read<T, PARTIAL>(g + u, k) * read<T, PARTIAL>(gain + u, k);
      const V<T> dx =
          inverse * (q.template operator()<PARTIAL>(u, k) - q_mean - n * (q_product + along));
      const V<T> dy = inverse * (a - a_mean - n * a_product);
      write<T, PARTIAL>(of_x + u, before<T, PARTIAL>(of_x + u, k, step.sets_first) + dx, k);
      write<T, PARTIAL>(of_y + u, before<T, PARTIAL>(of_y + u, k, step.sets_second) + dy, k);
    });
  }
}

/// z = s sum_m edge[b + m] node[a + m C]
template <typename T>
static void along_edge(const T *node, const T *edge, int64_t dim, int64_t channels, T scale, T *z)
{
  each_vector<T>(channels, [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
    V<T> total = {};
    for (int64_t m = 0; m < dim; m++)
      total += edge[m] * read<T, PARTIAL>(node + m * channels + u, k);
    write<T, PARTIAL>(z + u, scale * total, k);
  });
}

template <typename T>
static void along_edge_backward(const T *node, const T *edge, int64_t dim, int64_t channels,
                                T scale, const T *g, T *of_node, T *of_edge)
{
  for (int64_t m = 0; m < dim; m++) {
    of_edge[m] += scale * dot(node + m * channels, g, channels);
    add(of_node + m * channels, g, channels, scale * edge[m]);
  }
}

template <typename T>
static void forward_instruction(const EdgeBlock<T> &block, const EdgeInstruction &i, T scale)
{
  const int64_t width = i.result >= 0 ? block.width(i.result) : block.width(i.first);
  const auto for_rows = [&](const auto &work) INLINE {
    for (int64_t r = 0; r < block.n; r++)
      work(r, i.result >= 0 ? block.value(i.result, r) : nullptr);
  };
  switch (static_cast<EdgeOperation>(i.operation)) {
    case EdgeOperation::EDGE:
      return for_rows([&](int64_t r, T *z) {
        copy(z, block.edge(r) + i.a, width);
      });
    case EdgeOperation::CENTER:
      return for_rows([&](int64_t r, T *z) {
        copy(z, block.center(r) + i.a, width);
      });
    case EdgeOperation::NEIGHBOR:
      return for_rows([&](int64_t r, T *z) {
        copy(z, block.neighbor(r) + i.a, width);
      });
    case EdgeOperation::ADD_CENTER:
      return for_rows([&](int64_t r, T *z) {
        add(z, block.center(r) + i.a, width, T(1));
      });
    case EdgeOperation::ADD_NEIGHBOR:
      return for_rows([&](int64_t r, T *z) {
        add(z, block.neighbor(r) + i.a, width, T(1));
      });
    case EdgeOperation::LINEAR:
      if (i.c >= 0)
        for_rows([&](int64_t, T *z) {
          copy(z, block.net.vectors + i.c, width);
        });
      return linear(block, i, i.c >= 0);
    case EdgeOperation::ADD_LINEAR:
      return linear(block, i, true);
    case EdgeOperation::ADD:
      return for_rows([&](int64_t r, T *z) {
        const T *const x = block.value(i.first, r), *const y = block.value(i.second, r);
        each_vector<T>(width, [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
          write<T, PARTIAL>(z + u,
                            scale * (read<T, PARTIAL>(x + u, k) + read<T, PARTIAL>(y + u, k)), k);
        });
      });
    case EdgeOperation::MULTIPLY:
    case EdgeOperation::ADD_MULTIPLY: {
      const bool sets = static_cast<EdgeOperation>(i.operation) == EdgeOperation::MULTIPLY;
      return for_rows([&](int64_t r, T *z) {
        const T *const x = block.value(i.first, r), *const y = block.value(i.second, r);
        if (block.width(i.second) == 1 && width > 1)
          add(z, x, width, scale * *y, sets);
        else
          each_vector<T>(width, [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
            const V<T> product = scale * read<T, PARTIAL>(x + u, k) * read<T, PARTIAL>(y + u, k);
            write<T, PARTIAL>(z + u, before<T, PARTIAL>(z + u, k, sets) + product, k);
          });
      });
    }
    case EdgeOperation::SILU:
      return activate<SiLU>(block, i, scale);
    case EdgeOperation::SIGMOID:
      return activate<Sigmoid>(block, i, scale);
    case EdgeOperation::TANH:
      return activate<Tanh>(block, i, scale);
    case EdgeOperation::SOFTPLUS:
      return activate<Softplus>(block, i, scale);
    case EdgeOperation::SILU_SLOPE:
      return activate<Slope<SiLU>>(block, i, scale);
    case EdgeOperation::SIGMOID_SLOPE:
      return activate<Slope<Sigmoid>>(block, i, scale);
    case EdgeOperation::TANH_SLOPE:
      return activate<Slope<Tanh>>(block, i, scale);
    case EdgeOperation::LAYER_NORM:
      return layer_norm(block, i, scale);
    case EdgeOperation::LAYER_NORM_TANGENT:
      return layer_norm_tangent(block, i, scale);
    case EdgeOperation::JOIN:
      return for_rows([&](int64_t r, T *z) {
        const int64_t of_first = block.width(i.first);
        copy(z, block.value(i.first, r), of_first);
        copy(z + of_first, block.value(i.second, r), width - of_first);
      });
    case EdgeOperation::GROUP_SUM:
      return for_rows([&](int64_t r, T *z) {
        const T *const x = block.value(i.first, r);
        const int64_t size = block.width(i.first) / width;
        for (int64_t g = 0; g < width; g++) z[g] = total(x + g * size, size);
      });
    case EdgeOperation::GROUP_MULTIPLY:
      return for_rows([&](int64_t r, T *z) {
        const T *const x = block.value(i.first, r), *const y = block.value(i.second, r);
        const int64_t groups = block.width(i.first), size = width / groups;
        for (int64_t g = 0; g < groups; g++)
          each_vector<T>(size, [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
            write<T, PARTIAL>(z + g * size + u, x[g] * read<T, PARTIAL>(y + g * size + u, k), k);
          });
      });
    case EdgeOperation::CENTER_ALONG_EDGE:
      return for_rows([&](int64_t r, T *z) {
        along_edge(block.center(r) + i.a, block.edge(r) + i.b, i.c, width, scale, z);
      });
    case EdgeOperation::NEIGHBOR_ALONG_EDGE:
      return for_rows([&](int64_t r, T *z) {
        along_edge(block.neighbor(r) + i.a, block.edge(r) + i.b, i.c, width, scale, z);
      });
    case EdgeOperation::CENTER_DOT_NEIGHBOR:
      return for_rows([&](int64_t r, T *z) {
        const T *const x = block.center(r) + i.a, *const y = block.neighbor(r) + i.b;
        each_vector<T>(width, [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
          V<T> total = {};
          for (int64_t m = 0; m < i.c; m++)
            total +=
                read<T, PARTIAL>(x + m * width + u, k) * read<T, PARTIAL>(y + m * width + u, k);
          write<T, PARTIAL>(z + u, total, k);
        });
      });
    default:
      return;
  }
}

/// What leaves the network: sums over a center's edges, and results for each edge.
template <typename T>
static void output_instruction(const EdgeBlock<T> &block, const EdgeInstruction &i, T scale,
                               const EdgeNetworkOutputs<T> &out)
{
  for (int64_t r = 0; r < block.n; r++) {
    T *const sums = out.sums + block.net.center[block.first + r] * out.sum_stride + i.a;
    const T *const x = i.first >= 0 ? block.value(i.first, r) : nullptr;
    const int64_t width = i.first >= 0 ? block.width(i.first) : 0;
    switch (static_cast<EdgeOperation>(i.operation)) {
      case EdgeOperation::SUM:
        add(sums, x, width, T(1));
        break;
      case EdgeOperation::STORE:
        copy(out.edges + (block.first + r) * out.edge_stride + i.a, x, width);
        break;
      case EdgeOperation::SUM_DIRECTED: {
        const T *const edge = block.edge(r) + i.b;
        for (int64_t m = 0; m < i.c; m++) add(sums + m * width, x, width, scale * edge[m]);
        break;
      }
      case EdgeOperation::SUM_PASSED: {
        const T *const neighbor = block.neighbor(r) + i.b;
        each_vector<T>(width, [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
          const V<T> factor = read<T, PARTIAL>(x + u, k);
          for (int64_t m = u; m < i.c * width; m += width)
            write<T, PARTIAL>(
                sums + m,
                read<T, PARTIAL>(sums + m, k) + factor * read<T, PARTIAL>(neighbor + m, k), k);
        });
        break;
      }
      default:
        break;
    }
  }
}

/// Rows of gradients that belong to an edge of the block.
template <typename T> struct GradientRows {
  const EdgeBlock<T> &block;
  const EdgeNetworkGradients<T> &g;

  const T *sums(int64_t r) const
  { return g.sums + block.net.center[block.first + r] * g.sum_stride; }
  const T *edge_out(int64_t r) const { return g.edges_out + (block.first + r) * g.edge_out_stride; }
  T *center(int64_t r) const
  { return g.centers + block.net.center[block.first + r] * g.center_stride; }
  T *neighbor(int64_t r) const
  {
    const int64_t node = block.net.neighbor[block.first + r];
    return g.neighbors + (g.slot ? g.slot[node] : node) * g.neighbor_stride;
  }
  T *edge(int64_t r) const { return g.edges + (block.first + r) * g.edge_stride; }
};

template <typename T>
static void backward_instruction(const EdgeBlock<T> &block, const EdgeInstruction &i, T scale,
                                 const GradientRows<T> &to, const EdgeBackwardStep &step)
{
  const int64_t width = i.result >= 0 ? block.width(i.result) : block.width(i.first);
  const auto for_rows = [&](const auto &work) INLINE {
    for (int64_t r = 0; r < block.n; r++)
      work(r, i.result >= 0 ? block.gradient(i.result, r) : nullptr);
  };
  switch (static_cast<EdgeOperation>(i.operation)) {
    case EdgeOperation::EDGE:
      return for_rows([&](int64_t r, const T *g) {
        add(to.edge(r) + i.a, g, width, T(1));
      });
    case EdgeOperation::CENTER:
    case EdgeOperation::ADD_CENTER:
      return for_rows([&](int64_t r, const T *g) {
        add(to.center(r) + i.a, g, width, T(1));
      });
    case EdgeOperation::NEIGHBOR:
    case EdgeOperation::ADD_NEIGHBOR:
      return for_rows([&](int64_t r, const T *g) {
        add(to.neighbor(r) + i.a, g, width, T(1));
      });
    case EdgeOperation::LINEAR:
    case EdgeOperation::ADD_LINEAR:
      if (to.g.weights) linear_weights(block, i, to.g);
      return linear_backward(block, i, step.sets_first);
    case EdgeOperation::ADD:
      return for_rows([&](int64_t r, const T *g) {
        add(block.gradient(i.first, r), g, width, scale, step.sets_first);
        add(block.gradient(i.second, r), g, width, scale, step.sets_second);
      });
    case EdgeOperation::MULTIPLY:
    case EdgeOperation::ADD_MULTIPLY:
      return for_rows([&](int64_t r, const T *g) {
        const T *const x = block.value(i.first, r), *const y = block.value(i.second, r);
        T *const of_x = block.gradient(i.first, r), *const of_y = block.gradient(i.second, r);
        if (block.width(i.second) == 1 && width > 1) {
          *of_y = (step.sets_second ? T(0) : *of_y) + scale * dot(x, g, width);
          add(of_x, g, width, scale * *y, step.sets_first);
          return;
        }
        each_vector<T>(width, [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
          const V<T> slope = scale * read<T, PARTIAL>(g + u, k);
          // One after the other: x and y may be the same value.
          write<T, PARTIAL>(of_x + u,
                            before<T, PARTIAL>(of_x + u, k, step.sets_first) +
                                slope * read<T, PARTIAL>(y + u, k),
                            k);
          write<T, PARTIAL>(of_y + u,
                            before<T, PARTIAL>(of_y + u, k, step.sets_second) +
                                slope * read<T, PARTIAL>(x + u, k),
                            k);
        });
      });
    case EdgeOperation::SILU:
      return activate_backward<SiLU>(block, i, scale, step.sets_first);
    case EdgeOperation::SIGMOID:
      return activate_backward<Sigmoid>(block, i, scale, step.sets_first);
    case EdgeOperation::TANH:
      return activate_backward<Tanh>(block, i, scale, step.sets_first);
    case EdgeOperation::SOFTPLUS:
      return activate_backward<Softplus>(block, i, scale, step.sets_first);
    case EdgeOperation::SILU_SLOPE:
      return activate_backward<Slope<SiLU>>(block, i, scale, step.sets_first);
    case EdgeOperation::SIGMOID_SLOPE:
      return activate_backward<Slope<Sigmoid>>(block, i, scale, step.sets_first);
    case EdgeOperation::TANH_SLOPE:
      return activate_backward<Slope<Tanh>>(block, i, scale, step.sets_first);
    case EdgeOperation::LAYER_NORM:
      return layer_norm_backward(block, i, scale, step.sets_first, to.g.vectors);
    case EdgeOperation::LAYER_NORM_TANGENT:
      return layer_norm_tangent_backward(block, i, scale, step, to.g.vectors);
    case EdgeOperation::JOIN:
      return for_rows([&](int64_t r, const T *g) {
        const int64_t of_first = block.width(i.first);
        add(block.gradient(i.first, r), g, of_first, T(1), step.sets_first);
        add(block.gradient(i.second, r), g + of_first, width - of_first, T(1), step.sets_second);
      });
    case EdgeOperation::GROUP_SUM:
      return for_rows([&](int64_t r, const T *g) {
        T *const of_x = block.gradient(i.first, r);
        const int64_t size = block.width(i.first) / width;
        for (int64_t group = 0; group < width; group++)
          each_vector<T>(size, [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
            T *const place = of_x + group * size + u;
            write<T, PARTIAL>(place, before<T, PARTIAL>(place, k, step.sets_first) + g[group], k);
          });
      });
    case EdgeOperation::GROUP_MULTIPLY:
      return for_rows([&](int64_t r, const T *g) {
        const T *const x = block.value(i.first, r), *const y = block.value(i.second, r);
        T *const of_x = block.gradient(i.first, r), *const of_y = block.gradient(i.second, r);
        const int64_t groups = block.width(i.first), size = width / groups;
        for (int64_t group = 0; group < groups; group++) {
          of_x[group] = (step.sets_first ? T(0) : of_x[group]) +
              dot(y + group * size, g + group * size, size);
          add(of_y + group * size, g + group * size, size, x[group], step.sets_second);
        }
      });
    case EdgeOperation::CENTER_ALONG_EDGE:
      return for_rows([&](int64_t r, const T *g) {
        along_edge_backward(block.center(r) + i.a, block.edge(r) + i.b, i.c, width, scale, g,
                            to.center(r) + i.a, to.edge(r) + i.b);
      });
    case EdgeOperation::NEIGHBOR_ALONG_EDGE:
      return for_rows([&](int64_t r, const T *g) {
        along_edge_backward(block.neighbor(r) + i.a, block.edge(r) + i.b, i.c, width, scale, g,
                            to.neighbor(r) + i.a, to.edge(r) + i.b);
      });
    case EdgeOperation::CENTER_DOT_NEIGHBOR:
      return for_rows([&](int64_t r, const T *g) {
        const T *const x = block.center(r) + i.a, *const y = block.neighbor(r) + i.b;
        T *const of_x = to.center(r) + i.a, *const of_y = to.neighbor(r) + i.b;
        each_vector<T>(width, [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
          const V<T> slope = read<T, PARTIAL>(g + u, k);
          for (int64_t m = u; m < i.c * width; m += width) {
            write<T, PARTIAL>(
                of_x + m, read<T, PARTIAL>(of_x + m, k) + slope * read<T, PARTIAL>(y + m, k), k);
            write<T, PARTIAL>(
                of_y + m, read<T, PARTIAL>(of_y + m, k) + slope * read<T, PARTIAL>(x + m, k), k);
          }
        });
      });
    case EdgeOperation::SUM:
      return for_rows([&](int64_t r, const T *) {
        add(block.gradient(i.first, r), to.sums(r) + i.a, width, T(1), step.sets_first);
      });
    case EdgeOperation::STORE:
      return for_rows([&](int64_t r, const T *) {
        add(block.gradient(i.first, r), to.edge_out(r) + i.a, width, T(1), step.sets_first);
      });
    case EdgeOperation::SUM_DIRECTED:
      return for_rows([&](int64_t r, const T *) {
        const T *const edge = block.edge(r) + i.b, *const g = to.sums(r) + i.a;
        const T *const x = block.value(i.first, r);
        T *const of_edge = to.edge(r) + i.b, *const of_x = block.gradient(i.first, r);
        for (int64_t m = 0; m < i.c; m++) {
          of_edge[m] += scale * dot(x, g + m * width, width);
          add(of_x, g + m * width, width, scale * edge[m], step.sets_first && m == 0);
        }
      });
    case EdgeOperation::SUM_PASSED:
      return for_rows([&](int64_t r, const T *) {
        const T *const neighbor = block.neighbor(r) + i.b, *const g = to.sums(r) + i.a;
        const T *const x = block.value(i.first, r);
        T *const of_neighbor = to.neighbor(r) + i.b, *const of_x = block.gradient(i.first, r);
        each_vector<T>(width, [&]<bool PARTIAL>(int64_t u, int64_t k) INLINE {
          const V<T> factor = read<T, PARTIAL>(x + u, k);
          V<T> of_factor = before<T, PARTIAL>(of_x + u, k, step.sets_first);
          for (int64_t m = u; m < i.c * width; m += width) {
            const V<T> of_sum = read<T, PARTIAL>(g + m, k);
            of_factor += of_sum * read<T, PARTIAL>(neighbor + m, k);
            write<T, PARTIAL>(of_neighbor + m,
                              read<T, PARTIAL>(of_neighbor + m, k) + factor * of_sum, k);
          }
          write<T, PARTIAL>(of_x + u, of_factor, k);
        });
      });
  }
}

// ----------------------------------------------------------------------
// a block of edges
// ----------------------------------------------------------------------

/// Zeros in the gradient of the whole value of which `v` is a part.
template <typename T> static void clear(const EdgeBlock<T> &block, int64_t v)
{
  const int64_t stride = block.stride(v);
  T *const first = block.gradient(v, 0) - block.net.values[v].column;
  for (int64_t u = 0; u < block.n * stride; u++) first[u] = 0;
}

template <typename T>
static void forward(const EdgeNetwork<T> &net, const EdgeNetworkOutputs<T> &out, int64_t first,
                    int64_t n, int64_t capacity, T *scratch)
{
  const EdgeBlock<T> block = {net, first, n, capacity, scratch};
  for (int64_t k = 0; k < net.n_instructions; k++) {
    const EdgeInstruction &instruction = net.program[k];
    const T scale = static_cast<T>(net.scales[k]);
    if (instruction.result >= 0)
      forward_instruction(block, instruction, scale);
    else
      output_instruction(block, instruction, scale, out);
    // Rows, not blocks: the backward may divide the edges in another way.
    if (instruction.kept >= 0)
      for (int64_t r = 0; r < n && first + r < net.n_kept; r++)
        copy(block.kept(r) + instruction.kept, block.value(instruction.result, r),
             block.width(instruction.result));
  }
}

template <typename T>
static void backward(const EdgeNetwork<T> &net, const EdgeNetworkGradients<T> &gradients,
                     int64_t first, int64_t n, int64_t capacity, T *scratch)
{
  const EdgeBlock<T> block = {net, first, n, capacity, scratch};
  const bool kept = block.is_kept();
  for (int64_t k = 0; k < net.n_instructions; k++) {
    const EdgeInstruction &instruction = net.program[k];
    if (!gradients.steps[k].repeated[kept]) continue;
    if (instruction.kept >= 0 && kept)
      for (int64_t r = 0; r < n; r++)
        copy(block.value(instruction.result, r), block.kept(r) + instruction.kept,
             block.width(instruction.result));
    else
      forward_instruction(block, instruction, static_cast<T>(net.scales[k]));
  }
  const GradientRows<T> rows = {block, gradients};
  for (int64_t k = net.n_instructions - 1; k >= 0; k--) {
    const EdgeInstruction &instruction = net.program[k];
    const EdgeBackwardStep &step = gradients.steps[k];
    if (!step.needed) continue;
    if (step.clears_first) clear(block, instruction.first);
    if (step.clears_second) clear(block, instruction.second);
    backward_instruction(block, instruction, static_cast<T>(net.scales[k]), rows, step);
  }
}

extern const EdgeNetworkKernel<float> EDGE_NETWORK_FLOAT = {forward<float>, backward<float>};
extern const EdgeNetworkKernel<double> EDGE_NETWORK_DOUBLE = {forward<double>, backward<double>};

}    // namespace hienet::HIENET_VARIANT
