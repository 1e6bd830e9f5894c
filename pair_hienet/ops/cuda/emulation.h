// SPDX-License-Identifier: GPL-2.0-or-later
// CUDA's words on a CPU, for tests of the kernels where there is no GPU: every thread of a block is a fiber, blocks
// follow each other. Slow, and exact: what the kernels compute here they compute there, up to rounding.
//
// Between two shuffles the fibers run one after the other, in an order that a test can turn round: kernels whose threads
// depend on each other's writes give other numbers then. Shuffles that not all lanes reach, and launches that a GPU would
// refuse, throw.

#ifndef HIENET_EMULATION_H
#define HIENET_EMULATION_H

#include <cstdint>
#include <functional>

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define HIENET_UNROLL

namespace hienet::cuda {

using Stream = void *;
struct Grid;

namespace emulation {

  /// Largest number that a shuffle can pass.
  constexpr int64_t SLOT_BYTES = 8;

  struct Position {
    int thread;
    int threads;
    int64_t block;
  };
  const Position &position();

  /// This thread's number to the others of its warp; returns that of lane `source` after all have given theirs.
  void exchange(const void *own, void *other, int64_t bytes, int source);

  void run(const Grid &grid, const std::function<void()> &kernel);

  /// Launches since the library was loaded, so that a test can tell that kernels ran.
  int64_t launches();

  /// The order of threads between shuffles: from the first to the last, or the other way round.
  void set_reversed(bool reversed);

}    // namespace emulation

inline int thread_index()
{ return emulation::position().thread; }
inline int64_t block_index()
{ return emulation::position().block; }
inline int block_threads()
{ return emulation::position().threads; }

template <typename T> T shuffle_xor(T value, int mask)
{
  static_assert(sizeof(T) <= emulation::SLOT_BYTES);
  T other;
  emulation::exchange(&value, &other, sizeof(T), (thread_index() % 32) ^ mask);
  return other;
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const Grid &grid, Stream, Arguments... arguments)
{
  emulation::run(grid, [&] {
    kernel(arguments...);
  });
}

}    // namespace hienet::cuda

#endif
