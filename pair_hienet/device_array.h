// SPDX-License-Identifier: GPL-2.0-or-later
// Arrays that somebody else keeps on a device, as tensors of torch. Knows torch (in its source) and neither LAMMPS nor KOKKOS.

#ifndef HIENET_DEVICE_ARRAY_H
#define HIENET_DEVICE_ARRAY_H

#include <cstdint>
#include <string>
#include <utility>

namespace at {
class Tensor;
}

namespace hienet {

/// Where an array of one or two dimensions lies. Strides count elements.
///
/// This is all that there is to a view of KOKKOS, whose layout differs between devices, so that no file needs both the
/// headers of KOKKOS and those of torch.
struct DeviceArray {
  enum Kind { INT32, FLOAT32, FLOAT64 };
  Kind kind;
  void *data;
  int64_t rows, columns;    // columns: 0 for an array of one dimension
  int64_t row_stride, column_stride;
};

/// A full neighbour list as KOKKOS keeps it: row i of `neighbors` belongs to atom i, whether `centers` names it or not.
struct DeviceNeighborList {
  DeviceArray centers;        // [n_centers or more] int32, local indices of owned atoms
  DeviceArray n_neighbors;    // [n_atoms or more] int32, of each atom
  DeviceArray neighbors;      // [n_atoms or more, most neighbours of an atom or more] int32
  int64_t n_centers;
  int mask;    // bits of a neighbour that hold its index; the others mark bonded neighbours
};

// `device` is "cpu" or "cuda:N". Every function throws ModelError where memory is exhausted or torch reports an error.
// Work is enqueued on torch's current stream of the device, which knows nothing of what KOKKOS has enqueued: fence before
// these calls, and call `finish_device_work` before KOKKOS reads what they wrote.

/// The first `rows` rows in place, [rows] or [rows, columns]; nothing is copied. The memory has to outlive the tensor.
at::Tensor tensor_of(const DeviceArray &array, int64_t rows, const std::string &device);

/// The first `rows` rows as DeviceGraph::update reads positions: [rows, 3] float64, contiguous. In place if they are so.
at::Tensor positions_of(const DeviceArray &positions, int64_t rows, const std::string &device);

/// Centers and neighbours for DeviceGraph::set_candidates, [n_candidates] int32 each: the centers ascend, and the
/// neighbours of one stay in the order of the list. Waits for the device.
std::pair<at::Tensor, at::Tensor> candidates_of(const DeviceNeighborList &list,
                                                const std::string &device);

/// Adds row k of `values` ([n, columns]) to row `atoms[k]` of the array, in its precision. `atoms` ([n] int64) has no
/// number twice, so that the sum does not depend on an order.
void add_to_rows(const DeviceArray &array, const at::Tensor &atoms, const at::Tensor &values,
                 const std::string &device);

/// Waits until the device has done what torch's current stream holds.
void finish_device_work(const std::string &device);

}    // namespace hienet

#endif
