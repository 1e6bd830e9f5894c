// SPDX-License-Identifier: GPL-2.0-or-later
// Atoms and a full neighbour list -> the edge arrays of docs/conventions.md. Knows neither LAMMPS nor torch.

#ifndef HIENET_NEIGHBOR_GRAPH_H
#define HIENET_NEIGHBOR_GRAPH_H

#include "rank_atoms.h"

#include <cstdint>
#include <exception>
#include <vector>

namespace hienet {

/// Atoms closer than this (its square) are one atom given twice: no potential is meant for them, and directions are
/// noise.
inline constexpr double COINCIDENT_SQUARED = 1.0e-6;

/// Positions from which no graph can be built. `i` and `j` are local atom indices.
struct GraphError : std::exception {
  enum Kind { NOT_FINITE, COINCIDENT };
  GraphError(Kind kind, int i, int j) : kind(kind), i(i), j(j) {}
  const char *what() const noexcept override
  { return kind == NOT_FINITE ? "a position is not finite" : "two atoms are at the same place"; }
  Kind kind;
  int i, j;
};

/// The graph of one rank. Nodes `0 .. n_local-1` are owned atoms, the others are ghosts that an edge refers to.
///
/// The vectors keep their capacity from step to step. The graph is the same for any number of threads.
class NeighborGraph {
 public:
  int n_local = 0;
  int n_nodes = 0;
  std::vector<int64_t> species;        // [n_nodes]
  std::vector<int64_t> center;         // [n_edges], sorted
  std::vector<int64_t> neighbor;       // [n_edges]
  std::vector<double> edge_vectors;    // [n_edges * 3], r_neighbor - r_center
  std::vector<int64_t> first_edge;     // [n_local + 1], where the edges of each center begin
  std::vector<int> node_atom;          // [n_nodes], local index of the node's atom

  int64_t n_edges() const { return static_cast<int64_t>(center.size()); }

  /// Build the graph of all pairs closer than `cutoff`.
  ///
  /// `species_of_type` is indexed by the atom type, and negative for types that are left out, 0 among them.
  /// With `owner` ([n_total], local index of the atom of which a ghost is a periodic image) ghosts
  /// fold onto their owners and there are no ghost nodes; without it (nullptr) they are nodes.
  /// Throws GraphError.
  void build(const AtomsView &atoms, const NeighborListView &list,
             const std::vector<int> &species_of_type, double cutoff, const int *owner);

  /// Bytes held by the vectors.
  double memory_usage() const;

 private:
  std::vector<int> atom_node;               // [n_total], negative for atoms that are not nodes
  std::vector<int> row_length;              // [n_owned], entries of the neighbour list
  std::vector<int64_t> candidates_start;    // [n_local + 1], in `accepted`
  std::vector<int> accepted;                // local indices of the neighbours within the cutoff

  void add_owned_nodes(const AtomsView &atoms, const std::vector<int> &species_of_type);
  void lay_out_candidates(const AtomsView &atoms, const NeighborListView &list);
  int accept_neighbors(int64_t node, const AtomsView &atoms, const NeighborListView &list,
                       const std::vector<int> &species_of_type, double cutoff_squared,
                       bool ghosts_are_nodes);
  void add_ghost_nodes(const AtomsView &atoms, const std::vector<int> &species_of_type);
  void write_edges(int64_t node, const AtomsView &atoms, const int *owner);
};

}    // namespace hienet

#endif
