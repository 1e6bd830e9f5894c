// SPDX-License-Identifier: GPL-2.0-or-later
// torch.ops.hienet.interaction: the tensor-product convolution and the linear map after it, a block of centers at a time.
//
//   y_i = Linear(sum_j TP(x_j, Y_ij; w(d_ij))) + k_i
//
// where a row of `state` holds what neighbours read, x, and the atom's own part, k. Messages to a block of centers live in
// scratch memory only until the linear map has read them. The backward needs none of them: the map and the convolution
// are linear in the messages.

#include "convolution_kernel.h"
#include "differentiable.h"
#include "edge_list.h"
#include "interaction_plan.h"
#include "irreps_linear.h"
#include "own_rows.h"
#include "pooled_memory.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

namespace hienet {

using at::Tensor;

/// Most centers whose messages pass through the linear map together: enough for a matrix product to be efficient, and a
/// multiple of the rows that it keeps in registers, 14 or 6.
static constexpr int64_t BLOCK_CENTERS = 28;
/// Edges that the convolution takes at a time: what they need of the tables and features fits the second cache.
static constexpr int64_t PIECE_EDGES = 448;

// ----------------------------------------------------------------------
// inputs
// ----------------------------------------------------------------------

/// The tensors of one call, in the layout that the kernels read.
struct InteractionInputs {
  EdgeList list;
  Tensor state, edges, table, coefficients;
  InteractionPlan plan;
  IrrepsLinear linear;
  int64_t kept_start;
  double cutoff;
};

static InteractionInputs checked(const Tensor &state, const Tensor &edges, const Tensor &table,
                                 const Tensor &weights, const Tensor &transposed,
                                 const Tensor &center, const Tensor &neighbor, int64_t n_local,
                                 double cutoff, const Tensor &paths, const Tensor &terms,
                                 const Tensor &coefficients, const Tensor &linear,
                                 int64_t kept_start)
{
  check_interaction(state, edges, table, weights, transposed, center, cutoff, paths, terms,
                    coefficients);
  InteractionInputs in{EdgeList(center, neighbor, n_local, state.size(0)),
                       rows(state),
                       rows(edges),
                       table.contiguous(),
                       coefficients.to(state.scalar_type()).contiguous(),
                       InteractionPlan(paths, terms, state, edges, table),
                       IrrepsLinear(linear, weights, transposed),
                       kept_start,
                       cutoff};
  in.plan.check_linear_map(in.linear.width_in(), in.linear.width_out(), state, kept_start);
  return in;
}

template <typename T> static Convolution<T> convolution(const InteractionInputs &in)
{
  const int64_t n_intervals = in.table.size(1);
  return {{in.plan.paths.data(), static_cast<int64_t>(in.plan.paths.size()), in.plan.terms.data(),
           in.coefficients.data_ptr<T>(), in.edges.size(1) - 1, in.table.data_ptr<T>(),
           in.list.row_start.data(), in.list.neighbor, in.state.data_ptr<T>(),
           in.edges.data_ptr<T>(), in.state.stride(0), in.edges.stride(0)},
          n_intervals,
          static_cast<T>(n_intervals / in.cutoff)};
}

template <typename T> static const Kernel<T> &kernel();
template <> const Kernel<float> &kernel<float>()
{ return HIENET_CHOSEN(CONVOLUTION_FLOAT); }
template <> const Kernel<double> &kernel<double>()
{ return HIENET_CHOSEN(CONVOLUTION_DOUBLE); }

// ----------------------------------------------------------------------
// blocks of centers
// ----------------------------------------------------------------------

/// `n` centers in blocks of about equal size.
static int64_t block_size(int64_t n)
{
  const int64_t blocks = std::max<int64_t>(1, (n + BLOCK_CENTERS - 1) / BLOCK_CENTERS);
  return (n + blocks - 1) / blocks;
}

/// What each thread works in: scratch memory for any piece, and messages of a block of centers.
template <typename T> class Workspace {
 public:
  Workspace(const InteractionInputs &in, const Convolution<T> &c,
            const std::vector<int64_t> &bounds) :
      message_width(in.plan.message_width), options(in.state.options()),
      scratch_size(whole(kernel<T>().scratch_size(c, in.list.largest_piece(PIECE_EDGES)))),
      part_size(scratch_size + whole(largest_block(bounds) * message_width)),
      memory(pooled_empty({static_cast<int64_t>(bounds.size() - 1) * part_size},
                          in.state.scalar_type()))
  {
  }

  T *scratch(int64_t part) const { return memory.data_ptr<T>() + part * part_size; }

  /// `[n, message_width]`
  Tensor messages(int64_t part, int64_t n) const
  { return at::from_blob(scratch(part) + scratch_size, {n, message_width}, options); }

 private:
  const int64_t message_width;
  const at::TensorOptions options;
  const int64_t scratch_size, part_size;
  const Tensor memory;

  /// Whole vectors, so that every part is aligned.
  static int64_t whole(int64_t size) { return (size + LANES - 1) / LANES * LANES; }

  static int64_t largest_block(const std::vector<int64_t> &bounds)
  {
    int64_t largest = 0;
    for (size_t part = 0; part + 1 < bounds.size(); part++)
      largest = std::max(largest, block_size(bounds[part + 1] - bounds[part]));
    return largest;
  }
};

// ----------------------------------------------------------------------
// the operator and its derivative
// ----------------------------------------------------------------------

template <typename T> static void run_forward(const InteractionInputs &in, const Tensor &output)
{
  const auto c = convolution<T>(in);
  const auto bounds = in.list.parts();
  const Workspace<T> workspace(in, c, bounds);
  for_each_part(bounds, [&](int64_t part, int64_t first, int64_t last) {
    const int64_t size = block_size(last - first);
    for (int64_t begin = first; begin < last; begin += size) {
      const int64_t n = std::min(size, last - begin);
      const Tensor messages = workspace.messages(part, n);
      in.list.for_each_piece(PIECE_EDGES, begin, begin + n, [&](int64_t from, int64_t to) {
        kernel<T>().forward(c, messages.data_ptr<T>() + (from - begin) * in.plan.message_width,
                            in.plan.message_width, from, to, workspace.scratch(part));
      });
      const Tensor block = output.narrow(0, begin, n);
      block.copy_(in.state.narrow(0, begin, n).narrow(1, in.kept_start, in.linear.width_out()));
      in.linear.apply(messages, block, true);
    }
  });
}

template <typename T>
static void run_backward(const InteractionInputs &in, const Tensor &gradient,
                         const Tensor &of_state, const Tensor &of_edges)
{
  const auto c = convolution<T>(in);
  const auto bounds = in.list.parts();
  const Workspace<T> workspace(in, c, bounds);
  const OwnRows own(in.list, bounds, in.state.size(0), in.plan.read_width, in.state.scalar_type());
  // The gradients of what neighbours read are sums; those of the atoms' own part are copied below.
  const int64_t n_local = in.list.n_local, kept_stop = in.kept_start + in.linear.width_out();
  of_state.narrow(1, 0, in.kept_start).zero_();
  of_state.narrow(1, kept_stop, of_state.size(1) - kept_stop).zero_();
  of_state.narrow(0, n_local, of_state.size(0) - n_local).zero_();
  for_each_part(bounds, [&](int64_t part, int64_t first, int64_t last) {
    Gradients<T> g = {of_state.data_ptr<T>(), of_edges.data_ptr<T>(), of_state.stride(0),
                      of_edges.stride(0), nullptr};
    if (part > 0) {
      g.features = own.rows<T>(part);
      g.feature_stride = in.plan.read_width;
      g.slot = own.slot[part].data();
    }
    const int64_t size = block_size(last - first);
    for (int64_t begin = first; begin < last; begin += size) {
      const int64_t n = std::min(size, last - begin);
      const Tensor messages = workspace.messages(part, n);
      in.linear.apply_transposed(gradient.narrow(0, begin, n), messages, false);
      in.list.for_each_piece(PIECE_EDGES, begin, begin + n, [&](int64_t from, int64_t to) {
        kernel<T>().backward(c, messages.data_ptr<T>() + (from - begin) * in.plan.message_width,
                             in.plan.message_width, g, from, to, workspace.scratch(part));
      });
    }
    of_state.narrow(0, first, last - first)
        .narrow(1, in.kept_start, in.linear.width_out())
        .copy_(gradient.narrow(0, first, last - first));
  });
  own.add_to<T>(of_state);
}

static Tensor forward_cpu(const Tensor &state, const Tensor &edges, const Tensor &table,
                          const Tensor &weights, const Tensor &transposed, const Tensor &center,
                          const Tensor &neighbor, int64_t n_local, double cutoff,
                          const Tensor &paths, const Tensor &terms, const Tensor &coefficients,
                          const Tensor &linear, int64_t kept_start)
{
  const InteractionInputs in =
      checked(state, edges, table, weights, transposed, center, neighbor, n_local, cutoff, paths,
              terms, coefficients, linear, kept_start);
  const Tensor output = pooled_empty({n_local, in.linear.width_out()}, state.scalar_type());
  if (state.scalar_type() == at::kFloat)
    run_forward<float>(in, output);
  else
    run_forward<double>(in, output);
  return output;
}

static std::tuple<Tensor, Tensor> backward_cpu(const Tensor &gradient, const Tensor &state,
                                               const Tensor &edges, const Tensor &table,
                                               const Tensor &weights, const Tensor &transposed,
                                               const Tensor &center, const Tensor &neighbor,
                                               int64_t n_local, double cutoff, const Tensor &paths,
                                               const Tensor &terms, const Tensor &coefficients,
                                               const Tensor &linear, int64_t kept_start)
{
  const InteractionInputs in =
      checked(state, edges, table, weights, transposed, center, neighbor, n_local, cutoff, paths,
              terms, coefficients, linear, kept_start);
  check_gradient_of_interaction(gradient, state, n_local, in.linear.width_out());
  const Tensor of_state = pooled_empty(state.sizes(), state.scalar_type());
  const Tensor of_edges = pooled_zeros(edges.sizes(), state.scalar_type());
  if (state.scalar_type() == at::kFloat)
    run_backward<float>(in, rows(gradient), of_state, of_edges);
  else
    run_backward<double>(in, rows(gradient), of_state, of_edges);
  return {of_state, of_edges};
}

struct DifferentiableInteraction : torch::autograd::Function<DifferentiableInteraction> {
  static Tensor forward(torch::autograd::AutogradContext *context, const Tensor &state,
                        const Tensor &edges, const Tensor &table, const Tensor &weights,
                        const Tensor &transposed, const Tensor &center, const Tensor &neighbor,
                        int64_t n_local, double cutoff, const Tensor &paths, const Tensor &terms,
                        const Tensor &coefficients, const Tensor &linear, int64_t kept_start)
  {
    context->save_for_backward({state, edges, table, weights, transposed, center, neighbor, paths,
                                terms, coefficients, linear});
    context->saved_data["n_local"] = n_local;
    context->saved_data["cutoff"] = cutoff;
    context->saved_data["kept_start"] = kept_start;
    const at::AutoDispatchBelowAutograd below;
    static const auto op = dispatched<decltype(forward_cpu)>("hienet::interaction");
    return op.call(state, edges, table, weights, transposed, center, neighbor, n_local, cutoff,
                   paths, terms, coefficients, linear, kept_start);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list gradients)
  {
    check_differentiated_once();
    const auto s = context->get_saved_variables();
    static const auto op = dispatched<decltype(backward_cpu)>("hienet::interaction_backward");
    const auto [of_state, of_edges] =
        op.call(gradients[0], s[0], s[1], s[2], s[3], s[4], s[5], s[6],
                context->saved_data["n_local"].toInt(), context->saved_data["cutoff"].toDouble(),
                s[7], s[8], s[9], s[10], context->saved_data["kept_start"].toInt());
    return {of_state, of_edges, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}};
  }
};

