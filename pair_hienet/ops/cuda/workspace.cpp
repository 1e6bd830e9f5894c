// SPDX-License-Identifier: GPL-2.0-or-later

#include "workspace.h"

#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>

namespace hienet::cuda {

/// Bytes of what one chunk makes of edges and messages: enough for all GPUs to be busy, and a small part of their memory.
static std::atomic<int64_t> workspace_bytes{int64_t{2} << 30};

static void set_workspace(int64_t bytes)
{
  TORCH_CHECK_VALUE(bytes > 0, "the workspace must have a positive number of bytes, got ", bytes);
  workspace_bytes = bytes;
}

std::vector<int64_t> chunks_of_centers(int64_t n_centers, double bytes)
{
  const auto n = std::clamp<int64_t>(static_cast<int64_t>(bytes / workspace_bytes) + 1, 1,
                                     std::max<int64_t>(1, n_centers));
  std::vector<int64_t> centers;
  for (int64_t k = 0; k <= n; k++) centers.push_back(n_centers * k / n);
  return centers;
}

TORCH_LIBRARY_FRAGMENT(hienet, library)
{ library.def("set_cuda_workspace(int bytes) -> ()", set_workspace); }

}    // namespace hienet::cuda
