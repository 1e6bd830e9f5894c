// SPDX-License-Identifier: GPL-2.0-or-later

#include "pair_hienet_kokkos.h"

#include "engine/device_atoms.h"

#include "atom_kokkos.h"
#include "atom_masks.h"
#include "neigh_list_kokkos.h"
#include "neigh_request.h"
#include "neighbor.h"

#include <type_traits>

using namespace LAMMPS_NS;

/// Where a view of one or two dimensions lies, whatever its layout.
template <class View> static hienet::DeviceArray array_of(const View &view)
{
  using Number = typename View::non_const_value_type;
  static_assert(std::is_same_v<Number, int> || std::is_floating_point_v<Number>);
  constexpr bool two_dimensions = View::rank() == 2;
  hienet::DeviceArray array;
  array.kind = std::is_same_v<Number, int> ? hienet::DeviceArray::INT32
      : sizeof(Number) == sizeof(float)    ? hienet::DeviceArray::FLOAT32
                                           : hienet::DeviceArray::FLOAT64;
  array.data = const_cast<Number *>(view.data());
  array.rows = view.extent(0);
  array.columns = two_dimensions ? view.extent(1) : 0;
  array.row_stride = view.stride(0);
  array.column_stride = two_dimensions ? view.stride(1) : 0;
  return array;
}

template <class DeviceType>
PairHIENetKokkos<DeviceType>::PairHIENetKokkos(LAMMPS *lmp) : PairHIENet(lmp)
{
  kokkosable = 1;
  execution_space = ExecutionSpaceFromDevice<DeviceType>::space;
  datamask_read = X_MASK | F_MASK | ENERGY_MASK | VIRIAL_MASK;
  datamask_modify = F_MASK | ENERGY_MASK | VIRIAL_MASK;
}

template <class DeviceType> void PairHIENetKokkos<DeviceType>::init_style()
{
  PairHIENet::init_style();
  constexpr bool on_device = std::is_same_v<DeviceType, LMPDeviceType>;
  auto *const request = neighbor->find_request(this);
  request->set_kokkos_host(!on_device);
  request->set_kokkos_device(on_device);
}

/// Torch's name of the device on which KOKKOS has the atoms.
template <class DeviceType> std::string PairHIENetKokkos<DeviceType>::device_of_atoms() const
{
  if (ExecutionSpaceFromDevice<DeviceType>::space != Device) return "cpu";
  return "cuda:" + std::to_string(Kokkos::device_id());
}

template <class DeviceType> void PairHIENetKokkos<DeviceType>::compute(int eflag, int vflag)
{
  const auto space = ExecutionSpaceFromDevice<DeviceType>::space;
  keep_special_neighbors();
  atomKK->sync(space, datamask_read);
  atomKK->sync(Host, TYPE_MASK | MASK_MASK | TAG_MASK);

  const auto &neighbors = *static_cast<NeighListKokkos<DeviceType> *>(list);
  const hienet::DeviceAtoms atoms = {array_of(atomKK->k_x.template view<DeviceType>()),
                                     array_of(atomKK->k_f.template view<DeviceType>()),
                                     {array_of(neighbors.d_ilist), array_of(neighbors.d_numneigh),
                                      array_of(neighbors.d_neighbors), neighbors.inum, NEIGHMASK}};

  // Torch's stream does not wait for what KOKKOS has enqueued, and the base class ends with a wait for torch's. What
  // it exchanges through Comm lies on the host, which Comm tells by the execution space.
  DeviceType().fence();
  struct Lent {
    PairHIENetKokkos &pair;
    ~Lent()
    {
      pair.device_atoms = nullptr;
      pair.execution_space = ExecutionSpaceFromDevice<DeviceType>::space;
    }
  } const lent{*this};
  device_atoms = &atoms;
  execution_space = Host;
  PairHIENet::compute(eflag, vflag);
  atomKK->modified(space, datamask_modify);
}

namespace LAMMPS_NS {
template class PairHIENetKokkos<LMPDeviceType>;
#ifdef LMP_KOKKOS_GPU
template class PairHIENetKokkos<LMPHostType>;
#endif
}    // namespace LAMMPS_NS
