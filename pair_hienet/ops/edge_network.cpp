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
#include "edge_network_checks.h"
#include "edge_program.h"
#include "own_rows.h"
#include "pooled_memory.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

namespace hienet {

using at::Tensor;

/// What a thread works in is to fit the second cache.
static constexpr int64_t SCRATCH_BYTES = 1 << 20;
/// Edges of a block: multiples of the rows that a matrix product keeps in registers with AVX-512.
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
  Tensor centers, neighbors, edges, weights, transposed, vectors;
  EdgeProgram program;

  /// Edges that pass through the network together. Where gradients of large weights are summed, these are read and written
  /// once for each block, which takes longer than to leave the cache with what is computed of the edges.
  int64_t block_size(bool of_weights = false) const
  {
    const int64_t bytes = weights.numel() * static_cast<int64_t>(edges.element_size());
    if (of_weights && bytes > SCRATCH_BYTES) return MOST_EDGES;
    const int64_t fit =
        SCRATCH_BYTES / (2 * program.value_size() * static_cast<int64_t>(edges.element_size()));
    return std::clamp(fit / FEWEST_EDGES * FEWEST_EDGES, FEWEST_EDGES, MOST_EDGES);
  }

  /// For what is kept between forward and backward, `[first edges, kept_width]`.
  Tensor kept() const
  {
    const int64_t n = edges_kept(list.n_edges, program.kept_width(), edges);
    return pooled_empty({n, program.kept_width()}, edges.scalar_type());
  }

  template <typename T> EdgeNetwork<T> view(const Tensor &kept) const
  {
    return {program.instructions(),
            program.scales(),
            program.size(),
            program.values(),
            program.value_size(),
            weights.const_data_ptr<T>(),
            transposed.const_data_ptr<T>(),
            vectors.const_data_ptr<T>(),
            list.center,
            list.neighbor,
            centers.const_data_ptr<T>(),
            neighbors.const_data_ptr<T>(),
            edges.const_data_ptr<T>(),
            centers.stride(0),
            neighbors.stride(0),
            edges.stride(0),
            kept.data_ptr<T>(),
            kept.size(1),
            kept.size(0)};
  }
};

static EdgeNetworkInputs checked(const Tensor &centers, const Tensor &neighbors,
                                 const Tensor &edges, const Tensor &weights,
                                 const Tensor &transposed, const Tensor &vectors,
                                 const Tensor &program, const Tensor &scales, const Tensor &values,
                                 const Tensor &center, const Tensor &neighbor, int64_t sum_width,
                                 int64_t edge_width)
{
  check_edge_network(centers, neighbors, edges, weights, transposed, vectors, center);
  return {EdgeList(center, neighbor, centers.size(0), neighbors.size(0)),
          rows(centers),
          rows(neighbors),
          rows(edges),
          weights.contiguous(),
          transposed.contiguous(),
          vectors.contiguous(),
          EdgeProgram(program, scales, values,
                      {centers.size(1), neighbors.size(1), edges.size(1), sum_width, edge_width,
                       weights.numel(), transposed.numel(), vectors.numel()})};
}

/// work(part, first edge, number of edges, scratch) for blocks of the edges of every part, each part on a thread.
template <typename T, typename Work>
static void for_each_block(const EdgeNetworkInputs &in, const std::vector<int64_t> &bounds,
                           int64_t copies, int64_t size, const Work &work)
{
  const int64_t of_part = copies * size * in.program.value_size();
  const Tensor memory =
      pooled_empty({static_cast<int64_t>(bounds.size() - 1) * of_part}, in.edges.scalar_type());
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
  const auto network = in.view<T>(kept);
  const int64_t size = in.block_size();
  for_each_block<T>(in, in.list.parts(), 1, size,
                    [&](int64_t, int64_t first, int64_t n, T *scratch) {
                      kernel<T>().forward(network, outputs, first, n, size, scratch);
                    });
}

/// Where gradients go; `weights` and `vectors` are undefined where they are not wanted.
struct EdgeNetworkResults {
  Tensor centers, neighbors, edges, weights, vectors;

  EdgeNetworkResults(const EdgeNetworkInputs &in, bool of_weights)
  {
    const auto dtype = in.edges.scalar_type();
    centers = pooled_zeros(in.centers.sizes(), dtype);
    neighbors = pooled_zeros(in.neighbors.sizes(), dtype);
    edges = pooled_zeros(in.edges.sizes(), dtype);
    if (!of_weights) return;
    weights = pooled_zeros(in.weights.sizes(), dtype);
    vectors = pooled_zeros(in.vectors.sizes(), dtype);
  }
};

/// Sums of the parts behind the first, `[parts - 1, n]`, in their order.
static void add_parts(const Tensor &to, const Tensor &parts)
{
  for (int64_t part = 0; part < parts.size(0); part++) to.add_(parts[part]);
}

