/* -*- c++ -*- ----------------------------------------------------------
   SPDX-License-Identifier: GPL-2.0-or-later

   pair_style hienet/kk: HIENet in LAMMPS with KOKKOS, which keeps the atoms on the device.
------------------------------------------------------------------------- */

#ifdef PAIR_CLASS
// clang-format off
PairStyle(hienet/kk,PairHIENetKokkos<LMPDeviceType>);
PairStyle(hienet/kk/device,PairHIENetKokkos<LMPDeviceType>);
PairStyle(hienet/kk/host,PairHIENetKokkos<LMPHostType>);
// clang-format on
#else

#ifndef LMP_PAIR_HIENET_KOKKOS_H
#define LMP_PAIR_HIENET_KOKKOS_H

#include "pair_hienet.h"

#include "kokkos_type.h"

namespace LAMMPS_NS {

/// PairHIENet on positions and a neighbour list that KOKKOS has on the device, adding to forces that it has there.
///
/// The work on the device is torch's; this class only says where the arrays lie. Types, groups and ids, which seldom
/// change, are read on the host, and energies, virials and what is asked for each atom end there, as LAMMPS needs them.
template <class DeviceType> class PairHIENetKokkos : public PairHIENet {
 public:
  typedef DeviceType device_type;

  PairHIENetKokkos(class LAMMPS *);
  void compute(int, int) override;
  void init_style() override;

 protected:
  std::string device_of_atoms() const override;
};

}    // namespace LAMMPS_NS

#endif
#endif
