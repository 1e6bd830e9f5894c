// SPDX-License-Identifier: GPL-2.0-or-later

#include "interaction_plan.h"

#include <algorithm>

namespace hienet {

using at::Tensor;

InteractionPlan::InteractionPlan(const Tensor &path_rows, const Tensor &term_rows,
                                 const Tensor &state, const Tensor &edges, const Tensor &table) :
    n_harmonics(edges.size(1) - 1)
{
  const Tensor path_table = path_rows.to(at::kCPU, at::kLong).contiguous();
  const Tensor term_table = term_rows.to(at::kCPU, at::kLong).contiguous();
  const auto *const first_path =
      reinterpret_cast<const Path *>(path_table.const_data_ptr<int64_t>());
  const auto *const first_term =
      reinterpret_cast<const Term *>(term_table.const_data_ptr<int64_t>());
  paths.assign(first_path, first_path + path_table.size(0));
  terms.assign(first_term, first_term + term_table.size(0));
  const int64_t n_terms = term_table.size(0);
  for (size_t i = 0; i < paths.size(); i++) {
    const Path &p = paths[i];
    bool fits = p.dim_in >= 1 && p.dim_in <= MAX_DIM && p.dim_out >= 1 && p.dim_out <= MAX_DIM &&
        p.dim_in % 2 == 1 && p.dim_out % 2 == 1 && p.channels >= 1 && p.feature_start >= 0 &&
        p.feature_start + p.dim_in * p.channels <= state.size(1) && p.table_start >= 0 &&
        p.table_start + (p.channels + LANES - 1) / LANES <= table.size(0) && p.out_start >= 0 &&
        p.out_channels >= p.channels && p.term_start >= 0 && p.term_start <= p.term_stop &&
        p.term_stop <= n_terms;
    for (int64_t t = fits ? p.term_start : p.term_stop; t < p.term_stop; t++)
      fits = fits && terms[t].index >= 0 && terms[t].index < p.dim_in * p.dim_out &&
          terms[t].harmonic >= 0 && terms[t].harmonic < n_harmonics;
    TORCH_CHECK_VALUE(fits, "path ", i, " of the interaction does not fit its tensors");
    read_width = std::max(read_width, p.feature_start + p.dim_in * p.channels);
    message_width =
        std::max(message_width, p.out_start + (p.dim_out - 1) * p.out_channels + p.channels);
  }
}

void InteractionPlan::check_linear_map(int64_t width_in, int64_t width_out, const Tensor &state,
                                       int64_t kept_start) const
{
  TORCH_CHECK_VALUE(message_width == width_in, "the convolution's messages have ", message_width,
                    " columns, the linear map reads ", width_in);
  TORCH_CHECK_VALUE(kept_start >= read_width && kept_start + width_out <= state.size(1),
                    "the atoms' own part, ", width_out, " columns from ", kept_start,
                    " on, does not fit the state's ", state.size(1));
}

void check_interaction(const Tensor &state, const Tensor &edges, const Tensor &table,
                       const Tensor &weights, const Tensor &transposed, const Tensor &center,
                       double cutoff, const Tensor &paths, const Tensor &terms,
                       const Tensor &coefficients)
{
  const auto dtype = state.scalar_type();
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble,
                    "the interaction takes float32 or float64, got ", dtype);
  TORCH_CHECK_VALUE(edges.scalar_type() == dtype && table.scalar_type() == dtype &&
                        weights.scalar_type() == dtype && transposed.scalar_type() == dtype,
                    "`state` is ", dtype, ", but `edges` ", edges.scalar_type(), ", `table` ",
                    table.scalar_type(), " and `weights` ", weights.scalar_type());
  TORCH_CHECK_VALUE(state.dim() == 2 && edges.dim() == 2 && edges.size(1) >= 2,
                    "`state` and `edges` have two dimensions, `edges` a distance and harmonics");
  TORCH_CHECK_VALUE(edges.size(0) == center.size(0), "`edges` must have one row for each edge (",
                    center.size(0), "), got ", edges.size(0));
  TORCH_CHECK_VALUE(table.dim() == 4 && table.size(1) >= 1 &&
                        table.size(2) == SPLINE_COEFFICIENTS && table.size(3) == LANES,
                    "`table` must be [blocks, intervals, ", SPLINE_COEFFICIENTS, ", ", LANES, "]");
  TORCH_CHECK_VALUE(cutoff > 0, "`cutoff` must be positive, got ", cutoff);
  TORCH_CHECK_VALUE(paths.dim() == 2 && paths.size(1) == PATH_COLUMNS && terms.dim() == 2 &&
                        terms.size(1) == 2 && coefficients.dim() == 1 &&
                        coefficients.size(0) == terms.size(0),
                    "the plan of the interaction has a wrong shape");
}

void check_gradient_of_interaction(const Tensor &gradient, const Tensor &state, int64_t n_local,
                                   int64_t width_out)
{
  TORCH_CHECK_VALUE(gradient.dim() == 2 && gradient.size(0) == n_local &&
                        gradient.size(1) == width_out &&
                        gradient.scalar_type() == state.scalar_type(),
                    "the gradient of the interaction's output has a wrong shape or dtype");
}

}    // namespace hienet
