// SPDX-License-Identifier: GPL-2.0-or-later

#include "device_linear.h"

#include "../matrix_product_kernel.h"
#include "memo.h"

namespace hienet::cuda {

using at::Tensor;

DeviceLinear::DeviceLinear(const Tensor &plan, const Tensor &weights, const Tensor &transposed) :
    plan_(plan, weights, transposed)
{
  for (const LinearPlan::Block &b : plan_.blocks) {
    const Tensor panels = weights.narrow(0, b.weight_start, size_in_panels(b.fan_in, b.fan_out));
    matrices_.push_back(panels.view({(b.fan_out + PANEL - 1) / PANEL, b.fan_in, PANEL})
                            .transpose(0, 1)
                            .flatten(1)
                            .narrow(1, 0, b.fan_out)
                            .clone());
  }
}

std::shared_ptr<const DeviceLinear> DeviceLinear::of(const Tensor &plan, const Tensor &weights,
                                                     const Tensor &transposed)
{
  static Memo<DeviceLinear, LAYERS> memo;
  return memo.get({plan, weights, transposed}, {}, [&] {
    return DeviceLinear(plan, weights, transposed);
  });
}

/// Columns `start .. start + dim * channels - 1` of rows, as `[dim, n_rows, channels]`.
static Tensor components(const Tensor &rows, int64_t start, int64_t dim, int64_t channels)
{
  return rows.as_strided({dim, rows.size(0), channels}, {channels, rows.stride(0), 1},
                         rows.storage_offset() + start);
}

/// out = in M, or out += in M, for each component.
static void multiply(const Tensor &in, const Tensor &matrix, Tensor out, bool accumulate)
{
  if (in.size(1) == 0) return;
  if (in.size(0) == 1) {
    Tensor only = out.select(0, 0);
    if (accumulate)
      only.addmm_(in.select(0, 0), matrix);
    else
      at::mm_out(only, in.select(0, 0), matrix);
    return;
  }
  const Tensor matrices = matrix.unsqueeze(0).expand({in.size(0), -1, -1});
  if (accumulate)
    out.baddbmm_(in, matrices);
  else
    at::bmm_out(out, in, matrices);
}

void DeviceLinear::apply(const Tensor &in, const Tensor &out, bool accumulate) const
{
  for (size_t i = 0; i < plan_.blocks.size(); i++) {
    const LinearPlan::Block &b = plan_.blocks[i];
    if (b.fan_in == 0) {
      if (!accumulate) out.narrow(1, b.out_start, b.dim * b.fan_out).zero_();
      continue;
    }
    multiply(components(in, b.in_start, b.dim, b.fan_in), matrices_[i],
             components(out, b.out_start, b.dim, b.fan_out), accumulate);
  }
}

void DeviceLinear::apply_transposed(const Tensor &gradient, const Tensor &of_in) const
{
  const bool zeroed = !plan_.reads_all || of_in.size(1) > plan_.width_in;
  if (zeroed) of_in.zero_();
  for (size_t i = 0; i < plan_.blocks.size(); i++) {
    const LinearPlan::Block &b = plan_.blocks[i];
    if (b.fan_in == 0) continue;
    multiply(components(gradient, b.out_start, b.dim, b.fan_out), matrices_[i].t(),
             components(of_in, b.in_start, b.dim, b.fan_in), zeroed || !plan_.first_reader[i]);
  }
}

}    // namespace hienet::cuda
