// SPDX-License-Identifier: GPL-2.0-or-later

#include "neighbor_graph.h"

#include "thread_pool.h"

#include <atomic>
#include <cmath>
#include <mutex>
#include <optional>

namespace hienet {

// Nodes that are worth a thread of their own.
static constexpr int64_t GRAIN = 64;

static constexpr int NOT_A_NODE = -1;
static constexpr int NEEDED_GHOST = -2;    // until it gets its number

/// Room for `n` items without setting again those that are there. The number of edges changes a little from
/// step to step: some room to spare, where a vector by itself would double.
template <typename T> static void resize(std::vector<T> &items, size_t n)
{
  if (n > items.capacity()) items.reserve(n + n / 16);
  items.resize(n);
}

void NeighborGraph::add_owned_nodes(const AtomsView &atoms, const std::vector<int> &species_of_type)
{
  atom_node.assign(atoms.n_total, NOT_A_NODE);
  n_local = n_nodes = 0;
  resize(species, atoms.n_owned);
  resize(node_atom, atoms.n_owned);
  for (int i = 0; i < atoms.n_owned; i++) {
    const int s = species_of_type[atoms.type[i]];
    if (s < 0) continue;
    const double *x = atoms.x[i];
    if (!std::isfinite(x[0]) || !std::isfinite(x[1]) || !std::isfinite(x[2]))
      throw GraphError(GraphError::NOT_FINITE, i, i);
    species[n_nodes] = s;
    node_atom[n_nodes] = i;
    atom_node[i] = n_nodes++;
  }
  n_local = n_nodes;
}

/// `candidates_start`: where each node's part of `accepted` begins, which has room for its whole row of the list.
void NeighborGraph::lay_out_candidates(const AtomsView &atoms, const NeighborListView &list)
{
  // Atoms without a row have no neighbours, and no length that could be read.
  row_length.assign(atoms.n_owned, 0);
  for (int ii = 0; ii < list.inum; ii++) {
    const int i = list.ilist[ii];
    if (i < atoms.n_owned) row_length[i] = list.numneigh[i];
  }
  resize(candidates_start, n_local + 1);
  candidates_start[0] = 0;
  for (int node = 0; node < n_local; node++)
    candidates_start[node + 1] = candidates_start[node] + row_length[node_atom[node]];
  resize(accepted, candidates_start[n_local]);
}

/// The neighbours of a node within the cutoff -> `accepted`; returns their number. Where ghosts are nodes those
/// among them are marked.
int NeighborGraph::accept_neighbors(int64_t node, const AtomsView &atoms,
                                    const NeighborListView &list,
                                    const std::vector<int> &species_of_type, double cutoff_squared,
                                    bool ghosts_are_nodes)
{
  const int i = node_atom[node];
  const double x = atoms.x[i][0], y = atoms.x[i][1], z = atoms.x[i][2];
  const int n_candidates = row_length[i];
  const int *const candidates = n_candidates > 0 ? list.firstneigh[i] : nullptr;
  int *const out = accepted.data() + candidates_start[node];
  int n = 0;
  for (int k = 0; k < n_candidates; k++) {
    const int j = candidates[k] & list.mask;
    const double dx = atoms.x[j][0] - x;
    const double dy = atoms.x[j][1] - y;
    const double dz = atoms.x[j][2] - z;
    const double rsq = dx * dx + dy * dy + dz * dz;
    if (rsq >= cutoff_squared && std::isfinite(rsq)) continue;
    // The list may be older than the types and groups.
    if (species_of_type[atoms.type[j]] < 0) continue;
    if (!std::isfinite(rsq)) throw GraphError(GraphError::NOT_FINITE, i, j);
    if (rsq < COINCIDENT_SQUARED) throw GraphError(GraphError::COINCIDENT, i, j);
    out[n++] = j;
    // Several threads may mark one ghost.
    if (ghosts_are_nodes && j >= atoms.n_owned)
      std::atomic_ref<int>(atom_node[j]).store(NEEDED_GHOST, std::memory_order_relaxed);
  }
  return n;
}

/// Marked ghosts become nodes in the order of the atoms, which no division among threads can change.
void NeighborGraph::add_ghost_nodes(const AtomsView &atoms, const std::vector<int> &species_of_type)
{
  for (int i = atoms.n_owned; i < atoms.n_total; i++)
    if (atom_node[i] == NEEDED_GHOST) atom_node[i] = n_nodes++;
  resize(species, n_nodes);
  resize(node_atom, n_nodes);
  for (int i = atoms.n_owned; i < atoms.n_total; i++) {
    if (atom_node[i] == NOT_A_NODE) continue;
    species[atom_node[i]] = species_of_type[atoms.type[i]];
    node_atom[atom_node[i]] = i;
  }
}

void NeighborGraph::write_edges(int64_t node, const AtomsView &atoms, const int *owner)
{
  const double *const x = atoms.x[node_atom[node]];
  const int *const from = accepted.data() + candidates_start[node];
  const int64_t first = first_edge[node], n = first_edge[node + 1] - first;
  for (int64_t k = 0; k < n; k++) {
    const int j = from[k];
    center[first + k] = node;
    neighbor[first + k] = atom_node[owner ? owner[j] : j];
    double *const vector = &edge_vectors[3 * (first + k)];
    for (int a = 0; a < 3; a++) vector[a] = atoms.x[j][a] - x[a];
  }
}

void NeighborGraph::build(const AtomsView &atoms, const NeighborListView &list,
                          const std::vector<int> &species_of_type, double cutoff, const int *owner)
{
  add_owned_nodes(atoms, species_of_type);
  lay_out_candidates(atoms, list);
  resize(first_edge, n_local + 1);
  first_edge[0] = 0;

  // Of several bad pairs the one of the first node is named, whichever thread comes first.
  std::optional<std::pair<int64_t, GraphError>> bad;
  std::mutex bad_lock;
  parallel_for(n_local, GRAIN, [&](int64_t begin, int64_t end) {
    for (int64_t node = begin; node < end; node++) {
      try {
        first_edge[node + 1] =
            accept_neighbors(node, atoms, list, species_of_type, cutoff * cutoff, !owner);
      } catch (const GraphError &error) {
        const std::lock_guard<std::mutex> guard(bad_lock);
        if (!bad || node < bad->first) bad.emplace(node, error);
        return;
      }
    }
  });
  if (bad) throw bad->second;

  for (int node = 0; node < n_local; node++) first_edge[node + 1] += first_edge[node];
  add_ghost_nodes(atoms, species_of_type);
  resize(center, first_edge[n_local]);
  resize(neighbor, first_edge[n_local]);
  resize(edge_vectors, 3 * first_edge[n_local]);
  parallel_for(n_local, GRAIN, [&](int64_t begin, int64_t end) {
    for (int64_t node = begin; node < end; node++) write_edges(node, atoms, owner);
  });
}

double NeighborGraph::memory_usage() const
{
  return sizeof(int64_t) *
      (species.capacity() + center.capacity() + neighbor.capacity() + first_edge.capacity() +
       candidates_start.capacity()) +
      sizeof(double) * edge_vectors.capacity() +
      sizeof(int) *
      (node_atom.capacity() + atom_node.capacity() + row_length.capacity() + accepted.capacity());
}

}    // namespace hienet
