// SPDX-License-Identifier: GPL-2.0-or-later

#include "row_buffer.h"

#include <algorithm>
#include <cstring>

namespace hienet {

void RowBuffer::reshape(int n_rows, int columns, bool single)
{
  single_ = single;
  stride_ = std::max(1, single ? (columns + 1) / 2 : columns);
  data.resize(static_cast<size_t>(n_rows) * stride_);
}

void RowBuffer::set_zero()
{ std::fill(data.begin(), data.end(), 0.0); }

int RowBuffer::pack(int n, const int *list, double *out) const
{
  const size_t bytes = sizeof(double) * stride_;
  for (int i = 0; i < n; i++)
    std::memcpy(out + static_cast<size_t>(i) * stride_, row(list[i]), bytes);
  return n * stride_;
}

void RowBuffer::unpack(int n, int first, const double *in)
{
  if (n > 0) std::memcpy(row(first), in, sizeof(double) * stride_ * static_cast<size_t>(n));
}

int RowBuffer::pack_range(int n, int first, double *out) const
{
  if (n > 0) std::memcpy(out, row(first), sizeof(double) * stride_ * static_cast<size_t>(n));
  return n * stride_;
}

template <typename T> static void add_row(char *to, const char *from, size_t n)
{
  for (size_t i = 0; i < n; i++) {
    T a, b;
    std::memcpy(&a, to + i * sizeof(T), sizeof(T));
    std::memcpy(&b, from + i * sizeof(T), sizeof(T));
    a += b;
    std::memcpy(to + i * sizeof(T), &a, sizeof(T));
  }
}

void RowBuffer::add(int n, const int *list, const double *in)
{
  for (int i = 0; i < n; i++) {
    const char *from = reinterpret_cast<const char *>(in + static_cast<size_t>(i) * stride_);
    if (single_)
      add_row<float>(row(list[i]), from, 2 * static_cast<size_t>(stride_));
    else
      add_row<double>(row(list[i]), from, stride_);
  }
}

}    // namespace hienet
