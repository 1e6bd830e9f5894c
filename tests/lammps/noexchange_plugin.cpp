// SPDX-License-Identifier: GPL-2.0-or-later
// The negative control: pair_style hienet/noexchange is pair_style hienet without what travels between ranks.
// It links the plugin itself, so that everything else is the code under test.

#include "pair_hienet.h"
#include "plugin_types.h"

#include <algorithm>

namespace {
class PairNoExchange : public LAMMPS_NS::PairHIENet {
 public:
  using PairHIENet::PairHIENet;
  int pack_forward_comm(int n, int *atoms, double *buf, int flag, int *pbc) override
  {
    const int size = PairHIENet::pack_forward_comm(n, atoms, buf, flag, pbc);
    std::fill(buf, buf + size, 0.0);
    return size;
  }
};

void *create(void *lmp)
{
  return static_cast<LAMMPS_NS::Pair *>(new PairNoExchange(static_cast<LAMMPS_NS::LAMMPS *>(lmp)));
}
}    // namespace

extern "C" void lammpsplugin_init(void *lmp, void *handle, void *regfunc)
{
  lammpsplugin_t plugin = {};
  plugin.version = "test";
  plugin.style = "pair";
  plugin.name = "hienet/noexchange";
  plugin.info = "negative control";
  plugin.author = "test";
  plugin.creator.v1 = &create;
  plugin.handle = handle;
  reinterpret_cast<lammpsplugin_regfunc>(regfunc)(&plugin, lmp);
}
