// SPDX-License-Identifier: GPL-2.0-or-later
// Atoms that LAMMPS itself keeps on the device of the models, as it does with KOKKOS. Knows neither KOKKOS nor torch, so that
// no file needs the headers of both.

#ifndef HIENET_DEVICE_ATOMS_H
#define HIENET_DEVICE_ATOMS_H

#include <cstdint>

namespace hienet {

/// Where an array of one or two dimensions lies, whatever its layout. Strides count elements.
struct DeviceArray {
  enum Kind { INT32, FLOAT32, FLOAT64 };
  Kind kind;
  void *data;
  int64_t rows, columns;    // columns: 0 for an array of one dimension
  int64_t row_stride, column_stride;
};

/// A full neighbour list. Row i of `neighbors` belongs to atom i, whether `centers` names it or not.
struct DeviceNeighborList {
  DeviceArray centers;        // [n_centers or more] int32, local indices of owned atoms
  DeviceArray n_neighbors;    // [n_owned or more] int32, of each atom
  DeviceArray
      neighbors;    // [n_owned or more, as many as an atom has or more] int32, local indices
  int64_t n_centers;
  int mask;    // bits of a neighbour that hold its index; the others mark bonded neighbours
};

/// Of one rank, owned and ghost.
struct DeviceAtoms {
  DeviceArray positions;    // [n_total or more, 3] float32 or float64
  DeviceArray forces;       // the same; they are added to
  DeviceNeighborList neighbors;
};

}    // namespace hienet

#endif
