// SPDX-License-Identifier: GPL-2.0-or-later
// How far the forces of several models are apart: the uncertainty of a committee. Knows neither LAMMPS nor torch.

#ifndef HIENET_FORCE_DEVIATION_H
#define HIENET_FORCE_DEVIATION_H

#include "row_buffer.h"

#include <vector>

namespace hienet {

/// With the forces F_ik of K models on atom i, and their mean <F_i>,
///
///     deviation_i = sqrt( sum_k |F_ik - <F_i>|^2 / K ),
///
/// the model deviation of Zhang et al., Phys. Rev. Materials 3, 023804 (2019): the variance is that of a population.
///
/// One evaluation: `begin`; every model's terms into `force`; the rows of ghosts added to their owners'; `finish`.
class ForceDeviation {
 public:
  /// No forces yet, on any of `n_atoms` (owned and ghost).
  void begin(int n_atoms, int n_models);

  /// The force ([3]) of a model on an atom, to be added to.
  double *force(int atom, int model);

  /// The forces of all models on an atom are a row, so that they travel together.
  RowBuffer &rows() { return rows_; }

  /// From complete forces on the owned atoms to deviations, in the same unit.
  void finish(int n_owned);

  /// No deviation on any of the owned atoms, as where there is one model.
  void set_zero(int n_owned);

  /// By owned atom, at least one number, so that an array without atoms is one too.
  std::vector<double> &of_atoms() { return of_atoms_; }

  /// Over the owned atoms.
  double maximum() const { return maximum_; }
  double sum() const { return sum_; }

  double memory_usage() const
  { return rows_.memory_usage() + sizeof(double) * static_cast<double>(of_atoms_.capacity()); }

 private:
  RowBuffer rows_;
  int n_models = 0;
  std::vector<double> of_atoms_;
  double maximum_ = 0.0, sum_ = 0.0;
};

}    // namespace hienet

#endif
