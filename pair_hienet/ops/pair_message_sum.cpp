// SPDX-License-Identifier: GPL-2.0-or-later
// torch.ops.hienet.pair_message_sum: messages that depend on the species of both atoms and on their distance, from splines,
// summed over the neighbours of each center.

#include "pair_message_kernel.h"

#include "differentiable.h"
#include "edge_list.h"
#include "pair_message_checks.h"
#include "pooled_memory.h"

namespace hienet {

using at::Tensor;

/// Edges that pass through all channels together: the more, the less often a large table is read; what the backward keeps
/// of them fits the second cache.
static constexpr int64_t PIECE_EDGES = 2048;

template <typename T> static const PairMessageKernel<T> &kernel();
template <> const PairMessageKernel<float> &kernel<float>()
{ return HIENET_CHOSEN(PAIR_MESSAGE_FLOAT); }
template <> const PairMessageKernel<double> &kernel<double>()
{ return HIENET_CHOSEN(PAIR_MESSAGE_DOUBLE); }

struct PairMessageInputs {
  EdgeList list;
  Tensor edges, table;
  std::vector<int64_t> pair;    // of each edge
  int64_t channels;
  double cutoff;

  template <typename T> PairMessages<T> view() const
  {
    const int64_t n_intervals = table.size(2);
    return {table.data_ptr<T>(),   channels,
            n_intervals,           static_cast<T>(n_intervals / cutoff),
            list.row_start.data(), pair.data(),
            edges.data_ptr<T>(),   edges.stride(0)};
  }

