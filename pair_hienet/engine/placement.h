// SPDX-License-Identifier: GPL-2.0-or-later
// On which devices the ranks compute. Knows torch (in its source), MPI, and nothing of LAMMPS.

#ifndef HIENET_PLACEMENT_H
#define HIENET_PLACEMENT_H

#include <mpi.h>

#include <string>

namespace hienet {

/// "cpu" or "cuda:N" for a rank, from the keyword `auto`, `cpu`, `cuda` or `cuda:N`.
///
/// `node_rank` counts the ranks of one machine; they share its visible GPUs in turn. Throws ModelError.
std::string choose_device(const std::string &keyword, int node_rank);

/// Rank among those of `world` on the same machine. Collective.
int rank_on_machine(MPI_Comm world);

/// That all ranks compute on devices of one kind. Collective; throws AgreedError.
void require_one_kind(MPI_Comm world, const std::string &device);

/// Lines "  device cpu: rank(s) 0 1", empty except on rank 0. Collective.
std::string describe_devices(MPI_Comm world, const std::string &device);

}    // namespace hienet

#endif
