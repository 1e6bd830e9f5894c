// SPDX-License-Identifier: GPL-2.0-or-later

#include "timing_breakdown.h"

#include <algorithm>
#include <cstdio>
#include <numeric>

namespace hienet {

int TimingBreakdown::section(const std::string &name)
{
  const auto known = std::find(names.begin(), names.end(), name);
  if (known != names.end()) return static_cast<int>(known - names.begin());
  names.push_back(name);
  seconds.push_back(0.0);
  return static_cast<int>(names.size()) - 1;
}

void TimingBreakdown::reset()
{
  std::fill(seconds.begin(), seconds.end(), 0.0);
  evaluations_ = 0;
}

void TimingBreakdown::clear()
{
  names.clear();
  seconds.clear();
  evaluations_ = 0;
}

void TimingBreakdown::start()
{
  evaluations_++;
  last = std::chrono::steady_clock::now();
}

void TimingBreakdown::stamp(int section)
{
  const auto now = std::chrono::steady_clock::now();
  seconds[section] += std::chrono::duration<double>(now - last).count();
  last = now;
}

std::string TimingBreakdown::table(MPI_Comm world) const
{
  int me, n_ranks;
  MPI_Comm_rank(world, &me);
  MPI_Comm_size(world, &n_ranks);
  std::vector<double> mine = seconds;
  mine.push_back(std::accumulate(seconds.begin(), seconds.end(), 0.0));
  const int n = static_cast<int>(mine.size());
  std::vector<double> least(n), mean(n), greatest(n);
  MPI_Reduce(mine.data(), least.data(), n, MPI_DOUBLE, MPI_MIN, 0, world);
  MPI_Reduce(mine.data(), mean.data(), n, MPI_DOUBLE, MPI_SUM, 0, world);
  MPI_Reduce(mine.data(), greatest.data(), n, MPI_DOUBLE, MPI_MAX, 0, world);
  if (me != 0) return "";

  const double all = mean.back() > 0.0 ? mean.back() : 1.0;
  size_t longest = 7;    // "Section"
  for (const auto &name : names) longest = std::max(longest, name.size());
  const int width = static_cast<int>(longest);

  char line[512];
  std::snprintf(line, sizeof(line), "%-*s |  min time  |  avg time  |  max time  | %%pair\n", width,
                "Section");
  std::string text = line;
  text += std::string(longest + 47, '-') + "\n";
  for (int i = 0; i < n; i++) {
    std::snprintf(line, sizeof(line), "%-*s | %-10.5g | %-10.5g | %-10.5g |%6.2f\n", width,
                  i + 1 < n ? names[i].c_str() : "Total", least[i], mean[i] / n_ranks, greatest[i],
                  100.0 * mean[i] / all);
    text += line;
  }
  return text;
}

}    // namespace hienet
