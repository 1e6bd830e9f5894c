// SPDX-License-Identifier: GPL-2.0-or-later

#include "shared_graph.h"

#include "model_error.h"

#include <algorithm>

namespace hienet {

/// Of so many atoms of a rank the edges are counted by a second way whenever the neighbour list is new, and of the next
/// ones in every so manieth step with an old list.
static constexpr int CHECKED_NODES = 8, CHECK_INTERVAL = 10;

SharedGraph::SharedGraph(std::unique_ptr<RankGraph> graph, std::unique_ptr<GhostExchange> exchange,
                         const std::vector<int> &species_of_type) :
    graph_(std::move(graph)), exchange_(std::move(exchange)), species_of_type(species_of_type)
{
}

bool SharedGraph::serves(double cutoff, const std::vector<int> &of_type) const
{ return graph_->cutoff() == cutoff && species_of_type == of_type; }

void SharedGraph::begin_step(const RankAtoms &atoms)
{
  const bool new_list = atoms.list_is_new();
  if (new_list) planned = false;
  n_with_list = new_list ? 0 : n_with_list + 1;
  graph_->begin_step(new_list, atoms.on_device());
}

void SharedGraph::update(const RankAtoms &atoms)
{
  graph_->update(atoms.atoms(), atoms.neighbors(), species_of_type,
                 exchange_ ? nullptr : atoms.owner().data());
}

std::string SharedGraph::missing_neighbor(const RankAtoms &atoms)
{
  const int n_local = graph_->n_local();
  if (n_local == 0 || n_with_list % CHECK_INTERVAL != 0) return "";
  const int first = n_checked % n_local;
  const int n = std::min(CHECKED_NODES, n_local - first);
  n_checked = first + n;
  const auto missing = graph_->missing_edge(atoms.atoms(), species_of_type, first, n);
  return missing ? atoms.explain(*missing) : "";
}

bool SharedGraph::exchange_is_planned()
{ return !exchange_ || (planned && exchange_->set_nodes(graph_->n_local(), graph_->node_atom())); }

void SharedGraph::plan_exchange(const RankAtoms &source)
{
  const auto atoms = source.atoms();
  std::vector<char> listed(atoms.n_total - atoms.n_owned);
  if (source.on_device()) {
    // A list on the device is not read here: the nodes are what it refers to.
    for (const int i : graph_->node_atom())
      if (i >= atoms.n_owned) listed[i - atoms.n_owned] = 1;
  } else {
    const auto list = source.neighbors();
    for (int ii = 0; ii < list.inum; ii++) {
      const int i = list.ilist[ii];
      if (i >= atoms.n_owned || species_of_type[atoms.type[i]] < 0) continue;
      for (int k = 0; k < list.numneigh[i]; k++) {
        const int j = list.firstneigh[i][k] & list.mask;
        if (j >= atoms.n_owned && species_of_type[atoms.type[j]] >= 0)
          listed[j - atoms.n_owned] = 1;
      }
    }
  }
  std::vector<Ghost> ghosts;
  for (int i = atoms.n_owned; i < atoms.n_total; i++)
    if (listed[i - atoms.n_owned]) ghosts.push_back({i, source.owner_rank()[i], source.owner()[i]});
  exchange_->plan(atoms.n_owned, atoms.n_total, ghosts);
  if (!exchange_->set_nodes(graph_->n_local(), graph_->node_atom()))
    throw ModelError("a ghost is in the network whose atom is not; please report this");
  planned = true;
}

double SharedGraph::memory_usage() const
{ return graph_->memory_usage() + (exchange_ ? exchange_->memory_usage() : 0.0); }

}    // namespace hienet
