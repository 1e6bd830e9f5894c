// SPDX-License-Identifier: GPL-2.0-or-later

#include "device_graph.h"

#include "device_guard.h"
#include "graph_tensors.h"
#include "model_error.h"
#include "neighbor_graph.h"
#include "virial_components.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <string>

namespace hienet {

/// The virial is summed over so many edges at a time, which bounds the memory of their terms.
static constexpr int64_t EDGES_AT_A_TIME = int64_t(1) << 22;

struct DeviceGraph::Torch {
  at::Device device{at::kCPU};
  int n_local = 0;
  std::vector<int> node_atom;

  // From one rebuild of the neighbour list to the next: [n_candidates] and the like, int32.
  at::Tensor species, node_atom_on_device;    // [n_nodes] int64
  at::Tensor center_node, neighbor_node;
  at::Tensor neighbor_atom;                  // of which the position is read: the neighbour's image
  at::Tensor first_candidate;                // [n_local + 1], where those of each center begin
  at::Tensor by_neighbor;                    // candidates sorted by neighbour
  at::Tensor first_candidate_by_neighbor;    // [n_nodes + 1], where those of each neighbour begin

  // Of one step: [n_edges] and the like, int64.
  at::Tensor center, neighbor, edge_vectors, first_edge;
  at::Tensor edges_by_neighbor, first_by_neighbor;

  int64_t n_nodes() const { return static_cast<int64_t>(node_atom.size()); }
  int64_t n_candidates() const { return center_node.defined() ? center_node.size(0) : 0; }
  int64_t n_edges() const { return center.defined() ? center.size(0) : 0; }

  at::TensorOptions of(at::ScalarType dtype) const
  { return at::TensorOptions().dtype(dtype).device(device); }

