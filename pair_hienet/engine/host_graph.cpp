// SPDX-License-Identifier: GPL-2.0-or-later

#include "host_graph.h"

#include "device_guard.h"
#include "graph_tensors.h"
#include "model_error.h"
#include "thread_pool.h"
#include "virial_components.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace hienet {

/// Edges are shared among threads, and summed, by blocks of so many nodes.
static constexpr int64_t BLOCK = 256;

void HostGraph::update(const AtomsView &atoms, const NeighborListView &list,
                       const std::vector<int> &species_of_type, const int *owner)
{ graph.build(atoms, list, species_of_type, cutoff(), owner); }

/// The vectors, where they are.
GraphTensors HostGraph::tensors() const
{
  const OrdinaryMode ordinary;
  auto indices = [](const std::vector<int64_t> &v) {
    return at::from_blob(const_cast<int64_t *>(v.data()), {static_cast<int64_t>(v.size())},
                         at::kLong);
  };
  return {graph.n_local,
          graph.n_nodes,
          graph.node_atom,
          indices(graph.species),
          indices(graph.center),
          indices(graph.neighbor),
          at::from_blob(const_cast<double *>(graph.edge_vectors.data()), {graph.n_edges(), 3},
                        at::kDouble)};
}

std::optional<MissingEdge> HostGraph::missing_edge(const AtomsView &atoms,
                                                   const std::vector<int> &species_of_type,
                                                   int first_node, int n) const
{
  const auto begin = graph.first_edge.begin() + first_node;
  EdgesOfNodes edges = {first_node, {begin, begin + n + 1}, {}};
  edges.vectors.assign(graph.edge_vectors.begin() + 3 * begin[0],
                       graph.edge_vectors.begin() + 3 * begin[n]);
  for (auto &number : edges.first_edge) number -= begin[0];
  return find_missing_edge(atoms, species_of_type, cutoff(), graph.node_atom, edges);
}

/// `n` numbers of a tensor, undefined for zero, in float64 on the host.
static void take_down(const at::Tensor &tensor, int64_t n, std::vector<double> &numbers)
{
  numbers.resize(n);
  auto host = at::from_blob(numbers.data(), {n}, at::kDouble);
  if (tensor.defined())
    host.copy_(tensor.flatten());
  else
    host.zero_();
}

Results HostGraph::results(const at::Tensor &node_energies, const at::Tensor &gradients,
                           const WantedResults &wanted)
{
  return translated("the results", [&]() -> Results {
    const DeviceGuard guard(at::kCPU);
    take_down(node_energies, graph.n_local, energies);
    take_down(gradients, 3 * graph.n_edges(), edge_gradients);
    const auto n_nodes = static_cast<size_t>(graph.n_nodes);
    forces.assign(3 * n_nodes, 0.0);
    atom_virials.assign(wanted.atom_virials ? 6 * n_nodes : 0, 0.0);
    centroid_virials.assign(wanted.centroid_virials ? 9 * n_nodes : 0, 0.0);

    const int64_t n_blocks = (graph.n_nodes + BLOCK - 1) / BLOCK;
    block_sums.assign(n_blocks, BlockSums());
    parallel_for(n_blocks, 1, [&](int64_t begin, int64_t end) {
      sum_on_nodes(begin * BLOCK, std::min<int64_t>(end * BLOCK, graph.n_nodes), wanted);
    });
    double checksum = 0.0;
    std::fill_n(virial, 9, 0.0);
    for (const auto &sums : block_sums) {
      checksum += sums.gradient;
      for (int a = 0; a < 9; a++) virial[a] += sums.virial[a];
    }
    auto given = [](bool asked, const double *numbers) {
      return asked ? numbers : nullptr;
    };
    return {energies.data(),
            checksum,
            given(wanted.forces, forces.data()),
            given(wanted.virial, virial),
            given(wanted.atom_virials, atom_virials.data()),
            given(wanted.centroid_virials, centroid_virials.data())};
  });
}

/// All that edges give to the nodes `first .. last-1`.
///
/// With r = r_neighbor - r_center and g = dE/dr of an edge: F_center += g, F_neighbor -= g. The edge's virial
/// -r (x) g is shared equally by its two atoms in a stress per atom; in a centroid stress, of which heat fluxes are
/// made, the neighbor has all of it, since the energy is the center's and the heat flows to where it is.
///
/// A thread looks at every edge, and takes what falls to its own nodes: each atom's terms are added in the order of
/// the edges, whatever the number of threads, and no two threads write to one atom.
void HostGraph::sum_on_nodes(int64_t first, int64_t last, const WantedResults &wanted)
{
  const int64_t *const neighbors = graph.neighbor.data();
  const double *const gradients = edge_gradients.data();
  const bool by_atom = wanted.atom_virials || wanted.centroid_virials;

  auto add_virial = [&](int64_t e, double *w) {
    const double *r = &graph.edge_vectors[3 * e], *g = gradients + 3 * e;
    for (int a = 0; a < 9; a++) w[a] -= r[VIRIAL_ROW[a]] * g[VIRIAL_COLUMN[a]];
  };
  auto share_virial = [&](int64_t node, const double *w) {
    double *const to = atom_virials.data() + 6 * node;
    for (int a = 0; a < 6; a++) to[a] += a < 3 ? 0.5 * w[a] : 0.25 * (w[a] + w[a + 3]);
  };
  auto to_neighbor = [&](int64_t e) {
    const int64_t node = neighbors[e];
    if (node < first || node >= last) return;
    for (int a = 0; a < 3; a++) forces[3 * node + a] -= gradients[3 * e + a];
    if (!by_atom) return;
    double w[9] = {};
    add_virial(e, w);
    if (wanted.atom_virials) share_virial(node, w);
    for (int a = 0; a < 9 && wanted.centroid_virials; a++) centroid_virials[9 * node + a] += w[a];
  };

  const int64_t first_center = std::min<int64_t>(first, graph.n_local);
  const int64_t last_center = std::min<int64_t>(last, graph.n_local);
  for (int64_t e = 0; e < graph.first_edge[first_center]; e++) to_neighbor(e);
  for (int64_t center = first_center; center < last_center; center++) {
    double force[3] = {}, w[9] = {};
    for (int64_t e = graph.first_edge[center]; e < graph.first_edge[center + 1]; e++) {
      for (int a = 0; a < 3; a++) force[a] += gradients[3 * e + a];
      if (wanted.virial || wanted.atom_virials) add_virial(e, w);
      to_neighbor(e);
    }
    auto &sums = block_sums[center / BLOCK];
    for (int a = 0; a < 3; a++) forces[3 * center + a] += force[a];
    for (int a = 0; a < 9; a++) sums.virial[a] += w[a];
    sums.gradient += force[0] + force[1] + force[2];
    if (wanted.atom_virials) share_virial(center, w);
  }
  for (int64_t e = graph.first_edge[last_center]; e < graph.n_edges(); e++) to_neighbor(e);
}

double HostGraph::memory_usage() const
{
  return graph.memory_usage() +
      sizeof(double) *
      (energies.capacity() + edge_gradients.capacity() + forces.capacity() +
       atom_virials.capacity() + centroid_virials.capacity()) +
      sizeof(BlockSums) * block_sums.capacity();
}

}    // namespace hienet
