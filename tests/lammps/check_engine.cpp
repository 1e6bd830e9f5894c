// The engine of the pair style in a program that is not LAMMPS: the atoms of a crystal dealt to the ranks in turn, ghosts and
// neighbours found by plain loops. tests/lammps/test_lammps_engine.py compiles it and compares what it prints.
//
//   check_engine MODEL ATOMS yes|no SYMBOL ...     # ATOMS: their number, three cell vectors, type and position of each

#include "engine/agreement.h"
#include "engine/committee.h"
#include "engine/edge_check.h"
#include "engine/neighbor_graph.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>

static constexpr double SKIN = 0.5;

struct Crystal {
  double cell[3][3];
  std::vector<int> type;
  std::vector<double> x;    // [n, 3]
  int n() const { return static_cast<int>(type.size()); }
};

static Crystal read(const char *file)
{
  Crystal c;
  std::ifstream in(file);
  int n;
  in >> n;
  for (auto &vector : c.cell)
    for (double &component : vector) in >> component;
  c.type.resize(n);
  c.x.resize(3 * n);
  for (int i = 0; i < n; i++) in >> c.type[i] >> c.x[3 * i] >> c.x[3 * i + 1] >> c.x[3 * i + 2];
  return c;
}

/// Atom i of the crystal is number i / n_ranks of rank i % n_ranks.
class DealtAtoms : public hienet::RankAtoms {
 public:
  DealtAtoms(const Crystal &crystal, double cutoff, int me, int n_ranks)
  {
    for (int i = me; i < crystal.n(); i += n_ranks) add(crystal, i, {}, n_ranks);
    n_owned = static_cast<int>(x.size()) / 3;
    constexpr int REACH = 2;    // images that are looked at
    for (int a = -REACH; a <= REACH; a++)
      for (int b = -REACH; b <= REACH; b++)
        for (int c = -REACH; c <= REACH; c++)
          for (int i = 0; i < crystal.n(); i++) {
            const bool is_image = a != 0 || b != 0 || c != 0;
            if (!is_image && i % n_ranks == me) continue;
            add(crystal, i, {a, b, c}, n_ranks);
            bool is_near = false;
            const int last = static_cast<int>(x.size()) / 3 - 1;
            for (int k = 0; k < n_owned; k++) is_near |= distance(k, last) < cutoff + SKIN;
            if (!is_near) remove_last();
          }
    const int n_total = static_cast<int>(x.size()) / 3;
    rows.resize(n_owned);
    for (int i = 0; i < n_owned; i++) {
      order.push_back(i);
      for (int j = 0; j < n_total; j++)
        if (j != i && distance(i, j) < cutoff + SKIN) rows[i].push_back(j);
      lengths.push_back(static_cast<int>(rows[i].size()));
      starts.push_back(rows[i].data());
    }
    type.assign(n_total, 0);    // until the ghosts are told
    std::copy_n(true_type.begin(), n_owned, type.begin());
  }

  /// Positions change, and ghosts follow.
  void follow(const Crystal &crystal, int n_ranks)
  {
    for (size_t i = 0; i < owner_.size(); i++)
      for (int a = 0; a < 3; a++)
        x[3 * i + a] = crystal.x[3 * index(i, n_ranks) + a] + shift[3 * i + a];
    is_new = false;
  }
  int index(size_t i, int n_ranks) const { return owner_[i] * n_ranks + owner_rank_[i]; }

  hienet::AtomsView atoms() const override
  {
    return {n_owned, static_cast<int>(owner_.size()),
            reinterpret_cast<const double (*)[3]>(x.data()), type.data()};
  }
  hienet::NeighborListView neighbors() const override
  { return {n_owned, order.data(), lengths.data(), starts.data(), 0x1fffffff}; }
  const std::vector<int> &owner() const override { return owner_; }
  const std::vector<int> &owner_rank() const override { return owner_rank_; }
  bool list_is_new() const override { return is_new; }
  std::string problem() const override { return ""; }
  bool ghosts_are_told() const override { return type == true_type; }
  void tell_ghosts() override { type = true_type; }
  std::string explain(const hienet::GraphError &error) const override { return error.what(); }
  std::string explain(const hienet::MissingEdge &) const override { return "an edge is missing"; }
  std::string moment() const override { return "now"; }

