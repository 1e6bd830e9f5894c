// SPDX-License-Identifier: GPL-2.0-or-later

#include "edge_program.h"

#include "matrix_product_kernel.h"
#include "spline_layout.h"

#include <algorithm>

namespace hienet {

using at::Tensor;

/// Far above what a network needs, and small enough that no product of two of them overflows.
static constexpr int64_t LARGEST = 1 << 24;

// ----------------------------------------------------------------------
// what instructions read
// ----------------------------------------------------------------------

/// Which of its values an operation reads, in the forward and in its derivative, and whether it writes one.
struct Operands {
  int reads;    // none, the first, or both
  bool derivative_reads_first, derivative_reads_second;
  bool writes;
};

static Operands operands_of(EdgeOperation operation)
{
  switch (operation) {
    case EdgeOperation::EDGE:
    case EdgeOperation::CENTER:
    case EdgeOperation::NEIGHBOR:
    case EdgeOperation::ADD_CENTER:
    case EdgeOperation::ADD_NEIGHBOR:
    case EdgeOperation::CENTER_ALONG_EDGE:
    case EdgeOperation::NEIGHBOR_ALONG_EDGE:
    case EdgeOperation::CENTER_DOT_NEIGHBOR:
      return {0, false, false, true};
    case EdgeOperation::LINEAR:
    case EdgeOperation::ADD_LINEAR:
    case EdgeOperation::GROUP_SUM:
      return {1, false, false, true};
    case EdgeOperation::SILU:
    case EdgeOperation::SIGMOID:
    case EdgeOperation::TANH:
    case EdgeOperation::SOFTPLUS:
    case EdgeOperation::SILU_SLOPE:
    case EdgeOperation::SIGMOID_SLOPE:
    case EdgeOperation::TANH_SLOPE:
    case EdgeOperation::LAYER_NORM:
      return {1, true, false, true};
    case EdgeOperation::ADD:
    case EdgeOperation::JOIN:
      return {2, false, false, true};
    case EdgeOperation::MULTIPLY:
    case EdgeOperation::ADD_MULTIPLY:
    case EdgeOperation::GROUP_MULTIPLY:
    case EdgeOperation::LAYER_NORM_TANGENT:
      return {2, true, true, true};
    case EdgeOperation::SUM:
    case EdgeOperation::STORE:
      return {1, false, false, false};
    case EdgeOperation::SUM_DIRECTED:
    case EdgeOperation::SUM_PASSED:
      return {1, true, false, false};
  }
  return {0, false, false, false};
}

static Operands operands_of(const EdgeInstruction &i)
{ return operands_of(static_cast<EdgeOperation>(i.operation)); }

// ----------------------------------------------------------------------
// checks
// ----------------------------------------------------------------------

bool EdgeProgram::fits(const EdgeInstruction &i, const EdgeProgramSizes &sizes) const
{
  const auto is_value = [&](int64_t v) {
    return v >= 0 && v < n_values;
  };
  const auto width = [&](int64_t v) {
    return values()[v].width;
  };
  const auto inside = [](int64_t start, int64_t n, int64_t size) {
    return start >= 0 && n >= 1 && n <= size && start <= size - n;
  };
  if (i.operation < 0 || i.operation >= EDGE_OPERATIONS) return false;
  const auto operation = static_cast<EdgeOperation>(i.operation);
  if (i.kept < -1 || i.kept > LARGEST) return false;
  if (i.kept >= 0 && operation != EdgeOperation::LINEAR) return false;
  // What it does not use is -1: the backward follows all values that are named.
  const Operands operands = operands_of(operation);
  if (operands.writes ? !is_value(i.result) : i.result != -1) return false;
  if (operands.reads >= 1 ? !is_value(i.first) : i.first != -1) return false;
  if (operands.reads >= 2 ? !is_value(i.second) : i.second != -1) return false;
  // What it writes is not what it reads, nor a part of that.
  const auto apart = [&](int64_t v) {
    if (!operands.writes || v < 0) return true;
    const EdgeValue &written = values_[i.result], &read = values_[v];
    return written.start + written.stride <= read.start ||
        read.start + read.stride <= written.start;
  };
  if (!apart(i.first) || !apart(i.second)) return false;
  // Components of nodes and directions: c of them.
  const bool has_components =
      operation >= EdgeOperation::CENTER_ALONG_EDGE && operation <= EdgeOperation::SUM_PASSED;
  if (has_components && (i.c < 1 || i.c > LARGEST)) return false;
  switch (operation) {
    case EdgeOperation::EDGE:
      return inside(i.a, width(i.result), sizes.edges);
    case EdgeOperation::CENTER:
    case EdgeOperation::ADD_CENTER:
      return inside(i.a, width(i.result), sizes.centers);
    case EdgeOperation::NEIGHBOR:
    case EdgeOperation::ADD_NEIGHBOR:
      return inside(i.a, width(i.result), sizes.neighbors);
    case EdgeOperation::LINEAR:
    case EdgeOperation::ADD_LINEAR:
      return inside(i.a, size_in_panels(width(i.first), width(i.result)), sizes.weights) &&
          inside(i.b, size_in_panels(width(i.result), width(i.first)), sizes.transposed) &&
          (i.c == -1 || inside(i.c, width(i.result), sizes.vectors));
    case EdgeOperation::ADD:
      return width(i.first) == width(i.result) && width(i.second) == width(i.result);
    case EdgeOperation::MULTIPLY:
    case EdgeOperation::ADD_MULTIPLY:
      return width(i.first) == width(i.result) &&
          (width(i.second) == width(i.result) || width(i.second) == 1);
    case EdgeOperation::SILU:
    case EdgeOperation::SIGMOID:
    case EdgeOperation::TANH:
    case EdgeOperation::SOFTPLUS:
    case EdgeOperation::SILU_SLOPE:
    case EdgeOperation::SIGMOID_SLOPE:
    case EdgeOperation::TANH_SLOPE:
      return width(i.first) == width(i.result);
    case EdgeOperation::LAYER_NORM_TANGENT:
      return width(i.first) == width(i.result) && width(i.second) == width(i.result) &&
          inside(i.a, width(i.result), sizes.vectors);
    case EdgeOperation::LAYER_NORM:
      return width(i.first) == width(i.result) && inside(i.a, width(i.result), sizes.vectors) &&
          inside(i.b, width(i.result), sizes.vectors);
    case EdgeOperation::JOIN:
      return width(i.result) == width(i.first) + width(i.second);
    case EdgeOperation::GROUP_SUM:
      return width(i.first) % width(i.result) == 0;
    case EdgeOperation::GROUP_MULTIPLY:
      return width(i.second) == width(i.result) && width(i.result) % width(i.first) == 0;
    case EdgeOperation::SUM:
      return inside(i.a, width(i.first), sizes.sums);
    case EdgeOperation::STORE:
      return inside(i.a, width(i.first), sizes.edges_out);
    case EdgeOperation::CENTER_ALONG_EDGE:
      return inside(i.a, i.c * width(i.result), sizes.centers) && inside(i.b, i.c, sizes.edges);
    case EdgeOperation::NEIGHBOR_ALONG_EDGE:
      return inside(i.a, i.c * width(i.result), sizes.neighbors) && inside(i.b, i.c, sizes.edges);
    case EdgeOperation::CENTER_DOT_NEIGHBOR:
      return inside(i.a, i.c * width(i.result), sizes.centers) &&
          inside(i.b, i.c * width(i.result), sizes.neighbors);
    case EdgeOperation::SUM_DIRECTED:
      return inside(i.a, i.c * width(i.first), sizes.sums) && inside(i.b, i.c, sizes.edges);
    case EdgeOperation::SUM_PASSED:
      return inside(i.a, i.c * width(i.first), sizes.sums) &&
          inside(i.b, i.c * width(i.first), sizes.neighbors);
  }
  return false;
}

/// The rows of an int64 tensor as structures of as many numbers.
template <typename Row> static std::vector<Row> rows_of(const Tensor &tensor)
{
  const Tensor host = tensor.to(at::kCPU, at::kLong).contiguous();
  const auto *const first = reinterpret_cast<const Row *>(host.const_data_ptr<int64_t>());
  return {first, first + host.size(0)};
}

EdgeProgram::EdgeProgram(const Tensor &program, const Tensor &scales, const Tensor &values,
                         const EdgeProgramSizes &sizes)
{
  TORCH_CHECK_VALUE(program.dim() == 2 && program.size(1) == EDGE_INSTRUCTION_COLUMNS &&
                        scales.dim() == 1 && scales.size(0) == program.size(0) &&
                        values.dim() == 2 && values.size(1) == EDGE_VALUE_COLUMNS &&
                        values.size(0) >= 1 && sizes.sums >= 0 && sizes.sums <= LARGEST &&
                        sizes.edges_out >= 0 && sizes.edges_out <= LARGEST,
                    "the program of the edge network has a wrong shape");
  instructions_ = rows_of<EdgeInstruction>(program);
  values_ = rows_of<EdgeValue>(values);
  const Tensor factors = scales.to(at::kCPU, at::kDouble).contiguous();
  scales_.assign(factors.const_data_ptr<double>(),
                 factors.const_data_ptr<double>() + factors.numel());
  n_values = values.size(0);
  for (int64_t v = 0; v < n_values; v++) {
    const EdgeValue &value = values_[v];
    TORCH_CHECK_VALUE(value.start >= 0 && value.start <= LARGEST && value.start % LANES == 0 &&
                          value.stride >= 1 && value.stride <= LARGEST &&
                          value.stride % LANES == 0 && value.column >= 0 && value.width >= 1 &&
                          value.width <= value.stride && value.column <= value.stride - value.width,
                      "value ", v, " of the edge network has a wrong layout");
    value_size_ = std::max(value_size_, value.start + value.stride);
  }
  for (int64_t k = 0; k < size(); k++) {
    const EdgeInstruction &i = instructions_[k];
    TORCH_CHECK_VALUE(fits(i, sizes), "instruction ", k,
                      " of the edge network does not fit its tensors");
    if (i.kept >= 0) kept_width_ = std::max(kept_width_, i.kept + values_[i.result].width);
  }
}

// ----------------------------------------------------------------------
// the backward
// ----------------------------------------------------------------------

/// Which results the backward needs again.
void EdgeProgram::find_repeated(std::vector<EdgeBackwardStep> &steps, bool of_weights) const
{
  for (const bool kept : {false, true}) {
    std::vector<bool> needed(value_size_, false);    // by the start of the whole value
    const auto need = [&](int64_t v) {
      if (v >= 0) needed[values()[v].start] = true;
    };
    for (int64_t k = 0; k < size(); k++) {
      const EdgeInstruction &i = instructions()[k];
      const Operands operands = operands_of(i);
      const auto operation = static_cast<EdgeOperation>(i.operation);
      const bool is_map = operation == EdgeOperation::LINEAR ||
          operation == EdgeOperation::ADD_LINEAR;
      if (steps[k].needed && (operands.derivative_reads_first || (of_weights && is_map)))
        need(i.first);
      if (steps[k].needed && operands.derivative_reads_second) need(i.second);
    }
    for (int64_t k = size() - 1; k >= 0; k--) {
      const EdgeInstruction &i = instructions()[k];
      steps[k].repeated[kept] = i.result >= 0 && needed[values()[i.result].start];
      if (!steps[k].repeated[kept] || (kept && i.kept >= 0)) continue;
      need(i.first);
      need(i.second);
    }
  }
}

std::vector<EdgeBackwardStep> EdgeProgram::backward_steps(bool of_weights) const
{
  const EdgeValue *const all = values();
  std::vector<EdgeBackwardStep> steps(size());
  std::vector<bool> has_gradient(value_size_, false);    // by the start of the whole value
  const auto read = [&](int64_t v, bool &sets, bool &clears) {
    sets = clears = false;
    if (v < 0 || has_gradient[all[v].start]) return;
    has_gradient[all[v].start] = true;
    // Who reads the rest of the whole value adds to it later.
    const bool is_part = std::any_of(all, all + n_values, [&](const EdgeValue &other) {
      return other.start == all[v].start &&
          (other.column != all[v].column || other.width != all[v].width);
    });
    (is_part ? clears : sets) = true;
  };
  for (int64_t k = size() - 1; k >= 0; k--) {
    const EdgeInstruction &i = instructions()[k];
    steps[k].needed = i.result < 0 || has_gradient[all[i.result].start];
    if (!steps[k].needed) continue;
    read(i.first, steps[k].sets_first, steps[k].clears_first);
    read(i.second, steps[k].sets_second, steps[k].clears_second);
  }
  find_repeated(steps, of_weights);
  return steps;
}

}    // namespace hienet
