// SPDX-License-Identifier: GPL-2.0-or-later
// The library torch.ops.hienet; each operator registers itself in its own file.

#include "instruction_set.h"

#include <torch/library.h>

namespace hienet {

TORCH_LIBRARY(hienet, library)
{
  library.def("instruction_sets() -> str[]", instruction_sets);
  library.def("use_instruction_set(str name) -> ()", use_instruction_set);
}

}    // namespace hienet
