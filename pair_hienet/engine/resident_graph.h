// SPDX-License-Identifier: GPL-2.0-or-later
// A graph that stays on the device of the models from step to step, and what travels between it and the arrays of the
// host. Knows torch (behind a pointer) and nothing of LAMMPS.

#ifndef HIENET_RESIDENT_GRAPH_H
#define HIENET_RESIDENT_GRAPH_H

#include "device_graph.h"
#include "rank_graph.h"

#include <memory>
#include <string>
#include <vector>

namespace hienet {

/// What the graphs of one rank share: positions on the device, and memory of the host by way of which things travel.
class ResidentAtoms;
std::shared_ptr<ResidentAtoms> resident_atoms(const std::string &device);

/// A DeviceGraph. The neighbour list goes up when it is new, positions in every step; energies, forces and virials come
/// down.
///
/// Where LAMMPS keeps the atoms on the device itself, the neighbour list and positions are read there, and forces are
/// added there. On a GPU all copies are made by way of pinned memory on the current stream, and the host waits twice for
/// each model: in `update` for the number of edges, in `results` for them.
class ResidentGraph : public RankGraph {
 public:
  ResidentGraph(double cutoff, std::shared_ptr<ResidentAtoms> shared);
  ~ResidentGraph() override;

  void begin_step(bool new_list, const DeviceAtoms *lent) override;
  void update(const AtomsView &atoms, const NeighborListView &list,
              const std::vector<int> &species_of_type, const int *owner) override;
  int n_local() const override { return graph.n_local(); }
  int n_nodes() const override { return graph.n_nodes(); }
  int64_t n_edges() const override { return graph.n_edges(); }
  const std::vector<int> &node_atom() const override { return graph.node_atom(); }
  GraphTensors tensors() const override;

  /// Waits for the device.
  std::optional<MissingEdge> missing_edge(const AtomsView &atoms,
                                          const std::vector<int> &species_of_type, int first_node,
                                          int n) const override;
  Results results(const at::Tensor &energies, const at::Tensor &gradients,
                  const WantedResults &wanted) override;
  double memory_usage() const override;

 private:
  DeviceGraph graph;
  std::shared_ptr<ResidentAtoms> shared;
  std::vector<int> species;    // [n_total], negative for atoms that the model does not see
  bool has_list = false;

  void read_list(const AtomsView &atoms, const NeighborListView &list, const int *owner);
};

}    // namespace hienet

#endif
