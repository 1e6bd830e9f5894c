// SPDX-License-Identifier: GPL-2.0-or-later

#include "instruction_set.h"

#include <c10/util/Exception.h>

#include <atomic>

namespace hienet {

static std::vector<const Kernels *> available()
{
  std::vector<const Kernels *> found = {&portable::KERNELS};
#ifdef HIENET_X86
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    found.push_back(&avx2::KERNELS);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
    found.push_back(&avx512::KERNELS);
#endif
  return found;
}

static std::atomic<const Kernels *> &chosen()
{
  static std::atomic<const Kernels *> kernels{available().back()};
  return kernels;
}

const Kernels &kernels()
{ return *chosen(); }

std::vector<std::string> instruction_sets()
{
  std::vector<std::string> names;
  for (const Kernels *kernels : available()) names.emplace_back(kernels->name);
  return names;
}

void use_instruction_set(const std::string &name)
{
  for (const Kernels *kernels : available())
    if (name == kernels->name) {
      chosen() = kernels;
      return;
    }
  TORCH_CHECK_VALUE(false, "this processor has no instruction set `", name, "`");
}

}    // namespace hienet
