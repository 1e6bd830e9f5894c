// SPDX-License-Identifier: GPL-2.0-or-later
// What a deployed file says of itself (docs/conventions.md, "The deployed file"). Knows nothing of LAMMPS.

#ifndef HIENET_METADATA_H
#define HIENET_METADATA_H

#include "model_error.h"

#include <cstdint>
#include <string>
#include <vector>

namespace hienet {

/// What a stage reads: the columns of the state, how many of them neighbours need, and the columns of the edges.
struct StageInfo {
  std::string name;
  int width;
  int exchanged_width;
  int edge_width;
};

/// What a deployed file says of itself.
struct Metadata {
  int format_version;
  std::string package_version, created, architecture, dtype, training;
  std::vector<std::string> elements;     // in species order
  std::vector<std::string> operators;    // compiled ones that the model calls, `hienet::name`
  double cutoff;                         // Angstrom
  int edge_width;
  std::vector<StageInfo> stages;
  bool edges_evolve;    // stages return, beside the state, the edges that the next one reads
  int64_t n_parameters;
  bool smooth_cutoff;
  std::string symmetry;    // of the energy: O(3), SO(3); "unknown" in files that do not say it
};

/// Read the description out of the bytes of a deployed file. Throws ModelError.
Metadata read_metadata(const std::string &bytes);

/// Says that a file is no deployed model, why, and how to get one.
ModelError foreign_file(const std::string &why);

}    // namespace hienet

#endif
