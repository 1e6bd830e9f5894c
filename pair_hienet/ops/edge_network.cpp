// SPDX-License-Identifier: GPL-2.0-or-later
// torch.ops.hienet.edge_network: a network that runs on every edge and reads its two atoms, whose results are summed over
// the neighbours of each center or kept for each edge.
//
// The network is data: instructions (edge_network_kernel.h) that hienet/ops/edge_network.py writes. A few edges at a time
// pass through all of them, so that what is computed of an edge stays in the cache, and the backward computes it again.
// Results of large matrix products are kept for it where that takes little memory.

#include "edge_network_kernel.h"

#include "differentiable.h"
#include "edge_list.h"
#include "matrix_product_kernel.h"
#include "own_rows.h"
#include "pooled_memory.h"
#include "spline_layout.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

namespace hienet {

using at::Tensor;

/// What a thread works in is to fit the second cache.
static constexpr int64_t SCRATCH_BYTES = 1 << 20;
/// Memory that a call may use to keep what the backward needs; with more edges it computes everything again.
static constexpr int64_t KEPT_BYTES = int64_t(1) << 29;
/// Edges of a block: multiples of the rows that a matrix product keeps in registers, 14 or 6.
static constexpr int64_t FEWEST_EDGES = 14, MOST_EDGES = 84;

template <typename T> static const EdgeNetworkKernel<T> &kernel();
template <> const EdgeNetworkKernel<float> &kernel<float>()
{ return HIENET_CHOSEN(EDGE_NETWORK_FLOAT); }
template <> const EdgeNetworkKernel<double> &kernel<double>()
{ return HIENET_CHOSEN(EDGE_NETWORK_DOUBLE); }

// ----------------------------------------------------------------------
// inputs
// ----------------------------------------------------------------------

/// The tensors of one call, in the layout that the kernels read.
struct EdgeNetworkInputs {
  EdgeList list;
  Tensor centers, neighbors, edges, weights, transposed, vectors, program, scales, values;
  int64_t sum_width, edge_width;
  int64_t value_size = 0, kept_width = 0;

  const EdgeInstruction *instructions() const
  { return reinterpret_cast<const EdgeInstruction *>(program.data_ptr<int64_t>()); }
  const EdgeValue *value_data() const
  { return reinterpret_cast<const EdgeValue *>(values.data_ptr<int64_t>()); }

  /// Edges that pass through the network together.
  int64_t block_size() const
  {
    const int64_t fit = SCRATCH_BYTES / (2 * value_size * static_cast<int64_t>(edges.element_size()));
    return std::clamp(fit / FEWEST_EDGES * FEWEST_EDGES, FEWEST_EDGES, MOST_EDGES);
  }

  /// For what is kept between forward and backward: `[n_edges, columns]`, no columns if that is too much.
  Tensor kept() const
  {
    const int64_t bytes = list.n_edges * kept_width * static_cast<int64_t>(edges.element_size());
    return pooled_empty({list.n_edges, bytes <= KEPT_BYTES ? kept_width : 0}, edges.scalar_type());
  }

