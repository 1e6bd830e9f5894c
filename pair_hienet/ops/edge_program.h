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

  const EdgeInstruction *instructions() const { return instructions_.data(); }
  const EdgeValue *values() const { return values_.data(); }
  const double *scales() const { return scales_.data(); }
  int64_t size() const { return static_cast<int64_t>(instructions_.size()); }
  /// Numbers of all values of an edge.
  int64_t value_size() const { return value_size_; }
  /// Numbers of an edge that are kept for the backward.
  int64_t kept_width() const { return kept_width_; }

  /// What the backward makes of each instruction, from the last to the first; `of_weights`: it also gives gradients with
  /// respect to weights and vectors.
  std::vector<EdgeBackwardStep> backward_steps(bool of_weights = false) const;

 private:
  // On the host, wherever the tensors are; none of these is held.
  std::vector<EdgeInstruction> instructions_;
  std::vector<double> scales_;
  std::vector<EdgeValue> values_;
  int64_t n_values, value_size_ = 0, kept_width_ = 0;

  bool fits(const EdgeInstruction &instruction, const EdgeProgramSizes &sizes) const;
  void find_repeated(std::vector<EdgeBackwardStep> &steps, bool of_weights) const;
};

}    // namespace hienet

#endif
