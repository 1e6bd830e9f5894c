// SPDX-License-Identifier: GPL-2.0-or-later

#include "resident_graph.h"

#include "device_array.h"
#include "device_atoms.h"
#include "device_guard.h"
#include "graph_tensors.h"
#include "model_error.h"
#include "thread_pool.h"

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cstring>
#include <optional>

namespace hienet {

/// Rows of the neighbour list that are worth a thread of their own.
static constexpr int64_t GRAIN = 256;

/// Memory of the host that keeps its size from step to step; pinned if it is for a GPU, so that copies need not wait.
class StagingBuffer {
 public:
  /// Room for `n` numbers, some to spare, of any value.
  at::Tensor room(int64_t n, at::ScalarType dtype, at::Device device)
  {
    if (!memory.defined() || n > memory.size(0))
      memory =
          at::empty({n + n / 16}, at::TensorOptions().dtype(dtype).pinned_memory(device.is_cuda()));
    return memory.narrow(0, 0, n);
  }
  double memory_usage() const
  { return memory.defined() ? static_cast<double>(memory.nbytes()) : 0.0; }

 private:
  at::Tensor memory;
};

class ResidentAtoms {
 public:
  explicit ResidentAtoms(const std::string &device) : device(device) {}

  at::Device device;
  StagingBuffer pinned_positions, pinned_neighbors, pinned_row_lengths, pinned_species,
      pinned_owners, pinned_results;
  at::Tensor positions;    // [n_total, 3]
  const DeviceAtoms *lent = nullptr;
  std::vector<int> species;    // of the present step and graph
  int n_graphs = 0;

  /// A copy on the device. The buffer may be written to again when the host has waited for the device.
  at::Tensor upload(const at::Tensor &pinned) const { return pinned.to(device, true); }

  /// `n` integers by way of a buffer.
  at::Tensor upload(StagingBuffer &buffer, const int *values, int64_t n) const
  {
    const auto pinned = buffer.room(n, at::kInt, device);
    std::copy_n(values, n, pinned.data_ptr<int>());
    return upload(pinned);
  }

  void find_positions(const AtomsView &atoms);
  std::pair<at::Tensor, at::Tensor> upload_list(const NeighborListView &list, int n_owned);

  void wait() const
  {
    if (device.is_cpu()) return;
    c10::impl::VirtualGuardImpl(device.type()).getStream(device).synchronize();
  }

  double memory_usage() const
  {
    double bytes = positions.defined() && !device.is_cpu() && !lent ? positions.nbytes() : 0.0;
    for (const auto *buffer : {&pinned_positions, &pinned_neighbors, &pinned_row_lengths,
                               &pinned_species, &pinned_owners, &pinned_results})
      bytes += buffer->memory_usage();
    return bytes + sizeof(int) * static_cast<double>(species.capacity());
  }
};

std::shared_ptr<ResidentAtoms> resident_atoms(const std::string &device)
{
  return translated("the device of the graphs", [&] {
    return std::make_shared<ResidentAtoms>(device);
  });
}

ResidentGraph::ResidentGraph(double cutoff, std::shared_ptr<ResidentAtoms> with) :
    RankGraph(cutoff), graph(cutoff), shared(std::move(with))
{ shared->n_graphs++; }

ResidentGraph::~ResidentGraph()
{ shared->n_graphs--; }

void ResidentGraph::begin_step(bool new_list, const DeviceAtoms *lent)
{
  shared->lent = lent;
  shared->positions = at::Tensor();
  has_list &= !new_list;
}

GraphTensors ResidentGraph::tensors() const
{ return graph.tensors(); }

// ----------------------------------------------------------------------
// up
// ----------------------------------------------------------------------

/// The first call of a step takes the positions up.
void ResidentAtoms::find_positions(const AtomsView &atoms)
{
  if (positions.defined()) return;
  translated("the positions of the atoms", [&] {
    const DeviceGuard guard(device);
    const int64_t n = atoms.n_total;
    if (lent) {
      positions = positions_of(lent->positions, n, device);
      return;
    }
    const auto pinned = pinned_positions.room(3 * n, at::kDouble, device);
    if (n > 0) std::memcpy(pinned.data_ptr<double>(), atoms.x, pinned.nbytes());
    positions = upload(pinned).view({n, 3});
  });
}

void ResidentGraph::update(const AtomsView &atoms, const NeighborListView &list,
                           const std::vector<int> &species_of_type, const int *owner)
{
  ResidentAtoms &s = *shared;
  // Types and groups may change at any time; only where other atoms are seen the pairs are others.
  s.species.resize(atoms.n_total);
  std::transform(atoms.type, atoms.type + atoms.n_total, s.species.begin(), [&](int type) {
    return species_of_type[type];
  });
  const bool same_atoms = std::equal(s.species.begin(), s.species.end(), species.begin(),
                                     species.end(), [](int a, int b) {
                                       return (a < 0) == (b < 0);
                                     });
  if (!has_list || !same_atoms) {
    has_list = false;
    read_list(atoms, list, owner);
    has_list = true;
  } else if (s.species != species) {
    translated("the species of the atoms", [&] {
      const DeviceGuard guard(s.device);
      graph.set_species(s.upload(s.pinned_species, s.species.data(), atoms.n_total).to(at::kLong));
    });
  }
  species = s.species;
  s.find_positions(atoms);
  graph.update(s.positions);
}

void ResidentGraph::read_list(const AtomsView &atoms, const NeighborListView &list,
                              const int *owner)
{
  translated("the neighbors of the atoms", [&] {
    ResidentAtoms &s = *shared;
    const DeviceGuard guard(s.device);
    const auto [centers, neighbors] = s.lent ? candidates_of(s.lent->neighbors, s.device)
                                             : s.upload_list(list, atoms.n_owned);
    const auto species_on_device =
        s.upload(s.pinned_species, s.species.data(), atoms.n_total).to(at::kLong);
    const auto owners = owner ? s.upload(s.pinned_owners, owner, atoms.n_total) : at::Tensor();
    // It waits for the device, so that the buffers may be written to again.
    graph.set_candidates(centers, neighbors, species_on_device, owners, atoms.n_owned);
  });
}

/// Centers and neighbours of LAMMPS' list, [n_candidates] int32 each.
std::pair<at::Tensor, at::Tensor> ResidentAtoms::upload_list(const NeighborListView &list,
                                                             int n_owned)
{
  // Atoms without a row have no neighbours. The rows are in the order of the atoms, as those of NeighborGraph.
  const auto lengths = pinned_row_lengths.room(n_owned, at::kInt, device).zero_();
  int *const length = lengths.data_ptr<int>();
  for (int ii = 0; ii < list.inum; ii++)
    if (list.ilist[ii] < n_owned) length[list.ilist[ii]] = list.numneigh[list.ilist[ii]];
  std::vector<int64_t> start(n_owned + 1, 0);
  for (int i = 0; i < n_owned; i++) start[i + 1] = start[i] + length[i];

  const auto neighbors = pinned_neighbors.room(start[n_owned], at::kInt, device);
  int *const neighbor = neighbors.data_ptr<int>();
  parallel_for(n_owned, GRAIN, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
      for (int n = 0; n < length[i]; n++)
        neighbor[start[i] + n] = list.firstneigh[i][n] & list.mask;
  });
  return {at::repeat_interleave(upload(lengths), std::optional(start[n_owned])), upload(neighbors)};
}

