// SPDX-License-Identifier: GPL-2.0-or-later
// The graph of one rank: what a model reads, and what becomes of the derivatives that it returns. Knows torch (behind a
// pointer) and nothing of LAMMPS.

#ifndef HIENET_RANK_GRAPH_H
#define HIENET_RANK_GRAPH_H

#include "edge_check.h"
#include "rank_atoms.h"

#include <cstdint>
#include <optional>
#include <vector>

namespace at {
class Tensor;
}

namespace hienet {

struct GraphTensors;

/// What is asked for besides the energies.
struct WantedResults {
  bool forces = true, virial = false, atom_virials = false, centroid_virials = false;
  double forces_added = 0.0;    // by this factor to those of DeviceAtoms, if there are any
};

/// Of one model, for the nodes of a graph, ghosts included: eV, eV/Angstrom. The signs are those of docs/conventions.md.
struct Results {
  const double *energies;        // [n_local]
  double checksum;               // not finite if a force is not
  const double *forces;          // [n_nodes * 3], or nullptr
  const double *virial;          // [9], xx, yy, zz, xy, xz, yz, yx, zx, zy, or nullptr
  const double *atom_virials;    // [n_nodes * 6], symmetrised, xx, yy, zz, xy, xz, yz, or nullptr
  const double *centroid_virials;    // [n_nodes * 9], or nullptr
};

/// Nodes `0 .. n_local-1` are owned atoms, the others are ghosts that an edge refers to; edges are sorted by center.
///
/// In every step
///
///     begin_step(new_list, lent);  update(...);  model.begin(tensors()); ...; results(energies, gradients, wanted)
///
/// HostGraph builds it on the processor, ResidentGraph on the device of the model. The same input gives the same bits,
/// whatever the number of threads. Besides what is declared below, every member throws ModelError.
class RankGraph {
 public:
  explicit RankGraph(double cutoff) : cutoff_(cutoff) {}
  virtual ~RankGraph() = default;
  RankGraph(const RankGraph &) = delete;
  RankGraph &operator=(const RankGraph &) = delete;

  double cutoff() const { return cutoff_; }    // Angstrom

  /// Positions are new. `new_list`: so are the neighbour list, the number of atoms or the owners of ghosts. `lent`: the
  /// atoms where they are kept on the device, or nullptr; they are used until the last `results` of the step, which ends
  /// with what has been done to them.
  virtual void begin_step(bool new_list, const DeviceAtoms *lent) = 0;

  /// The edges of all pairs closer than the cutoff.
  ///
  /// `species_of_type` is indexed by the atom type, and negative for types that are left out, 0 among them. With `owner`
  /// ([n_total], local index of the atom of which a ghost is a periodic image) ghosts fold onto their owners and there are
  /// no ghost nodes; without it (nullptr) they are nodes. Throws GraphError.
  virtual void update(const AtomsView &atoms, const NeighborListView &list,
                      const std::vector<int> &species_of_type, const int *owner) = 0;

  virtual int n_local() const = 0;
  virtual int n_nodes() const = 0;
  virtual int64_t n_edges() const = 0;

  /// [n_nodes], local index of each node's atom.
  virtual const std::vector<int> &node_atom() const = 0;

  /// What StagedModel reads. It holds until the next `update`, and refers to this object.
  virtual GraphTensors tensors() const = 0;

  /// Of the last `update`, for `n` nodes: what `find_missing_edge` finds.
  virtual std::optional<MissingEdge> missing_edge(const AtomsView &atoms,
                                                  const std::vector<int> &species_of_type,
                                                  int first_node, int n) const = 0;

  /// From energies ([n_local] float64) and dE/d(edge_vectors) ([n_edges, 3], float32 or float64; undefined for zero). They
  /// hold until the next call.
  virtual Results results(const at::Tensor &energies, const at::Tensor &gradients,
                          const WantedResults &wanted) = 0;

  /// Bytes that are held between steps, on the host and on the device.
  virtual double memory_usage() const = 0;

 private:
  double cutoff_;
};

}    // namespace hienet

#endif
