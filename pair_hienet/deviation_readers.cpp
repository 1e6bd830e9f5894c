// SPDX-License-Identifier: GPL-2.0-or-later

#include "deviation_readers.h"

#include "atom.h"
#include "fix.h"
#include "modify.h"
#include "update.h"

#include <algorithm>
#include <list>

namespace hienet {

/// All triggers of this process, where they stay.
static std::list<DeviationReaders::Trigger> &all_triggers()
{
  static auto &all = *new std::list<DeviationReaders::Trigger>;
  return all;
}

DeviationReaders::DeviationReaders(LAMMPS_NS::LAMMPS *lmp) :
    lmp(lmp), trigger_(&all_triggers().emplace_back())
{
}

DeviationReaders::~DeviationReaders()
{ trigger_->orphaned = true; }

std::string DeviationReaders::find()
{
  fixes.clear();
  std::string lost;
  const int found = trigger_->value;
  const auto step = lmp->update->ntimestep;
  for (auto *const fix : lmp->modify->get_fix_by_style("^pair$")) {
    for (auto &trigger : all_triggers())
      if (trigger.orphaned) trigger.value = 0;
    trigger_->value = 0;
    // It sets its trigger, and does nothing else, on multiples of its interval that it has not read yet: not on both of
    // these.
    for (const int multiple : {0, 1}) {
      lmp->update->ntimestep = static_cast<LAMMPS_NS::bigint>(multiple) * fix->nevery;
      fix->pre_force(0);
    }
    if (trigger_->value) fixes.push_back(fix);
    for (const auto &trigger : all_triggers())
      if (trigger.orphaned && trigger.value) lost = fix->id;
  }
  lmp->update->ntimestep = step;
  trigger_->value = found;
  return lost;
}

/// Commands between runs may have deleted it.
bool DeviationReaders::reads_now(const LAMMPS_NS::Fix *fix) const
{
  const auto &modify = *lmp->modify;
  return std::find(modify.fix, modify.fix + modify.nfix, fix) != modify.fix + modify.nfix &&
      lmp->update->ntimestep % fix->nevery == 0;
}

bool DeviationReaders::any(int &n_columns) const
{
  n_columns = 0;
  for (const auto *const fix : fixes)
    if (reads_now(fix)) n_columns += std::max(1, fix->size_peratom_cols);
  return n_columns > 0;
}

void DeviationReaders::show(const std::vector<double> &of_atoms) const
{
  const int n_owned = lmp->atom->nlocal;
  for (const auto *const fix : fixes) {
    if (!reads_now(fix)) continue;
    for (int i = 0; i < n_owned; i++) {
      if (fix->size_peratom_cols == 0)
        fix->vector_atom[i] = of_atoms[i];
      else
        std::fill_n(fix->array_atom[i], fix->size_peratom_cols, of_atoms[i]);
    }
  }
}

}    // namespace hienet