static Tensor forward_autograd(const Tensor &state, const Tensor &edges, const Tensor &table,
                               const Tensor &weights, const Tensor &transposed,
                               const Tensor &center, const Tensor &neighbor, int64_t n_local,
                               double cutoff, const Tensor &paths, const Tensor &terms,
                               const Tensor &coefficients, const Tensor &linear, int64_t kept_start)
{
  check_constant({table, weights, transposed});
  return DifferentiableInteraction::apply(state, edges, table, weights, transposed, center,
                                          neighbor, n_local, cutoff, paths, terms, coefficients,
                                          linear, kept_start);
}

TORCH_LIBRARY_FRAGMENT(hienet, library)
{
  library.def(
      "interaction(Tensor state, Tensor edges, Tensor table, Tensor weights, "
      "Tensor transposed, Tensor center, Tensor neighbor, int n_local, float cutoff, Tensor paths, "
      "Tensor terms, Tensor coefficients, Tensor linear, int kept_start) -> Tensor");
  library.def("interaction_backward(Tensor gradient, Tensor state, Tensor edges, Tensor table, "
              "Tensor weights, Tensor transposed, Tensor center, Tensor neighbor, int n_local, "
              "float cutoff, "
              "Tensor paths, Tensor terms, Tensor coefficients, Tensor linear, int kept_start) "
              "-> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(hienet, CPU, library)
{
  library.impl("interaction", forward_cpu);
  library.impl("interaction_backward", backward_cpu);
}

TORCH_LIBRARY_IMPL(hienet, Autograd, library)
{ library.impl("interaction", forward_autograd); }

}    // namespace hienet