  template <typename T> Tensor scratch() const
  {
    return pooled_empty({kernel<T>().scratch_size(list.largest_piece(PIECE_EDGES))},
                        edges.scalar_type());
  }
};

/// Which splines belong to each edge.
static std::vector<int64_t> pairs_of(const EdgeList &list, const Tensor &species,
                                     const Tensor &pair_row, int64_t n_tables)
{
  const Tensor own = species.to(at::kLong).contiguous();
  const Tensor rows_of_pairs = pair_row.to(at::kLong).contiguous();
  const int64_t *const kind = own.data_ptr<int64_t>();
  const int64_t *const row = rows_of_pairs.data_ptr<int64_t>();
  const int64_t n_species = pair_row.size(0);
  for (int64_t i = 0; i < own.size(0); i++)
    TORCH_CHECK_VALUE(kind[i] >= 0 && kind[i] < n_species, "species ", kind[i], " of node ", i,
                      " is not one of the model's ", n_species);
  std::vector<int64_t> pair(list.n_edges);
  for (int64_t i = 0; i < list.n_local; i++)
    for (int64_t e = list.row_start[i]; e < list.row_start[i + 1]; e++) {
      const int64_t other = kind[list.neighbor[e]];
      pair[e] = row[kind[i] * n_species + other];
      TORCH_CHECK_VALUE(pair[e] >= 0 && pair[e] < n_tables,
                        "the model has no table for the species ", kind[i], " and ", other,
                        "; call `load_elements` with all species in use");
    }
  return pair;
}

static PairMessageInputs checked(const Tensor &edges, const Tensor &species, const Tensor &table,
                                 const Tensor &pair_row, const Tensor &center,
                                 const Tensor &neighbor, int64_t n_local, int64_t channels,
                                 double cutoff)
{
  check_pair_messages(edges, species, table, pair_row, center, channels, cutoff);
  PairMessageInputs in{EdgeList(center, neighbor, n_local, species.size(0)), rows(edges),
                       table.contiguous()};
  in.pair = pairs_of(in.list, species, pair_row, table.size(0));
  in.channels = channels;
  in.cutoff = cutoff;
  return in;
}

template <typename T> static void run_forward(const PairMessageInputs &in, const Tensor &sums)
{
  for_each_part(in.list.parts(), [&](int64_t, int64_t first, int64_t last) {
    const Tensor scratch = in.scratch<T>();
    in.list.for_each_piece(PIECE_EDGES, first, last, [&](int64_t begin, int64_t end) {
      kernel<T>().forward(in.view<T>(), sums.data_ptr<T>(), sums.stride(0), begin, end,
                          scratch.data_ptr<T>());
    });
  });
}

template <typename T>
static void run_backward(const PairMessageInputs &in, const Tensor &gradient,
                         const Tensor &of_edges)
{
  for_each_part(in.list.parts(), [&](int64_t, int64_t first, int64_t last) {
    const Tensor scratch = in.scratch<T>();
    in.list.for_each_piece(PIECE_EDGES, first, last, [&](int64_t begin, int64_t end) {
      kernel<T>().backward(in.view<T>(), gradient.data_ptr<T>(), gradient.stride(0),
                           of_edges.data_ptr<T>(), of_edges.stride(0), begin, end,
                           scratch.data_ptr<T>());
    });
  });
}

static Tensor forward_cpu(const Tensor &edges, const Tensor &species, const Tensor &table,
                          const Tensor &pair_row, const Tensor &center, const Tensor &neighbor,
                          int64_t n_local, int64_t channels, double cutoff)
{
  const auto in =
      checked(edges, species, table, pair_row, center, neighbor, n_local, channels, cutoff);
  const Tensor sums = pooled_empty({n_local, channels}, edges.scalar_type());
  AT_DISPATCH_FLOATING_TYPES(sums.scalar_type(), "pair_message_sum", [&] {
    run_forward<scalar_t>(in, sums);
  });
  return sums;
}

static Tensor backward_cpu(const Tensor &gradient, const Tensor &edges, const Tensor &species,
                           const Tensor &table, const Tensor &pair_row, const Tensor &center,
                           const Tensor &neighbor, int64_t n_local, int64_t channels, double cutoff)
{
  const auto in =
      checked(edges, species, table, pair_row, center, neighbor, n_local, channels, cutoff);
  check_gradient_of_pair_messages(gradient, edges, n_local, channels);
  const Tensor of_edges = pooled_zeros(edges.sizes(), edges.scalar_type());
  AT_DISPATCH_FLOATING_TYPES(of_edges.scalar_type(), "pair_message_sum", [&] {
    run_backward<scalar_t>(in, rows(gradient), of_edges);
  });
  return of_edges;
}

struct DifferentiablePairMessages : torch::autograd::Function<DifferentiablePairMessages> {
  static Tensor forward(torch::autograd::AutogradContext *context, const Tensor &edges,
                        const Tensor &species, const Tensor &table, const Tensor &pair_row,
                        const Tensor &center, const Tensor &neighbor, int64_t n_local,
                        int64_t channels, double cutoff)
  {
    context->save_for_backward({edges, species, table, pair_row, center, neighbor});
    context->saved_data["n_local"] = n_local;
    context->saved_data["channels"] = channels;
    context->saved_data["cutoff"] = cutoff;
    const at::AutoDispatchBelowAutograd below;
    static const auto op = dispatched<decltype(forward_cpu)>("hienet::pair_message_sum");
    return op.call(edges, species, table, pair_row, center, neighbor, n_local, channels, cutoff);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list gradients)
  {
    check_differentiated_once();
    const auto s = context->get_saved_variables();
    static const auto op = dispatched<decltype(backward_cpu)>("hienet::pair_message_sum_backward");
    const Tensor of_edges = op.call(
        gradients[0], s[0], s[1], s[2], s[3], s[4], s[5], context->saved_data["n_local"].toInt(),
        context->saved_data["channels"].toInt(), context->saved_data["cutoff"].toDouble());
    return {of_edges, {}, {}, {}, {}, {}, {}, {}, {}};
  }
};

static Tensor forward_autograd(const Tensor &edges, const Tensor &species, const Tensor &table,
                               const Tensor &pair_row, const Tensor &center, const Tensor &neighbor,
                               int64_t n_local, int64_t channels, double cutoff)
{
  check_constant({table});
  return DifferentiablePairMessages::apply(edges, species, table, pair_row, center, neighbor,
                                           n_local, channels, cutoff);
}

TORCH_LIBRARY_FRAGMENT(hienet, library)
{
  library.def("pair_message_sum(Tensor edges, Tensor species, Tensor table, Tensor pair_row, "
              "Tensor center, Tensor neighbor, int n_local, int channels, float cutoff) -> Tensor");
  library.def("pair_message_sum_backward(Tensor gradient, Tensor edges, Tensor species, "
              "Tensor table, Tensor pair_row, Tensor center, Tensor neighbor, int n_local, "
              "int channels, float cutoff) -> Tensor");
}

TORCH_LIBRARY_IMPL(hienet, CPU, library)
{
  library.impl("pair_message_sum", forward_cpu);
  library.impl("pair_message_sum_backward", backward_cpu);
}

TORCH_LIBRARY_IMPL(hienet, Autograd, library)
{ library.impl("pair_message_sum", forward_autograd); }

}    // namespace hienet