template <typename T>
static void run_backward(const EdgeNetworkInputs &in, const Tensor &kept, const Tensor &of_sums,
                         const Tensor &of_edges_out, const EdgeNetworkResults &to)
{
  const auto bounds = in.list.parts();
  const int64_t own_parts = static_cast<int64_t>(bounds.size()) - 2;
  const bool of_weights = to.weights.defined();
  const auto steps = in.program.backward_steps(of_weights);
  const auto network = in.view<T>(kept);
  const OwnRows own(in.list, bounds, in.neighbors.size(0), in.neighbors.size(1),
                    in.edges.scalar_type());
  const EdgeNetworkGradients<T> all = {steps.data(),
                                       of_sums.const_data_ptr<T>(),
                                       of_edges_out.const_data_ptr<T>(),
                                       of_sums.stride(0),
                                       of_edges_out.stride(0),
                                       to.centers.data_ptr<T>(),
                                       to.neighbors.data_ptr<T>(),
                                       to.edges.data_ptr<T>(),
                                       to.centers.stride(0),
                                       to.neighbors.stride(0),
                                       to.edges.stride(0),
                                       nullptr,
                                       of_weights ? to.weights.data_ptr<T>() : nullptr,
                                       of_weights ? to.vectors.data_ptr<T>() : nullptr};
  const auto dtype = in.edges.scalar_type();
  const Tensor own_weights = pooled_zeros({of_weights ? own_parts : 0, in.weights.numel()}, dtype);
  const Tensor own_vectors = pooled_zeros({of_weights ? own_parts : 0, in.vectors.numel()}, dtype);
  const int64_t size = in.block_size(of_weights);
  for_each_block<T>(in, bounds, 2, size, [&](int64_t part, int64_t first, int64_t n, T *scratch) {
    EdgeNetworkGradients<T> g = all;
    if (part > 0) {
      g.neighbors = own.rows<T>(part);
      g.neighbor_stride = in.neighbors.size(1);
      g.slot = own.slot[part].data();
      if (of_weights) {
        g.weights = own_weights.data_ptr<T>() + (part - 1) * in.weights.numel();
        g.vectors = own_vectors.data_ptr<T>() + (part - 1) * in.vectors.numel();
      }
    }
    kernel<T>().backward(network, g, first, n, size, scratch);
  });
  own.add_to<T>(to.neighbors);
  if (!of_weights) return;
  add_parts(to.weights, own_weights);
  add_parts(to.vectors, own_vectors);
}

static std::tuple<Tensor, Tensor, Tensor>
forward_cpu(const Tensor &centers, const Tensor &neighbors, const Tensor &edges,
            const Tensor &weights, const Tensor &transposed, const Tensor &vectors,
            const Tensor &program, const Tensor &scales, const Tensor &values, const Tensor &center,
            const Tensor &neighbor, int64_t sum_width, int64_t edge_width, bool keep)
{
  const EdgeNetworkInputs in =
      checked(centers, neighbors, edges, weights, transposed, vectors, program, scales, values,
              center, neighbor, sum_width, edge_width);
  const Tensor sums = pooled_zeros({centers.size(0), sum_width}, edges.scalar_type());
  // Zeros where no instruction stores.
  const Tensor edges_out = pooled_zeros({edges.size(0), edge_width}, edges.scalar_type());
  const Tensor kept = keep ? in.kept()
                           : pooled_empty({0, in.program.kept_width()}, edges.scalar_type());
  if (edges.scalar_type() == at::kFloat)
    run_forward<float>(in, sums, edges_out, kept);
  else
    run_forward<double>(in, sums, edges_out, kept);
  return {sums, edges_out, kept};
}

static EdgeNetworkResults
backward_of(const Tensor &of_sums, const Tensor &of_edges_out, const Tensor &kept,
            const Tensor &centers, const Tensor &neighbors, const Tensor &edges,
            const Tensor &weights, const Tensor &transposed, const Tensor &vectors,
            const Tensor &program, const Tensor &scales, const Tensor &values, const Tensor &center,
            const Tensor &neighbor, int64_t sum_width, int64_t edge_width, bool of_weights)
{
  const EdgeNetworkInputs in =
      checked(centers, neighbors, edges, weights, transposed, vectors, program, scales, values,
              center, neighbor, sum_width, edge_width);
  check_gradients_of_edge_network(of_sums, of_edges_out, kept, centers, edges, sum_width,
                                  edge_width, in.program.kept_width());
  const EdgeNetworkResults to(in, of_weights);
  if (edges.scalar_type() == at::kFloat)
    run_backward<float>(in, kept, rows(of_sums), rows(of_edges_out), to);
  else
    run_backward<double>(in, kept, rows(of_sums), rows(of_edges_out), to);
  return to;
}

