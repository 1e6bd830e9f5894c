// SPDX-License-Identifier: GPL-2.0-or-later
// What the kernels of this folder are written in: CUDA, or, where no CUDA compiler reads them, the same words with the
// meaning that emulation.h gives them on a CPU. Nothing beyond these words is used.
//
// Rules, which the emulation checks: blocks are whole warps, and every lane of a warp reaches every shuffle. No kernel
// uses shared memory or waits for other warps.

#ifndef HIENET_KERNEL_LANGUAGE_H
#define HIENET_KERNEL_LANGUAGE_H

#include <cstdint>

namespace hienet::cuda {

constexpr int WARP = 32;
/// Most blocks of a launch.
constexpr int64_t LARGEST_GRID = 2147483647;

struct Grid {
  int64_t blocks;
  int threads;    // of a block
};

}    // namespace hienet::cuda

#ifdef __CUDACC__

#include <cuda_runtime.h>

#define HIENET_UNROLL _Pragma("unroll")

namespace hienet::cuda {

/// A stream of the device's runtime, as torch gives it.
using Stream = void *;

__device__ __forceinline__ int thread_index()
{ return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ int64_t block_index()
{ return blockIdx.x; }
__device__ __forceinline__ int block_threads()
{ return static_cast<int>(blockDim.x); }

template <typename T> __device__ __forceinline__ T shuffle_xor(T value, int mask)
{ return __shfl_xor_sync(0xffffffffu, value, mask); }

/// Launches are checked when they are made; what goes wrong while they run is found by the next call of torch.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const Grid &grid, Stream stream, Arguments... arguments)
{
  if (grid.blocks == 0) return;
  kernel<<<static_cast<unsigned>(grid.blocks), static_cast<unsigned>(grid.threads), 0,
           static_cast<cudaStream_t>(stream)>>>(arguments...);
}

}    // namespace hienet::cuda

#else

#include "emulation.h"

#endif

namespace hienet::cuda {

/// Throws std::runtime_error if the last launch was refused.
void check_launch(const char *what);

__device__ __forceinline__ int lane_index()
{ return thread_index() % WARP; }

/// Number of this thread among those of all blocks.
__device__ __forceinline__ int64_t global_thread()
{ return block_index() * block_threads() + thread_index(); }

/// Number of this warp among those of all blocks.
__device__ __forceinline__ int64_t global_warp()
{ return global_thread() / WARP; }

/// Enough blocks of `threads` threads for `n` of them.
inline Grid grid_for(int64_t n, int threads)
{ return {(n + threads - 1) / threads, threads}; }

/// The same for `n` warps.
inline Grid grid_for_warps(int64_t n, int warps_of_a_block)
{ return grid_for(n * WARP, warps_of_a_block * WARP); }

}    // namespace hienet::cuda

#endif
