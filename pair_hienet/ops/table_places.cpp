// SPDX-License-Identifier: GPL-2.0-or-later
// torch.ops.hienet.table_places: what edges read of the tables of a training step (hienet/ops/basis_table.py): the six
// B-splines that are not zero at a distance, and their slopes. Not known to autograd.

#include "differentiable.h"
#include "pooled_memory.h"
#include "training_convolution_kernel.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cstdint>
#include <tuple>

namespace hienet {

using at::Tensor;

/// Edges that a thread takes at least.
static constexpr int64_t GRAIN = 4096;

/// B-splines `[2, power, spline]`: of the fraction of an interval, and their slopes in intervals.
template <typename T> struct Polynomials {
  const T *values;
  T per_length;    // intervals

  void at(T fraction, T *factors) const
  {
    for (int64_t k = 0; k < 2; k++) {
      const T *const of = values + k * BASIS_ROWS * BASIS_ROWS;
      T sum[BASIS_ROWS] = {};
      for (int64_t power = BASIS_ROWS - 1; power >= 0; power--)
        for (int64_t i = 0; i < BASIS_ROWS; i++)
          sum[i] = sum[i] * fraction + of[power * BASIS_ROWS + i];
      for (int64_t i = 0; i < BASIS_ROWS; i++)
        factors[k * BASIS_ROWS + i] = k == 0 ? sum[i] : per_length * sum[i];
    }
  }
};

/// The first row of each edge, and factors `[n, 2, BASIS_ROWS]` of the rows from there on. Behind `split` intervals, if that
/// is not 0, the table has the rows of another spline.
static std::tuple<Tensor, Tensor> forward_cpu(const Tensor &distance, const Tensor &polynomials,
                                              double cutoff, int64_t n_intervals, int64_t split)
{
  const auto dtype = distance.scalar_type();
  TORCH_CHECK_VALUE((dtype == at::kFloat || dtype == at::kDouble) && distance.dim() == 1,
                    "`distance` must be [n_edges] of float32 or float64");
  TORCH_CHECK_VALUE(polynomials.scalar_type() == dtype && polynomials.is_contiguous() &&
                        polynomials.dim() == 3 && polynomials.size(0) == 2 &&
                        polynomials.size(1) == BASIS_ROWS && polynomials.size(2) == BASIS_ROWS,
                    "`polynomials` must be [2, ", BASIS_ROWS, ", ", BASIS_ROWS,
                    "] of the dtype of "
                    "`distance`");
  TORCH_CHECK_VALUE(cutoff > 0 && n_intervals >= 1 && split >= 0 && split <= n_intervals,
                    "a table needs a cutoff, and intervals");
  const int64_t n = distance.size(0);
  const Tensor first_row = at::empty({n}, at::kLong);
  const Tensor factors = pooled_empty({n, 2, BASIS_ROWS}, dtype);
  AT_DISPATCH_FLOATING_TYPES(dtype, "table_places", [&] {
    const scalar_t per_length = static_cast<scalar_t>(static_cast<double>(n_intervals) / cutoff);
    const Polynomials<scalar_t> splines = {polynomials.const_data_ptr<scalar_t>(), per_length};
    const scalar_t *const from = distance.const_data_ptr<scalar_t>();
    const int64_t stride = distance.stride(0);
    int64_t *const rows = first_row.data_ptr<int64_t>();
    scalar_t *const to = factors.data_ptr<scalar_t>();
    at::parallel_for(0, n, GRAIN, [&](int64_t first, int64_t last) {
      for (int64_t e = first; e < last; e++) {
        const scalar_t position = from[e * stride] * per_length;
        // What is no number is in the first interval, and its factors are no numbers.
        int64_t interval = 0;
        if (position >= static_cast<scalar_t>(n_intervals))
          interval = n_intervals - 1;
        else if (position > 0)
          interval = static_cast<int64_t>(position);
        splines.at(position - static_cast<scalar_t>(interval), to + e * 2 * BASIS_ROWS);
        rows[e] = interval + (split > 0 && interval >= split ? BASIS_ROWS - 1 : 0);
      }
    });
  });
  return {first_row, factors};
}

TORCH_LIBRARY_FRAGMENT(hienet, library)
{
  library.def("table_places(Tensor distance, Tensor polynomials, float cutoff, int n_intervals, "
              "int split) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(hienet, CPU, library)
{ library.impl("table_places", forward_cpu); }

}    // namespace hienet
