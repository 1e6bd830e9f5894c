// SPDX-License-Identifier: GPL-2.0-or-later
// How much of a GPU's memory an operator works in: so many centers pass through it at a time.

#ifndef HIENET_CUDA_WORKSPACE_H
#define HIENET_CUDA_WORKSPACE_H

#include <cstdint>
#include <vector>

namespace hienet::cuda {

/// Centers at which chunks begin, and the end of the last one, so that each chunk takes about as much as the workspace
/// has, where all centers together take `bytes`.
std::vector<int64_t> chunks_of_centers(int64_t n_centers, double bytes);

}    // namespace hienet::cuda

#endif
