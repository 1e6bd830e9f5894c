// SPDX-License-Identifier: GPL-2.0-or-later

#include "pooled_memory.h"

#include <ATen/EmptyTensor.h>

#include <bit>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace hienet {

/// Smaller tensors are left to the C library, which keeps such blocks.
static constexpr size_t SMALLEST_POOLED = size_t(1) << 16;
static constexpr size_t LARGE_PAGE = size_t(1) << 21;
/// Blocks of this size and more are made of large pages; of smaller ones, the last page would be a notable part.
static constexpr size_t SMALLEST_OF_LARGE_PAGES = 8 * LARGE_PAGE;
/// A free block is given back when so many other requests were served since it was last used: many steps of a model.
static constexpr int64_t LONGEST_IDLE = 2000;

/// Sizes in steps of about 3 %, so that a block fits again although the number of edges fluctuates.
static size_t size_class(size_t bytes)
{
  const size_t step = std::bit_floor(bytes) / 32;
  return (bytes + step - 1) / step * step;
}

static void *from_system(size_t bytes)
{
  const bool large = bytes >= SMALLEST_OF_LARGE_PAGES;
  const size_t alignment = large ? LARGE_PAGE : 64;
  const size_t whole = (bytes + alignment - 1) / alignment * alignment;
  void *const data = std::aligned_alloc(alignment, whole);
#ifdef MADV_HUGEPAGE
  if (data && large) madvise(data, whole, MADV_HUGEPAGE);    // a wish
#endif
  return data;
}

namespace {

  struct Block {
    void *data;
    size_t bytes;
    int64_t freed_at;    // number of requests at that time
  };

  class Pool final : public c10::Allocator {
   public:
    c10::DataPtr allocate(size_t bytes) override
    {
      const at::Device cpu(at::kCPU);
      if (bytes == 0) return {nullptr, cpu};
      if (bytes < SMALLEST_POOLED) {
        void *const data = checked(from_system(bytes), bytes);
        return {data, data, &std::free, cpu};
      }
      // The context tells the deleter how large the block is.
      auto *const block = new Block(take(bytes));
      return {block->data, block, &give_back, cpu};
    }

    void copy_data(void *to, const void *from, size_t bytes) const override
    { default_copy_data(to, from, bytes); }

    void release()
    {
      const std::lock_guard<std::mutex> lock(mutex);
      drop_idle_for(0);
    }

    PooledBytes bytes()
    {
      const std::lock_guard<std::mutex> lock(mutex);
      return {used, unused};
    }

   private:
    std::mutex mutex;
    std::vector<Block> free_blocks;    // a few dozens
    int64_t requests = 0, used = 0, unused = 0;

    static void *checked(void *data, size_t bytes)
    {
      TORCH_CHECK_WITH(OutOfMemoryError, data, "not enough memory: cannot allocate memory, ", bytes,
                       " bytes were asked for");
      return data;
    }

    Block take(size_t bytes)
    {
      const size_t size = size_class(bytes);
      const std::lock_guard<std::mutex> lock(mutex);
      requests++;
      drop_idle_for(LONGEST_IDLE);
      auto best = free_blocks.end();
      for (auto block = free_blocks.begin(); block != free_blocks.end(); ++block) {
        // A block that is much too large would be missed elsewhere.
        if (block->bytes < size || block->bytes > 2 * size) continue;
        if (best == free_blocks.end() || block->bytes < best->bytes) best = block;
      }
      Block taken{nullptr, size, 0};
      if (best != free_blocks.end()) {
        taken = *best;
        free_blocks.erase(best);
        unused -= static_cast<int64_t>(taken.bytes);
      } else {
        taken.data = from_system(size);
        if (!taken.data) {
          drop_idle_for(0);
          taken.data = checked(from_system(size), size);
        }
      }
      used += static_cast<int64_t>(taken.bytes);
      return taken;
    }

    void drop_idle_for(int64_t n_requests)
    {
      std::erase_if(free_blocks, [&](const Block &block) {
        if (requests - block.freed_at < n_requests) return false;
        std::free(block.data);
        unused -= static_cast<int64_t>(block.bytes);
        return true;
      });
    }

    static void give_back(void *context);
  };

  /// Never destroyed: tensors may outlive everything else in the process.
  Pool &pool()
  {
    static Pool *const pool = new Pool;
    return *pool;
  }

  void Pool::give_back(void *context)
  {
    const std::unique_ptr<Block> block(static_cast<Block *>(context));
    Pool &self = pool();
    const std::lock_guard<std::mutex> lock(self.mutex);
    block->freed_at = self.requests;
    self.free_blocks.push_back(*block);
    self.used -= static_cast<int64_t>(block->bytes);
    self.unused += static_cast<int64_t>(block->bytes);
  }

}    // namespace

at::Tensor pooled_empty(at::IntArrayRef sizes, at::ScalarType dtype)
{
  return at::Tensor(at::detail::empty_generic(
      sizes, &pool(), c10::DispatchKeySet(c10::DispatchKey::CPU), dtype, std::nullopt));
}

at::Tensor pooled_zeros(at::IntArrayRef sizes, at::ScalarType dtype)
{ return pooled_empty(sizes, dtype).zero_(); }

void release_pooled_memory()
{ pool().release(); }

PooledBytes pooled_bytes()
{ return pool().bytes(); }

}    // namespace hienet