  template <typename T> EdgeNetwork<T> view(const Tensor &kept) const
  {
    return {instructions(),         scales.data_ptr<double>(), program.size(0),
            value_data(),           value_size,                weights.data_ptr<T>(),
            transposed.data_ptr<T>(), vectors.data_ptr<T>(),   list.center,
            list.neighbor,          centers.data_ptr<T>(),     neighbors.data_ptr<T>(),
            edges.data_ptr<T>(),    centers.stride(0),         neighbors.stride(0),
            edges.stride(0),        kept.size(1) > 0 ? kept.data_ptr<T>() : nullptr,
            kept.stride(0)};
  }
};

/// Numbers that a matrix takes in panels.
static int64_t size_in_panels(int64_t fan_in, int64_t fan_out)
{ return (fan_out + PANEL - 1) / PANEL * PANEL * fan_in; }

/// Every index that the kernels will use lies inside its tensor.
static bool fits(const EdgeNetworkInputs &in, const EdgeInstruction &i)
{
  const int64_t n_values = in.values.size(0);
  const auto is_value = [&](int64_t v) { return v >= 0 && v < n_values; };
  const auto width = [&](int64_t v) { return in.value_data()[v].width; };
  const auto inside = [](int64_t start, int64_t n, int64_t size) {
    return start >= 0 && n >= 1 && n <= size && start <= size - n;
  };
  const auto operation = static_cast<EdgeOperation>(i.operation);
  if (i.kept < -1 || (i.kept >= 0 && operation != EdgeOperation::LINEAR)) return false;
  if (i.operation < 0 || i.operation >= EDGE_OPERATIONS) return false;
  const int64_t of_centers = in.centers.size(1), of_neighbors = in.neighbors.size(1),
                of_edges = in.edges.size(1);
  const bool is_output = operation == EdgeOperation::SUM || operation == EdgeOperation::STORE ||
      operation == EdgeOperation::SUM_DIRECTED || operation == EdgeOperation::SUM_PASSED;
  if (is_output ? i.result != -1 || !is_value(i.first) : !is_value(i.result)) return false;
  const bool reads_one = operation == EdgeOperation::LINEAR ||
      operation == EdgeOperation::ADD_LINEAR || operation == EdgeOperation::LAYER_NORM ||
      operation == EdgeOperation::SILU || operation == EdgeOperation::SIGMOID ||
      operation == EdgeOperation::TANH || operation == EdgeOperation::GROUP_SUM;
  const bool reads_two = operation == EdgeOperation::ADD || operation == EdgeOperation::MULTIPLY ||
      operation == EdgeOperation::JOIN || operation == EdgeOperation::GROUP_MULTIPLY;
  if ((reads_one || reads_two) && !is_value(i.first)) return false;
  if (reads_two && !is_value(i.second)) return false;
  // Components of nodes and directions: c of them.
  const int64_t largest = std::max({of_centers, of_neighbors, of_edges, in.sum_width});
  const bool has_components = operation >= EdgeOperation::CENTER_ALONG_EDGE;
  if (has_components && (i.c < 1 || i.c > largest)) return false;
  switch (operation) {
    case EdgeOperation::EDGE:
      return inside(i.a, width(i.result), of_edges);
    case EdgeOperation::CENTER:
    case EdgeOperation::ADD_CENTER:
      return inside(i.a, width(i.result), of_centers);
    case EdgeOperation::NEIGHBOR:
    case EdgeOperation::ADD_NEIGHBOR:
      return inside(i.a, width(i.result), of_neighbors);
    case EdgeOperation::LINEAR:
    case EdgeOperation::ADD_LINEAR:
      return i.first != i.result &&
          inside(i.a, size_in_panels(width(i.first), width(i.result)), in.weights.numel()) &&
          inside(i.b, size_in_panels(width(i.result), width(i.first)), in.transposed.numel()) &&
          (i.c == -1 || inside(i.c, width(i.result), in.vectors.numel()));
    case EdgeOperation::ADD:
      return width(i.first) == width(i.result) && width(i.second) == width(i.result);
    case EdgeOperation::MULTIPLY:
      return width(i.first) == width(i.result) &&
          (width(i.second) == width(i.result) || width(i.second) == 1);
    case EdgeOperation::SILU:
    case EdgeOperation::SIGMOID:
    case EdgeOperation::TANH:
      return width(i.first) == width(i.result);
    case EdgeOperation::LAYER_NORM:
      return width(i.first) == width(i.result) &&
          inside(i.a, width(i.result), in.vectors.numel()) &&
          inside(i.b, width(i.result), in.vectors.numel());
    case EdgeOperation::JOIN:
      return width(i.result) == width(i.first) + width(i.second);
    case EdgeOperation::GROUP_SUM:
      return width(i.first) % width(i.result) == 0;
    case EdgeOperation::GROUP_MULTIPLY:
      return width(i.second) == width(i.result) && width(i.result) % width(i.first) == 0;
    case EdgeOperation::SUM:
      return inside(i.a, width(i.first), in.sum_width);
    case EdgeOperation::STORE:
      return inside(i.a, width(i.first), in.edge_width);
    case EdgeOperation::CENTER_ALONG_EDGE:
      return inside(i.a, i.c * width(i.result), of_centers) && inside(i.b, i.c, of_edges);
    case EdgeOperation::NEIGHBOR_ALONG_EDGE:
      return inside(i.a, i.c * width(i.result), of_neighbors) && inside(i.b, i.c, of_edges);
    case EdgeOperation::CENTER_DOT_NEIGHBOR:
      return inside(i.a, i.c * width(i.result), of_centers) &&
          inside(i.b, i.c * width(i.result), of_neighbors);
    case EdgeOperation::SUM_DIRECTED:
      return inside(i.a, i.c * width(i.first), in.sum_width) && inside(i.b, i.c, of_edges);
    case EdgeOperation::SUM_PASSED:
      return inside(i.a, i.c * width(i.first), in.sum_width) &&
          inside(i.b, i.c * width(i.first), of_neighbors);
  }
  return false;
}

static void check_program(EdgeNetworkInputs &in)
{
  // Far above what a network needs, and small enough that no product of two of them overflows.
  constexpr int64_t LARGEST = 1 << 24;
  for (int64_t v = 0; v < in.values.size(0); v++) {
    const EdgeValue &value = in.value_data()[v];
    TORCH_CHECK_VALUE(value.start >= 0 && value.start <= LARGEST && value.start % LANES == 0 &&
                          value.stride >= 1 && value.stride <= LARGEST &&
                          value.stride % LANES == 0 && value.column >= 0 && value.width >= 1 &&
                          value.width <= value.stride && value.column <= value.stride - value.width,
                      "value ", v, " of the edge network has a wrong layout");
    in.value_size = std::max(in.value_size, value.start + value.stride);
  }
  for (int64_t k = 0; k < in.program.size(0); k++) {
    const EdgeInstruction &instruction = in.instructions()[k];
    TORCH_CHECK_VALUE(fits(in, instruction) && instruction.kept <= LARGEST, "instruction ", k,
                      " of the edge network does not fit its tensors");
    if (instruction.kept >= 0)
      in.kept_width =
          std::max(in.kept_width, instruction.kept + in.value_data()[instruction.result].width);
  }
}

static EdgeNetworkInputs checked(const Tensor &centers, const Tensor &neighbors,
                                 const Tensor &edges, const Tensor &weights,
                                 const Tensor &transposed, const Tensor &vectors,
                                 const Tensor &program, const Tensor &scales, const Tensor &values,
                                 const Tensor &center, const Tensor &neighbor, int64_t sum_width,
                                 int64_t edge_width)
{
  const auto dtype = edges.scalar_type();
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble,
                    "the edge network takes float32 or float64, got ", dtype);
  for (const Tensor &tensor : {centers, neighbors, weights, transposed, vectors})
    TORCH_CHECK_VALUE(tensor.scalar_type() == dtype, "`edges` are ", dtype,
                      ", but another tensor of the edge network is ", tensor.scalar_type());
  TORCH_CHECK_VALUE(centers.dim() == 2 && neighbors.dim() == 2 && edges.dim() == 2,
                    "`centers`, `neighbors` and `edges` have two dimensions");
  TORCH_CHECK_VALUE(edges.size(0) == center.size(0), "`edges` must have one row for each edge (",
                    center.size(0), "), got ", edges.size(0));
  TORCH_CHECK_VALUE(program.dim() == 2 && program.size(1) == EDGE_INSTRUCTION_COLUMNS &&
                        scales.dim() == 1 && scales.size(0) == program.size(0) &&
                        values.dim() == 2 && values.size(1) == EDGE_VALUE_COLUMNS &&
                        values.size(0) >= 1 && sum_width >= 0 && edge_width >= 0,
                    "the program of the edge network has a wrong shape");
  EdgeNetworkInputs in{EdgeList(center, neighbor, centers.size(0), neighbors.size(0)),
                       rows(centers),
                       rows(neighbors),
                       rows(edges),
                       weights.contiguous(),
                       transposed.contiguous(),
                       vectors.contiguous(),
                       program.to(at::kLong).contiguous(),
                       scales.to(at::kDouble).contiguous(),
                       values.to(at::kLong).contiguous(),
                       sum_width,
                       edge_width};
  check_program(in);
  return in;
}

