// SPDX-License-Identifier: GPL-2.0-or-later
// Arrays that somebody else keeps on a device, as tensors. Knows torch and neither LAMMPS nor KOKKOS.

#ifndef HIENET_DEVICE_ARRAY_H
#define HIENET_DEVICE_ARRAY_H

#include "device_atoms.h"

#include <ATen/core/Tensor.h>

#include <utility>

namespace hienet {

// Work is enqueued on the current stream of the device. It does not wait for what the owner of the arrays has enqueued
// on another, nor does the owner wait for it: that is up to the callers. All functions are deterministic on any device.

/// The first `rows` rows as DeviceGraph::update reads positions: [rows, 3] float64, contiguous. If the array is like that
/// nothing is copied, and its memory has to outlive the tensor.
at::Tensor positions_of(const DeviceArray &positions, int64_t rows, at::Device device);

/// Centers and neighbours as DeviceGraph::set_candidates reads them, [n_candidates] int32 each: the centers ascend, and
/// the neighbours of one stay in the order of the list. Waits for the device.
std::pair<at::Tensor, at::Tensor> candidates_of(const DeviceNeighborList &list, at::Device device);

/// Adds row k of `values` ([n, columns]) to row `rows[k]` ([n] int64) of the array, in its precision. No row is named
/// twice.
void add_to_rows(const DeviceArray &array, const at::Tensor &rows, const at::Tensor &values);

}    // namespace hienet

#endif
