// SPDX-License-Identifier: GPL-2.0-or-later

#include "kernel_language.h"

#include <stdexcept>
#include <string>

namespace hienet::cuda {

void check_launch(const char *what)
{
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    throw std::runtime_error("the GPU refused to start " + std::string(what) + ": " +
                             cudaGetErrorString(error));
}

}    // namespace hienet::cuda
