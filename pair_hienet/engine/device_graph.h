// SPDX-License-Identifier: GPL-2.0-or-later
// The graph of one rank, built on the device of the model from positions that are there. Knows torch (behind a
// pointer) and nothing of LAMMPS.

#ifndef HIENET_DEVICE_GRAPH_H
#define HIENET_DEVICE_GRAPH_H

#include <cstdint>
#include <memory>
#include <vector>

namespace at {
class Tensor;
}

namespace hienet {

struct GraphTensors;

/// The edges of NeighborGraph, in its order, by operations of torch on any device, and what becomes of their gradients.
///
/// When the neighbour list was rebuilt, or anything else changed that is given to it:
///
///     set_candidates(center_atom, neighbor_atom, species, owner, n_owned)
///
/// and in every step, with positions that are on the device already:
///
///     update(positions)
///     model.begin(graph); ...; gradients = model.finish()          # StagedModel
///     forces(gradients); virial(gradients); ...                    # tensors on the device
///
/// Everything is enqueued on the current stream of the device. The host waits for it once in each `update`, for the
/// number of edges, and several times in `set_candidates`. Nothing depends on the order in which threads of the
/// device come: equal input gives equal bits.
///
/// Besides what is declared below, every member throws ModelError where memory is exhausted or torch reports an error.
class DeviceGraph {
 public:
  DeviceGraph(double cutoff);
  ~DeviceGraph();
  DeviceGraph(DeviceGraph &&) noexcept;
  DeviceGraph &operator=(DeviceGraph &&) noexcept;

  /// The pairs of atoms among which edges are sought until the next call; this fixes the nodes.
  ///
  /// All tensors are on one device, which becomes the graph's. They are read during the call only.
  ///
  ///     center_atom    [n_candidates] int32, local index of an owned atom, ascending
  ///     neighbor_atom  [n_candidates] int32, local index of an owned atom or of a ghost; the order within a center is
  ///                    that of the edges
  ///     species        [n_total] int64, of each owned and ghost atom; negative for atoms that the model does not see.
  ///                    Pairs with such an atom are dropped
  ///     owner          [n_total] int32, local index of the owned atom of which each atom is a periodic image: ghosts
  ///                    fold onto their owners, and count as seen if these are. An undefined tensor where ghosts are
  ///                    nodes (several ranks)
  ///     n_owned        the atoms `0 .. n_owned-1` are the rank's own
  ///
  /// Nodes are the owned atoms that are seen, in their order, and without `owner` after them all ghosts of a candidate
  /// pair in theirs: more than NeighborGraph's, which takes those within the cutoff alone, so that they stay the same
  /// from one rebuild to the next. Throws ModelError if there are 2^31 candidates or more.
  void set_candidates(const at::Tensor &center_atom, const at::Tensor &neighbor_atom,
                      const at::Tensor &species, const at::Tensor &owner, int n_owned);

  /// Other species of the same atoms: `species` is as in `set_candidates`, and negative for the same atoms.
  void set_species(const at::Tensor &species);

  /// The edges of this step. `positions` is [n_total, 3] float64, contiguous, Angstrom, on the graph's device; it is
  /// read by what the call enqueues.
  ///
  /// Waits for the device. Throws GraphError for a position that is not finite, of an owned atom or of a candidate
  /// pair, and for coincident atoms, as NeighborGraph does and with the indices of the same atoms.
  void update(const at::Tensor &positions);

  double cutoff() const { return cutoff_; }    // Angstrom
  int n_local() const;
  int n_nodes() const;
  int64_t n_edges() const;         // of the last `update`
  int64_t n_candidates() const;    // of which the model sees both atoms

  /// Local index of each node's atom: [n_nodes] on the host, and [n_nodes] int64 on the device.
  const std::vector<int> &node_atom() const;
  const at::Tensor &node_atom_on_device() const;

  /// What StagedModel reads. It holds until the next `set_candidates` or `update`, and refers to this object.
  GraphTensors tensors() const;

  /// Where the edges of each center begin, [n_local + 1] int64.
  const at::Tensor &first_edge() const;

  /// Edges sorted by neighbour, and by number where it is equal: [n_edges] int64, the numbers of the edges; and where
  /// those of each node begin, [n_nodes + 1] int64.
  const at::Tensor &edges_by_neighbor() const;
  const at::Tensor &first_by_neighbor() const;

  // In the following g = dE/d(edge_vectors), [n_edges, 3], in float32 or float64, on the graph's device; an undefined
  // tensor is zero. Results are float64 on the same device, in units of g times Angstrom^n, and new tensors; the signs
  // are those of docs/conventions.md. Sums run over the edges in their order.

  /// Forces on the nodes, [n_nodes, 3]: `+g` to the center of each edge, `-g` to its neighbour.
  at::Tensor forces(const at::Tensor &g) const;

  /// -sum_e r_e (x) g_e, [9], in the order xx, yy, zz, xy, xz, yz, yx, zx, zy, the first index that of the edge vector.
  at::Tensor virial(const at::Tensor &g) const;

  /// Each edge's term shared equally by its two nodes, and symmetrised: [n_nodes, 6], xx, yy, zz, xy, xz, yz.
  at::Tensor atom_virials(const at::Tensor &g) const;

  /// Each edge's term with its neighbour alone: [n_nodes, 9], in the order of `virial`.
  at::Tensor centroid_virials(const at::Tensor &g) const;

  /// Bytes that are held between steps, on the device and on the host.
  double memory_usage() const;

 private:
  struct Torch;
  std::unique_ptr<Torch> torch_;
  double cutoff_;
};

}    // namespace hienet

#endif