static std::tuple<Tensor, Tensor, Tensor>
backward_cpu(const Tensor &of_sums, const Tensor &of_edges_out, const Tensor &kept,
             const Tensor &centers, const Tensor &neighbors, const Tensor &edges,
             const Tensor &weights, const Tensor &transposed, const Tensor &vectors,
             const Tensor &program, const Tensor &scales, const Tensor &values,
             const Tensor &center, const Tensor &neighbor, int64_t sum_width, int64_t edge_width)
{
  const EdgeNetworkResults to =
      backward_of(of_sums, of_edges_out, kept, centers, neighbors, edges, weights, transposed,
                  vectors, program, scales, values, center, neighbor, sum_width, edge_width, false);
  return {to.centers, to.neighbors, to.edges};
}

/// For training: also with respect to weights, in their panels, and vectors.
static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> training_backward_cpu(
    const Tensor &of_sums, const Tensor &of_edges_out, const Tensor &kept, const Tensor &centers,
    const Tensor &neighbors, const Tensor &edges, const Tensor &weights, const Tensor &transposed,
    const Tensor &vectors, const Tensor &program, const Tensor &scales, const Tensor &values,
    const Tensor &center, const Tensor &neighbor, int64_t sum_width, int64_t edge_width)
{
  const EdgeNetworkResults to =
      backward_of(of_sums, of_edges_out, kept, centers, neighbors, edges, weights, transposed,
                  vectors, program, scales, values, center, neighbor, sum_width, edge_width, true);
  return {to.centers, to.neighbors, to.edges, to.weights, to.vectors};
}

/// Below autograd, on any device: nothing is kept.
static std::tuple<Tensor, Tensor>
forward_alone(const Tensor &centers, const Tensor &neighbors, const Tensor &edges,
              const Tensor &weights, const Tensor &transposed, const Tensor &vectors,
              const Tensor &program, const Tensor &scales, const Tensor &values,
              const Tensor &center, const Tensor &neighbor, int64_t sum_width, int64_t edge_width)
{
  static const auto op = dispatched<decltype(forward_cpu)>("hienet::edge_network_forward");
  const auto [sums, edges_out, kept] =
      op.call(centers, neighbors, edges, weights, transposed, vectors, program, scales, values,
              center, neighbor, sum_width, edge_width, false);
  return {sums, edges_out};
}

struct DifferentiableEdgeNetwork : torch::autograd::Function<DifferentiableEdgeNetwork> {
  static torch::autograd::variable_list
  forward(torch::autograd::AutogradContext *context, const Tensor &centers, const Tensor &neighbors,
          const Tensor &edges, const Tensor &weights, const Tensor &transposed,
          const Tensor &vectors, const Tensor &program, const Tensor &scales, const Tensor &values,
          const Tensor &center, const Tensor &neighbor, int64_t sum_width, int64_t edge_width,
          bool keep)
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
static std::tuple<Tensor, Tensor> forward_autograd(const Tensor &centers, const Tensor &neighbors,
                                                   const Tensor &edges, const Tensor &weights,
                                                   const Tensor &transposed, const Tensor &vectors,
                                                   const Tensor &program, const Tensor &scales,
                                                   const Tensor &values, const Tensor &center,
                                                   const Tensor &neighbor, int64_t sum_width,
                                                   int64_t edge_width)
{
  check_constant({weights, transposed, vectors, scales});
  const bool keep = at::GradMode::is_enabled() &&
      (centers.requires_grad() || neighbors.requires_grad() || edges.requires_grad());
  const auto results = DifferentiableEdgeNetwork::apply(
      centers, neighbors, edges, weights, transposed, vectors, program, scales, values, center,
      neighbor, sum_width, edge_width, keep);
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
  library.def("edge_network_training_backward(Tensor of_sums, Tensor of_edges_out, Tensor kept, "
              "Tensor centers, Tensor neighbors, Tensor edges, Tensor weights, "
              "Tensor transposed, Tensor vectors, Tensor program, Tensor scales, Tensor values, "
              "Tensor center, Tensor neighbor, int sum_width, int edge_width) "
              "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(hienet, CPU, library)
{
  library.impl("edge_network_forward", forward_cpu);
  library.impl("edge_network_backward", backward_cpu);
  library.impl("edge_network_training_backward", training_backward_cpu);
}

TORCH_LIBRARY_IMPL(hienet, CompositeExplicitAutograd, library)
{ library.impl("edge_network", forward_alone); }

TORCH_LIBRARY_IMPL(hienet, Autograd, library)
{ library.impl("edge_network", forward_autograd); }

}    // namespace hienet
