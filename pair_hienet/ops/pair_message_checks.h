// SPDX-License-Identifier: GPL-2.0-or-later

#ifndef HIENET_PAIR_MESSAGE_CHECKS_H
#define HIENET_PAIR_MESSAGE_CHECKS_H

#include "spline_layout.h"

#include <ATen/ATen.h>

#include <cstdint>

namespace hienet {

/// Throws c10::ValueError for a dtype or a shape of pair_message_sum's tensors that does not fit the others.
inline void check_pair_messages(const at::Tensor &edges, const at::Tensor &species,
                                const at::Tensor &table, const at::Tensor &pair_row,
                                const at::Tensor &center, int64_t channels, double cutoff)
{
  const auto dtype = edges.scalar_type();
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble,
                    "the sum of pair messages takes float32 or float64, got ", dtype);
  TORCH_CHECK_VALUE(table.scalar_type() == dtype, "`edges` are ", dtype, ", but `table` is ",
                    table.scalar_type());
  TORCH_CHECK_VALUE(edges.dim() == 2 && edges.size(1) >= 1 && edges.size(0) == center.size(0),
                    "`edges` must have one row for each edge (", center.size(0), "), got ",
                    edges.sizes());
  TORCH_CHECK_VALUE(channels >= 1 && table.dim() == 5 &&
                        table.size(1) == (channels + LANES - 1) / LANES && table.size(2) >= 1 &&
                        table.size(3) == SPLINE_COEFFICIENTS && table.size(4) == LANES,
                    "`table` must be [pairs, ceil(channels / ", LANES, "), intervals, ",
                    SPLINE_COEFFICIENTS, ", ", LANES, "]");
  TORCH_CHECK_VALUE(pair_row.dim() == 2 && pair_row.size(0) == pair_row.size(1),
                    "`pair_row` must be [species, species]");
  TORCH_CHECK_VALUE(species.dim() == 1, "`species` must be a list");
  TORCH_CHECK_VALUE(cutoff > 0, "`cutoff` must be positive, got ", cutoff);
}

/// Throws c10::ValueError where gradients of the sums have a wrong shape or dtype.
inline void check_gradient_of_pair_messages(const at::Tensor &gradient, const at::Tensor &edges,
                                            int64_t n_local, int64_t channels)
{
  TORCH_CHECK_VALUE(gradient.dim() == 2 && gradient.size(0) == n_local &&
                        gradient.size(1) == channels &&
                        gradient.scalar_type() == edges.scalar_type(),
                    "the gradient of the sum of pair messages has a wrong shape or dtype");
}

}    // namespace hienet

#endif
