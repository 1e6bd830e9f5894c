// SPDX-License-Identifier: GPL-2.0-or-later
// The graph of one rank, and the exchange with other ranks that fits it, for all models of one cutoff and order of elements.
// Knows nothing of LAMMPS.

#ifndef HIENET_SHARED_GRAPH_H
#define HIENET_SHARED_GRAPH_H

#include "ghost_exchange.h"
#include "rank_atoms.h"
#include "rank_graph.h"

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace hienet {

/// In every step: `begin_step`, `update`, and where `exchange_is_planned` says no, `plan_exchange`.
class SharedGraph {
 public:
  /// `exchange` is nullptr on one rank, where ghosts fold onto their owners.
  SharedGraph(std::unique_ptr<RankGraph> graph, std::unique_ptr<GhostExchange> exchange,
              const std::vector<int> &species_of_type);

  RankGraph &graph() { return *graph_; }
  const RankGraph &graph() const { return *graph_; }
  GhostExchange &exchange() { return *exchange_; }

  /// Whether it is the graph of a model of this cutoff and order of elements.
  bool serves(double cutoff, const std::vector<int> &species_of_type) const;

  void begin_step(const RankAtoms &atoms);

  /// The edges of this step. Throws GraphError, ModelError and std::bad_alloc.
  void update(const RankAtoms &atoms);

  /// Count the edges of a few atoms by a second way, others each time, which finds what takes neighbours away though
  /// nobody here knows of it: whenever the list is new, and in every tenth step with an old one. Returns a sentence, or
  /// nothing.
  ///
  /// With a list that is new the edges are complete, or something is wrong; an old one that lacks some was used for too
  /// long, as LAMMPS lets its users do.
  std::string missing_neighbor(const RankAtoms &atoms);

  /// Whether the exchange serves this neighbour list, and the nodes of this step.
  bool exchange_is_planned();

  /// Plan the exchange for all ghosts of known species in the neighbour list: those within the cutoff change from step to
  /// step, these stay. Collective; throws ModelError.
  void plan_exchange(const RankAtoms &atoms);

  double memory_usage() const;

 private:
  std::unique_ptr<RankGraph> graph_;
  std::unique_ptr<GhostExchange> exchange_;
  std::vector<int> species_of_type;    // [n_types + 1], negative for types that are left out
  bool planned = false;
  int n_checked = 0;      // nodes whose edges have been counted by a second way
  int n_with_list = 0;    // steps with this list
};

}    // namespace hienet

#endif
