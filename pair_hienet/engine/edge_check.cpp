// SPDX-License-Identifier: GPL-2.0-or-later

#include "edge_check.h"

#include "neighbor_graph.h"

#include <cmath>

namespace hienet {

/// Of the squared cutoff: what compilers may make of one sum of three products in two places differs by less.
static constexpr double ROUNDING = 1.0e-12;

namespace {
  /// The atoms around one center.
  class Surroundings {
   public:
    Surroundings(const AtomsView &atoms, const std::vector<int> &species_of_type, double cutoff,
                 int center) :
        atoms(atoms), species_of_type(species_of_type), limit(cutoff * cutoff * (1.0 - ROUNDING)),
        center(center)
    {
    }

    bool near(const double *vector) const { return squared(vector) < limit; }

    /// The vector to an atom, and whether it is a neighbour.
    bool has_neighbor(int j, double *vector) const
    {
      for (int a = 0; a < 3; a++) vector[a] = atoms.x[j][a] - atoms.x[center][a];
      return near(vector) && j != center && species_of_type[atoms.type[j]] >= 0;
    }

    int64_t n_neighbors() const
    {
      double vector[3];
      int64_t n = 0;
      for (int j = 0; j < atoms.n_total; j++) n += has_neighbor(j, vector);
      return n;
    }

    static double squared(const double *v) { return v[0] * v[0] + v[1] * v[1] + v[2] * v[2]; }

   private:
    const AtomsView &atoms;
    const std::vector<int> &species_of_type;
    const double limit;
    const int center;
  };
}    // namespace

std::optional<MissingEdge> find_missing_edge(const AtomsView &atoms,
                                             const std::vector<int> &species_of_type, double cutoff,
                                             const std::vector<int> &node_atom,
                                             const EdgesOfNodes &edges)
{
  for (size_t n = 0; n + 1 < edges.first_edge.size(); n++) {
    const int i = node_atom[edges.first_node + n];
    const Surroundings around(atoms, species_of_type, cutoff, i);
    const double *const first = edges.vectors.data() + 3 * edges.first_edge[n];
    const double *const last = edges.vectors.data() + 3 * edges.first_edge[n + 1];
    int64_t n_edges = 0;
    for (const double *vector = first; vector != last; vector += 3) n_edges += around.near(vector);
    if (n_edges >= around.n_neighbors()) continue;

    // Which one: an edge's vector is the difference of the same two positions.
    for (int j = 0; j < atoms.n_total; j++) {
      double vector[3];
      if (!around.has_neighbor(j, vector)) continue;
      bool found = false;
      for (const double *other = first; other != last && !found; other += 3)
        found = other[0] == vector[0] && other[1] == vector[1] && other[2] == vector[2];
      if (!found) return MissingEdge{i, j, std::sqrt(Surroundings::squared(vector))};
    }
  }
  return std::nullopt;
}

}    // namespace hienet
