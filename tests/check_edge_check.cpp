// Edges that are missing are found and named: a program that tests/test_edge_check.py compiles and runs.

#include "engine/edge_check.h"
#include "engine/neighbor_graph.h"

#include <cstdio>
#include <random>

using namespace hienet;

static int wrong = 0;

static void check(bool right, const char *what)
{
  if (right) return;
  std::printf("wrong: %s\n", what);
  wrong++;
}

int main()
{
  constexpr int N_OWNED = 40, N_TOTAL = 200;
  constexpr double CUTOFF = 1.0;
  std::mt19937 random(1);
  std::uniform_real_distribution<double> uniform(0.0, 3.0);
  static double x[N_TOTAL][3];
  static int type[N_TOTAL];
  for (int i = 0; i < N_TOTAL; i++) {
    for (double &component : x[i]) component = uniform(random);
    type[i] = i % 4;    // 0: left out, 3: of another style
  }
  const std::vector<int> species_of_type = {-1, 0, 1, -1};
  const AtomsView atoms = {N_OWNED, N_TOTAL, x, type};

  // The edges of all owned nodes.
  std::vector<int> node_atom, neighbor;
  EdgesOfNodes edges = {0, {0}, {}};
  for (int i = 0; i < N_OWNED; i++) {
    if (species_of_type[type[i]] < 0) continue;
    node_atom.push_back(i);
    for (int j = 0; j < N_TOTAL; j++) {
      double v[3], squared = 0.0;
      for (int a = 0; a < 3; a++) squared += (v[a] = x[j][a] - x[i][a]) * v[a];
      if (j == i || species_of_type[type[j]] < 0 || squared >= CUTOFF * CUTOFF) continue;
      neighbor.push_back(j);
      edges.vectors.insert(edges.vectors.end(), v, v + 3);
    }
    edges.first_edge.push_back(neighbor.size());
  }
  const int n_nodes = static_cast<int>(node_atom.size());
  const auto n_edges = static_cast<int64_t>(neighbor.size());
  check(n_edges > 100, "there are edges");
  auto missing = [&](const EdgesOfNodes &some) {
    return find_missing_edge(atoms, species_of_type, CUTOFF, node_atom, some);
  };
  check(!missing(edges), "complete edges are complete");

  // Without any one of them, and from a few nodes in the middle.
  for (int node = 0; node < n_nodes; node++)
    for (int64_t e = edges.first_edge[node]; e < edges.first_edge[node + 1]; e++) {
      EdgesOfNodes fewer = {node, {0, edges.first_edge[node + 1] - edges.first_edge[node] - 1}, {}};
      for (int64_t k = edges.first_edge[node]; k < edges.first_edge[node + 1]; k++)
        if (k != e)
          fewer.vectors.insert(fewer.vectors.end(), &edges.vectors[3 * k],
                               &edges.vectors[3 * k] + 3);
      const auto found = missing(fewer);
      check(found && found->center == node_atom[node] && found->neighbor == neighbor[e],
            "the pair is named");
      check(found && found->distance < CUTOFF, "it is within the cutoff");
    }

  // An edge of which rounding decides is not asked for, and does not stand for one that is missing.
  static double pair[3][3] = {{0.0, 0.0, 0.0}, {CUTOFF, 0.0, 0.0}, {0.0, 0.5, 0.0}};
  static int types[3] = {1, 2, 1};
  const AtomsView few = {1, 3, pair, types};
  auto between = [&](std::vector<double> vectors) {
    const auto n = static_cast<int64_t>(vectors.size() / 3);
    return find_missing_edge(few, species_of_type, CUTOFF, {0}, {0, {0, n}, std::move(vectors)});
  };
  check(!between({0.0, 0.5, 0.0}), "an edge on the cutoff may be absent");
  check(!between({CUTOFF, 0.0, 0.0, 0.0, 0.5, 0.0}), "an edge on the cutoff may be there");
  const auto found = between({CUTOFF, 0.0, 0.0});
  check(found && found->neighbor == 2 && found->distance == 0.5, "it does not stand for another");
  check(!find_missing_edge(few, species_of_type, CUTOFF, {0}, {0, {0}, {}}),
        "no nodes lack nothing");

  std::printf("%d wrong\n", wrong);
  return wrong != 0;
}