 private:
  void add(const Crystal &crystal, int i, std::array<int, 3> image, int n_ranks)
  {
    for (int a = 0; a < 3; a++) {
      double s = 0.0;
      for (int k = 0; k < 3; k++) s += image[k] * crystal.cell[k][a];
      shift.push_back(s);
      x.push_back(crystal.x[3 * i + a] + s);
    }
    owner_.push_back(i / n_ranks);
    owner_rank_.push_back(i % n_ranks);
    true_type.push_back(crystal.type[i]);
  }
  void remove_last()
  {
    x.resize(x.size() - 3);
    shift.resize(shift.size() - 3);
    owner_.pop_back();
    owner_rank_.pop_back();
    true_type.pop_back();
  }
  double distance(int i, int j) const
  {
    return std::hypot(x[3 * i] - x[3 * j], x[3 * i + 1] - x[3 * j + 1],
                      x[3 * i + 2] - x[3 * j + 2]);
  }

  int n_owned = 0;
  bool is_new = true;
  std::vector<double> x, shift;
  std::vector<int> owner_, owner_rank_, type, true_type;
  std::vector<std::vector<int>> rows;
  std::vector<int> order, lengths;
  std::vector<const int *> starts;
};

static void evaluate(hienet::Committee &committee, DealtAtoms &atoms, const Crystal &crystal,
                     int me, int n_ranks)
{
  std::vector<double> sums(10 + 3 * crystal.n());    // energy, virial, forces
  hienet::StepRequest request;
  request.wanted.virial = true;
  committee.evaluate(
      atoms, request,
      [&](const hienet::RankGraph &graph, const hienet::Results &results, double share) {
        for (int node = 0; node < graph.n_local(); node++)
          sums[0] += share * results.energies[node];
        for (int a = 0; a < 9; a++) sums[1 + a] += share * results.virial[a];
        for (int node = 0; node < graph.n_nodes(); node++)
          for (int a = 0; a < 3; a++)
            sums[10 + 3 * atoms.index(graph.node_atom()[node], n_ranks) + a] +=
                share * results.forces[3 * node + a];
      });
  MPI_Allreduce(MPI_IN_PLACE, sums.data(), static_cast<int>(sums.size()), MPI_DOUBLE, MPI_SUM,
                MPI_COMM_WORLD);
  if (me != 0) return;
  std::printf("step");
  for (const double number : sums) std::printf(" %.17g", number);
  std::printf("\n");
}

int main(int argc, char **argv)
{
  MPI_Init(&argc, &argv);
  int me, n_ranks;
  MPI_Comm_rank(MPI_COMM_WORLD, &me);
  MPI_Comm_size(MPI_COMM_WORLD, &n_ranks);
  Crystal crystal = read(argv[2]);
  const std::vector<std::string> symbols(argv + 4, argv + argc);
  {
    std::ifstream file(argv[1], std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(file), {}};
    hienet::Placement placement;
    placement.resident = argv[3] == std::string("yes");
    hienet::Committee committee(MPI_COMM_WORLD, placement);
    committee.add("model", bytes, symbols);
    committee.prepare_timing();
    committee.timing().start();
    committee.tabulate(std::vector<char>(symbols.size() + 1, 1));
    if (me == 0) std::printf("%s", committee.description().c_str());

    DealtAtoms atoms(crystal, committee.cutoff(), me, n_ranks);
    evaluate(committee, atoms, crystal, me, n_ranks);
    for (size_t k = 0; k < crystal.x.size(); k++) crystal.x[k] += 0.02 * std::sin(1.0 + k);
    atoms.follow(crystal, n_ranks);
    evaluate(committee, atoms, crystal, me, n_ranks);
    for (int a = 0; a < 3; a++) crystal.x[a] = crystal.x[3 + a];
    atoms.follow(crystal, n_ranks);
    try {
      evaluate(committee, atoms, crystal, me, n_ranks);
    } catch (const hienet::AgreedError &error) {
      std::printf("rank %d: %s\n", me, error.what());
    }
  }
  MPI_Finalize();
}
