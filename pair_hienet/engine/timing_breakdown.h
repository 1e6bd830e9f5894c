// SPDX-License-Identifier: GPL-2.0-or-later
// Where the time of the pair style goes: wall time by section, and its table over the ranks. Knows MPI alone.

#ifndef HIENET_TIMING_BREAKDOWN_H
#define HIENET_TIMING_BREAKDOWN_H

#include <mpi.h>

#include <chrono>
#include <string>
#include <vector>

namespace hienet {

/// A stopwatch with sections. Between `start` and the last `stamp` no time is lost: the sections add up.
class TimingBreakdown {
 public:
  /// The number of the section of that name; a new one stands below the others in the table.
  int section(const std::string &name);

  /// Forget all times, and with `clear` the sections too.
  void reset();
  void clear();

  /// An evaluation begins.
  void start();

  /// The time since the last `start` or `stamp` belongs to `section`.
  void stamp(int section);

  int evaluations() const { return evaluations_; }

  /// Seconds by section, least, mean and greatest of the ranks, and percent of all sections.
  ///
  /// Collective; the text is empty except on rank 0 of `world`.
  std::string table(MPI_Comm world) const;

 private:
  std::vector<std::string> names;
  std::vector<double> seconds;
  int evaluations_ = 0;
  std::chrono::steady_clock::time_point last;
};

}    // namespace hienet

#endif
