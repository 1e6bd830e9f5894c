// SPDX-License-Identifier: GPL-2.0-or-later
// The program of an edge network: checked against its tensors, and what its backward does.

#ifndef HIENET_EDGE_PROGRAM_H
#define HIENET_EDGE_PROGRAM_H

#include "edge_network_kernel.h"

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace hienet {

/// Columns and lengths of the tensors that a program reads and writes.
struct EdgeProgramSizes {
  int64_t centers, neighbors, edges;       // columns that it may read
  int64_t sums, edges_out;                 // columns that it may write
  int64_t weights, transposed, vectors;    // numbers
};

/// A program that stays inside its tensors, in the forward and in the backward.
class EdgeProgram {
 public:
  /// Throws c10::ValueError for an instruction or a value that does not fit.
  EdgeProgram(const at::Tensor &program, const at::Tensor &scales, const at::Tensor &values,
              const EdgeProgramSizes &sizes);

  const EdgeInstruction *instructions() const
  { return reinterpret_cast<const EdgeInstruction *>(program.const_data_ptr<int64_t>()); }
  const EdgeValue *values() const
  { return reinterpret_cast<const EdgeValue *>(layout.const_data_ptr<int64_t>()); }
  const double *scales() const { return factors.const_data_ptr<double>(); }
  int64_t size() const { return program.size(0); }
  /// Numbers of all values of an edge.
  int64_t value_size() const { return value_size_; }
  /// Numbers of an edge that are kept for the backward.
  int64_t kept_width() const { return kept_width_; }

  /// What the backward makes of each instruction, from the last to the first.
  std::vector<EdgeBackwardStep> backward_steps() const;

 private:
  at::Tensor program, factors, layout;
  int64_t n_values, value_size_ = 0, kept_width_ = 0;

  bool fits(const EdgeInstruction &instruction, const EdgeProgramSizes &sizes) const;
  void find_repeated(std::vector<EdgeBackwardStep> &steps) const;
};

}    // namespace hienet

#endif
