// SPDX-License-Identifier: GPL-2.0-or-later

#include "resident_data.h"

#include "device_array.h"
#include "device_guard.h"
#include "graph_tensors.h"
#include "model_error.h"
#include "neighbor_graph.h"
#include "staged_model.h"
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

struct ResidentData::Torch {
  at::Device device{at::kCPU};
  StagingBuffer staged_positions, staged_neighbors, staged_row_lengths, staged_species,
      staged_owners, staged_results;
  at::Tensor positions;    // [n_total, 3]
  at::Tensor energies;     // of the model that is being evaluated

  /// A copy on the device. The buffer may be written to again when the host has waited for the device.
  at::Tensor upload(const at::Tensor &staged) const { return staged.to(device, true); }

  /// `n` integers by way of a buffer.
  at::Tensor upload(StagingBuffer &buffer, const int *values, int64_t n) const
  {
    const auto staged = buffer.room(n, at::kInt, device);
    std::copy_n(values, n, staged.data_ptr<int>());
    return upload(staged);
  }

  std::pair<at::Tensor, at::Tensor> upload_list(const NeighborListView &list, int n_owned);

  void wait() const
  {
    if (device.is_cpu()) return;
    c10::impl::VirtualGuardImpl(device.type()).getStream(device).synchronize();
  }
};

ResidentData::ResidentData(const std::string &device) : torch_(std::make_unique<Torch>())
{ torch_->device = at::Device(device); }
ResidentData::~ResidentData() = default;

size_t ResidentData::add_graph(double cutoff)
{
  graphs.push_back({DeviceGraph(cutoff), {}});
  return graphs.size() - 1;
}

void ResidentData::begin_step(bool new_list, const DeviceAtoms *atoms)
{
  lent = atoms;
  torch_->positions = at::Tensor();
  for (auto &graph : graphs) graph.has_list &= !new_list;
}

// ----------------------------------------------------------------------
// up
// ----------------------------------------------------------------------

void ResidentData::find_positions(const AtomsView &atoms)
{
  if (torch_->positions.defined()) return;
  translated("the positions of the atoms", [&] {
    Torch &t = *torch_;
    const DeviceGuard guard(t.device);
    const int64_t n = atoms.n_total;
    if (lent) {
      t.positions = positions_of(lent->positions, n, t.device);
      return;
    }
    const auto staged = t.staged_positions.room(3 * n, at::kDouble, t.device);
    if (n > 0) std::memcpy(staged.data_ptr<double>(), atoms.x, staged.nbytes());
    t.positions = t.upload(staged).view({n, 3});
  });
}

void ResidentData::update(size_t k, const AtomsView &atoms, const NeighborListView &list,
                          const std::vector<int> &species_of_type, const int *owner)
{
  Torch &t = *torch_;
  Graph &graph = graphs[k];
  // Types and groups may change at any time; only where other atoms are seen the pairs are others.
  species.resize(atoms.n_total);
  std::transform(atoms.type, atoms.type + atoms.n_total, species.begin(), [&](int type) {
    return species_of_type[type];
  });
  const bool same_atoms = std::equal(species.begin(), species.end(), graph.species.begin(),
                                     graph.species.end(), [](int a, int b) {
                                       return (a < 0) == (b < 0);
                                     });
  if (!graph.has_list || !same_atoms) {
    graph.has_list = false;
    read_list(graph, atoms, list, owner);
    graph.has_list = true;
  } else if (species != graph.species) {
    translated("the species of the atoms", [&] {
      const DeviceGuard guard(t.device);
      graph.on_device.set_species(
          t.upload(t.staged_species, species.data(), atoms.n_total).to(at::kLong));
    });
  }
  graph.species = species;
  find_positions(atoms);
  graph.on_device.update(t.positions);
}

void ResidentData::read_list(Graph &graph, const AtomsView &atoms, const NeighborListView &list,
                             const int *owner)
{
  translated("the neighbors of the atoms", [&] {
    Torch &t = *torch_;
    const DeviceGuard guard(t.device);
    const auto [centers, neighbors] = lent ? candidates_of(lent->neighbors, t.device)
                                           : t.upload_list(list, atoms.n_owned);
    const auto species_on_device =
        t.upload(t.staged_species, species.data(), atoms.n_total).to(at::kLong);
    const auto owners = owner ? t.upload(t.staged_owners, owner, atoms.n_total) : at::Tensor();
    // It waits for the device, so that the buffers may be written to again.
    graph.on_device.set_candidates(centers, neighbors, species_on_device, owners, atoms.n_owned);
  });
}