/// work(part, first edge, number of edges, scratch) for blocks of the edges of every part, each part on a thread.
template <typename T, typename Work>
static void for_each_block(const EdgeNetworkInputs &in, const std::vector<int64_t> &bounds,
                           int64_t copies, const Work &work)
{
  const int64_t size = in.block_size(), of_part = copies * size * in.value_size;
  const Tensor memory = pooled_empty({static_cast<int64_t>(bounds.size() - 1) * of_part},
                                     in.edges.scalar_type());
  for_each_part(bounds, [&](int64_t part, int64_t first, int64_t last) {
    T *const scratch = memory.data_ptr<T>() + part * of_part;
    const int64_t end = in.list.row_start[last];
    for (int64_t e = in.list.row_start[first]; e < end; e += size)
      work(part, e, std::min(size, end - e), scratch);
  });
}

// ----------------------------------------------------------------------
// the operator and its derivative
// ----------------------------------------------------------------------

template <typename T>
static void run_forward(const EdgeNetworkInputs &in, const Tensor &sums, const Tensor &edges_out,
                        const Tensor &kept)
{
  const EdgeNetworkOutputs<T> outputs = {sums.data_ptr<T>(), edges_out.data_ptr<T>(),
                                         sums.stride(0), edges_out.stride(0)};
  for_each_block<T>(in, in.list.parts(), 1, [&](int64_t, int64_t first, int64_t n, T *scratch) {
    kernel<T>().forward(in.view<T>(kept), outputs, first, n, in.block_size(), scratch);
  });
}

