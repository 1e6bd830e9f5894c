// SPDX-License-Identifier: GPL-2.0-or-later

#include "evaluation_marker.h"

#include "modify.h"

namespace hienet {

/// LAMMPS makes fixes by the name of their style. This one is known only while it is made: users have no use for it,
/// and the plugin may be unloaded.
static const std::string STYLE = "HIENET_EVALUATION";

static LAMMPS_NS::Fix *create(LAMMPS_NS::LAMMPS *lmp, int narg, char **arg)
{ return new EvaluationMarker(lmp, narg, arg); }

EvaluationMarker::EvaluationMarker(LAMMPS_NS::LAMMPS *lmp, int narg, char **arg) :
    Fix(lmp, narg, arg)
{
  // It reads and writes no atoms: KOKKOS need not bring them to the host.
  datamask_read = datamask_modify = 0;
}

int EvaluationMarker::setmask()
{
  using namespace LAMMPS_NS::FixConst;
  return PRE_FORCE | PRE_FORCE_RESPA | MIN_PRE_FORCE;
}

bool EvaluationMarker::take()
{
  const bool was_marked = marked;
  marked = false;
  return was_marked;
}

EvaluationMarker *EvaluationMarker::add(LAMMPS_NS::LAMMPS *lmp, const std::string &id)
{
  auto &creators = *lmp->modify->fix_map;
  creators[STYLE] = &create;
  auto *const made = lmp->modify->add_fix(id + " all " + STYLE, 0);
  creators.erase(STYLE);
  return static_cast<EvaluationMarker *>(made);
}

}    // namespace hienet
