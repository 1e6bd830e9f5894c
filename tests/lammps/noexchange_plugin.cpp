// SPDX-License-Identifier: GPL-2.0-or-later
// The negative control: pair_style hienet/noexchange is pair_style hienet without what travels between ranks.
// pair_style hienet/counted says how many doubles an atom's row takes in each exchange.
// They link the plugin itself, so that everything else is the code under test.

#include "pair_hienet.h"
#include "plugin_types.h"

#include <algorithm>
#include <cstdio>

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

class PairCounted : public LAMMPS_NS::PairHIENet {
 public:
  using PairHIENet::PairHIENet;
  int pack_forward_comm(int n, int *atoms, double *buf, int flag, int *pbc) override
  { return counted("forward", n, PairHIENet::pack_forward_comm(n, atoms, buf, flag, pbc)); }
  int pack_reverse_comm(int n, int first, double *buf) override
  { return counted("backward", n, PairHIENet::pack_reverse_comm(n, first, buf)); }

 private:
  int counted(const char *direction, int n, int size)
  {
    if (n > 0) std::printf("\nROW %s %d\n", direction, size / n);
    return size;
  }
};

template <typename Style> void *create(void *lmp)
{ return static_cast<LAMMPS_NS::Pair *>(new Style(static_cast<LAMMPS_NS::LAMMPS *>(lmp))); }
}    // namespace

extern "C" void lammpsplugin_init(void *lmp, void *handle, void *regfunc)
{
  lammpsplugin_t plugin = {};
  plugin.version = "test";
  plugin.style = "pair";
  plugin.info = "test";
  plugin.author = "test";
  plugin.handle = handle;
  plugin.name = "hienet/noexchange";
  plugin.creator.v1 = &create<PairNoExchange>;
  reinterpret_cast<lammpsplugin_regfunc>(regfunc)(&plugin, lmp);
  plugin.name = "hienet/counted";
  plugin.creator.v1 = &create<PairCounted>;
  reinterpret_cast<lammpsplugin_regfunc>(regfunc)(&plugin, lmp);
}