template <typename T>
static void run_backward(const EdgeNetworkInputs &in, const Tensor &kept, const Tensor &of_sums,
                         const Tensor &of_edges_out, const Tensor &of_centers,
                         const Tensor &of_neighbors, const Tensor &of_edges)
{
  const auto bounds = in.list.parts();
  const OwnRows own(in.list, bounds, in.neighbors.size(0), in.neighbors.size(1),
                    in.edges.scalar_type());
  for_each_block<T>(in, bounds, 2, [&](int64_t part, int64_t first, int64_t n, T *scratch) {
    EdgeNetworkGradients<T> g = {of_sums.data_ptr<T>(),    of_edges_out.data_ptr<T>(),
                                 of_sums.stride(0),        of_edges_out.stride(0),
                                 of_centers.data_ptr<T>(), of_neighbors.data_ptr<T>(),
                                 of_edges.data_ptr<T>(),   of_centers.stride(0),
                                 of_neighbors.stride(0),   of_edges.stride(0),
                                 nullptr};
    if (part > 0) {
      g.neighbors = own.rows<T>(part);
      g.neighbor_stride = in.neighbors.size(1);
      g.slot = own.slot[part].data();
    }
    kernel<T>().backward(in.view<T>(kept), g, first, n, in.block_size(), scratch);
  });
  own.add_to<T>(of_neighbors);
}

