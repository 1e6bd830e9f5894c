// SPDX-License-Identifier: GPL-2.0-or-later
// The plan of an interaction's convolution, checked against its tensors.

#ifndef HIENET_INTERACTION_PLAN_H
#define HIENET_INTERACTION_PLAN_H

#include "convolution_kernel.h"

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace hienet {

/// Every index that kernels will use lies inside its tensor.
struct InteractionPlan {
  std::vector<Path> paths;
  std::vector<Term> terms;
  int64_t n_harmonics;
  int64_t read_width = 0,
          message_width = 0;    // columns of the state that are read, and of the messages

  /// For tensors that `check_interaction` has passed. Throws c10::ValueError where a path does not fit them.
  InteractionPlan(const at::Tensor &paths, const at::Tensor &terms, const at::Tensor &state,
                  const at::Tensor &edges, const at::Tensor &table);

  /// The columns that atoms keep follow what is read, and are those that the linear map makes. Throws c10::ValueError.
  void check_linear_map(int64_t width_in, int64_t width_out, const at::Tensor &state,
                        int64_t kept_start) const;
};

/// Throws c10::ValueError for a dtype or a shape that does not fit the others.
void check_interaction(const at::Tensor &state, const at::Tensor &edges, const at::Tensor &table,
                       const at::Tensor &weights, const at::Tensor &transposed,
                       const at::Tensor &center, double cutoff, const at::Tensor &paths,
                       const at::Tensor &terms, const at::Tensor &coefficients);

/// Throws c10::ValueError where a gradient of the output has a wrong shape or dtype.
void check_gradient_of_interaction(const at::Tensor &gradient, const at::Tensor &state,
                                   int64_t n_local, int64_t width_out);

}    // namespace hienet

#endif
