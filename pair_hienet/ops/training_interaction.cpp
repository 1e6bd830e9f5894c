// SPDX-License-Identifier: GPL-2.0-or-later
// torch.ops.hienet.training_interaction: an equivariant layer of a training step up to its gate, and its backward, on
// values `[n, 1, width]` or with their tangents `[n, 2, width]`:
//
//   sent = x W_in + added,   messages = convolution of sent,
//   update = scale messages W_out + x W_skip + kept,   gate(update)
//
// It calls the operators for each of these; so that a small layer costs one call of Python's and one node of autograd's.

#include "differentiable.h"

#include <ATen/ATen.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

namespace hienet {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;

// ----------------------------------------------------------------------
// what it is made of
// ----------------------------------------------------------------------

static Tensor linear(const Tensor &features, const Tensor &weights, const Tensor &columns,
                     double scale)
{
  static const auto op = dispatched<Tensor(const Tensor &, const Tensor &, const Tensor &, double)>(
      "hienet::training_linear");
  return op.call(features, weights, columns, scale);
}

static std::tuple<Tensor, Tensor> linear_backward(const Tensor &gradient, const Tensor &features,
                                                  const Tensor &weights, const Tensor &columns,
                                                  double scale, bool wanted)
{
  static const auto op = dispatched<std::tuple<Tensor, Tensor>(
      const Tensor &, const Tensor &, const Tensor &, const Tensor &, double, bool)>(
      "hienet::training_linear_backward");
  return op.call(gradient, features, weights, columns, scale, wanted);
}

/// Edges and their splines, and the plan of the convolution.
struct ConvolutionArguments {
  const Tensor &edges;
  const MaybeTensor &tangents;
  const Tensor &first_row, &basis, &table, &center, &neighbor, &paths, &terms, &coefficients;
};

/// `sent` and messages are `[n * order, width]`.
static Tensor convolution(const Tensor &sent, const ConvolutionArguments &c)
{
  using Plain = Tensor(const Tensor &, const Tensor &, const Tensor &, const Tensor &,
                       const Tensor &, const Tensor &, const Tensor &, int64_t, const Tensor &,
                       const Tensor &, const Tensor &);
  using Dual = Tensor(const Tensor &, const Tensor &, const Tensor &, const Tensor &,
                      const Tensor &, const Tensor &, const Tensor &, const Tensor &, int64_t,
                      const Tensor &, const Tensor &, const Tensor &);
  static const auto plain = dispatched<Plain>("hienet::training_convolution");
  static const auto dual = dispatched<Dual>("hienet::dual_convolution");
  if (!c.tangents)
    return plain.call(sent, c.edges, c.first_row, c.basis, c.table, c.center, c.neighbor,
                      sent.size(0), c.paths, c.terms, c.coefficients);
  const int64_t n = sent.size(0) / 2;
  return dual
      .call(sent.view({n, 2, sent.size(1)}), c.edges, *c.tangents, c.first_row, c.basis, c.table,
            c.center, c.neighbor, n, c.paths, c.terms, c.coefficients)
      .flatten(0, 1);
}

/// Gradients of what was sent, and of the edges or, with tangents, of the table.
static std::tuple<Tensor, Tensor> convolution_backward(const Tensor &gradient, const Tensor &sent,
                                                       const ConvolutionArguments &c)
{
  using Plain =
      std::tuple<Tensor, Tensor>(const Tensor &, const Tensor &, const Tensor &, const Tensor &,
                                 const Tensor &, const Tensor &, const Tensor &, const Tensor &,
                                 int64_t, const Tensor &, const Tensor &, const Tensor &);
  using Dual = std::tuple<Tensor, Tensor>(const Tensor &, const Tensor &, const Tensor &,
                                          const Tensor &, const Tensor &, const Tensor &,
                                          const Tensor &, const Tensor &, const Tensor &, int64_t,
                                          const Tensor &, const Tensor &, const Tensor &);
  static const auto plain = dispatched<Plain>("hienet::training_convolution_backward");
  static const auto dual = dispatched<Dual>("hienet::dual_convolution_backward");
  if (!c.tangents)
    return plain.call(gradient, sent, c.edges, c.first_row, c.basis, c.table, c.center, c.neighbor,
                      sent.size(0), c.paths, c.terms, c.coefficients);
  const int64_t n = sent.size(0) / 2;
  const auto [of_sent, of_table] =
      dual.call(gradient.view({n, 2, gradient.size(1)}), sent.view({n, 2, sent.size(1)}), c.edges,
                *c.tangents, c.first_row, c.basis, c.table, c.center, c.neighbor, n, c.paths,
                c.terms, c.coefficients);
  return {of_sent.flatten(0, 1), of_table};
}

/// Of `[n * order, width]`.
static Tensor gate(const Tensor &update, bool dual, const Tensor &blocks, int64_t n_scalars,
                   double scale)
{
  using Gate = Tensor(const Tensor &, const Tensor &, int64_t, double);
  static const auto plain = dispatched<Gate>("hienet::gate");
  static const auto with_tangents = dispatched<Gate>("hienet::dual_gate");
  if (!dual) return plain.call(update, blocks, n_scalars, scale);
  return with_tangents
      .call(update.view({update.size(0) / 2, 2, update.size(1)}), blocks, n_scalars, scale)
      .flatten(0, 1);
}

static Tensor gate_backward(const Tensor &gradient, const Tensor &update, bool dual,
                            const Tensor &blocks, int64_t n_scalars, double scale)
{
  using Gate = Tensor(const Tensor &, const Tensor &, const Tensor &, int64_t, double);
  static const auto plain = dispatched<Gate>("hienet::gate_backward");
  static const auto with_tangents = dispatched<Gate>("hienet::dual_gate_backward");
  if (!dual) return plain.call(gradient, update, blocks, n_scalars, scale);
  return with_tangents
      .call(gradient.view({update.size(0) / 2, 2, gradient.size(1)}),
            update.view({update.size(0) / 2, 2, update.size(1)}), blocks, n_scalars, scale)
      .flatten(0, 1);
}

// ----------------------------------------------------------------------
// the operator and its derivative
// ----------------------------------------------------------------------

/// `[n, order, width]` to `[n * order, width]`.
static Tensor rows_of_jets(const Tensor &jets, const MaybeTensor &tangents)
{
  TORCH_CHECK_VALUE(jets.dim() == 3 && jets.size(1) == (tangents ? 2 : 1),
                    "features of an interaction must be [n, 1, width], or [n, 2, width] with "
                    "tangents");
  return jets.contiguous().flatten(0, 1);
}

static Tensor jets_of_rows(const Tensor &rows, const MaybeTensor &tangents)
{
  const int64_t order = tangents ? 2 : 1;
  return rows.view({rows.size(0) / order, order, rows.size(1)});
}

/// The result, and what the backward needs again: `sent`, messages and, with a gate, what enters it.
static std::tuple<Tensor, Tensor, Tensor, Tensor>
forward_cpu(const Tensor &features, const MaybeTensor &added, const MaybeTensor &kept,
            const Tensor &edges, const MaybeTensor &tangents, const Tensor &first_row,
            const Tensor &basis, const Tensor &table, const Tensor &center, const Tensor &neighbor,
            const Tensor &paths, const Tensor &terms, const Tensor &coefficients,
            const Tensor &weights_in, const Tensor &columns_in, const Tensor &weights_out,
            const Tensor &columns_out, const MaybeTensor &weights_skip,
            const MaybeTensor &columns_skip, double scale, const MaybeTensor &blocks,
            int64_t n_scalars, double gate_scale)
{
  const at::AutoDispatchBelowAutograd below;
  const Tensor x = rows_of_jets(features, tangents);
  const Tensor sent = linear(x, weights_in, columns_in, 1.0);
  if (added) sent.add_(rows_of_jets(*added, tangents));
  const Tensor messages = convolution(
      sent,
      {edges, tangents, first_row, basis, table, center, neighbor, paths, terms, coefficients});
  const Tensor update = linear(messages, weights_out, columns_out, scale);
  if (weights_skip) {
    TORCH_CHECK_VALUE(columns_skip, "the skipping map of an interaction has no columns");
    update.add_(linear(x, *weights_skip, *columns_skip, 1.0));
  }
  if (kept) update.add_(rows_of_jets(*kept, tangents));
  if (!blocks) return {jets_of_rows(update, tangents), sent, messages, at::empty({0}, x.options())};
  const Tensor result = gate(update, tangents.has_value(), *blocks, n_scalars, gate_scale);
  return {jets_of_rows(result, tangents), sent, messages, update};
}

/// Gradients of features, of `added` and of `kept`, of the edges or, with tangents, of the table, and with tangents those of the
/// weights, else empty tensors.
static std::vector<Tensor>
backward_cpu(const Tensor &gradient, const Tensor &sent, const Tensor &messages,
             const Tensor &update, const Tensor &features, const Tensor &edges,
             const MaybeTensor &tangents, const Tensor &first_row, const Tensor &basis,
             const Tensor &table, const Tensor &center, const Tensor &neighbor, const Tensor &paths,
             const Tensor &terms, const Tensor &coefficients, const Tensor &weights_in,
             const Tensor &columns_in, const Tensor &weights_out, const Tensor &columns_out,
             const MaybeTensor &weights_skip, const MaybeTensor &columns_skip, double scale,
             const MaybeTensor &blocks, int64_t n_scalars, double gate_scale)
{
  const at::AutoDispatchBelowAutograd below;
  const bool dual = tangents.has_value();
  const Tensor x = rows_of_jets(features, tangents);
  Tensor of_update = rows_of_jets(gradient, tangents);
  if (blocks) of_update = gate_backward(of_update, update, dual, *blocks, n_scalars, gate_scale);
  const auto [of_messages, of_out] =
      linear_backward(of_update, messages, weights_out, columns_out, scale, dual);
  const auto [of_sent, of_edges_or_table] = convolution_backward(
      of_messages, sent,
      {edges, tangents, first_row, basis, table, center, neighbor, paths, terms, coefficients});
  const auto [of_x, of_in] = linear_backward(of_sent, x, weights_in, columns_in, 1.0, dual);
  Tensor of_skip = at::empty({0}, x.options());
  if (weights_skip) {
    const auto [of_kept_x, found] =
        linear_backward(of_update, x, *weights_skip, *columns_skip, 1.0, dual);
    of_x.add_(of_kept_x);
    of_skip = found;
  }
  return {jets_of_rows(of_x, tangents),
          jets_of_rows(of_sent, tangents),
          jets_of_rows(of_update, tangents),
          of_edges_or_table,
          of_in,
          of_out,
          of_skip};
}

TORCH_LIBRARY_FRAGMENT(hienet, library)
{
  library.def(
      "training_interaction(Tensor features, Tensor? added, Tensor? kept, Tensor edges, Tensor? "
      "tangents, "
      "Tensor first_row, Tensor basis, Tensor table, Tensor center, Tensor neighbor, Tensor paths, "
      "Tensor terms, Tensor coefficients, Tensor weights_in, Tensor columns_in, "
      "Tensor weights_out, Tensor columns_out, Tensor? weights_skip, Tensor? columns_skip, "
      "float scale, Tensor? blocks, int n_scalars, float gate_scale) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "training_interaction_backward(Tensor gradient, Tensor sent, Tensor messages, Tensor update, "
      "Tensor features, Tensor edges, Tensor? tangents, Tensor first_row, Tensor basis, "
      "Tensor table, Tensor center, Tensor neighbor, Tensor paths, Tensor terms, "
      "Tensor coefficients, Tensor weights_in, Tensor columns_in, Tensor weights_out, "
      "Tensor columns_out, Tensor? weights_skip, Tensor? columns_skip, float scale, "
      "Tensor? blocks, int n_scalars, float gate_scale) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(hienet, CPU, library)
{
  library.impl("training_interaction", forward_cpu);
  library.impl("training_interaction_backward", backward_cpu);
}

}    // namespace hienet
