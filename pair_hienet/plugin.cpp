// SPDX-License-Identifier: GPL-2.0-or-later
// What LAMMPS' `plugin load` looks for: registers pair_style hienet, and hienet/kk if compiled for a LAMMPS with KOKKOS.

#include "pair_hienet.h"
#include "plugin_types.h"

#ifdef HIENET_KOKKOS
#include "pair_hienet_kokkos.h"
#endif

#include "lammps.h"

#include <string>

template <typename Style> static void *create(void *lmp)
{ return static_cast<LAMMPS_NS::Pair *>(new Style(static_cast<LAMMPS_NS::LAMMPS *>(lmp))); }

extern "C" void lammpsplugin_init(void *lmp, void *handle, void *regfunc)
{
  lammpsplugin_t plugin = {};
  // LAMMPS says so when it is of another version than the plugin was compiled for.
  const std::string compiled_for = HIENET_LAMMPS_VERSION;
  const char *running = static_cast<LAMMPS_NS::LAMMPS *>(lmp)->version;
  plugin.version = compiled_for.empty() ? running : HIENET_LAMMPS_VERSION;
  plugin.style = "pair";
  plugin.info = "HIENet machine-learned potentials";
  plugin.author = "the HIENet for LAMMPS developers";
  plugin.handle = handle;

  auto add = [&](const char *name, lammpsplugin_factory1 *creator) {
    plugin.name = name;
    plugin.creator.v1 = creator;
    reinterpret_cast<lammpsplugin_regfunc>(regfunc)(&plugin, lmp);
  };
  add("hienet", &create<LAMMPS_NS::PairHIENet>);
#ifdef HIENET_KOKKOS
  add("hienet/kk", &create<LAMMPS_NS::PairHIENetKokkos<LMPDeviceType>>);
  add("hienet/kk/device", &create<LAMMPS_NS::PairHIENetKokkos<LMPDeviceType>>);
  add("hienet/kk/host", &create<LAMMPS_NS::PairHIENetKokkos<LMPHostType>>);
#endif
}
