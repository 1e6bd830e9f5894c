// SPDX-License-Identifier: GPL-2.0-or-later

#include "agreement.h"

namespace hienet {

int agree(MPI_Comm world, const std::string &problem, int vote)
{
  int me, n_ranks;
  MPI_Comm_rank(world, &me);
  MPI_Comm_size(world, &n_ranks);
  int votes[2] = {problem.empty() ? n_ranks : me, vote};
  if (n_ranks > 1) MPI_Allreduce(MPI_IN_PLACE, votes, 2, MPI_INT, MPI_MIN, world);
  if (votes[0] == n_ranks) return votes[1];
  throw AgreedError(text_of(world, votes[0], problem));
}

std::string text_of(MPI_Comm world, int speaker, const std::string &mine)
{
  std::string text = mine;
  int length = static_cast<int>(text.size());
  MPI_Bcast(&length, 1, MPI_INT, speaker, world);
  text.resize(length);
  MPI_Bcast(text.data(), length, MPI_CHAR, speaker, world);
  return text;
}

}    // namespace hienet