static std::tuple<Tensor, Tensor, Tensor> forward_cpu(const Tensor &centers, const Tensor &neighbors,
                                              const Tensor &edges, const Tensor &weights,
                                              const Tensor &transposed, const Tensor &vectors,
                                              const Tensor &program, const Tensor &scales,
                                              const Tensor &values, const Tensor &center,
                                              const Tensor &neighbor, int64_t sum_width,
                                              int64_t edge_width, bool keep)
{
  const EdgeNetworkInputs in = checked(centers, neighbors, edges, weights, transposed, vectors,
                                       program, scales, values, center, neighbor, sum_width,
                                       edge_width);
  const Tensor sums = pooled_zeros({centers.size(0), sum_width}, edges.scalar_type());
  // Zeros where no instruction stores.
  const Tensor edges_out = pooled_zeros({edges.size(0), edge_width}, edges.scalar_type());
  const Tensor kept = keep ? in.kept() : pooled_empty({in.list.n_edges, 0}, edges.scalar_type());
  if (edges.scalar_type() == at::kFloat)
    run_forward<float>(in, sums, edges_out, kept);
  else
    run_forward<double>(in, sums, edges_out, kept);
  return {sums, edges_out, kept};
}

static std::tuple<Tensor, Tensor, Tensor>
backward_cpu(const Tensor &of_sums, const Tensor &of_edges_out, const Tensor &kept,
             const Tensor &centers,
             const Tensor &neighbors, const Tensor &edges, const Tensor &weights,
             const Tensor &transposed, const Tensor &vectors, const Tensor &program,
             const Tensor &scales, const Tensor &values, const Tensor &center,
             const Tensor &neighbor, int64_t sum_width, int64_t edge_width)
{
  const EdgeNetworkInputs in = checked(centers, neighbors, edges, weights, transposed, vectors,
                                       program, scales, values, center, neighbor, sum_width,
                                       edge_width);
  const auto dtype = edges.scalar_type();
  TORCH_CHECK_VALUE(of_sums.dim() == 2 && of_sums.size(0) == centers.size(0) &&
                        of_sums.size(1) == sum_width && of_sums.scalar_type() == dtype &&
                        of_edges_out.dim() == 2 && of_edges_out.size(0) == edges.size(0) &&
                        of_edges_out.size(1) == edge_width && of_edges_out.scalar_type() == dtype,
                    "a gradient of the edge network's results has a wrong shape or dtype");
  TORCH_CHECK_VALUE(kept.dim() == 2 && kept.size(0) == edges.size(0) &&
                        (kept.size(1) == 0 || kept.size(1) == in.kept_width) &&
                        kept.scalar_type() == dtype && kept.is_contiguous(),
                    "what was kept of the edge network has a wrong shape or dtype");
  const Tensor of_centers = pooled_zeros(centers.sizes(), dtype);
  const Tensor of_neighbors = pooled_zeros(neighbors.sizes(), dtype);
  const Tensor of_edges = pooled_zeros(edges.sizes(), dtype);
  if (dtype == at::kFloat)
    run_backward<float>(in, kept, rows(of_sums), rows(of_edges_out), of_centers, of_neighbors, of_edges);
  else
    run_backward<double>(in, kept, rows(of_sums), rows(of_edges_out), of_centers, of_neighbors, of_edges);
  return {of_centers, of_neighbors, of_edges};
}

/// Below autograd: nothing is kept.
static std::tuple<Tensor, Tensor> forward_alone(const Tensor &centers, const Tensor &neighbors,
                                                const Tensor &edges, const Tensor &weights,
                                                const Tensor &transposed, const Tensor &vectors,
                                                const Tensor &program, const Tensor &scales,
                                                const Tensor &values, const Tensor &center,
                                                const Tensor &neighbor, int64_t sum_width,
                                                int64_t edge_width)
{
  const auto [sums, edges_out, kept] =
      forward_cpu(centers, neighbors, edges, weights, transposed, vectors, program, scales, values,
                  center, neighbor, sum_width, edge_width, false);
  return {sums, edges_out};
}

