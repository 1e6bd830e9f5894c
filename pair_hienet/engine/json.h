// SPDX-License-Identifier: GPL-2.0-or-later
// The JSON library of Niels Lohmann, the one that is installed or the copy that LAMMPS brings, which has a namespace of its
// own. Not for headers.

#ifndef HIENET_JSON_H
#define HIENET_JSON_H

// The copy of newer versions of LAMMPS (July 2026) refuses to be included by anything but LAMMPS' own `json.h`, which
// knows itself by this name. The engine includes nothing of LAMMPS, so that the name is free.
#define LMP_JSON_H
#include <nlohmann/json.hpp>
#undef LMP_JSON_H

namespace hienet {
#ifdef LMP_NLOHMANN_JSON_NAMESPACE
using json = ::nlohmann_lmp::basic_json<>;
#else
using json = ::nlohmann::basic_json<>;
#endif
}    // namespace hienet

#endif