/// Centers and neighbours of LAMMPS' list, [n_candidates] int32 each.
std::pair<at::Tensor, at::Tensor> ResidentData::Torch::upload_list(const NeighborListView &list,
                                                                   int n_owned)
{
  // Atoms without a row have no neighbours. The rows are in the order of the atoms, as those of NeighborGraph.
  const auto lengths = staged_row_lengths.room(n_owned, at::kInt, device).zero_();
  int *const length = lengths.data_ptr<int>();
  for (int ii = 0; ii < list.inum; ii++)
    if (list.ilist[ii] < n_owned) length[list.ilist[ii]] = list.numneigh[list.ilist[ii]];
  std::vector<int64_t> start(n_owned + 1, 0);
  for (int i = 0; i < n_owned; i++) start[i + 1] = start[i] + length[i];

  const auto neighbors = staged_neighbors.room(start[n_owned], at::kInt, device);
  int *const neighbor = neighbors.data_ptr<int>();
  parallel_for(n_owned, GRAIN, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
      for (int n = 0; n < length[i]; n++)
        neighbor[start[i] + n] = list.firstneigh[i][n] & list.mask;
  });
  return {at::repeat_interleave(upload(lengths), std::optional(start[n_owned])), upload(neighbors)};
}

std::optional<MissingEdge> ResidentData::missing_edge(size_t k, AtomsView atoms,
                                                      const std::vector<int> &species_of_type,
                                                      int first_node, int n) const
{
  return translated("the edges of some atoms", [&] {
    const Torch &t = *torch_;
    const DeviceGuard guard(t.device);
    const DeviceGraph &graph = graphs[k].on_device;
    const auto positions = t.positions.to(at::kCPU).contiguous();
    atoms.x = reinterpret_cast<const double (*)[3]>(positions.const_data_ptr<double>());
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
    return find_missing_edge(atoms, species_of_type, graph.cutoff(), graph.node_atom(), edges);
  });
}

// ----------------------------------------------------------------------
// down
// ----------------------------------------------------------------------

void ResidentData::readout(StagedModel &model)
{ torch_->energies = model.readout(); }

DeviceResults ResidentData::finish(StagedModel &model, size_t k, const WantedResults &wanted)
{
  const auto g = model.finish();
  return translated("the results", [&] {
    Torch &t = *torch_;
    const DeviceGuard guard(t.device);
    const DeviceGraph &graph = graphs[k].on_device;
    const auto forces = graph.forces(g);
    // In one piece, so that there is one copy to wait for.
    std::vector<at::Tensor> parts = {t.energies, forces.sum().view(1)};
    if (wanted.forces) parts.push_back(forces.flatten());
    if (wanted.virial) parts.push_back(graph.virial(g));
    if (wanted.atom_virials) parts.push_back(graph.atom_virials(g).flatten());
    if (wanted.centroid_virials) parts.push_back(graph.centroid_virials(g).flatten());
    const auto results = at::cat(parts);
    const auto staged = t.staged_results.room(results.size(0), at::kDouble, t.device);
    staged.copy_(results, true);
    if (lent && wanted.forces_added != 0.0)
      add_to_rows(lent->forces, graph.node_atom_on_device(), forces * wanted.forces_added);
    t.energies = at::Tensor();
    t.wait();

    const double *next = staged.const_data_ptr<double>();
    auto take = [&, part = size_t(0)](bool there) mutable -> const double * {
      if (!there) return nullptr;
      const double *const first = next;
      next += parts[part++].size(0);
      return first;
    };
    DeviceResults found;
    found.energies = take(true);
    found.checksum = *take(true);
    found.forces = take(wanted.forces);
    found.virial = take(wanted.virial);
    found.atom_virials = take(wanted.atom_virials);
    found.centroid_virials = take(wanted.centroid_virials);
    return found;
  });
}

double ResidentData::memory_usage() const
{
  const Torch &t = *torch_;
  double bytes = t.positions.defined() && !t.device.is_cpu() && !lent ? t.positions.nbytes() : 0.0;
  for (const auto *buffer : {&t.staged_positions, &t.staged_neighbors, &t.staged_row_lengths,
                             &t.staged_species, &t.staged_owners, &t.staged_results})
    bytes += buffer->memory_usage();
  for (const auto &graph : graphs)
    bytes += graph.on_device.memory_usage() +
        sizeof(int) * static_cast<double>(graph.species.capacity());
  return bytes + sizeof(int) * static_cast<double>(species.capacity());
}

}    // namespace hienet
