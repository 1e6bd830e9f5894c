// SPDX-License-Identifier: GPL-2.0-or-later

#ifndef HIENET_DEVICE_ATOMS_H
#define HIENET_DEVICE_ATOMS_H

#include "device_array.h"

namespace hienet {

/// Atoms of a rank that LAMMPS itself keeps on the device of the model, as it does with KOKKOS.
struct DeviceAtoms {
  DeviceArray positions;           // [n_total or more, 3] float32 or float64
  DeviceArray forces;              // [n_total or more, 3] float32 or float64; they are added to
  DeviceNeighborList neighbors;    // of which the local indices are those of the positions
};

}    // namespace hienet

#endif
