// SPDX-License-Identifier: GPL-2.0-or-later

#include "evaluation.h"

#include "agreement.h"
#include "graph_tensors.h"
#include "model_error.h"
#include "neighbor_graph.h"

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <new>
#include <numeric>

namespace hienet {

/// What a rank still needs before features can be exchanged; the least of all ranks counts.
enum Readiness : int { NEEDS_TYPES, NEEDS_PLAN, READY };

Evaluation::Evaluation(MPI_Comm world, RankAtoms &atoms, TimingBreakdown &timing,
                       const SharedRows &rows, EvaluationCounts &counts) :
    world(world), atoms(atoms), timing(timing), rows(rows), counts(counts)
{
  MPI_Comm_rank(world, &me);
  MPI_Comm_size(world, &n_ranks);
}

Results Evaluation::run(const EvaluatedModel &evaluated, const WantedResults &wanted)
{
  StagedModel &model = evaluated.model;
  int readiness = begin(evaluated);
  if (readiness == NEEDS_TYPES) {
    atoms.tell_ghosts();
    readiness = begin(evaluated);
  }
  if (readiness == NEEDS_PLAN)
    alone(evaluated, rows.plan, [&] {
      evaluated.graph.plan_exchange(atoms);
    });

  for (int k = 1; k < model.n_stages(); k++) {
    if (n_ranks > 1) exchange_state(evaluated, k);
    alone(evaluated, evaluated.rows.forward[k], [&] {
      model.forward(k);
    });
  }
  at::Tensor energies, gradients;
  alone(evaluated, rows.readout, [&] {
    energies = model.readout();
  });
  for (int k = model.n_stages() - 1; k >= 0; k--) {
    alone(evaluated, evaluated.rows.backward[k], [&] {
      model.backward(k);
    });
    if (n_ranks > 1 && k > 0) exchange_gradient(evaluated, k);
  }
  alone(evaluated, rows.edges_backward, [&] {
    gradients = model.finish();
  });
  Results results;
  alone(evaluated, rows.results, [&] {
    results = evaluated.graph.graph().results(energies, gradients, wanted);
  });
  const double total =
      std::accumulate(results.energies, results.energies + evaluated.graph.graph().n_local(), 0.0);
  if (!std::isfinite(total + results.checksum))
    throw ModelError("the energy or a force is not finite at " + atoms.moment() + " on rank " +
                     std::to_string(me) + evaluated.name +
                     "; atoms are probably far closer than in the training set: minimize first or "
                     "use a shorter timestep");
  return results;
}

/// The first steps on all ranks; returns what is still needed.
int Evaluation::begin(const EvaluatedModel &evaluated)
{
  int readiness = READY;
  const std::string problem = prepare(evaluated, readiness);
  readiness = agree(world, problem, readiness);
  timing.stamp(n_ranks > 1 ? rows.agreement : rows.other);
  return readiness;
}

/// The first steps on this rank, up to the first exchange. Returns what is wrong, or an empty string.
std::string Evaluation::prepare(const EvaluatedModel &evaluated, int &readiness)
{
  StagedModel &model = evaluated.model;
  if (evaluated.builds_graph) {
    std::string problem = atoms.problem();
    if (problem.empty() && !atoms.ghosts_are_told()) {
      readiness = NEEDS_TYPES;
      return "";
    }
    if (problem.empty()) problem = update_graph(evaluated);
    if (problem.empty()) problem = check_edges(evaluated);
    if (!problem.empty()) return problem;
  }
  timing.stamp(rows.graph);
  try {
    model.begin(evaluated.graph.graph().tensors());
    timing.stamp(rows.edges);
    model.forward(0);
    timing.stamp(evaluated.rows.forward[0]);
    if (evaluated.builds_graph && !evaluated.graph.exchange_is_planned()) readiness = NEEDS_PLAN;
  } catch (const std::exception &exception) {
    return exception.what() + (" " + circumstances(evaluated));
  }
  return "";
}

std::string Evaluation::update_graph(const EvaluatedModel &evaluated)
{
  try {
    evaluated.graph.update(atoms);
  } catch (const GraphError &problem) {
    return atoms.explain(problem);
  } catch (const ModelError &problem) {
    return problem.what() + (" " + circumstances(evaluated, false));
  } catch (const std::bad_alloc &) {
    return "not enough memory for the neighbors; use more ranks, or a smaller skin " +
        circumstances(evaluated, false);
  }
  const auto &graph = evaluated.graph.graph();
  counts.n_edges = std::max(counts.n_edges, graph.n_edges());
  counts.n_ghosts = std::max(counts.n_ghosts, graph.n_nodes() - graph.n_local());
  return "";
}

std::string Evaluation::check_edges(const EvaluatedModel &evaluated)
{
  std::string missing;
  try {
    missing = evaluated.graph.missing_neighbor(atoms);
  } catch (const ModelError &problem) {
    missing = problem.what() + (" " + circumstances(evaluated));
  }
  if (missing.empty() || atoms.list_is_new()) return missing;
  if (counts.n_late++ == 0) counts.late = missing;
  return "";
}

/// Work for a row of the timing breakdown, which no other rank waits for.
template <typename Work>
void Evaluation::alone(const EvaluatedModel &evaluated, int row, Work &&work)
{
  try {
    work();
  } catch (const ModelError &exception) {
    throw ModelError(exception.what() + (" " + circumstances(evaluated)));
  } catch (const std::bad_alloc &) {
    throw ModelError("not enough memory; use more ranks " + circumstances(evaluated));
  }
  timing.stamp(row);
}

/// The state that stage k reads: owners to ghosts.
void Evaluation::exchange_state(const EvaluatedModel &evaluated, int k)
{
  exchange(evaluated, rows.exchange_forward, &StagedModel::send_state, &StagedModel::receive_state,
           k);
}

/// The gradient with respect to it: ghosts to owners.
void Evaluation::exchange_gradient(const EvaluatedModel &evaluated, int k)
{
  exchange(evaluated, rows.exchange_backward, &StagedModel::send_gradient,
           &StagedModel::receive_gradient, k);
}

void Evaluation::exchange(const EvaluatedModel &evaluated, int row,
                          void (StagedModel::*send)(int, GhostExchange &),
                          void (StagedModel::*receive)(int, GhostExchange &), int k)
{
  auto &between_ranks = evaluated.graph.exchange();
  alone(evaluated, rows.copies, [&] {
    (evaluated.model.*send)(k, between_ranks);
  });
  alone(evaluated, row, [&] {
    between_ranks.wait();
  });
  counts.n_exchanges++;
  alone(evaluated, rows.copies, [&] {
    (evaluated.model.*receive)(k, between_ranks);
  });
}

/// "(step 7, rank 0, 512 atoms, 14336 edges)", and the model if there are several; where there are no edges yet, the
/// pairs of the neighbour list, among which they are sought.
std::string Evaluation::circumstances(const EvaluatedModel &evaluated, bool has_edges) const
{
  int64_t n_pairs = 0;
  if (!has_edges) {
    const auto list = atoms.neighbors();
    for (int ii = 0; ii < list.inum; ii++) n_pairs += list.numneigh[list.ilist[ii]];
  }
  const std::string pairs = has_edges ? std::to_string(evaluated.graph.graph().n_edges()) + " edges"
                                      : std::to_string(n_pairs) + " pairs in the neighbor list";
  return "(" + atoms.moment() + ", rank " + std::to_string(me) + ", " +
      std::to_string(atoms.atoms().n_owned) + " atoms, " + pairs + evaluated.name + ")";
}

}    // namespace hienet
