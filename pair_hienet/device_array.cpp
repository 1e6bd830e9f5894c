// SPDX-License-Identifier: GPL-2.0-or-later

#include "device_array.h"

#include "model_error.h"

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <vector>

namespace hienet {

/// Rows of the neighbour list are as long as the longest: so many entries are copied at a time.
static constexpr int64_t ENTRIES_AT_A_TIME = int64_t(1) << 24;

struct ArrayGuard {
  explicit ArrayGuard(const std::string &device) : device(at::Device(device)) {}
  c10::DeviceGuard device;
  c10::InferenceMode no_inference_mode{false};
  at::NoGradGuard no_grad;
};

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

static at::Tensor in_place(const DeviceArray &array, int64_t rows, const std::string &device)
{
  const auto options =
      at::TensorOptions().dtype(scalar_type(array.kind)).device(at::Device(device));
  std::vector<int64_t> sizes = {rows}, strides = {array.row_stride};
  if (array.columns > 0) {
    sizes.push_back(array.columns);
    strides.push_back(array.column_stride);
  }
  // A rank without atoms has no memory that a device would know.
  if (rows == 0) return at::empty(sizes, options);
  return at::for_blob(array.data, sizes)
      .strides(strides)
      .options(options)
      .target_device(options.device())
      .make_tensor();
}

at::Tensor tensor_of(const DeviceArray &array, int64_t rows, const std::string &device)
{
  return translated("the arrays of KOKKOS", [&] {
    const ArrayGuard guard(device);
    return in_place(array, rows, device);
  });
}

at::Tensor positions_of(const DeviceArray &positions, int64_t rows, const std::string &device)
{
  return translated("the positions of KOKKOS", [&] {
    const ArrayGuard guard(device);
    return in_place(positions, rows, device).to(at::kDouble).contiguous();
  });
}

std::pair<at::Tensor, at::Tensor> candidates_of(const DeviceNeighborList &list,
                                                const std::string &device)
{
  return translated("the neighbor list of KOKKOS", [&]() -> std::pair<at::Tensor, at::Tensor> {
    const ArrayGuard guard(device);
    auto centers = in_place(list.centers, list.n_centers, device);
    const auto none = at::empty({0}, centers.options());
    if (list.n_centers == 0) return {none, none};

    // The list of a sub-style of `pair_style hybrid` may come in any order.
    centers = std::get<0>(centers.sort());
    const auto lengths =
        in_place(list.n_neighbors, list.n_neighbors.rows, device).index_select(0, centers);
    const auto longest = lengths.max().item<int64_t>();
    if (longest == 0) return {none, none};
    const auto rows = in_place(list.neighbors, list.neighbors.rows, device).narrow(1, 0, longest);
    const auto place = at::arange(longest, lengths.options());

    const int64_t rows_at_a_time = std::max<int64_t>(1, ENTRIES_AT_A_TIME / longest);
    std::vector<at::Tensor> neighbors;
    for (int64_t first = 0; first < list.n_centers; first += rows_at_a_time) {
      const auto n = std::min(rows_at_a_time, list.n_centers - first);
      const auto used = place.unsqueeze(0).lt(lengths.narrow(0, first, n).unsqueeze(1));
      neighbors.push_back(
          rows.index_select(0, centers.narrow(0, first, n)).masked_select(used).bitwise_and_(
              list.mask));
    }
    return {centers.repeat_interleave(lengths), at::cat(neighbors)};
  });
}

void add_to_rows(const DeviceArray &array, const at::Tensor &atoms, const at::Tensor &values,
                 const std::string &device)
{
  translated("the forces of KOKKOS", [&] {
    const ArrayGuard guard(device);
    if (atoms.size(0) == 0) return;
    auto rows = in_place(array, array.rows, device);
    rows.index_add_(0, atoms, values.to(rows.scalar_type()));
  });
}

void finish_device_work(const std::string &device)
{
  translated("waiting for the device", [&] {
    const at::Device where(device);
    if (where.is_cpu()) return;
    const c10::impl::VirtualGuardImpl runtime(where.type());
    runtime.getStream(where).synchronize();
  });
}

}    // namespace hienet
