// SPDX-License-Identifier: GPL-2.0-or-later
// The `fix pair` commands that show a deviation of forces to the user: who they are, when they want it, and how they
// stay up to date. Knows LAMMPS.

#ifndef HIENET_DEVIATION_READERS_H
#define HIENET_DEVIATION_READERS_H

#include <string>
#include <vector>

namespace LAMMPS_NS {
class Fix;
class LAMMPS;
}    // namespace LAMMPS_NS

namespace hienet {

/// A `fix pair` copies what it shows after the first evaluation of a time step. In a line search, in a second `run 0`,
/// behind the trial moves of Monte Carlo there are several, so that the last one is written into its array here.
class DeviationReaders {
 public:
  explicit DeviationReaders(LAMMPS_NS::LAMMPS *lmp);
  ~DeviationReaders();
  DeviationReaders(const DeviationReaders &) = delete;
  DeviationReaders &operator=(const DeviationReaders &) = delete;

  /// What a fix sets before, and clears after, an evaluation that it reads. It keeps the address for life, which may be
  /// longer than that of the pair style: this memory is never given back.
  int *trigger() { return &trigger_->value; }

  /// Look for the fixes that set this trigger. Returns the ID of one that sets that of a pair style which is no more,
  /// or an empty string.
  std::string find();

  struct Trigger {
    int value = 0;
    bool orphaned = false;
  };

  /// Whether one of them reads at the present time step; `n_columns` is how often they ask for the deviation then.
  bool any(int &n_columns) const;

  /// Have all that read at the present time step show these deviations, by owned atom.
  void show(const std::vector<double> &of_atoms) const;

 private:
  bool reads_now(const LAMMPS_NS::Fix *fix) const;

  LAMMPS_NS::LAMMPS *lmp;
  Trigger *trigger_;
  std::vector<LAMMPS_NS::Fix *> fixes;
};

}    // namespace hienet

#endif
