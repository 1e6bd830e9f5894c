// SPDX-License-Identifier: GPL-2.0-or-later
// The graph that a model reads, as tensors (docs/conventions.md, "The graph"). Knows torch and nothing of LAMMPS.

#ifndef HIENET_GRAPH_TENSORS_H
#define HIENET_GRAPH_TENSORS_H

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

namespace hienet {

/// What StagedModel reads of a NeighborGraph or of a DeviceGraph, which own it.
///
/// Nodes `0 .. n_local-1` are owned atoms, the others are ghosts. The tensors are on one device, any that there is.
struct GraphTensors {
  int n_local = 0;
  int n_nodes = 0;
  std::span<const int> node_atom;    // [n_nodes], local index of the node's atom; on the host
  at::Tensor species;                // [n_nodes] int64
  at::Tensor center;                 // [n_edges] int64, sorted
  at::Tensor neighbor;               // [n_edges] int64
  at::Tensor edge_vectors;           // [n_edges, 3] float64, r_neighbor - r_center, Angstrom

  int64_t n_edges() const { return center.defined() ? center.size(0) : 0; }
};

}    // namespace hienet

#endif
