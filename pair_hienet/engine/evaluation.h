// SPDX-License-Identifier: GPL-2.0-or-later
// One step of one model on all ranks: graph, forward, exchanges, readout, backward, results. Knows MPI and nothing of LAMMPS.

#ifndef HIENET_EVALUATION_H
#define HIENET_EVALUATION_H

#include "rank_atoms.h"
#include "rank_graph.h"
#include "shared_graph.h"
#include "staged_model.h"
#include "timing_breakdown.h"

#include <mpi.h>

#include <string>
#include <vector>

namespace hienet {

/// Numbers of the rows of the timing breakdown that all models share.
struct SharedRows {
  int graph, edges, readout, edges_backward, results, other;
  int plan, copies, exchange_forward, exchange_backward, agreement;    // on several ranks
};

/// Those of a model's own stages.
struct StageRows {
  std::vector<int> forward, backward;
};

/// A model, its graph, and what an evaluation of it is called in messages.
struct EvaluatedModel {
  StagedModel &model;
  SharedGraph &graph;
  bool builds_graph;    // it is the first that reads it
  const StageRows &rows;
  std::string name;    // "", or ", model FILE" where there are several
};

/// What is counted on this rank.
struct EvaluationCounts {
  int n_exchanges = 0;
  int64_t n_edges = 0;    // of the largest graph
  int n_ghosts = 0;       // that it refers to
  int n_late = 0;         // how often an old list lacked an edge,
  std::string late;       // and the first
};

/// The way of one model through its stages. On one rank ghosts fold onto their owners: nothing is exchanged.
///
/// All ranks call `run` at once, with the same models in the same order. Until the first exchange they fail together
/// (AgreedError); behind it they are at different points, and a failure concerns one of them alone (ModelError).
class Evaluation {
 public:
  Evaluation(MPI_Comm world, RankAtoms &atoms, TimingBreakdown &timing, const SharedRows &rows,
             EvaluationCounts &counts);

  /// The results hold until the graph's next.
  Results run(const EvaluatedModel &evaluated, const WantedResults &wanted);

 private:
  int begin(const EvaluatedModel &evaluated);
  std::string prepare(const EvaluatedModel &evaluated, int &readiness);
  std::string update_graph(const EvaluatedModel &evaluated);
  std::string check_edges(const EvaluatedModel &evaluated);
  void exchange_state(const EvaluatedModel &evaluated, int k);
  void exchange_gradient(const EvaluatedModel &evaluated, int k);
  void exchange(const EvaluatedModel &evaluated, int row,
                void (StagedModel::*send)(int, GhostExchange &),
                void (StagedModel::*receive)(int, GhostExchange &), int k);
  std::string circumstances(const EvaluatedModel &evaluated, bool has_edges = true) const;
  template <typename Work> void alone(const EvaluatedModel &evaluated, int row, Work &&work);

  MPI_Comm world;
  int me = 0, n_ranks = 1;
  RankAtoms &atoms;
  TimingBreakdown &timing;
  const SharedRows &rows;
  EvaluationCounts &counts;
};

}    // namespace hienet

#endif
