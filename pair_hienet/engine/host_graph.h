// SPDX-License-Identifier: GPL-2.0-or-later
// A graph that is built on the processor, and the sums over its edges. Knows torch (in its source) and nothing of LAMMPS.

#ifndef HIENET_HOST_GRAPH_H
#define HIENET_HOST_GRAPH_H

#include "neighbor_graph.h"
#include "rank_graph.h"

namespace hienet {

/// A NeighborGraph; the model may be on any device.
class HostGraph : public RankGraph {
 public:
  using RankGraph::RankGraph;

  void begin_step(bool, const DeviceAtoms *) override {}
  void update(const AtomsView &atoms, const NeighborListView &list,
              const std::vector<int> &species_of_type, const int *owner) override;
  int n_local() const override { return graph.n_local; }
  int n_nodes() const override { return graph.n_nodes; }
  int64_t n_edges() const override { return graph.n_edges(); }
  const std::vector<int> &node_atom() const override { return graph.node_atom; }
  GraphTensors tensors() const override;
  std::optional<MissingEdge> missing_edge(const AtomsView &atoms,
                                          const std::vector<int> &species_of_type, int first_node,
                                          int n) const override;
  Results results(const at::Tensor &energies, const at::Tensor &gradients,
                  const WantedResults &wanted) override;
  double memory_usage() const override;

 private:
  // What a block of centers adds to the sums over the rank.
  struct BlockSums {
    double virial[9] = {};
    double gradient = 0.0;    // of all components; not finite if one of them is not
  };

  NeighborGraph graph;
  std::vector<double> energies, edge_gradients;
  std::vector<double> forces, atom_virials, centroid_virials;    // [n_nodes, 3], 6, 9
  double virial[9] = {};
  std::vector<BlockSums> block_sums;

  void sum_on_nodes(int64_t first, int64_t last, const WantedResults &wanted);
};

}    // namespace hienet

#endif
