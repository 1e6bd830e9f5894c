// SPDX-License-Identifier: GPL-2.0-or-later
// torch.ops.hienet.edge_network on a GPU: the edges of as many centers as the workspace holds pass through the program
// together. torch's operators do what concerns edges alone, its matrix products the linear maps (cuBLAS; TF32 where torch
// is told to use it), and the kernels of node_rows.cu what is read of atoms or summed to them.

#include "../differentiable.h"
#include "../edge_network_checks.h"
#include "../edge_program.h"
#include "device_call.h"
#include "device_edges.h"
#include "panels.h"
#include "workspace.h"

#include <optional>
#include <tuple>

namespace hienet::cuda {

using at::Tensor;

// ----------------------------------------------------------------------
// what is made once of a program
// ----------------------------------------------------------------------

/// What an instruction multiplies with and adds; undefined where it does not.
struct Constants {
  Tensor matrix;    // [fan_in, fan_out]
  Tensor gain, bias;
};

/// A program on the host, and its weights on the device.
struct DeviceEdgeNetwork {
  EdgeProgram program;
  std::vector<EdgeBackwardStep> steps;
  std::vector<Constants> constants;    // of each instruction

  DeviceEdgeNetwork(const Tensor &instructions, const Tensor &scales, const Tensor &values,
                    const Tensor &weights, const Tensor &vectors, const EdgeProgramSizes &sizes) :
      program(instructions, scales, values, sizes), steps(program.backward_steps()),
      constants(program.size())
  {
    const Tensor all = vectors.reshape({-1});
    const auto width = [&](int64_t v) {
      return program.values()[v].width;
    };
    for (int64_t k = 0; k < program.size(); k++) {
      const EdgeInstruction &i = program.instructions()[k];
      TORCH_CHECK_VALUE(i.operation <= static_cast<int64_t>(EdgeOperation::SUM_PASSED),
                        "instruction ", k, " of the edge network is for training, on CPUs only");
      switch (static_cast<EdgeOperation>(i.operation)) {
        case EdgeOperation::LINEAR:
          if (i.c >= 0) constants[k].bias = all.narrow(0, i.c, width(i.result)).clone();
          [[fallthrough]];
        case EdgeOperation::ADD_LINEAR:
          constants[k].matrix = matrix_of_panels(weights, i.a, width(i.first), width(i.result));
          break;
        case EdgeOperation::LAYER_NORM:
          constants[k].gain = all.narrow(0, i.a, width(i.result)).clone();
          constants[k].bias = all.narrow(0, i.b, width(i.result)).clone();
          break;
        default:
          break;
      }
    }
  }
};

// ----------------------------------------------------------------------
// one call
// ----------------------------------------------------------------------

struct EdgeNetworkCall {
  std::shared_ptr<const DeviceEdges> list;
  std::shared_ptr<const DeviceEdgeNetwork> network;
  Tensor centers, neighbors, edges;

  EdgeNetworkCall(const Tensor &center_rows, const Tensor &neighbor_rows, const Tensor &edge_rows,
                  const Tensor &weights, const Tensor &transposed, const Tensor &vectors,
                  const Tensor &program, const Tensor &scales, const Tensor &values,
                  const Tensor &center, const Tensor &neighbor, int64_t sum_width,
                  int64_t edge_width)
  {
    check_edge_network(center_rows, neighbor_rows, edge_rows, weights, transposed, vectors, center);
    list = DeviceEdges::of(center, neighbor, center_rows.size(0), neighbor_rows.size(0));
    const EdgeProgramSizes sizes = {
        center_rows.size(1), neighbor_rows.size(1), edge_rows.size(1),  sum_width,
        edge_width,          weights.numel(),       transposed.numel(), vectors.numel()};
    static Memo<DeviceEdgeNetwork, LAYERS> memo;
    network = memo.get({program, scales, values, weights, vectors},
                       {sizes.centers, sizes.neighbors, sizes.edges, sizes.sums, sizes.edges_out,
                        sizes.transposed},
                       [&] {
                         return DeviceEdgeNetwork(program, scales, values, weights, vectors, sizes);
                       });
    centers = rows(center_rows);
    neighbors = rows(neighbor_rows);
    edges = rows(edge_rows);
  }

