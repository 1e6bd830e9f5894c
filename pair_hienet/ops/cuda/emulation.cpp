// SPDX-License-Identifier: GPL-2.0-or-later
// Fibers are started with ucontext, and switched with _setjmp and _longjmp, which make no system call.

#include "kernel_language.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <csetjmp>
#include <exception>
#include <memory>
#include <string>
#include <ucontext.h>
#include <utility>
#include <vector>

namespace hienet::cuda {

void check_launch(const char *) {}

namespace emulation {

  constexpr size_t STACK_BYTES = 256 * 1024;

  enum class State { RUNNING, AT_BARRIER, FINISHED };

  struct Fiber {
    std::unique_ptr<char[]> stack;
    ucontext_t context;
    std::jmp_buf place;
    bool started = false;
    State state = State::FINISHED;
    Position position;
    int parity =
        0;    // of the slots in use, so that a fast lane does not overwrite what a slow one has yet to read
    std::exception_ptr failure;
  };

  static std::vector<std::unique_ptr<Fiber>> fibers;
  static std::vector<char> slots;    // [2, threads, SLOT_BYTES]
  static Fiber *current = nullptr;
  static std::jmp_buf scheduler;
  static const std::function<void()> *body = nullptr;
  static int64_t launched = 0;
  static bool in_reverse = false;

  const Position &position()
  { return current->position; }
  int64_t launches()
  { return launched; }
  void set_reversed(bool reversed)
  { in_reverse = reversed; }

  static void yield()
  {
    if (_setjmp(current->place) == 0) _longjmp(scheduler, 1);
  }

  /// A fiber's whole life: one thread of one block after the other.
  static void live()
  {
    for (;;) {
      try {
        (*body)();
      } catch (...) {
        current->failure = std::current_exception();
      }
      current->state = State::FINISHED;
      yield();
    }
  }

  static void resume(Fiber &fiber)
  {
    current = &fiber;
    if (_setjmp(scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, live, 0);
    setcontext(&fiber.context);
  }

  /// Wait for the other lanes of this warp.
  static void warp_barrier()
  {
    current->state = State::AT_BARRIER;
    yield();
  }

  void exchange(const void *own, void *other, int64_t bytes, int source)
  {
    char *const row = slots.data() + current->parity * current->position.threads * SLOT_BYTES;
    const int first = current->position.thread / WARP * WARP;
    std::memcpy(row + current->position.thread * SLOT_BYTES, own, bytes);
    current->parity ^= 1;
    warp_barrier();
    std::memcpy(other, row + (first + source) * SLOT_BYTES, bytes);
  }

  /// Warps do not wait for each other.
  static void run_warp(int first)
  {
    const auto lane = [&](int i) -> Fiber & {
      return *fibers[first + (in_reverse ? WARP - 1 - i : i)];
    };
    for (;;) {
      int waiting = 0;
      for (int i = 0; i < WARP; i++) {
        if (lane(i).state == State::FINISHED) continue;
        lane(i).state = State::RUNNING;
        resume(lane(i));
        if (lane(i).failure) std::rethrow_exception(std::exchange(lane(i).failure, nullptr));
        waiting += lane(i).state == State::AT_BARRIER;
      }
      if (waiting == 0) return;
      TORCH_CHECK(waiting == WARP, "a shuffle was reached by ", waiting, " of a warp's ", WARP,
                  " threads");
    }
  }

  static void run_block(int threads, int64_t block)
  {
    for (int first = 0; first < threads; first += WARP) {
      for (int thread = first; thread < first + WARP; thread++) {
        fibers[thread]->position = {thread, threads, block};
        fibers[thread]->state = State::RUNNING;
        fibers[thread]->parity = 0;
      }
      run_warp(first);
    }
  }

  void run(const Grid &grid, const std::function<void()> &kernel)
  {
    if (grid.blocks == 0) return;
    TORCH_CHECK(grid.blocks > 0 && grid.blocks <= LARGEST_GRID && grid.threads > 0 &&
                    grid.threads <= 1024 && grid.threads % WARP == 0,
                "no GPU takes ", grid.blocks, " blocks of ", grid.threads, " threads");
    launched++;
    while (static_cast<int>(fibers.size()) < grid.threads) {
      fibers.push_back(std::make_unique<Fiber>());
      fibers.back()->stack.reset(new char[STACK_BYTES]);
    }
    slots.assign(2 * grid.threads * SLOT_BYTES, 0);
    body = &kernel;
    try {
      for (int64_t block = 0; block < grid.blocks; block++) run_block(grid.threads, block);
    } catch (...) {
      // The others stopped in the middle: they begin anew.
      for (const auto &fiber : fibers) fiber->started = false;
      throw;
    }
  }

  // ----------------------------------------------------------------------
  // kernels with the mistakes that the emulation finds
  // ----------------------------------------------------------------------

  /// Half of the lanes do not reach the shuffle.
  static void divergent_kernel(int64_t *sums)
  {
    if (lane_index() < WARP / 2) sums[lane_index()] = shuffle_xor(sums[lane_index()], 1);
  }

  /// Each lane reads what another has written, or has yet to write.
  static void racing_kernel(int64_t *numbers)
  {
    const int lane = lane_index();
    numbers[lane] = lane;
    numbers[WARP + lane] = numbers[(lane + 1) % WARP];
  }

  static at::Tensor run_mistake(const std::string &mistake)
  {
    const at::Tensor numbers = at::zeros({2 * WARP}, at::kLong);
    auto *const data = numbers.data_ptr<int64_t>();
    if (mistake == "divergent shuffle")
      launch(divergent_kernel, Grid{1, WARP}, nullptr, data);
    else if (mistake == "race")
      launch(racing_kernel, Grid{1, WARP}, nullptr, data);
    else if (mistake == "large block")
      launch(racing_kernel, Grid{1, 2048}, nullptr, data);
    else
      TORCH_CHECK_VALUE(false, "unknown mistake `", mistake, "`");
    return numbers;
  }

}    // namespace emulation
}    // namespace hienet::cuda

TORCH_LIBRARY(hienet_emulation, library)
{
  library.def("launches() -> int", hienet::cuda::emulation::launches);
  library.def("set_reversed(bool reversed) -> ()", hienet::cuda::emulation::set_reversed);
  library.def("run_mistake(str mistake) -> Tensor", hienet::cuda::emulation::run_mistake);
}
