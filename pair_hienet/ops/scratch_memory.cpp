// SPDX-License-Identifier: GPL-2.0-or-later

#include "scratch_memory.h"

#include <mutex>
#include <vector>

namespace hienet {

struct Pool {
  std::mutex mutex;
  std::vector<at::Tensor> blocks;
};

/// Never destroyed: a thread may still compute while the process ends.
static Pool &pool()
{
  static Pool *const pool = new Pool;
  return *pool;
}

ScratchMemory::ScratchMemory(int64_t bytes)
{
  {
    const std::lock_guard<std::mutex> lock(pool().mutex);
    if (!pool().blocks.empty()) {
      block = pool().blocks.back();
      pool().blocks.pop_back();
    }
  }
  if (block.defined() && block.numel() >= bytes) return;
  block.reset();    // before a larger one is asked for
  block = at::empty({bytes}, at::kByte);
}

ScratchMemory::~ScratchMemory()
{
  const std::lock_guard<std::mutex> lock(pool().mutex);
  pool().blocks.push_back(block);
}

}    // namespace hienet
