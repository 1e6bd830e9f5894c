// SPDX-License-Identifier: GPL-2.0-or-later

#include "lammps_atoms.h"

#include "engine/edge_check.h"
#include "engine/neighbor_graph.h"

#include "atom.h"
#include "comm.h"
#include "fmt/format.h"
#include "group.h"
#include "lammps.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "pair.h"
#include "update.h"

#include <algorithm>
#include <climits>
#include <cmath>

namespace hienet {

using LAMMPS_NS::Atom;
using LAMMPS_NS::bigint;

/// The group `all` is LAMMPS' first.
static constexpr int ALL = 0;

/// The type of an atom that has no part in the network, whatever LAMMPS calls it.
static constexpr int ABSENT = 0;

LammpsAtoms::LammpsAtoms(LAMMPS_NS::LAMMPS *lmp, LAMMPS_NS::Pair &pair,
                         std::function<void(RowBuffer &)> carry) :
    atom(lmp->atom), comm(lmp->comm), group(lmp->group), neighbor(lmp->neighbor),
    update(lmp->update), pair(pair), carry(std::move(carry))
{
}

void LammpsAtoms::serve(double largest_cutoff, const std::vector<char> &known)
{
  cutoff = largest_cutoff;
  is_known = known;
  list_build = -1;
}

void LammpsAtoms::keep_special_neighbors()
{
  int *const flags = neighbor->special_flag;    // of 1-2, 1-3 and 1-4 neighbours
  constexpr int DROPPED = 0, MARKED = 2;
  if (atom->molecular == Atom::ATOMIC || std::count(flags + 1, flags + 4, DROPPED) == 0) return;
  // Each Neighbor::init() sets the flags anew: this list was made with them, those that follow in this run are not.
  std::replace(flags + 1, flags + 4, DROPPED, MARKED);
  const bigint n_builds = neighbor->ncalls;
  neighbor->build(0);
  neighbor->ncalls = n_builds;
}

bool LammpsAtoms::look_at_list(const LAMMPS_NS::NeighList *given,
                               const std::function<void()> &check)
{
  list = given;
  // All ranks build their lists at once.
  is_new = neighbor->ago == 0 || list_build != neighbor->ncalls;
  if (!is_new) return false;
  keep_special_neighbors();
  check();
  tell_ghosts();
  list_owned = atom->nlocal;
  list_atoms = atom->nlocal + atom->nghost;
  list_build = neighbor->ncalls;
  list_predates_init = false;
  type_in_list.assign(type.begin(), type.begin() + atom->nlocal);
  return true;
}

/// Positions are LAMMPS' array, which is one block of memory: [nlocal + nghost][3].
AtomsView LammpsAtoms::atoms() const
{
  const int n_atoms = atom->nlocal + atom->nghost;
  const auto *const x = n_atoms > 0 ? reinterpret_cast<const double (*)[3]>(atom->x[0]) : nullptr;
  return {atom->nlocal, n_atoms, x, type.data()};
}

NeighborListView LammpsAtoms::neighbors() const
{ return {list->inum, list->ilist, list->numneigh, list->firstneigh, NEIGHMASK}; }

/// Bits of the groups whose members interact with nobody: they have no part in the network, reference energy
/// included. So `fix gcmc` and `fix widom` switch off atoms while they try to delete them.
int LammpsAtoms::absent_groups() const
{
  int bits = 0;
  for (int k = 0; k < neighbor->nex_group; k++) {
    const int first = neighbor->ex1_group[k], second = neighbor->ex2_group[k];
    if (first == ALL || second == ALL) bits |= group->bitmask[first == ALL ? second : first];
  }
  return bits;
}

/// The one place that decides who is in the network: what an owned atom is there. Its ghosts are what it is.
int LammpsAtoms::type_in_network(int i, int absent_groups) const
{ return atom->mask[i] & absent_groups ? ABSENT : atom->type[i]; }

/// Commands and fixes change types and groups in mid-run without a word to ghosts.
bool LammpsAtoms::ghosts_are_told() const
{
  const int absent = absent_groups();
  for (int i = 0; i < atom->nlocal; i++)
    if (type[i] != type_in_network(i, absent)) return false;
  return true;
}

/// By LAMMPS' own communication.
void LammpsAtoms::tell_ghosts()
{
  const int n_atoms = atom->nlocal + atom->nghost;
  const int absent = absent_groups();
  buffer.reshape(n_atoms, 3);
  for (int i = 0; i < atom->nlocal; i++) {
    buffer.row(i)[0] = i;
    buffer.row(i)[1] = comm->me;
    buffer.row(i)[2] = type_in_network(i, absent);
  }
  carry(buffer);
  owner_.resize(n_atoms);
  owner_rank_.resize(n_atoms);
  type.resize(n_atoms);
  for (int i = 0; i < n_atoms; i++) {
    owner_[i] = static_cast<int>(buffer.row(i)[0]);
    owner_rank_[i] = static_cast<int>(buffer.row(i)[1]);
    type[i] = static_cast<int>(buffer.row(i)[2]);
  }
}

std::string LammpsAtoms::problem() const
{
  // Comm counts numbers in an int.
  const bigint n_atoms = static_cast<bigint>(atom->nlocal) + atom->nghost;
  const int row = std::max(pair.comm_forward, pair.comm_reverse);
  if (comm->nprocs > 1 && n_atoms * row > INT_MAX)
    return fmt::format("{} owned and ghost atoms on a rank are too many to exchange {} numbers "
                       "each; use more ranks",
                       n_atoms, row);
  return is_new ? "" : change_since_list();
}

/// What happened to the atoms that only a new neighbour list can follow, or an empty string.
std::string LammpsAtoms::change_since_list() const
{
  if (list_owned != atom->nlocal || list_atoms != atom->nlocal + atom->nghost)
    return fmt::format(
        "a rank had {} atoms and {} ghosts when the neighbor list was built, and has {} and {} at "
        "step {}; let LAMMPS renew the list: no `run ... pre no` behind a command that creates, "
        "deletes, displaces or renumbers atoms, or changes the box",
        list_owned, list_atoms - list_owned, atom->nlocal, atom->nghost, update->ntimestep);
  if (list_predates_init)
    return "a command has set LAMMPS up again since the neighbor list was built, and may have "
           "moved "
           "atoms to other ranks; let LAMMPS renew the list: no `run ... pre no` behind "
           "`write_data`, `reset_atoms` and the like";
  for (int i = 0; i < atom->nlocal; i++)
    if (!is_known[type_in_list[i]] && is_known[type[i]])
      return fmt::format("atom {} has come into the network, by its type or an excluded group, "
                         "and the neighbor list of step {} is older and may lack its neighbors; "
                         "let LAMMPS renew it: no `run ... pre no` behind `set`, `group` or "
                         "`neigh_modify`",
                         atom->tag_enable ? atom->tag[i] : i + 1, update->ntimestep);
  return "";
}

std::string LammpsAtoms::explain(const GraphError &error) const
{
  auto id = [this](int i) {
    return atom->tag_enable ? atom->tag[i] : i + 1;
  };
  if (error.kind == GraphError::NOT_FINITE)
    return fmt::format(
        "the position of atom {} or of its neighbor {} is not finite at step {}; use "
        "a shorter timestep, or minimize first",
        id(error.i), id(error.j), update->ntimestep);
  return fmt::format("atoms {} and {} are at the same place at step {}; remove one of them (see "
                     "`delete_atoms overlap`)",
                     id(error.i), id(error.j), update->ntimestep);
}

std::string LammpsAtoms::explain(const MissingEdge &missing) const
{
  const auto [i, j, distance] = missing;
  auto id = [this](int a) {
    return atom->tag_enable ? atom->tag[a] : owner_[a] + 1;
  };
  const std::string both = fmt::format("atoms {} and {} are {:.6g} Angstrom apart at step {}",
                                       id(i), id(j), distance, update->ntimestep);
  if (!is_new)
    return both +
        ", and LAMMPS' neighbor list is too old to say so: energies and forces lack this pair, and "
        "perhaps others; use a larger skin (`neighbor`), or renew the list in time (`neigh_modify "
        "every 1 delay 0 check yes`)";
  return both + ", but not in LAMMPS' neighbor list, though that is new: " + cause_of_absence(i, j);
}

/// Why a pair may be absent from LAMMPS' neighbour list, and what to do.
std::string LammpsAtoms::cause_of_absence(int i, int j) const
{
  const double reach = std::sqrt(neighbor->cutneighsq[atom->type[i]][atom->type[j]]);
  if (reach < cutoff)
    return fmt::format("it reaches {} Angstrom for types {} and {}, less than the model's cutoff "
                       "{}; raise the cutoff",
                       reach, atom->type[i], atom->type[j], cutoff);
  if (atom->molecular == Atom::MOLECULAR)
    for (int k = 0, first = 0; k < 3; first = atom->nspecial[i][k++])
      for (int n = first; n < atom->nspecial[i][k]; n++)
        if (atom->special[i][n] == atom->tag[j])
          return fmt::format(
              "they are 1-{} neighbors by their bonds; use `special_bonds lj/coul 1.0 1.0 1.0`, or "
              "1.0e-50 in place of a weight of 0",
              k + 2);
  return "`neigh_modify`, `pair_style hybrid`, or a fix that sets groups or types, may have taken "
         "the pair away; remove it";
}

std::string LammpsAtoms::moment() const
{ return fmt::format("step {}", update->ntimestep); }

double LammpsAtoms::memory_usage() const
{
  return buffer.memory_usage() +
      sizeof(int) *
      (owner_.capacity() + owner_rank_.capacity() + type.capacity() + type_in_list.capacity());
}

}    // namespace hienet
