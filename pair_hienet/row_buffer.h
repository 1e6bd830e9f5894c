// SPDX-License-Identifier: GPL-2.0-or-later
// Numbers of atoms on their way between ranks. Knows neither LAMMPS nor torch.

#ifndef HIENET_ROW_BUFFER_H
#define HIENET_ROW_BUFFER_H

#include <cstddef>
#include <vector>

namespace hienet {

/// One row of numbers for each atom of a rank, owned and ghost, on its way between ranks.
///
/// Rows are stored in doubles, the unit in which LAMMPS communicates; float32 rows are packed two to a double.
class RowBuffer {
 public:
  /// `columns` numbers a row, of any value. `single`: they are float32.
  void reshape(int n_rows, int columns, bool single);
  void set_zero();

  int stride() const { return stride_; }    // doubles a row
  char *row(int i) { return reinterpret_cast<char *>(&data[static_cast<size_t>(i) * stride_]); }
  const char *row(int i) const
  { return reinterpret_cast<const char *>(&data[static_cast<size_t>(i) * stride_]); }
  double &value(int i) { return data[static_cast<size_t>(i) * stride_]; }    // for 1-column rows

  /// The pair communication callbacks of LAMMPS; each returns or uses `n * stride()` doubles.
  int pack(int n, const int *list, double *out) const;
  void unpack(int n, int first, const double *in);
  int pack_range(int n, int first, double *out) const;
  void add(int n, const int *list, const double *in);

  double memory_usage() const { return sizeof(double) * static_cast<double>(data.capacity()); }

 private:
  std::vector<double> data;
  int stride_ = 1;
  bool single_ = false;
};

}    // namespace hienet

#endif
