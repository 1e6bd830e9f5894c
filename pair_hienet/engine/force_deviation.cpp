// SPDX-License-Identifier: GPL-2.0-or-later

#include "force_deviation.h"

#include <algorithm>
#include <cmath>

namespace hienet {

void ForceDeviation::begin(int n_atoms, int models)
{
  n_models = models;
  rows_.reshape(n_atoms, 3 * n_models);
  rows_.set_zero();
}

double *ForceDeviation::force(int atom, int model)
{ return rows_.row(atom) + 3 * static_cast<size_t>(model); }

void ForceDeviation::set_zero(int n_owned)
{
  of_atoms_.assign(std::max(1, n_owned), 0.0);
  maximum_ = sum_ = 0.0;
}

void ForceDeviation::finish(int n_owned)
{
  set_zero(n_owned);
  for (int i = 0; i < n_owned; i++) {
    double mean[3] = {}, squares = 0.0;
    for (int k = 0; k < n_models; k++)
      for (int a = 0; a < 3; a++) mean[a] += force(i, k)[a] / n_models;
    for (int k = 0; k < n_models; k++)
      for (int a = 0; a < 3; a++) squares += std::pow(force(i, k)[a] - mean[a], 2);
    of_atoms_[i] = std::sqrt(squares / n_models);
    maximum_ = std::max(maximum_, of_atoms_[i]);
    sum_ += of_atoms_[i];
  }
}

}    // namespace hienet