  void forget_edges();
  at::Tensor gradient(const at::Tensor &g) const;
  at::Tensor sums_on_neighbors(const at::Tensor &rows) const;
};

// ----------------------------------------------------------------------
// sorted segments. All of it is deterministic on every device: nothing is added by atomics.
// ----------------------------------------------------------------------

/// Where each of the numbers `0 .. n` first stands, or would stand, in sorted values: [n + 1] int32.
static at::Tensor segment_starts(const at::Tensor &sorted_values, int64_t n)
{ return at::searchsorted(sorted_values, at::arange(n + 1, sorted_values.options()), true); }

/// Sums of the rows ([n_rows, columns]) of each segment: [n_segments, columns].
///
/// index_add and scatter_add on CUDA add by atomics, in an order that differs from run to run. segment_reduce has a
/// thread for each segment and column, which adds the rows in their order.
static at::Tensor segment_sums(const at::Tensor &rows, const at::Tensor &starts)
{
  if (rows.size(0) == 0) return at::zeros({starts.size(0) - 1, rows.size(1)}, rows.options());
  // Unless it is `unsafe`, it looks at the starts, and the host waits for that.
  return at::segment_reduce(rows.contiguous(), "sum", {}, {}, starts, 0, true, 0.0);
}

/// How many of `chosen` ([n] bool) stand before each place: [n + 1] int32.
static at::Tensor counts_before(const at::Tensor &chosen)
{
  const auto counts = at::zeros({chosen.size(0) + 1}, chosen.options().dtype(at::kInt));
  auto inclusive = counts.narrow(0, 1, chosen.size(0));
  at::cumsum_out(inclusive, chosen, 0, at::kInt);
  return counts;
}

/// The places of the `n` that were chosen: [n] int32. Unlike `nonzero` it does not wait for the device.
static at::Tensor chosen_places(const at::Tensor &counts, int64_t n)
{
  const auto ordinals = at::arange(1, n + 1, counts.options());
  return at::searchsorted(counts.narrow(0, 1, counts.size(0) - 1), ordinals, true);
}

/// The number of the first that is false; waits for the device.
static int64_t first_false(const at::Tensor &flags)
{ return flags.logical_not().nonzero()[0][0].item<int64_t>(); }

// ----------------------------------------------------------------------

DeviceGraph::DeviceGraph(double cutoff) : torch_(std::make_unique<Torch>()), cutoff_(cutoff) {}
DeviceGraph::~DeviceGraph() = default;
DeviceGraph::DeviceGraph(DeviceGraph &&) noexcept = default;
DeviceGraph &DeviceGraph::operator=(DeviceGraph &&) noexcept = default;

int DeviceGraph::n_local() const
{ return torch_->n_local; }
int DeviceGraph::n_nodes() const
{ return static_cast<int>(torch_->n_nodes()); }
int64_t DeviceGraph::n_edges() const
{ return torch_->n_edges(); }
int64_t DeviceGraph::n_candidates() const
{ return torch_->n_candidates(); }
const std::vector<int> &DeviceGraph::node_atom() const
{ return torch_->node_atom; }
const at::Tensor &DeviceGraph::node_atom_on_device() const
{ return torch_->node_atom_on_device; }
const at::Tensor &DeviceGraph::first_edge() const
{ return torch_->first_edge; }
const at::Tensor &DeviceGraph::edges_by_neighbor() const
{ return torch_->edges_by_neighbor; }
const at::Tensor &DeviceGraph::first_by_neighbor() const
{ return torch_->first_by_neighbor; }

GraphTensors DeviceGraph::tensors() const
{
  const Torch &t = *torch_;
  return {t.n_local, n_nodes(), t.node_atom, t.species, t.center, t.neighbor, t.edge_vectors};
}

/// No edges, of the present nodes.
void DeviceGraph::Torch::forget_edges()
{
  center = at::empty({0}, of(at::kLong));
  neighbor = at::empty({0}, of(at::kLong));
  edges_by_neighbor = at::empty({0}, of(at::kLong));
  edge_vectors = at::empty({0, 3}, of(at::kDouble));
  first_edge = at::zeros({n_local + 1}, of(at::kLong));
  first_by_neighbor = at::zeros({n_nodes() + 1}, of(at::kLong));
}

void DeviceGraph::set_candidates(const at::Tensor &center_atom, const at::Tensor &neighbor_atom,
                                 const at::Tensor &species, const at::Tensor &owner, int n_owned)
{
  translated("the neighbors of the atoms", [&] {
    // What is replaced is not held while memory is needed most.
    torch_ = std::make_unique<Torch>();
    Torch &t = *torch_;
    t.device = species.device();
    const DeviceGuard guard(t.device);
    if (center_atom.size(0) > std::numeric_limits<int>::max())
      throw ModelError("a rank has " + std::to_string(center_atom.size(0)) +
                       " pairs of neighbors, and 2147483647 is the most; use more ranks");

    const auto seen = species.ge(0);
    const auto seen_as_neighbor = owner.defined() ? seen.index_select(0, owner) : seen;
    const auto both = seen.index_select(0, center_atom)
                          .logical_and_(seen_as_neighbor.index_select(0, neighbor_atom));
    const auto kept = both.nonzero().squeeze(1);
    t.neighbor_atom = neighbor_atom.index_select(0, kept);
    const auto node_of_neighbor = owner.defined() ? owner.index_select(0, t.neighbor_atom)
                                                  : t.neighbor_atom;

    auto is_node = at::zeros_like(seen);
    is_node.index_fill_(0, node_of_neighbor.to(at::kLong), true);
    is_node.narrow(0, 0, n_owned).copy_(seen.narrow(0, 0, n_owned));
    t.node_atom_on_device = is_node.nonzero().squeeze(1);
    const auto atoms = t.node_atom_on_device.to(at::kCPU, at::kInt).contiguous();
    t.node_atom.assign(atoms.data_ptr<int>(), atoms.data_ptr<int>() + atoms.numel());
    t.n_local = static_cast<int>(std::lower_bound(t.node_atom.begin(), t.node_atom.end(), n_owned) -
                                 t.node_atom.begin());
    t.species = species.index_select(0, t.node_atom_on_device);

    const auto node_of_atom = counts_before(is_node);
    t.center_node = node_of_atom.index_select(0, center_atom.index_select(0, kept));
    t.neighbor_node = node_of_atom.index_select(0, node_of_neighbor);
    t.first_candidate = segment_starts(t.center_node, t.n_local);
    // Stable: of one neighbour they stay in their order.
    const auto [sorted_neighbors, order] = at::sort(t.neighbor_node, true, 0, false);
    t.by_neighbor = order.to(at::kInt);
    t.first_candidate_by_neighbor = segment_starts(sorted_neighbors, t.n_nodes());
    t.forget_edges();
  });
}

void DeviceGraph::set_species(const at::Tensor &species)
{
  translated("the species of the atoms", [&] {
    const DeviceGuard guard(torch_->device);
    torch_->species = species.index_select(0, torch_->node_atom_on_device);
  });
}

void DeviceGraph::update(const at::Tensor &positions)
{
  Torch &t = *torch_;
  std::optional<GraphError> problem;
  translated("the neighbors within the cutoff", [&] {
    const DeviceGuard guard(t.device);
    t.forget_edges();
    if (t.n_local == 0) return;
    const auto owned = positions.index_select(0, t.node_atom_on_device.narrow(0, 0, t.n_local));
    const auto finite = owned.isfinite().all(1);
    const int64_t n_candidates = t.n_candidates();

    auto vectors = positions.index_select(0, t.neighbor_atom);
    vectors.sub_(owned.index_select(0, t.center_node));
    const auto x = vectors.select(1, 0), y = vectors.select(1, 1), z = vectors.select(1, 2);
    const auto squared = (x * x).add_(y * y).add_(z * z);
    // Neither holds for a NaN.
    const auto sound = squared.ge(COINCIDENT_SQUARED)
                           .logical_and_(squared.lt(std::numeric_limits<double>::infinity()));
    const auto within = squared.lt(cutoff_ * cutoff_);
    const auto counts = counts_before(within);

    // The only wait of a step.
    const auto report = at::stack({counts[n_candidates].to(at::kLong), finite.all().to(at::kLong),
                                   sound.all().to(at::kLong)})
                            .to(at::kCPU);
    const int64_t *const found = report.const_data_ptr<int64_t>();
    const int64_t n_edges = found[0];
    if (!found[1]) {
      const int i = t.node_atom[first_false(finite)];
      problem.emplace(GraphError::NOT_FINITE, i, i);
    } else if (!found[2]) {
      const int64_t bad = first_false(sound);
      const auto kind = squared[bad].isfinite().item<bool>() ? GraphError::COINCIDENT
                                                             : GraphError::NOT_FINITE;
      problem.emplace(kind, t.node_atom[t.center_node[bad].item<int>()],
                      t.neighbor_atom[bad].item<int>());
    }
    if (problem || n_edges == 0) return;

    const auto kept = chosen_places(counts, n_edges);
    t.edge_vectors = vectors.index_select(0, kept);
    t.center = t.center_node.index_select(0, kept).to(at::kLong);
    t.neighbor = t.neighbor_node.index_select(0, kept).to(at::kLong);
    t.first_edge = counts.index_select(0, t.first_candidate).to(at::kLong);

    const auto counts_by_neighbor = counts_before(within.index_select(0, t.by_neighbor));
    const auto kept_by_neighbor =
        t.by_neighbor.index_select(0, chosen_places(counts_by_neighbor, n_edges));
    t.edges_by_neighbor = counts.index_select(0, kept_by_neighbor).to(at::kLong);
    t.first_by_neighbor =
        counts_by_neighbor.index_select(0, t.first_candidate_by_neighbor).to(at::kLong);
  });
  if (problem) throw *problem;
}

// ----------------------------------------------------------------------
// what becomes of the gradients
// ----------------------------------------------------------------------

at::Tensor DeviceGraph::Torch::gradient(const at::Tensor &g) const
{ return g.defined() ? g.detach().to(at::kDouble) : at::zeros_like(edge_vectors); }

/// -r (x) g of each edge, [n, 9].
static at::Tensor virial_terms(const at::Tensor &vectors, const at::Tensor &g)
{
  const auto terms = at::empty({vectors.size(0), 9}, g.options());
  for (int a = 0; a < 9; a++) {
    auto column = terms.select(1, a);
    at::mul_out(column, vectors.select(1, VIRIAL_ROW[a]), g.select(1, VIRIAL_COLUMN[a]));
  }
  return terms.neg_();
}

/// Of rows of edges, on the neighbour of each: [n_nodes, columns].
at::Tensor DeviceGraph::Torch::sums_on_neighbors(const at::Tensor &rows) const
{ return segment_sums(rows.index_select(0, edges_by_neighbor), first_by_neighbor); }

at::Tensor DeviceGraph::forces(const at::Tensor &g) const
{
  return translated("the forces", [&] {
    const Torch &t = *torch_;
    const DeviceGuard guard(t.device);
    const auto gradient = t.gradient(g);
    auto forces = t.sums_on_neighbors(gradient).neg_();
    forces.narrow(0, 0, t.n_local).add_(segment_sums(gradient, t.first_edge));
    return forces;
  });
}

at::Tensor DeviceGraph::virial(const at::Tensor &g) const
{
  return translated("the virial", [&] {
    const Torch &t = *torch_;
    const DeviceGuard guard(t.device);
    const auto gradient = t.gradient(g);
    auto sum = at::zeros({9}, t.of(at::kDouble));
    for (int64_t first = 0; first < t.n_edges(); first += EDGES_AT_A_TIME) {
      const int64_t n = std::min(EDGES_AT_A_TIME, t.n_edges() - first);
      sum.add_(
          virial_terms(t.edge_vectors.narrow(0, first, n), gradient.narrow(0, first, n)).sum(0));
    }
    return sum;
  });
}

at::Tensor DeviceGraph::atom_virials(const at::Tensor &g) const
{
  return translated("the virials of the atoms", [&] {
    const Torch &t = *torch_;
    const DeviceGuard guard(t.device);
    const auto terms = virial_terms(t.edge_vectors, t.gradient(g));
    // Symmetrised: xy and yx, xz and zx, yz and zy.
    const auto symmetric = terms.narrow(1, 0, 6).clone();
    symmetric.narrow(1, 3, 3).add_(terms.narrow(1, 6, 3)).mul_(0.5);
    auto virials = t.sums_on_neighbors(symmetric);
    virials.narrow(0, 0, t.n_local).add_(segment_sums(symmetric, t.first_edge));
    return virials.mul_(0.5);
  });
}

at::Tensor DeviceGraph::centroid_virials(const at::Tensor &g) const
{
  return translated("the virials of the atoms", [&] {
    const Torch &t = *torch_;
    const DeviceGuard guard(t.device);
    return t.sums_on_neighbors(virial_terms(t.edge_vectors, t.gradient(g)));
  });
}

double DeviceGraph::memory_usage() const
{
  const Torch &t = *torch_;
  double bytes = sizeof(int) * static_cast<double>(t.node_atom.capacity());
  for (const auto *tensor :
       {&t.species, &t.node_atom_on_device, &t.center_node, &t.neighbor_node, &t.neighbor_atom,
        &t.first_candidate, &t.by_neighbor, &t.first_candidate_by_neighbor, &t.center, &t.neighbor,
        &t.edge_vectors, &t.first_edge, &t.edges_by_neighbor, &t.first_by_neighbor})
    if (tensor->defined()) bytes += static_cast<double>(tensor->nbytes());
  return bytes;
}

}    // namespace hienet