std::optional<MissingEdge> ResidentGraph::missing_edge(const AtomsView &atoms,
                                                       const std::vector<int> &species_of_type,
                                                       int first_node, int n) const
{
  return translated("the edges of some atoms", [&] {
    const DeviceGuard guard(shared->device);
    const auto positions = shared->positions.to(at::kCPU).contiguous();
    AtomsView here = atoms;
    here.x = reinterpret_cast<const double (*)[3]>(positions.const_data_ptr<double>());
    const auto first_edge = graph.first_edge().narrow(0, first_node, n + 1).to(at::kCPU);
    const int64_t *const first = first_edge.const_data_ptr<int64_t>();
    const auto vectors = graph.tensors()
                             .edge_vectors.narrow(0, first[0], first[n] - first[0])
                             .to(at::kCPU)
                             .contiguous();
    EdgesOfNodes edges = {first_node, {first, first + n + 1}, {}};
    for (auto &number : edges.first_edge) number -= first[0];
    edges.vectors.assign(vectors.const_data_ptr<double>(),
                         vectors.const_data_ptr<double>() + vectors.numel());
    return find_missing_edge(here, species_of_type, cutoff(), graph.node_atom(), edges);
  });
}

// ----------------------------------------------------------------------
// down
// ----------------------------------------------------------------------

Results ResidentGraph::results(const at::Tensor &energies, const at::Tensor &gradients,
                               const WantedResults &wanted)
{
  return translated("the results", [&] {
    ResidentAtoms &s = *shared;
    const DeviceGuard guard(s.device);
    const auto forces = graph.forces(gradients);
    // In one piece, so that there is one copy to wait for.
    std::vector<at::Tensor> parts = {energies, forces.sum().view(1)};
    if (wanted.forces) parts.push_back(forces.flatten());
    if (wanted.virial) parts.push_back(graph.virial(gradients));
    if (wanted.atom_virials) parts.push_back(graph.atom_virials(gradients).flatten());
    if (wanted.centroid_virials) parts.push_back(graph.centroid_virials(gradients).flatten());
    const auto all = at::cat(parts);
    const auto pinned = s.pinned_results.room(all.size(0), at::kDouble, s.device);
    pinned.copy_(all, true);
    if (s.lent && wanted.forces_added != 0.0)
      add_to_rows(s.lent->forces, graph.node_atom_on_device(), forces * wanted.forces_added);
    s.wait();

    const double *next = pinned.const_data_ptr<double>();
    auto take = [&, part = size_t(0)](bool there) mutable -> const double * {
      if (!there) return nullptr;
      const double *const first = next;
      next += parts[part++].size(0);
      return first;
    };
    Results found;
    found.energies = take(true);
    found.checksum = *take(true);
    found.forces = take(wanted.forces);
    found.virial = take(wanted.virial);
    found.atom_virials = take(wanted.atom_virials);
    found.centroid_virials = take(wanted.centroid_virials);
    return found;
  });
}

/// What is shared is counted in equal parts.
double ResidentGraph::memory_usage() const
{
  return graph.memory_usage() + sizeof(int) * static_cast<double>(species.capacity()) +
      shared->memory_usage() / shared->n_graphs;
}

}    // namespace hienet
