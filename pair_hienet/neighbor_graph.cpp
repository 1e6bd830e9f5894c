// SPDX-License-Identifier: GPL-2.0-or-later

#include "neighbor_graph.h"

#include <cmath>

namespace hienet {

// Atoms closer than this are one atom given twice: no potential is meant for them, and directions are noise.
static constexpr double COINCIDENT_SQUARED = 1.0e-6;

void NeighborGraph::clear()
{
  n_local = n_nodes = 0;
  species.clear();
  center.clear();
  neighbor.clear();
  edge_vectors.clear();
  node_atom.clear();
  edge_atom_i.clear();
  edge_atom_j.clear();
}

void NeighborGraph::add_owned_nodes(const AtomsView &atoms, const std::vector<int> &species_of_type)
{
  for (int i = 0; i < atoms.n_owned; i++) {
    const int s = species_of_type[atoms.type[i]];
    if (s < 0) continue;
    const double *x = atoms.x[i];
    if (!std::isfinite(x[0]) || !std::isfinite(x[1]) || !std::isfinite(x[2]))
      throw GraphError(GraphError::NOT_FINITE, i, i);
    atom_node[i] = n_nodes++;
    species.push_back(s);
    node_atom.push_back(i);
  }
  n_local = n_nodes;
}

int NeighborGraph::ghost_node(int atom, int s)
{
  if (atom_node[atom] < 0) {
    atom_node[atom] = n_nodes++;
    species.push_back(s);
    node_atom.push_back(atom);
  }
  return atom_node[atom];
}

void NeighborGraph::build(const AtomsView &atoms, const NeighborListView &list,
                          const std::vector<int> &species_of_type, double cutoff, const int *owner)
{
  clear();
  atom_node.assign(atoms.n_total, -1);
  list_row.assign(atoms.n_owned, -1);
  add_owned_nodes(atoms, species_of_type);

  for (int ii = 0; ii < list.inum; ii++)
    if (list.ilist[ii] < atoms.n_owned) list_row[list.ilist[ii]] = ii;

  const double cutoff_squared = cutoff * cutoff;
  for (int node = 0; node < n_local; node++) {
    const int i = node_atom[node];
    if (list_row[i] < 0) continue;
    const int *jlist = list.firstneigh[i];
    const int jnum = list.numneigh[i];
    for (int jj = 0; jj < jnum; jj++) {
      const int j = jlist[jj] & list.mask;
      const int s = species_of_type[atoms.type[j]];
      if (s < 0) continue;
      const double dx = atoms.x[j][0] - atoms.x[i][0];
      const double dy = atoms.x[j][1] - atoms.x[i][1];
      const double dz = atoms.x[j][2] - atoms.x[i][2];
      const double rsq = dx * dx + dy * dy + dz * dz;
      if (!std::isfinite(rsq)) throw GraphError(GraphError::NOT_FINITE, i, j);
      if (rsq >= cutoff_squared) continue;
      if (rsq < COINCIDENT_SQUARED) throw GraphError(GraphError::COINCIDENT, i, j);
      center.push_back(node);
      neighbor.push_back(owner ? atom_node[owner[j]] : ghost_node(j, s));
      edge_vectors.insert(edge_vectors.end(), {dx, dy, dz});
      edge_atom_i.push_back(i);
      edge_atom_j.push_back(j);
    }
  }
}

double NeighborGraph::memory_usage() const
{
  return sizeof(int64_t) * (species.capacity() + center.capacity() + neighbor.capacity()) +
      sizeof(double) * edge_vectors.capacity() +
      sizeof(int) *
      (node_atom.capacity() + edge_atom_i.capacity() + edge_atom_j.capacity() +
       atom_node.capacity() + list_row.capacity());
}

}    // namespace hienet
