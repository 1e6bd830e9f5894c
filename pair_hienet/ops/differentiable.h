// SPDX-License-Identifier: GPL-2.0-or-later
// What all operators share: each has a hand-written derivative, for inference.

#ifndef HIENET_DIFFERENTIABLE_H
#define HIENET_DIFFERENTIABLE_H

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#ifndef INTRA_OP_PARALLEL
#error "at::parallel_for would be a loop on one thread: compile with -fopenmp"
#endif

namespace hienet {

/// The operator `hienet::name`, which has the C++ signature of `Function`; the dispatcher picks the device.
template <typename Function> auto dispatched(const char *name)
{ return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>(); }

/// Weights and tables have no gradient.
inline void check_constant(at::TensorList constants)
{
  for (const at::Tensor &tensor : constants)
    TORCH_CHECK(!tensor.requires_grad(),
                "the compiled operators have no gradient with respect to weights; train the model "
                "that was deployed");
}

/// Called by every backward: what it returns is not part of a graph.
inline void check_differentiated_once()
{
  TORCH_CHECK(!at::GradMode::is_enabled(),
              "the compiled operators can be differentiated once only; train the model that was "
              "deployed, or deploy with `--no-compile`");
}

/// Rows whose columns are contiguous, as kernels read them.
inline at::Tensor rows(const at::Tensor &tensor)
{ return tensor.stride(1) == 1 || tensor.size(1) <= 1 ? tensor : tensor.contiguous(); }

}    // namespace hienet

#endif
