// SPDX-License-Identifier: GPL-2.0-or-later

#include "placement.h"

#include "agreement.h"
#include "model_error.h"

#include <torch/cuda.h>

#include <map>
#include <vector>

namespace hienet {

std::string choose_device(const std::string &keyword, int node_rank)
{
  return translated("looking for a GPU", [&]() -> std::string {
    if (keyword == "cpu") return "cpu";
    const int count = torch::cuda::is_available() ? static_cast<int>(torch::cuda::device_count())
                                                  : 0;
    if (keyword == "auto" && count == 0) return "cpu";
    if (count == 0)
      throw ModelError("`device " + keyword +
                       "` was asked for, but torch sees no CUDA GPU here; install a CUDA build of "
                       "torch and run `hienet build`, or use `device cpu`");
    if (keyword == "auto" || keyword == "cuda") return "cuda:" + std::to_string(node_rank % count);
    const int index = std::stoi(keyword.substr(5));
    if (index >= count)
      throw ModelError("`device " + keyword + "` was asked for, but torch sees " +
                       std::to_string(count) + " GPU(s), numbered from 0");
    return keyword;
  });
}

int rank_on_machine(MPI_Comm world)
{
  MPI_Comm machine;
  int rank;
  MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine);
  MPI_Comm_rank(machine, &rank);
  MPI_Comm_free(&machine);
  return rank;
}

void require_one_kind(MPI_Comm world, const std::string &device)
{
  int kinds[2] = {device == "cpu", device != "cpu"};
  MPI_Allreduce(MPI_IN_PLACE, kinds, 2, MPI_INT, MPI_SUM, world);
  if (kinds[0] > 0 && kinds[1] > 0)
    throw AgreedError(std::to_string(kinds[0]) + " rank(s) would run on a CPU and " +
                      std::to_string(kinds[1]) +
                      " on a GPU; use `device cpu`, or start ranks only where torch sees a GPU");
}

std::string describe_devices(MPI_Comm world, const std::string &device)
{
  int me, n_ranks;
  MPI_Comm_rank(world, &me);
  MPI_Comm_size(world, &n_ranks);
  constexpr int LENGTH = 16;
  char mine[LENGTH] = {};
  device.copy(mine, LENGTH - 1);
  std::vector<char> all(static_cast<size_t>(LENGTH) * n_ranks);
  MPI_Gather(mine, LENGTH, MPI_CHAR, all.data(), LENGTH, MPI_CHAR, 0, world);
  if (me != 0) return "";

  std::map<std::string, std::string> ranks_of_device;
  for (int rank = 0; rank < n_ranks; rank++)
    ranks_of_device[&all[static_cast<size_t>(LENGTH) * rank]] += " " + std::to_string(rank);
  std::string text;
  for (const auto &[where, ranks] : ranks_of_device)
    text += "  device " + where + ": rank(s)" + ranks + "\n";
  return text;
}

}    // namespace hienet
