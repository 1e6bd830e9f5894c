// SPDX-License-Identifier: GPL-2.0-or-later

#ifndef HIENET_HARMONICS_PLAN_H
#define HIENET_HARMONICS_PLAN_H

#include "edge_geometry_kernel.h"

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace hienet {

/// Throws c10::ValueError for a dtype or a shape of edge_geometry's tensors that does not fit the others.
inline void check_edge_geometry(const at::Tensor &vectors, const at::Tensor &terms,
                                const at::Tensor &coefficients, int64_t n_harmonics)
{
  const auto dtype = vectors.scalar_type();
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble,
                    "the edge geometry takes float32 or float64, got ", dtype);
  TORCH_CHECK_VALUE(vectors.dim() == 2 && vectors.size(1) == 3,
                    "`edge_vectors` must be [n_edges, 3], got ", vectors.sizes());
  TORCH_CHECK_VALUE(terms.dim() == 2 && terms.size(1) == 3 && coefficients.dim() == 1 &&
                        coefficients.size(0) == terms.size(0) && n_harmonics >= 1 &&
                        n_harmonics <= MAX_HARMONICS,
                    "the plan of the harmonics has a wrong shape");
}

/// Throws c10::ValueError where a gradient has a wrong shape or dtype.
inline void check_gradient_of_edge_geometry(const at::Tensor &gradient, const at::Tensor &vectors,
                                            int64_t n_harmonics)
{
  TORCH_CHECK_VALUE(gradient.dim() == 2 && gradient.size(0) == vectors.size(0) &&
                        gradient.size(1) == 1 + n_harmonics &&
                        gradient.scalar_type() == vectors.scalar_type(),
                    "the gradient of the edge geometry has a wrong shape or dtype");
}

/// The terms of the recursion, int64 `[n_terms, 3]`, of which none leads out of the harmonics. Throws c10::ValueError.
inline std::vector<RecursionTerm> recursion_terms(const at::Tensor &rows, int64_t n_harmonics)
{
  const at::Tensor table = rows.to(at::kCPU, at::kLong).contiguous();
  const auto *const first =
      reinterpret_cast<const RecursionTerm *>(table.const_data_ptr<int64_t>());
  const std::vector<RecursionTerm> terms(first, first + table.size(0));
  for (size_t t = 0; t < terms.size(); t++)
    TORCH_CHECK_VALUE(terms[t].target > terms[t].source && terms[t].source >= 0 &&
                          terms[t].target < n_harmonics && terms[t].component >= 0 &&
                          terms[t].component < 3,
                      "term ", t, " of the harmonics is out of range");
  return terms;
}

}    // namespace hienet

#endif
