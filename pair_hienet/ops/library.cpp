// SPDX-License-Identifier: GPL-2.0-or-later
// The library torch.ops.hienet; each operator registers itself in its own file.

#include "cuda_kernels.h"
#include "instruction_set.h"
#include "pooled_memory.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <atomic>
#include <string>
#include <tuple>
#include <vector>

namespace hienet {

/// On how many threads the operators run.
static int64_t threads()
{
  std::atomic<int64_t> n{0};
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    n++;
  });
  return n;
}

bool has_cuda_kernels()
{
#ifdef HIENET_CUDA
  return true;
#else
  return false;
#endif
}

/// The kinds of devices for which the operators are compiled.
static std::vector<std::string> devices()
{
  if (has_cuda_kernels()) return {"cpu", "cuda"};
  return {"cpu"};
}

static std::tuple<int64_t, int64_t> pooled_memory()
{
  const PooledBytes bytes = pooled_bytes();
  return {bytes.used, bytes.free};
}

TORCH_LIBRARY(hienet, library)
{
  library.def("devices() -> str[]", devices);
  library.def("instruction_sets() -> str[]", instruction_sets);
  library.def("pooled_memory() -> (int used, int free)", pooled_memory);
  library.def("release_pooled_memory() -> ()", release_pooled_memory);
  library.def("threads() -> int", threads);
  library.def("use_instruction_set(str name) -> ()", use_instruction_set);
}

}    // namespace hienet
