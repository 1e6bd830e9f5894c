// SPDX-License-Identifier: GPL-2.0-or-later
// LAMMPS' atoms and neighbour list as the engine reads them: who is in the network, of which atom a ghost is a copy, and
// whether the list still fits. Knows LAMMPS.

#ifndef HIENET_LAMMPS_ATOMS_H
#define HIENET_LAMMPS_ATOMS_H

#include "engine/rank_atoms.h"
#include "engine/row_buffer.h"

#include "lmptype.h"

#include <functional>

namespace LAMMPS_NS {
class Atom;
class Comm;
class Group;
class LAMMPS;
class NeighList;
class Neighbor;
class Pair;
class Update;
}    // namespace LAMMPS_NS

namespace hienet {

/// Of one pair style.
class LammpsAtoms : public RankAtoms {
 public:
  /// `carry(rows)` has Comm send the rows of owned atoms to their ghosts.
  LammpsAtoms(LAMMPS_NS::LAMMPS *lmp, LAMMPS_NS::Pair &pair,
              std::function<void(RowBuffer &)> carry);

  /// For models of this cutoff (Angstrom) which see these types ([ntypes + 1]); the next list counts as new.
  void serve(double cutoff, const std::vector<char> &is_known);

  /// A command has set LAMMPS up again: it may have moved atoms and renewed ghosts behind the list's back.
  void distrust_list() { list_predates_init = true; }

  /// Where KOKKOS has the atoms, or nullptr.
  void lend(const DeviceAtoms *atoms) { lent = atoms; }

  /// Look at LAMMPS' neighbour list, which the pair style has got for this step; `check` is called if it is new. Returns
  /// whether it is. Collective.
  bool look_at_list(const LAMMPS_NS::NeighList *given, const std::function<void()> &check);

  /// LAMMPS leaves bonded neighbours of weight zero out of all its lists, unless a kspace_style needs them. So does the
  /// network, which knows no bonds: do as LAMMPS does for kspace. Other styles find them marked and multiply by their
  /// weight.
  void keep_special_neighbors();

  AtomsView atoms() const override;
  NeighborListView neighbors() const override;
  const std::vector<int> &owner() const override { return owner_; }
  const std::vector<int> &owner_rank() const override { return owner_rank_; }
  const DeviceAtoms *on_device() const override { return lent; }
  bool list_is_new() const override { return is_new; }
  std::string problem() const override;
  bool ghosts_are_told() const override;
  void tell_ghosts() override;
  std::string explain(const GraphError &error) const override;
  std::string explain(const MissingEdge &missing) const override;
  std::string moment() const override;

  double memory_usage() const;

 private:
  int absent_groups() const;
  int type_in_network(int i, int absent_groups) const;
  std::string change_since_list() const;
  std::string cause_of_absence(int i, int j) const;

  // LAMMPS' own pointers, which it may change
  LAMMPS_NS::Atom *&atom;
  LAMMPS_NS::Comm *&comm;
  LAMMPS_NS::Group *&group;
  LAMMPS_NS::Neighbor *&neighbor;
  LAMMPS_NS::Update *&update;

  LAMMPS_NS::Pair &pair;
  std::function<void(RowBuffer &)> carry;
  const LAMMPS_NS::NeighList *list = nullptr;
  const DeviceAtoms *lent = nullptr;
  double cutoff = 0.0;
  std::vector<char> is_known;

  // the neighbour list of which the following, the graphs on the device and the plans of exchanges know
  int list_atoms = 0, list_owned = 0;
  LAMMPS_NS::bigint list_build = -1;
  bool is_new = false;    // in this evaluation
  bool list_predates_init = true;
  std::vector<int> type_in_list;    // of owned atoms, when it was built

  RowBuffer buffer;
  std::vector<int> owner_, owner_rank_, type;    // [n_total]
};

}    // namespace hienet

#endif