  at::TensorOptions options() const { return edges.options(); }
  const EdgeProgram &program() const { return network->program; }

  /// For what is kept between forward and backward, `[first edges, kept_width]`.
  Tensor kept(bool keep) const
  {
    const int64_t width = program().kept_width();
    return at::empty({keep ? edges_kept(list->n_edges, width, edges) : 0, width}, options());
  }
};

/// Tensors of results, or their gradients.
struct Results {
  Tensor sums, edges;
};

/// Gradients of inputs, to which chunks add.
struct InputGradients {
  Tensor centers, neighbors, edges;
};

/// to = s x, or to += s x
static void add(Tensor to, const Tensor &x, double scale, bool sets)
{
  if (!sets)
    to.add_(x, scale);
  else if (scale == 1)
    to.copy_(x);
  else
    at::mul_out(to, x, at::scalar_tensor(scale, at::kDouble));
}

/// to = s x y, or to += s x y
static void add_product(Tensor to, const Tensor &x, const Tensor &y, double scale, bool sets)
{
  if (!sets)
    to.addcmul_(x, y, scale);
  else
    at::mul_out(to, x, y);
  if (sets && scale != 1) to.mul_(scale);
}

/// to = x M, or to += x M
static void add_map(Tensor to, const Tensor &x, const Tensor &matrix, bool sets)
{
  if (sets)
    at::mm_out(to, x, matrix);
  else
    to.addmm_(x, matrix);
}

/// The edges of some centers, their values, and the gradients of these in the backward.
template <typename T> class Chunk {
 public:
  /// `memory` has as many numbers as all values, and as their gradients, of `edges` edges.
  Chunk(const EdgeNetworkCall &inputs, int64_t first_of_centers, int64_t centers,
        int64_t first_of_edges, int64_t edges, const Tensor &memory) :
      in(inputs), first_center(first_of_centers), n_centers(centers), first(first_of_edges),
      n(edges), scratch(memory), stream(current_stream(in.edges.device())),
      center(in.list->center.template const_data_ptr<int64_t>() + first),
      neighbor(in.list->neighbor.template const_data_ptr<int64_t>() + first)
  {
  }

  void forward(const Results &to, const Tensor &kept) const
  {
    const int64_t n_kept = std::clamp<int64_t>(kept.size(0) - first, 0, n);
    for (int64_t k = 0; k < in.program().size(); k++) {
      const EdgeInstruction &i = in.program().instructions()[k];
      if (i.result >= 0)
        compute(k);
      else
        give_out(k, to);
      if (i.kept >= 0 && n_kept > 0)
        kept_rows(kept, i, n_kept).copy_(value(i.result).narrow(0, 0, n_kept));
    }
  }

  void backward(const Results &from, const Tensor &kept, const InputGradients &to)
  {
    const bool is_kept = first + n <= kept.size(0);
    const auto &steps = in.network->steps;
    for (int64_t k = 0; k < in.program().size(); k++) {
      const EdgeInstruction &i = in.program().instructions()[k];
      if (!steps[k].repeated[is_kept]) continue;
      if (i.kept >= 0 && is_kept)
        value(i.result).copy_(kept_rows(kept, i, n));
      else
        compute(k);
    }
    for (int64_t k = in.program().size() - 1; k >= 0; k--) {
      const EdgeInstruction &i = in.program().instructions()[k];
      if (!steps[k].needed) continue;
      if (steps[k].clears_first) clear(i.first);
      if (steps[k].clears_second) clear(i.second);
      differentiate(k, from, to);
    }
  }

 private:
  const EdgeNetworkCall &in;
  int64_t first_center, n_centers, first, n;
  Tensor scratch;
  Stream stream;
  const int64_t *center, *neighbor;    // of each edge of the chunk
  std::optional<EdgesByNeighbor> by_neighbor;

  // Where values lie

  const EdgeValue &layout(int64_t v) const { return in.program().values()[v]; }
  int64_t width(int64_t v) const { return layout(v).width; }
  int64_t place_of_value(int64_t v) const { return layout(v).start * n + layout(v).column; }
  int64_t place_of_gradient(int64_t v) const
  { return place_of_value(v) + in.program().value_size() * n; }

  Tensor value(int64_t v) const
  { return scratch.as_strided({n, width(v)}, {layout(v).stride, 1}, place_of_value(v)); }
  Tensor gradient(int64_t v) const
  { return scratch.as_strided({n, width(v)}, {layout(v).stride, 1}, place_of_gradient(v)); }

  /// Columns `[n, width]` in groups, `[n, groups, width / groups]`.
  static Tensor grouped(const Tensor &columns, int64_t groups)
  {
    const int64_t size = columns.size(1) / groups;
    return columns.as_strided({columns.size(0), groups, size}, {columns.stride(0), size, 1},
                              columns.storage_offset());
  }

  /// Zeros in the gradient of the whole value of which `v` is a part.
  void clear(int64_t v) const
  { scratch.narrow(0, place_of_gradient(v) - layout(v).column, n * layout(v).stride).zero_(); }

  Tensor kept_rows(const Tensor &kept, const EdgeInstruction &i, int64_t n_rows) const
  { return kept.narrow(0, first, n_rows).narrow(1, i.kept, width(i.result)); }

  /// Columns of what belongs to edges.
  Tensor of_edges(const Tensor &edges, int64_t column, int64_t n_columns) const
  { return edges.narrow(0, first, n).narrow(1, column, n_columns); }

  // The same for the kernels

  RowOfEdge<T> row(const Tensor &columns) const
  { return {columns.template const_data_ptr<T>(), columns.stride(0)}; }
  RowOfEdge<T> edge_row(const Tensor &edges, int64_t column) const
  {
    return {edges.template const_data_ptr<T>() + first * edges.stride(0) + column, edges.stride(0)};
  }
  RowOfEdge<T> center_row(const Tensor &nodes, int64_t column) const
  { return {nodes.template const_data_ptr<T>() + column, nodes.stride(0), center}; }
  RowOfEdge<T> neighbor_row(const Tensor &nodes, int64_t column) const
  { return {nodes.template const_data_ptr<T>() + column, nodes.stride(0), neighbor}; }

  static FactorOfEdge<T> one() { return {}; }
  /// A number for each term.
  static FactorOfEdge<T> numbers(const RowOfEdge<T> &from) { return {from, 1, 0}; }
  /// As many for each term as there are columns.
  static FactorOfEdge<T> columns(const RowOfEdge<T> &from, int64_t n_columns)
  { return {from, n_columns, 1}; }

  /// to (+)= s sum_m factor row, for columns of values or their gradients.
  void read(const Tensor &to, const RowOfEdge<T> &from, const FactorOfEdge<T> &factor,
            int64_t n_terms, double scale, bool sets) const
  {
    read_rows<T>({from, factor, static_cast<T>(scale), n_terms, to.size(1),
                  to.template data_ptr<T>(), to.stride(0), n, !sets},
                 stream);
  }

  /// to_m (+)= s sum_u x row, for n_terms columns; of every term x has columns of its own, or the same.
  void dot(const Tensor &to, const RowOfEdge<T> &x, int64_t x_of_term, const RowOfEdge<T> &with,
           int64_t n_columns, double scale, bool sets) const
  {
    dot_rows<T>({x, x_of_term, with, static_cast<T>(scale), to.size(1), n_columns,
                 to.template data_ptr<T>(), to.stride(0), n, !sets},
                stream);
  }

  /// Columns of centers from `column` on += s sum of factor x over their edges.
  void sum_to_centers(const Tensor &centers, int64_t column, const Tensor &x,
                      const FactorOfEdge<T> &factor, int64_t n_terms, double scale) const
  {
    const EdgesOfNodes edges = {in.list->row_start.template const_data_ptr<int64_t>() +
                                    first_center,
                                n_centers, first, nullptr};
    sum_rows<T>({edges, row(x), factor, static_cast<T>(scale), n_terms, x.size(1),
                 centers.template data_ptr<T>() + first_center * centers.stride(0) + column,
                 centers.stride(0), true},
                stream);
  }

  /// The same for neighbours.
  void sum_to_neighbors(const Tensor &nodes, int64_t column, const Tensor &x,
                        const FactorOfEdge<T> &factor, int64_t n_terms, double scale)
  {
    if (!by_neighbor) by_neighbor = in.list->by_neighbor(first, first + n);
    sum_rows<T>({by_neighbor->view(), row(x), factor, static_cast<T>(scale), n_terms, x.size(1),
                 nodes.template data_ptr<T>() + column, nodes.stride(0), true},
                stream);
  }

  void compute(int64_t k) const;
  void give_out(int64_t k, const Results &to) const;
  void differentiate(int64_t k, const Results &from, const InputGradients &to);
};

/// The result of an instruction that writes a value.
template <typename T> void Chunk<T>::compute(int64_t k) const
{
  const EdgeInstruction &i = in.program().instructions()[k];
  const Constants &constants = in.network->constants[k];
  const double scale = in.program().scales()[k];
  Tensor z = value(i.result);
  const Tensor x = i.first >= 0 ? value(i.first) : Tensor();
  const Tensor y = i.second >= 0 ? value(i.second) : Tensor();
  const auto scaled = [&] {
    if (scale != 1) z.mul_(scale);
  };
  switch (static_cast<EdgeOperation>(i.operation)) {
    case EdgeOperation::EDGE:
      z.copy_(of_edges(in.edges, i.a, z.size(1)));
      return;
    case EdgeOperation::CENTER:
    case EdgeOperation::ADD_CENTER:
      return read(z, center_row(in.centers, i.a), one(), 1, 1.0,
                  i.operation == static_cast<int64_t>(EdgeOperation::CENTER));
    case EdgeOperation::NEIGHBOR:
    case EdgeOperation::ADD_NEIGHBOR:
      return read(z, neighbor_row(in.neighbors, i.a), one(), 1, 1.0,
                  i.operation == static_cast<int64_t>(EdgeOperation::NEIGHBOR));
    case EdgeOperation::LINEAR:
      if (constants.bias.defined())
        at::addmm_out(z, constants.bias, x, constants.matrix);
      else
        add_map(z, x, constants.matrix, true);
      return;
    case EdgeOperation::ADD_LINEAR:
      return add_map(z, x, constants.matrix, false);
    case EdgeOperation::ADD:
      at::add_out(z, x, y);
      return scaled();
    case EdgeOperation::MULTIPLY:
      return add_product(z, x, y, scale, true);
    case EdgeOperation::SILU:
      at::silu_out(z, x);
      return scaled();
    case EdgeOperation::SIGMOID:
      at::sigmoid_out(z, x);
      return scaled();
    case EdgeOperation::TANH:
      at::tanh_out(z, x);
      return scaled();
    case EdgeOperation::LAYER_NORM:
      z.copy_(std::get<0>(
          at::native_layer_norm(x, {x.size(1)}, constants.gain, constants.bias, scale)));
      return;
    case EdgeOperation::JOIN:
      z.narrow(1, 0, x.size(1)).copy_(x);
      z.narrow(1, x.size(1), y.size(1)).copy_(y);
      return;
    case EdgeOperation::GROUP_SUM:
      at::sum_out(z, grouped(x, z.size(1)), 2);
      return;
    case EdgeOperation::GROUP_MULTIPLY:
      return add_product(grouped(z, x.size(1)), grouped(y, x.size(1)), x.unsqueeze(2), 1.0, true);
    case EdgeOperation::CENTER_ALONG_EDGE:
      return read(z, center_row(in.centers, i.a), numbers(edge_row(in.edges, i.b)), i.c, scale,
                  true);
    case EdgeOperation::NEIGHBOR_ALONG_EDGE:
      return read(z, neighbor_row(in.neighbors, i.a), numbers(edge_row(in.edges, i.b)), i.c, scale,
                  true);
    case EdgeOperation::CENTER_DOT_NEIGHBOR:
      return read(z, center_row(in.centers, i.a),
                  columns(neighbor_row(in.neighbors, i.b), z.size(1)), i.c, 1.0, true);
    default:
      return;
  }
}

/// What leaves the network: sums over a center's edges, and results for each edge.
template <typename T> void Chunk<T>::give_out(int64_t k, const Results &to) const
{
  const EdgeInstruction &i = in.program().instructions()[k];
  const Tensor x = value(i.first);
  switch (static_cast<EdgeOperation>(i.operation)) {
    case EdgeOperation::SUM:
      return sum_to_centers(to.sums, i.a, x, one(), 1, 1.0);
    case EdgeOperation::STORE:
      of_edges(to.edges, i.a, x.size(1)).copy_(x);
      return;
    case EdgeOperation::SUM_DIRECTED:
      return sum_to_centers(to.sums, i.a, x, numbers(edge_row(in.edges, i.b)), i.c,
                            in.program().scales()[k]);
    case EdgeOperation::SUM_PASSED:
      return sum_to_centers(to.sums, i.a, x, columns(neighbor_row(in.neighbors, i.b), x.size(1)),
                            i.c, 1.0);
    default:
      return;
  }
}

template <typename T>
void Chunk<T>::differentiate(int64_t k, const Results &from, const InputGradients &to)
{
  const EdgeInstruction &i = in.program().instructions()[k];
  const EdgeBackwardStep &step = in.network->steps[k];
  const Constants &constants = in.network->constants[k];
  const double scale = in.program().scales()[k];
  const Tensor g = i.result >= 0 ? gradient(i.result) : Tensor();
  const Tensor x = i.first >= 0 ? value(i.first) : Tensor();
  const Tensor y = i.second >= 0 ? value(i.second) : Tensor();
  const Tensor of_x = i.first >= 0 ? gradient(i.first) : Tensor();
  const Tensor of_y = i.second >= 0 ? gradient(i.second) : Tensor();
  switch (static_cast<EdgeOperation>(i.operation)) {
    case EdgeOperation::EDGE:
      of_edges(to.edges, i.a, g.size(1)).add_(g);
      return;
    case EdgeOperation::CENTER:
    case EdgeOperation::ADD_CENTER:
      return sum_to_centers(to.centers, i.a, g, one(), 1, 1.0);
    case EdgeOperation::NEIGHBOR:
    case EdgeOperation::ADD_NEIGHBOR:
      return sum_to_neighbors(to.neighbors, i.a, g, one(), 1, 1.0);
    case EdgeOperation::LINEAR:
    case EdgeOperation::ADD_LINEAR:
      return add_map(of_x, g, constants.matrix.t(), step.sets_first);
    case EdgeOperation::ADD:
      add(of_x, g, scale, step.sets_first);
      return add(of_y, g, scale, step.sets_second);
    case EdgeOperation::MULTIPLY:
      // One after the other: x and y may be the same value.
      add_product(of_x, g, y, scale, step.sets_first);
      if (y.size(1) == x.size(1)) return add_product(of_y, g, x, scale, step.sets_second);
      return dot(of_y, row(x), 0, row(g), x.size(1), scale, step.sets_second);
    case EdgeOperation::SILU:
      return add(of_x, at::silu_backward(g, x), scale, step.sets_first);
    case EdgeOperation::SIGMOID:
      return add(of_x, at::sigmoid_backward(g, at::sigmoid(x)), scale, step.sets_first);
    case EdgeOperation::TANH:
      return add(of_x, at::tanh_backward(g, at::tanh(x)), scale, step.sets_first);
    case EdgeOperation::LAYER_NORM: {
      const std::vector<int64_t> shape = {x.size(1)};
      const auto [z, mean, inverse_deviation] =
          at::native_layer_norm(x, shape, constants.gain, constants.bias, scale);
      const auto gradients =
          at::native_layer_norm_backward(g, x, shape, mean, inverse_deviation, constants.gain,
                                         constants.bias, {true, false, false});
      return add(of_x, std::get<0>(gradients), 1.0, step.sets_first);
    }
    case EdgeOperation::JOIN:
      add(of_x, g.narrow(1, 0, x.size(1)), 1.0, step.sets_first);
      return add(of_y, g.narrow(1, x.size(1), y.size(1)), 1.0, step.sets_second);
    case EdgeOperation::GROUP_SUM:
      return add(grouped(of_x, g.size(1)), g.unsqueeze(2), 1.0, step.sets_first);
    case EdgeOperation::GROUP_MULTIPLY: {
      const int64_t groups = x.size(1), size = g.size(1) / groups;
      dot(of_x, row(y), size, row(g), size, 1.0, step.sets_first);
      return add_product(grouped(of_y, groups), grouped(g, groups), x.unsqueeze(2), 1.0,
                         step.sets_second);
    }
    case EdgeOperation::CENTER_ALONG_EDGE:
      dot(of_edges(to.edges, i.b, i.c), row(g), 0, center_row(in.centers, i.a), g.size(1), scale,
          false);
      return sum_to_centers(to.centers, i.a, g, numbers(edge_row(in.edges, i.b)), i.c, scale);
    case EdgeOperation::NEIGHBOR_ALONG_EDGE:
      dot(of_edges(to.edges, i.b, i.c), row(g), 0, neighbor_row(in.neighbors, i.a), g.size(1),
          scale, false);
      return sum_to_neighbors(to.neighbors, i.a, g, numbers(edge_row(in.edges, i.b)), i.c, scale);
    case EdgeOperation::CENTER_DOT_NEIGHBOR:
      sum_to_centers(to.centers, i.a, g, columns(neighbor_row(in.neighbors, i.b), g.size(1)), i.c,
                     1.0);
      return sum_to_neighbors(to.neighbors, i.b, g, columns(center_row(in.centers, i.a), g.size(1)),
                              i.c, 1.0);
    case EdgeOperation::SUM:
      return read(of_x, center_row(from.sums, i.a), one(), 1, 1.0, step.sets_first);
    case EdgeOperation::STORE:
      return add(of_x, of_edges(from.edges, i.a, of_x.size(1)), 1.0, step.sets_first);
    case EdgeOperation::SUM_DIRECTED:
      dot(of_edges(to.edges, i.b, i.c), row(x), 0, center_row(from.sums, i.a), x.size(1), scale,
          false);
      return read(of_x, center_row(from.sums, i.a), numbers(edge_row(in.edges, i.b)), i.c, scale,
                  step.sets_first);
    case EdgeOperation::SUM_PASSED:
      sum_to_neighbors(to.neighbors, i.b, x, columns(center_row(from.sums, i.a), x.size(1)), i.c,
                       1.0);
      return read(of_x, center_row(from.sums, i.a),
                  columns(neighbor_row(in.neighbors, i.b), of_x.size(1)), i.c, 1.0,
                  step.sets_first);
    default:
      return;
  }
}

/// work(chunk) for all chunks that have edges. Those of forward and backward are the same, so that products of matrices
/// are rounded alike, and what is kept changes no bit.
template <typename T, typename Work>
static void for_each_chunk(const EdgeNetworkCall &in, bool backward, const Work &work)
{
  const int64_t of_edge = 2 * in.program().value_size();
  const auto centers =
      chunks_of_centers(in.list->n_local,
                        static_cast<double>(in.list->n_edges) *
                            static_cast<double>(of_edge * in.edges.element_size()));
  const auto edges = in.list->first_edges(centers);
  for (size_t c = 0; c + 1 < centers.size(); c++) {
    const int64_t n = edges[c + 1] - edges[c];
    if (n == 0) continue;
    const Tensor scratch = at::empty({n * (backward ? of_edge : of_edge / 2)}, in.options());
    Chunk<T> chunk(in, centers[c], centers[c + 1] - centers[c], edges[c], n, scratch);
    work(chunk);
  }
}

// ----------------------------------------------------------------------
// the operator and its derivative
// ----------------------------------------------------------------------

static std::tuple<Tensor, Tensor, Tensor>
forward(const Tensor &centers, const Tensor &neighbors, const Tensor &edges, const Tensor &weights,
        const Tensor &transposed, const Tensor &vectors, const Tensor &program,
        const Tensor &scales, const Tensor &values, const Tensor &center, const Tensor &neighbor,
        int64_t sum_width, int64_t edge_width, bool keep)
{
  const c10::DeviceGuard guard(edges.device());
  const at::AutoDispatchBelowAutograd below;
  const EdgeNetworkCall in(centers, neighbors, edges, weights, transposed, vectors, program, scales,
                           values, center, neighbor, sum_width, edge_width);
  // Zeros where no instruction stores.
  const Results results = {at::zeros({centers.size(0), sum_width}, in.options()),
                           at::zeros({edges.size(0), edge_width}, in.options())};
  const Tensor kept = in.kept(keep);
  AT_DISPATCH_FLOATING_TYPES(edges.scalar_type(), "edge_network", [&] {
    for_each_chunk<scalar_t>(in, false, [&](const Chunk<scalar_t> &chunk) {
      chunk.forward(results, kept);
    });
  });
  return {results.sums, results.edges, kept};
}

static std::tuple<Tensor, Tensor, Tensor>
backward(const Tensor &of_sums, const Tensor &of_edges_out, const Tensor &kept,
         const Tensor &centers, const Tensor &neighbors, const Tensor &edges, const Tensor &weights,
         const Tensor &transposed, const Tensor &vectors, const Tensor &program,
         const Tensor &scales, const Tensor &values, const Tensor &center, const Tensor &neighbor,
         int64_t sum_width, int64_t edge_width)
{
  const c10::DeviceGuard guard(edges.device());
  const at::AutoDispatchBelowAutograd below;
  const EdgeNetworkCall in(centers, neighbors, edges, weights, transposed, vectors, program, scales,
                           values, center, neighbor, sum_width, edge_width);
  check_gradients_of_edge_network(of_sums, of_edges_out, kept, centers, edges, sum_width,
                                  edge_width, in.program().kept_width());
  const Results from = {rows(of_sums), rows(of_edges_out)};
  const InputGradients to = {at::zeros(centers.sizes(), in.options()),
                             at::zeros(neighbors.sizes(), in.options()),
                             at::zeros(edges.sizes(), in.options())};
  AT_DISPATCH_FLOATING_TYPES(edges.scalar_type(), "edge_network", [&] {
    for_each_chunk<scalar_t>(in, true, [&](Chunk<scalar_t> &chunk) {
      chunk.backward(from, kept, to);
    });
  });
  return {to.centers, to.neighbors, to.edges};
}

TORCH_LIBRARY_IMPL(hienet, HIENET_DEVICE_KEY, library)
{
  library.impl("edge_network_forward", forward);
  library.impl("edge_network_backward", backward);
}

}    // namespace hienet::cuda
