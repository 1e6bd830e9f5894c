// SPDX-License-Identifier: GPL-2.0-or-later
// Whether a graph has all its edges, found out without the neighbour list of which it was made. Knows neither LAMMPS nor
// torch.

#ifndef HIENET_EDGE_CHECK_H
#define HIENET_EDGE_CHECK_H

#include <cstdint>
#include <optional>
#include <vector>

namespace hienet {

struct AtomsView;

/// The edges of the nodes `first_node`, `first_node + 1`, ..., all of them owned.
struct EdgesOfNodes {
  int first_node;
  std::vector<int64_t> first_edge;    // [n + 1], where those of each begin in `vectors`
  std::vector<double> vectors;        // [n_edges * 3], r_neighbor - r_center
};

/// Two atoms closer than the cutoff between which there is no edge; local indices.
struct MissingEdge {
  int center, neighbor;
  double distance;
};

/// The first edge that some nodes lack, or nothing: all owned and ghost atoms are looked at, one by one.
///
/// `species_of_type` is that of NeighborGraph::build, `node_atom` the local index of each node's atom. Pairs of which
/// rounding decides whether they are within the cutoff are passed over.
std::optional<MissingEdge> find_missing_edge(const AtomsView &atoms,
                                             const std::vector<int> &species_of_type, double cutoff,
                                             const std::vector<int> &node_atom,
                                             const EdgesOfNodes &edges);

}    // namespace hienet

#endif
