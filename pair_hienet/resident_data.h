// SPDX-License-Identifier: GPL-2.0-or-later
// What stays on the device of the models from step to step, and what travels between it and the arrays of the host.
// Knows torch (behind a pointer) and nothing of LAMMPS.

#ifndef HIENET_RESIDENT_DATA_H
#define HIENET_RESIDENT_DATA_H

#include "device_graph.h"

#include <memory>
#include <string>
#include <vector>

namespace hienet {

class StagedModel;
struct AtomsView;
struct NeighborListView;

/// What comes back from the device, for the nodes of a graph. Energies in eV, the others as DeviceGraph has them.
struct DeviceResults {
  const double *energies;            // [n_local]
  const double *forces;              // [n_nodes * 3]
  const double *virial;              // [9], or nullptr
  const double *atom_virials;        // [n_nodes * 6], or nullptr
  const double *centroid_virials;    // [n_nodes * 9], or nullptr
};

/// The graphs of one rank on its device. The neighbour list goes up when it is new, positions in every step; energies,
/// forces and virials come down.
///
/// In every step:
///
///     begin_step(new_list)
///     for each model:  update(graph, ...); model.begin(graph(k)); ...; readout(model); ...; finish(model, k, ...)
///
/// On a GPU all copies are made by way of pinned memory on the current stream, and the host waits twice for each model:
/// in `update` for the number of edges, in `finish` for the results. Every member throws ModelError.
class ResidentData {
 public:
  explicit ResidentData(const std::string &device);
  ~ResidentData();

  /// The number of a new graph, from 0.
  size_t add_graph(double cutoff);
  const DeviceGraph &graph(size_t k) const { return graphs[k].on_device; }

  /// Positions are new. `new_list`: so are the neighbour list, the number of atoms or the owners of ghosts, which each
  /// graph's next `update` then reads.
  void begin_step(bool new_list);

  /// The graph of the present positions. The arguments are those of NeighborGraph::build; the first call of a step
  /// takes the positions up. Throws GraphError too.
  void update(size_t k, const AtomsView &atoms, const NeighborListView &list,
              const std::vector<int> &species_of_type, const int *owner);

  /// In place of those of the model.
  void readout(StagedModel &model);

  /// The results hold until the next call.
  DeviceResults finish(StagedModel &model, size_t k, bool virial, bool atom_virials,
                       bool centroid_virials);

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

  void upload_positions(const AtomsView &atoms);
  void find_species(const AtomsView &atoms, const std::vector<int> &species_of_type,
                    const int *owner);
  void upload_list(Graph &graph, const AtomsView &atoms, const NeighborListView &list,
                   const int *owner);
};

}    // namespace hienet

#endif
