// SPDX-License-Identifier: GPL-2.0-or-later
// What stays on the device of the models from step to step, and what travels between it and the arrays of the host.
// Knows torch (behind a pointer) and nothing of LAMMPS.

#ifndef HIENET_RESIDENT_DATA_H
#define HIENET_RESIDENT_DATA_H

#include "device_graph.h"
#include "edge_check.h"

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace hienet {

class StagedModel;
struct AtomsView;
struct DeviceAtoms;
struct NeighborListView;

/// What the host wants to have of the results, besides the energies.
struct WantedResults {
  bool forces, virial, atom_virials, centroid_virials;
  double forces_added;    // by this factor to those of DeviceAtoms, if there are any
};

/// What comes back from the device, for the nodes of a graph. Energies in eV, the others as DeviceGraph has them.
struct DeviceResults {
  const double *energies;            // [n_local]
  double checksum;                   // not finite if a force is not
  const double *forces;              // [n_nodes * 3], or nullptr
  const double *virial;              // [9], or nullptr
  const double *atom_virials;        // [n_nodes * 6], or nullptr
  const double *centroid_virials;    // [n_nodes * 9], or nullptr
};

/// The graphs of one rank on its device. The neighbour list goes up when it is new, positions in every step; energies,
/// forces and virials come down.
///
/// In every step:
///
///     begin_step(new_list, nullptr)
///     for each model:  update(graph, ...); model.begin(graph(k)); ...; readout(model); ...; finish(model, k, ...)
///
/// Where LAMMPS keeps the atoms on the device itself, `begin_step` gets them: then the neighbour list and positions are
/// read there, and forces are added there. On a GPU all copies are made by way of pinned memory on the current stream,
/// and the host waits twice for each model: in `update` for the number of edges, in `finish` for the results. Every
/// member throws ModelError.
class ResidentData {
 public:
  explicit ResidentData(const std::string &device);
  ~ResidentData();

  /// The number of a new graph, from 0.
  size_t add_graph(double cutoff);
  const DeviceGraph &graph(size_t k) const { return graphs[k].on_device; }

  /// Positions are new. `new_list`: so are the neighbour list, the number of atoms or the owners of ghosts, which each
  /// graph's next `update` then reads. `lent`: the atoms that LAMMPS keeps on the device, or nullptr; they are used until
  /// the last `finish` of the step, which ends with what has been done to them.
  void begin_step(bool new_list, const DeviceAtoms *lent);

  /// The graph of the present positions. The arguments are those of NeighborGraph::build; positions and list are not read
  /// if atoms are lent, otherwise the first call of a step takes the positions up. Throws GraphError too.
  void update(size_t k, const AtomsView &atoms, const NeighborListView &list,
              const std::vector<int> &species_of_type, const int *owner);

  /// Of the last `update`, for `n` nodes: what `find_missing_edge` finds. Waits for the device.
  std::optional<MissingEdge> missing_edge(size_t k, AtomsView atoms,
                                          const std::vector<int> &species_of_type, int first_node,
                                          int n) const;

  /// In place of those of the model.
  void readout(StagedModel &model);

  /// The results hold until the next call.
  DeviceResults finish(StagedModel &model, size_t k, const WantedResults &wanted);

  /// Bytes on the host and on the device.
  double memory_usage() const;

 private:
  struct Graph {
    DeviceGraph on_device;
    std::vector<int> species;    // [n_total], negative for atoms that the model does not see
    bool has_list = false;
  };
  struct Torch;
  std::unique_ptr<Torch> torch_;
  std::vector<Graph> graphs;
  std::vector<int> species;    // of the present step
  const DeviceAtoms *lent = nullptr;

  void find_positions(const AtomsView &atoms);
  void read_list(Graph &graph, const AtomsView &atoms, const NeighborListView &list,
                 const int *owner);
};

}    // namespace hienet

#endif
