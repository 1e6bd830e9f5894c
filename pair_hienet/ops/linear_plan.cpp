// SPDX-License-Identifier: GPL-2.0-or-later

#include "linear_plan.h"

#include "matrix_product_kernel.h"

#include <algorithm>

namespace hienet {

using at::Tensor;

LinearPlan::LinearPlan(const Tensor &plan, const Tensor &weights, const Tensor &transposed)
{
  TORCH_CHECK_VALUE(plan.dim() == 2 && plan.size(1) == COLUMNS && weights.dim() == 1 &&
                        transposed.dim() == 1,
                    "the plan of a linear map has a wrong shape");
  const Tensor table = plan.to(at::kCPU, at::kLong).contiguous();
  const Block *const rows = reinterpret_cast<const Block *>(table.const_data_ptr<int64_t>());
  blocks.assign(rows, rows + table.size(0));
  int64_t read = 0;
  for (size_t i = 0; i < blocks.size(); i++) {
    const Block &b = blocks[i];
    TORCH_CHECK_VALUE(b.in_start >= 0 && b.fan_in >= 0 && b.dim >= 1 && b.fan_out >= 1 &&
                          b.out_start == width_out && b.weight_start >= 0 &&
                          b.weight_start + size_in_panels(b.fan_in, b.fan_out) <= weights.numel() &&
                          b.transposed_start >= 0 &&
                          b.transposed_start + size_in_panels(b.fan_out, b.fan_in) <=
                              transposed.numel(),
                      "block ", i, " of a linear map does not fit its weights");
    width_out += b.dim * b.fan_out;
    width_in = std::max(width_in, b.in_start + b.dim * b.fan_in);
    bool again = false;
    for (size_t j = 0; j < i; j++) {
      const Block &earlier = blocks[j];
      const int64_t start = std::max(b.in_start, earlier.in_start);
      const int64_t stop =
          std::min(b.in_start + b.dim * b.fan_in, earlier.in_start + earlier.dim * earlier.fan_in);
      if (start >= stop) continue;
      TORCH_CHECK_VALUE(
          b.in_start == earlier.in_start && b.dim == earlier.dim && b.fan_in == earlier.fan_in,
          "block ", i, " of a linear map reads columns that block ", j, " reads in another shape");
      again = true;
    }
    first_reader.push_back(!again);
    if (!again) read += b.dim * b.fan_in;
  }
  reads_all = read == width_in;
}

void check_rows_of_linear_map(const Tensor &rows, int64_t width, const Tensor &weights,
                              const char *what)
{
  const auto dtype = rows.scalar_type();
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble,
                    "the linear map takes float32 or float64, got ", dtype);
  TORCH_CHECK_VALUE(weights.scalar_type() == dtype, "`", what, "` is ", dtype,
                    ", but the weights are ", weights.scalar_type());
  TORCH_CHECK_VALUE(rows.dim() == 2 && rows.size(1) >= width, "`", what,
                    "` must have two dimensions and ", width, " columns, got ", rows.sizes());
}

}    // namespace hienet
