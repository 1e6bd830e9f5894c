// SPDX-License-Identifier: GPL-2.0-or-later
// Numbers of atoms on their way between ranks. Knows neither LAMMPS nor torch.

#ifndef HIENET_ROW_BUFFER_H
#define HIENET_ROW_BUFFER_H

#include <cstddef>
#include <vector>

namespace hienet {

/// One row of numbers for each atom of a rank, owned and ghost, on its way between ranks by way of LAMMPS.
class RowBuffer {
 public:
  /// Rows of any value.
  void reshape(int n_rows, int columns);
  void set_zero();

  int columns() const { return columns_; }
  double *row(int i) { return &data[static_cast<size_t>(i) * columns_]; }
  const double *row(int i) const { return &data[static_cast<size_t>(i) * columns_]; }

  /// The pair communication callbacks of LAMMPS; each returns or uses `n * columns()` doubles.
  int pack(int n, const int *list, double *out) const;
  void unpack(int n, int first, const double *in);
  int pack_range(int n, int first, double *out) const;
  void add(int n, const int *list, const double *in);

  double memory_usage() const { return sizeof(double) * static_cast<double>(data.capacity()); }

 private:
  std::vector<double> data;
  int columns_ = 1;
};

}    // namespace hienet

#endif
