// SPDX-License-Identifier: GPL-2.0-or-later
// What LAMMPS' `plugin load` looks for: registers pair_style hienet.

#include "pair_hienet.h"
#include "plugin_types.h"

#include "lammps.h"

#include <string>

static void *create_pair_hienet(void *lmp)
{
  return static_cast<LAMMPS_NS::Pair *>(
      new LAMMPS_NS::PairHIENet(static_cast<LAMMPS_NS::LAMMPS *>(lmp)));
}

extern "C" void lammpsplugin_init(void *lmp, void *handle, void *regfunc)
{
  lammpsplugin_t plugin = {};
  // LAMMPS says so when it is of another version than the plugin was compiled for.
  const std::string compiled_for = HIENET_LAMMPS_VERSION;
  const char *running = static_cast<LAMMPS_NS::LAMMPS *>(lmp)->version;
  plugin.version = compiled_for.empty() ? running : HIENET_LAMMPS_VERSION;
  plugin.style = "pair";
  plugin.name = "hienet";
  plugin.info = "HIENet machine-learned potentials";
  plugin.author = "the HIENet for LAMMPS developers";
  plugin.creator.v1 = &create_pair_hienet;
  plugin.handle = handle;
  reinterpret_cast<lammpsplugin_regfunc>(regfunc)(&plugin, lmp);
}
