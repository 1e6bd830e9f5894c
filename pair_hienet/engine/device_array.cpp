// SPDX-License-Identifier: GPL-2.0-or-later

#include "device_array.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

namespace hienet {

/// Rows of a neighbour list are as long as the longest: so many entries are copied at a time.
static constexpr int64_t ENTRIES_AT_A_TIME = int64_t(1) << 24;

static at::ScalarType scalar_type(DeviceArray::Kind kind)
{
  switch (kind) {
    case DeviceArray::INT32:
      return at::kInt;
    case DeviceArray::FLOAT32:
      return at::kFloat;
    default:
      return at::kDouble;
  }
}

/// The first `rows` rows in place: [rows] or [rows, columns].
static at::Tensor in_place(const DeviceArray &array, int64_t rows, at::Device device)
{
  const auto options = at::TensorOptions().dtype(scalar_type(array.kind)).device(device);
  std::vector<int64_t> sizes = {rows}, strides = {array.row_stride};
  if (array.columns > 0) {
    sizes.push_back(array.columns);
    strides.push_back(array.column_stride);
  }
  // A rank without atoms may have no memory that the device would know.
  if (rows == 0) return at::empty(sizes, options);
  return at::for_blob(array.data, sizes)
      .strides(strides)
      .options(options)
      .target_device(device)
      .make_tensor();
}

at::Tensor positions_of(const DeviceArray &positions, int64_t rows, at::Device device)
{ return in_place(positions, rows, device).to(at::kDouble).contiguous(); }

std::pair<at::Tensor, at::Tensor> candidates_of(const DeviceNeighborList &list, at::Device device)
{
  const auto none = at::empty({0}, at::TensorOptions().dtype(at::kInt).device(device));
  if (list.n_centers == 0) return {none, none};
  const auto centers = std::get<0>(in_place(list.centers, list.n_centers, device).sort());
  const auto lengths =
      in_place(list.n_neighbors, list.n_neighbors.rows, device).index_select(0, centers);
  const auto longest = lengths.max().item<int64_t>();
  if (longest == 0) return {none, none};

  const auto rows = in_place(list.neighbors, list.neighbors.rows, device).narrow(1, 0, longest);
  const auto place = at::arange(longest, lengths.options()).unsqueeze(0);
  const int64_t rows_at_a_time = std::max<int64_t>(1, ENTRIES_AT_A_TIME / longest);
  std::vector<at::Tensor> neighbors;
  for (int64_t first = 0; first < list.n_centers; first += rows_at_a_time) {
    const auto n = std::min(rows_at_a_time, list.n_centers - first);
    const auto used = place.lt(lengths.narrow(0, first, n).unsqueeze(1));
    const auto entries = rows.index_select(0, centers.narrow(0, first, n)).masked_select(used);
    neighbors.push_back(entries.bitwise_and(list.mask));
  }
  return {centers.repeat_interleave(lengths), at::cat(neighbors)};
}

void add_to_rows(const DeviceArray &array, const at::Tensor &rows, const at::Tensor &values)
{
  auto target = in_place(array, array.rows, values.device());
  // Each row receives one number: though index_add adds by atomics on CUDA, there is no order to depend on.
  target.index_add_(0, rows, values.to(target.scalar_type()));
}

}    // namespace hienet
