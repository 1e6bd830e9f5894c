// SPDX-License-Identifier: GPL-2.0-or-later
// The atoms of one rank as the program that moves them shows them to the engine. Knows neither LAMMPS nor torch.

#ifndef HIENET_RANK_ATOMS_H
#define HIENET_RANK_ATOMS_H

#include <string>
#include <vector>

namespace hienet {

struct DeviceAtoms;
struct GraphError;
struct MissingEdge;

/// Atoms of one rank: the first `n_owned` are its own, the others are ghosts.
struct AtomsView {
  int n_owned;
  int n_total;
  const double (*x)[3];    // [n_total][3], length units of the model
  const int *type;         // [n_total], of each atom's owner, from 1; 0 for atoms that are left out
};

/// A full neighbour list (each pair is seen from both sides), as LAMMPS stores it.
struct NeighborListView {
  int inum;
  const int *ilist;
  const int *numneigh;
  const int *const *firstneigh;
  int mask;    // bits of an entry that hold the index; the others mark bonded neighbours
};

/// What the engine asks of the program that it runs in, about one rank and the present step.
///
/// `tell_ghosts` is collective; it is called when `ghosts_are_told` is false on any rank. What the others return concerns
/// this rank alone.
class RankAtoms {
 public:
  virtual ~RankAtoms() = default;

  virtual AtomsView atoms() const = 0;
  virtual NeighborListView neighbors() const = 0;

  /// [n_total] each: atom i is a copy of the atom owner[i], a local index, of rank owner_rank[i].
  virtual const std::vector<int> &owner() const = 0;
  virtual const std::vector<int> &owner_rank() const = 0;

  /// Where the atoms lie if they are kept on the device of the models, else nullptr. Positions and list are then read
  /// there, those of the views are not, and forces are added there.
  virtual const DeviceAtoms *on_device() const { return nullptr; }

  /// Whether the neighbour list, the number of atoms or the owners of ghosts are others than in the step before.
  virtual bool list_is_new() const = 0;

  /// Why these atoms cannot be evaluated with this list, as a sentence; empty if they can.
  virtual std::string problem() const = 0;

  /// Whether ghosts on all ranks are of the types that this rank's atoms are of, and the way to make it so.
  virtual bool ghosts_are_told() const = 0;
  virtual void tell_ghosts() = 0;

  /// Sentences for a user, who knows atoms by other numbers than local indices.
  virtual std::string explain(const GraphError &error) const = 0;
  virtual std::string explain(const MissingEdge &missing) const = 0;

  /// When it is: "step 7".
  virtual std::string moment() const = 0;
};

}    // namespace hienet

#endif
