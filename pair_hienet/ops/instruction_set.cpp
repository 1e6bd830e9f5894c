// SPDX-License-Identifier: GPL-2.0-or-later

#include "instruction_set.h"

#include <c10/util/Exception.h>

#include <atomic>

namespace hienet {

static const char *name_of(InstructionSet set)
{
  switch (set) {
    case InstructionSet::AVX512:
      return "avx512";
    case InstructionSet::AVX2:
      return "avx2";
    default:
      return "portable";
  }
}

static std::vector<InstructionSet> available()
{
  std::vector<InstructionSet> found = {InstructionSet::PORTABLE};
#ifdef HIENET_X86
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    found.push_back(InstructionSet::AVX2);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
    found.push_back(InstructionSet::AVX512);
#endif
  return found;
}

static std::atomic<InstructionSet> &current()
{
  static std::atomic<InstructionSet> set{available().back()};
  return set;
}

InstructionSet instruction_set()
{ return current(); }

std::vector<std::string> instruction_sets()
{
  std::vector<std::string> names;
  for (const InstructionSet set : available()) names.emplace_back(name_of(set));
  return names;
}

void use_instruction_set(const std::string &name)
{
  for (const InstructionSet set : available())
    if (name == name_of(set)) {
      current() = set;
      return;
    }
  TORCH_CHECK_VALUE(false, "this processor has no instruction set `", name, "`");
}

}    // namespace hienet
