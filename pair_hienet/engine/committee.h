// SPDX-License-Identifier: GPL-2.0-or-later
// One or several models that are evaluated together: who they are, which graphs they share, what each of them counts for,
// how far their forces are apart, and where the time goes. Knows MPI and nothing of LAMMPS.

#ifndef HIENET_COMMITTEE_H
#define HIENET_COMMITTEE_H

#include "evaluation.h"
#include "force_deviation.h"

#include <functional>
#include <memory>
#include <optional>
#include <set>

namespace hienet {

class ResidentAtoms;

/// What moves the atoms: the mean of a committee, or its first model.
enum class Driver { MEAN, FIRST };

/// How all models of a committee are evaluated.
struct Placement {
  std::string device = "cpu";
  Precision precision = Precision::MODEL;
  Transport transport = Transport::DIRECT;    // on several ranks
  bool resident = false;                      // graphs are built on the device
  Driver driver = Driver::MEAN;
};

/// What is asked of a step.
struct StepRequest {
  WantedResults wanted;     // `forces_added` is set by the committee
  double unit = 1.0;        // of energies and forces, in eV
  bool compared = false;    // forces of all models are kept, for the deviation
};

/// Every member function is collective unless it is const, and throws AgreedError; `evaluate` throws ModelError, too.
class Committee {
 public:
  Committee(MPI_Comm world, const Placement &placement);

  /// Another model, from the bytes of its file. `symbols` are the elements of the types 1, 2, ..., or "NULL" for those
  /// that the model does not see. Members of equal cutoff and order of elements share a graph.
  void add(const std::string &file, const std::string &bytes,
           const std::vector<std::string> &symbols);

  /// When all have been added: the rows of the timing breakdown.
  void prepare_timing();

  /// Have the models tabulate the elements of types ([n_types + 1]) that have atoms, on any rank, and for which they have
  /// not done so: a universal potential may be given a type for each of its elements. Returns what was tabulated, in lines.
  std::string tabulate(const std::vector<char> &has_atoms);

  /// One step: `step` begins it, and calls `take` with each model's results, which hold during the call, and their share
  /// of those of the committee.
  using Take = std::function<void(const RankGraph &graph, const Results &results, double share)>;
  void evaluate(RankAtoms &atoms, const StepRequest &request, const Take &take);

  size_t size() const { return members.size(); }
  double cutoff() const;    // Angstrom, the largest

  /// Owned atoms that the models see; in a step.
  int n_atoms() const { return graphs[0]->graph().n_local(); }

  /// Of the last step.
  const EvaluationCounts &counts() const { return counts_; }
  ForceDeviation &deviation() { return deviation_; }

  /// Since the last call: a sentence about edges that an old list lacked, on rank 0, or an empty string.
  std::string late_neighbors();

  bool knows(int type) const { return members[0].species_of_type[type] >= 0; }
  const std::string &symbol(int type) const;

  /// For a user: the models in lines, their files in one, and what may not be meant.
  std::string description() const;
  std::string names() const;
  std::vector<std::string> warnings() const;

  TimingBreakdown &timing() { return timing_; }
  const SharedRows &rows() const { return rows_; }
  int deviation_row() const { return deviation_row_; }

  /// Bytes of what grows with the number of atoms, and of the weights and tables.
  double buffer_bytes() const;
  double model_bytes() const;

 private:
  struct Member {
    std::string file;
    std::unique_ptr<StagedModel> model;
    Tables tables;
    std::set<int64_t> tabulated;         // species that they are for
    std::vector<int> species_of_type;    // [n_types + 1], -1 for NULL
    int index;                           // from 0
    size_t graph;                        // the one that it reads, among `graphs`
    bool builds_graph;                   // it is the first that reads it
    StageRows rows;
  };

  double weight(const Member &member) const;
  size_t graph_for(const Metadata &metadata, const std::vector<int> &species_of_type);
  void keep_forces(const Member &member, const Results &results, double unit);
  std::string describe(const Member &member) const;
  std::string describe_tables(const Member &member) const;

  MPI_Comm world;
  int n_ranks = 1;
  Placement placement;
  std::vector<Member> members;
  std::shared_ptr<ResidentAtoms> resident;    // where graphs are built on the device
  std::vector<std::unique_ptr<SharedGraph>> graphs;
  ForceDeviation deviation_;
  EvaluationCounts counts_;
  TimingBreakdown timing_;
  SharedRows rows_{};
  int deviation_row_ = 0;

  // types of atoms for which the members have their tables, and those for which they may have to build some
  std::vector<int> tabulated, not_tabulated;
};

}    // namespace hienet

#endif
