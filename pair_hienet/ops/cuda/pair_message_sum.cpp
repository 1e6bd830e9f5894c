// SPDX-License-Identifier: GPL-2.0-or-later
// torch.ops.hienet.pair_message_sum on a GPU.

#include "pair_message.h"

#include "../differentiable.h"
#include "../pair_message_checks.h"
#include "device_call.h"
#include "device_edges.h"

namespace hienet::cuda {

using at::Tensor;

/// Throws for the first node or edge without splines.
static void explain(const DeviceEdges &list, const Tensor &species, const Tensor &pair_row,
                    int64_t n_tables)
{
  const int64_t n_species = pair_row.size(0);
  const Tensor kinds = species.cpu(), rows_of_pairs = pair_row.cpu().contiguous();
  const Tensor center = list.center.cpu(), neighbor = list.neighbor.cpu();
  const int64_t *const kind = kinds.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < kinds.size(0); i++)
    TORCH_CHECK_VALUE(kind[i] >= 0 && kind[i] < n_species, "species ", kind[i], " of node ", i,
                      " is not one of the model's ", n_species);
  for (int64_t e = 0; e < list.n_edges; e++) {
    const int64_t of_center = kind[center.const_data_ptr<int64_t>()[e]];
    const int64_t other = kind[neighbor.const_data_ptr<int64_t>()[e]];
    const int64_t row = rows_of_pairs.const_data_ptr<int64_t>()[of_center * n_species + other];
    TORCH_CHECK_VALUE(row >= 0 && row < n_tables, "the model has no table for the species ",
                      of_center, " and ", other, "; call `load_elements` with all species in use");
  }
}

/// Which splines belong to each edge, `[n_edges]`.
struct PairsOfEdges {
  Tensor row;
};

static PairsOfEdges find_pairs(const DeviceEdges &list, const Tensor &species,
                               const Tensor &pair_row, int64_t n_tables)
{
  const int64_t n_species = pair_row.size(0);
  if (list.n_nodes == 0 || n_species == 0) return {at::empty({0}, list.center.options())};
  const Tensor kind = species.clamp(0, n_species - 1);
  const Tensor row = pair_row.reshape({-1}).index_select(
      0, kind.index_select(0, list.center) * n_species + kind.index_select(0, list.neighbor));
  Tensor wrong = (kind != species).any();
  if (list.n_edges > 0) wrong = wrong.logical_or((row < 0).logical_or(row >= n_tables).any());
  if (wrong.item<bool>()) explain(list, species, pair_row, n_tables);
  return {row};
}

/// Found and checked when the graph, the species or the tables are new.
static std::shared_ptr<const PairsOfEdges> pairs_of(const DeviceEdges &list, const Tensor &species,
                                                    const Tensor &pair_row, int64_t n_tables)
{
  static Memo<PairsOfEdges, GRAPHS> memo;
  const Tensor kind = species.to(at::kLong).contiguous();
  const Tensor rows_of_pairs = pair_row.to(at::kLong).contiguous();
  return memo.get({list.center, list.neighbor, kind, rows_of_pairs}, {n_tables}, [&] {
    return find_pairs(list, kind, rows_of_pairs, n_tables);
  });
}

struct PairMessageCall {
  std::shared_ptr<const DeviceEdges> list;
  std::shared_ptr<const PairsOfEdges> pairs;
  Tensor edges, table;
  int64_t channels;
  double cutoff;

  PairMessageCall(const Tensor &edge_rows, const Tensor &species, const Tensor &tables,
                  const Tensor &pair_row, const Tensor &center, const Tensor &neighbor,
                  int64_t n_local, int64_t n_channels, double reach) :
      channels(n_channels), cutoff(reach)
  {
    check_pair_messages(edge_rows, species, tables, pair_row, center, channels, cutoff);
    list = DeviceEdges::of(center, neighbor, n_local, species.size(0));
    pairs = pairs_of(*list, species, pair_row, tables.size(0));
    edges = rows(edge_rows);
    table = tables.contiguous();
  }

  template <typename T> PairMessages<T> view() const
  {
    const int64_t n_intervals = table.size(2);
    return {{table.const_data_ptr<T>(), n_intervals, static_cast<T>(n_intervals / cutoff)},
            channels,
            list->row_start.const_data_ptr<int64_t>(),
            list->center.const_data_ptr<int64_t>(),
            pairs->row.const_data_ptr<int64_t>(),
            list->n_local,
            list->n_edges,
            edges.const_data_ptr<T>(),
            edges.stride(0)};
  }
};

static Tensor forward(const Tensor &edges, const Tensor &species, const Tensor &table,
                      const Tensor &pair_row, const Tensor &center, const Tensor &neighbor,
                      int64_t n_local, int64_t channels, double cutoff)
{
  const c10::DeviceGuard guard(edges.device());
  const PairMessageCall in(edges, species, table, pair_row, center, neighbor, n_local, channels,
                           cutoff);
  const Tensor sums = at::empty({n_local, channels}, edges.options());
  AT_DISPATCH_FLOATING_TYPES(sums.scalar_type(), "pair_message_sum", [&] {
    sum_pair_messages<scalar_t>(in.view<scalar_t>(), sums.data_ptr<scalar_t>(), sums.stride(0),
                                current_stream(edges.device()));
  });
  return sums;
}

static Tensor backward(const Tensor &gradient, const Tensor &edges, const Tensor &species,
                       const Tensor &table, const Tensor &pair_row, const Tensor &center,
                       const Tensor &neighbor, int64_t n_local, int64_t channels, double cutoff)
{
  const c10::DeviceGuard guard(edges.device());
  const PairMessageCall in(edges, species, table, pair_row, center, neighbor, n_local, channels,
                           cutoff);
  check_gradient_of_pair_messages(gradient, edges, n_local, channels);
  const Tensor from = rows(gradient);
  const Tensor of_edges = at::zeros(edges.sizes(), edges.options());
  AT_DISPATCH_FLOATING_TYPES(of_edges.scalar_type(), "pair_message_sum", [&] {
    differentiate_pair_messages<scalar_t>(in.view<scalar_t>(), from.const_data_ptr<scalar_t>(),
                                          from.stride(0), of_edges.data_ptr<scalar_t>(),
                                          of_edges.stride(0), current_stream(edges.device()));
  });
  return of_edges;
}

TORCH_LIBRARY_IMPL(hienet, HIENET_DEVICE_KEY, library)
{
  library.impl("pair_message_sum", forward);
  library.impl("pair_message_sum_backward", backward);
}

}    // namespace hienet::cuda
