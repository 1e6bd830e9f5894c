// SPDX-License-Identifier: GPL-2.0-or-later
// Memory that operators work in and reuse from call to call.

#ifndef HIENET_SCRATCH_MEMORY_H
#define HIENET_SCRATCH_MEMORY_H

#include <ATen/ATen.h>

#include <cstdint>

namespace hienet {

/// A block of memory for the duration of a call, aligned to 64 bytes.
///
/// It goes back to a pool, not to the allocator: the system would have to provide fresh pages at every call, or the
/// allocator would keep a hole of it for each size. The pool has one block for each call that runs at the same time, as large as the
/// largest that was asked for; its size depends on the model and the number of threads, not on the number of atoms.
class ScratchMemory {
 public:
  explicit ScratchMemory(int64_t bytes);
  ~ScratchMemory();
  ScratchMemory(const ScratchMemory &) = delete;
  ScratchMemory &operator=(const ScratchMemory &) = delete;

  void *data() const { return block.data_ptr(); }

 private:
  at::Tensor block;
};

}    // namespace hienet

#endif
