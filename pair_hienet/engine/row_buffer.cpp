// SPDX-License-Identifier: GPL-2.0-or-later

#include "row_buffer.h"

#include <algorithm>

namespace hienet {

void RowBuffer::reshape(int n_rows, int columns)
{
  columns_ = columns;
  data.resize(static_cast<size_t>(n_rows) * columns_);
}

void RowBuffer::set_zero()
{ std::fill(data.begin(), data.end(), 0.0); }

int RowBuffer::pack(int n, const int *list, double *out) const
{
  for (int i = 0; i < n; i++) out = std::copy_n(row(list[i]), columns_, out);
  return n * columns_;
}

void RowBuffer::unpack(int n, int first, const double *in)
{
  if (n > 0) std::copy_n(in, static_cast<size_t>(n) * columns_, row(first));
}

int RowBuffer::pack_range(int n, int first, double *out) const
{
  if (n > 0) std::copy_n(row(first), static_cast<size_t>(n) * columns_, out);
  return n * columns_;
}

void RowBuffer::add(int n, const int *list, const double *in)
{
  for (int i = 0; i < n; i++) {
    double *const to = row(list[i]);
    for (int column = 0; column < columns_; column++) to[column] += *in++;
  }
}

}    // namespace hienet
