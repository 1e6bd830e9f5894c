// SPDX-License-Identifier: GPL-2.0-or-later
// Which evaluations of a pair style are those of the integrator or minimizer.

#ifndef HIENET_EVALUATION_MARKER_H
#define HIENET_EVALUATION_MARKER_H

#include "fix.h"

#include <string>

namespace hienet {

/// A fix of the pair style's own. LAMMPS calls `pre_force` before each evaluation whose forces move atoms: at every
/// step, at the start of a run, in each iteration of a minimizer, and for Monte Carlo moves, which a step follows. It
/// does not for those with which `compute fep`, `fix numdiff` and others only try something, and of which nothing that
/// a user reads from the pair style may remain.
class EvaluationMarker : public LAMMPS_NS::Fix {
 public:
  EvaluationMarker(LAMMPS_NS::LAMMPS *lmp, int narg, char **arg);

  int setmask() override;
  void setup_pre_force(int) override { marked = true; }
  void setup_pre_force_respa(int, int) override { marked = true; }
  void pre_force(int) override { marked = true; }
  void pre_force_respa(int, int, int) override { marked = true; }
  void min_pre_force(int) override { marked = true; }

  /// Whether it was called since the last question.
  bool take();

  /// Add one to LAMMPS, which owns it.
  static EvaluationMarker *add(LAMMPS_NS::LAMMPS *lmp, const std::string &id);

 private:
  bool marked = false;
};

}    // namespace hienet

#endif
