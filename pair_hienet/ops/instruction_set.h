// SPDX-License-Identifier: GPL-2.0-or-later
// Which of the compiled kernels this processor runs.

#ifndef HIENET_INSTRUCTION_SET_H
#define HIENET_INSTRUCTION_SET_H

#include "variants.h"

#include <string>
#include <vector>

namespace hienet {

/// Names of all that the processor can run, the fastest last.
std::vector<std::string> instruction_sets();

/// For tests and benchmarks. Throws c10::Error for a name that is not among `instruction_sets()`.
void use_instruction_set(const std::string &name);

}    // namespace hienet

#endif
