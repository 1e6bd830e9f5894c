// SPDX-License-Identifier: GPL-2.0-or-later
// What the operators say of a GPU where their CUDA kernels were not compiled; the kernels are in cuda/.

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

namespace hienet {

static void refuse(const c10::OperatorHandle &op, torch::jit::Stack *)
{
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, "the compiled operator ", op.schema().name(),
      " was built without CUDA kernels; run `hienet build` where torch is a "
      "CUDA build and `nvcc` is found, or deploy with `--no-compile`");
}

TORCH_LIBRARY_IMPL(hienet, CUDA, library)
{
  for (const char *name : {"edge_geometry", "edge_network", "edge_network_forward", "gate",
                           "interaction", "irreps_linear", "pair_message_sum"})
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&refuse>());
}

}    // namespace hienet