struct DifferentiableEdgeNetwork : torch::autograd::Function<DifferentiableEdgeNetwork> {
  static torch::autograd::variable_list
  forward(torch::autograd::AutogradContext *context, const Tensor &centers,
          const Tensor &neighbors, const Tensor &edges, const Tensor &weights,
          const Tensor &transposed, const Tensor &vectors, const Tensor &program,
          const Tensor &scales, const Tensor &values, const Tensor &center, const Tensor &neighbor,
          int64_t sum_width, int64_t edge_width, bool keep)
  {
    context->saved_data["sum_width"] = sum_width;
    context->saved_data["edge_width"] = edge_width;
    const at::AutoDispatchBelowAutograd below;
    static const auto op = dispatched<decltype(forward_cpu)>("hienet::edge_network_forward");
    const auto [sums, edges_out, kept] =
        op.call(centers, neighbors, edges, weights, transposed, vectors, program, scales, values,
                center, neighbor, sum_width, edge_width, keep);
    context->save_for_backward({kept, centers, neighbors, edges, weights, transposed, vectors,
                                program, scales, values, center, neighbor});
    return {sums, edges_out};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list gradients)
  {
    check_differentiated_once();
    const auto s = context->get_saved_variables();
    static const auto op = dispatched<decltype(backward_cpu)>("hienet::edge_network_backward");
    const auto [of_centers, of_neighbors, of_edges] =
        op.call(gradients[0], gradients[1], s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8],
                s[9], s[10], s[11], context->saved_data["sum_width"].toInt(),
                context->saved_data["edge_width"].toInt());
    return {of_centers, of_neighbors, of_edges, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}};
  }
};

/// The results without what is kept, in a graph if one is made.
static std::tuple<Tensor, Tensor>
forward_autograd(const Tensor &centers, const Tensor &neighbors, const Tensor &edges,
                 const Tensor &weights, const Tensor &transposed, const Tensor &vectors,
                 const Tensor &program, const Tensor &scales, const Tensor &values,
                 const Tensor &center, const Tensor &neighbor, int64_t sum_width,
                 int64_t edge_width)
{
  check_constant({weights, transposed, vectors});
  const bool keep = at::GradMode::is_enabled() &&
      (centers.requires_grad() || neighbors.requires_grad() || edges.requires_grad());
  const auto results = DifferentiableEdgeNetwork::apply(centers, neighbors, edges, weights,
                                                        transposed, vectors, program, scales, values,
                                                        center, neighbor, sum_width, edge_width, keep);
  return {results[0], results[1]};
}

TORCH_LIBRARY_FRAGMENT(hienet, library)
{
  library.def("edge_network(Tensor centers, Tensor neighbors, Tensor edges, Tensor weights, "
              "Tensor transposed, Tensor vectors, Tensor program, Tensor scales, Tensor values, "
              "Tensor center, Tensor neighbor, int sum_width, int edge_width) "
              "-> (Tensor, Tensor)");
  library.def("edge_network_forward(Tensor centers, Tensor neighbors, Tensor edges, "
              "Tensor weights, Tensor transposed, Tensor vectors, Tensor program, Tensor scales, "
              "Tensor values, Tensor center, Tensor neighbor, int sum_width, int edge_width, "
              "bool keep) -> (Tensor, Tensor, Tensor)");
  library.def("edge_network_backward(Tensor of_sums, Tensor of_edges_out, Tensor kept, "
              "Tensor centers, Tensor neighbors, Tensor edges, Tensor weights, "
              "Tensor transposed, Tensor vectors, Tensor program, Tensor scales, Tensor values, "
              "Tensor center, Tensor neighbor, int sum_width, int edge_width) "
              "-> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(hienet, CPU, library)
{
  library.impl("edge_network", forward_alone);
  library.impl("edge_network_forward", forward_cpu);
  library.impl("edge_network_backward", backward_cpu);
}

TORCH_LIBRARY_IMPL(hienet, CUDA, library)
{ library.impl("edge_network", torch::CppFunction::makeFromBoxedFunction<&refuse_cuda>()); }

TORCH_LIBRARY_IMPL(hienet, Autograd, library)
{ library.impl("edge_network", forward_autograd); }

}    // namespace hienet
