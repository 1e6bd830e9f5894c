// SPDX-License-Identifier: GPL-2.0-or-later
// Rows of tensors between ranks: from the owners of atoms to their ghosts, and back, where they are added. Knows torch
// (behind a pointer) and MPI, and nothing of LAMMPS.

#ifndef HIENET_GHOST_EXCHANGE_H
#define HIENET_GHOST_EXCHANGE_H

#include <mpi.h>

#include <memory>
#include <string>
#include <vector>

namespace at {
class Tensor;
}

namespace hienet {

/// Whose memory MPI reads and writes: that of the device on which the rows are, or pinned memory of the host.
enum class Transport { DIRECT, HOST };

/// What the keyword `exchange` came to, and what speaks against `direct`.
struct ChosenTransport {
  Transport transport;
  std::string reason;
};

/// Whether MPI says that it takes pointers to the memory of CUDA devices. One that does not may crash on them.
bool mpi_takes_gpu_memory();

/// `direct`, `host`, or `auto`: direct if MPI takes memory of all ranks' devices, and moves it rightly.
///
/// The proof is an exchange between neighbours in a ring, which `direct` has to pass too: if it fails the answer is
/// HOST all the same. Collective, with one answer on all ranks; throws ModelError on one of them alone.
ChosenTransport choose_transport(MPI_Comm world, const std::string &device,
                                 const std::string &keyword);

/// A ghost that may become a node, and the atom of which it is a copy. `atom` and `owner_atom` are local indices.
struct Ghost {
  int atom;
  int owner_rank;
  int owner_atom;
};

/// Who sends which rows to whom, and the buffers for it.
///
/// `plan` once for the ghosts of a neighbour list; in each step `set_nodes`; then any number of exchanges,
///
///     send_owned(rows);  wait();  receive_ghosts(rows)
///     send_ghosts(rows); wait();  add_to_owned(rows)
///
/// which all ranks make in the same order, with tensors of one dtype and equally many columns. Rows of owned nodes are
/// [n_local, columns], of ghost nodes [n_nodes - n_local, columns]; columns have stride 1, rows any. Between `send` and
/// `wait` other work can be done. Sums have a fixed order: they are the same whenever positions and plan are.
///
/// Copies of this rank's own atoms pass through no MPI. Every member but `memory_usage` throws ModelError.
class GhostExchange {
 public:
  /// `tag` tells its messages from others.
  GhostExchange(MPI_Comm world, const std::string &device, Transport transport, int tag = 18505);
  ~GhostExchange();
  GhostExchange(const GhostExchange &) = delete;
  GhostExchange &operator=(const GhostExchange &) = delete;

  /// Serve these ghosts, in the order of their local indices. Collective.
  void plan(int n_owned, int n_atoms, const std::vector<Ghost> &ghosts);

  /// The local indices of the nodes' atoms: `n_local` owned ones, then ghosts. False if the plan does not fit them: a
  /// ghost is not among those that it serves, or another rank asks for an atom that is no node.
  bool set_nodes(int n_local, const std::vector<int> &node_atom);

  void send_owned(const at::Tensor &rows);
  void send_ghosts(const at::Tensor &rows);
  void wait();
  void receive_ghosts(const at::Tensor &rows);
  void add_to_owned(const at::Tensor &rows);

  /// Rows that come from other ranks, and from this one, in an exchange to ghosts.
  int n_remote() const;
  int n_own() const;

  /// Bytes of buffers and indices.
  double memory_usage() const;

 private:
  struct Implementation;
  std::unique_ptr<Implementation> impl;
};

}    // namespace hienet

#endif
