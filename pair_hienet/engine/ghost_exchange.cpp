// SPDX-License-Identifier: GPL-2.0-or-later

#include "ghost_exchange.h"

#include "../ops/pooled_memory.h"
#include "device_guard.h"
#include "model_error.h"

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <numeric>

namespace hienet {

using at::Tensor;

static constexpr int NO_ROW = -1;

// The self-test: its messages, the rows of its two exchanges (implementations of MPI treat long messages in another
// way than short ones), and their columns.
static constexpr int SELF_TEST_TAG = 18506;
static constexpr std::array<int, 2> SELF_TEST_ROWS = {8, 4096};
static constexpr int SELF_TEST_COLUMNS = 64;

/// Rows of one dtype and width at the beginning of memory that is kept from exchange to exchange.
class RowStorage {
 public:
  explicit RowStorage(const at::TensorOptions &options) : options_(options.dtype(at::kByte)) {}

  /// Of any content. `fresh` becomes true if the memory is new.
  Tensor rows(int64_t n, int64_t columns, at::ScalarType dtype, bool *fresh = nullptr)
  {
    const int64_t bytes = n * columns * static_cast<int64_t>(at::elementSize(dtype));
    if (!memory_.defined() || memory_.numel() < bytes) {
      memory_ = Tensor();
      memory_ = at::empty({bytes + bytes / 16}, options_);
      if (fresh) *fresh = true;
    }
    return memory_.narrow(0, 0, bytes).view(dtype).view({n, columns});
  }

  double bytes() const { return memory_.defined() ? static_cast<double>(memory_.numel()) : 0.0; }

 private:
  at::TensorOptions options_;
  Tensor memory_;
};

/// Another rank, and the rows of its part of what is sent to ghosts, and of what comes from owners.
struct Peer {
  int rank;
  int first_sent, n_sent;
  int first_received, n_received;
};

struct GhostExchange::Implementation {
  Implementation(MPI_Comm world, const std::string &where, Transport transport, int tag) :
      world(world), device(where), transport(transport), tag(tag), packed(at::device(device)),
      unpacked(at::device(device)), departure(host()),
      landings{RowStorage(landing()), RowStorage(landing())}
  {
    MPI_Comm_rank(world, &me);
    MPI_Comm_size(world, &n_ranks);
  }

  at::TensorOptions host() const
  { return at::TensorOptions().device(at::kCPU).pinned_memory(!device.is_cpu()); }
  at::TensorOptions landing() const
  { return transport == Transport::DIRECT ? at::TensorOptions().device(device) : host(); }

  MPI_Comm world;
  at::Device device;
  Transport transport;
  int tag;
  int me = 0, n_ranks = 1;

  // The plan. Rows are sorted by rank, and those of this rank itself are the last.
  int n_owned = 0;
  std::vector<Peer> peers;          // without this rank
  std::vector<int> sent_atoms;      // owned atom of each row that goes to ghosts
  std::vector<int> row_of_ghost;    // [n_atoms - n_owned], of what comes from owners, or NO_ROW
  int n_received = 0, n_own = 0;    // rows that come from owners, and of these from this rank
  // To which rows from ghosts are added, those with most of them first; [k]: the k-th row of each of the first of them.
  std::vector<int> target_atoms;
  std::vector<Tensor> rows_of_targets;

  // The nodes.
  bool nodes_known = false;
  std::vector<int> sent_nodes, target_nodes, row_of_ghost_node;
  Tensor sent_nodes_there, target_nodes_there, row_of_ghost_node_there;    // on the device
  Tensor ghost_node_of_row, rows_without_node;

  // One exchange. Where MPI writes is used in turn: what it is given may be read by the device until the next exchange.
  RowStorage packed, unpacked, departure;
  std::array<RowStorage, 2> landings;
  int turn = 0;
  Tensor arriving, arrived;    // where MPI writes; all rows, on the device
  std::vector<MPI_Request> requests;
  MPI_Datatype row_type{};

  int n_sent() const { return static_cast<int>(sent_atoms.size()); }

  void synchronize() const
  { c10::impl::VirtualGuardImpl(device.type()).getStream(device).synchronize(); }

  Tensor on_device(const std::vector<int> &numbers) const
  {
    const auto size = static_cast<int64_t>(numbers.size());
    return at::from_blob(const_cast<int *>(numbers.data()), {size}, at::kInt).to(device, at::kLong);
  }

  /// Memory for this exchange alone.
  Tensor scratch(int64_t n, int64_t columns, at::ScalarType dtype) const
  {
    return device.is_cpu() ? pooled_empty({n, columns}, dtype)
                           : at::empty({n, columns}, at::device(device).dtype(dtype));
  }

  void post(int64_t columns, at::ScalarType dtype, bool to_ghosts);
  void dispatch(const Tensor &rows, bool to_ghosts);
  void order_targets();
  void ask(const std::vector<int> &n_asked, const std::vector<int> &asked_atoms);
};

GhostExchange::GhostExchange(MPI_Comm world, const std::string &device, Transport transport,
                             int tag) :
    impl(translated("preparing exchanges", [&] {
      return std::make_unique<Implementation>(world, device, transport, tag);
    }))
{
}

GhostExchange::~GhostExchange() = default;

// ----------------------------------------------------------------------
// the plan
// ----------------------------------------------------------------------

void GhostExchange::plan(int n_owned, int n_atoms, const std::vector<Ghost> &ghosts)
{
  translated("planning exchanges", [&] {
    Implementation &x = *impl;
    const DeviceGuard guard(x.device);
    x.nodes_known = false;
    x.n_owned = n_owned;
    x.n_received = static_cast<int>(ghosts.size());

    // This rank comes behind all others.
    auto place = [&x](int rank) {
      return rank == x.me ? x.n_ranks - 1 : rank > x.me ? rank - 1 : rank;
    };
    std::vector<int> n_asked(x.n_ranks), next(x.n_ranks + 1);
    for (const auto &ghost : ghosts) {
      n_asked[ghost.owner_rank]++;
      next[place(ghost.owner_rank) + 1]++;
    }
    std::partial_sum(next.begin(), next.end(), next.begin());
    std::vector<int> asked_atoms(ghosts.size());
    x.row_of_ghost.assign(n_atoms - n_owned, NO_ROW);
    for (const auto &ghost : ghosts) {
      const int row = next[place(ghost.owner_rank)]++;
      asked_atoms[row] = ghost.owner_atom;
      x.row_of_ghost[ghost.atom - n_owned] = row;
    }
    x.n_own = n_asked[x.me];
    x.ask(n_asked, asked_atoms);
    x.order_targets();
  });
}

/// Tell the other ranks which of their atoms this one wants -> `peers`, `sent_atoms`.
void GhostExchange::Implementation::ask(const std::vector<int> &n_asked,
                                        const std::vector<int> &asked_atoms)
{
  std::vector<int> n_wanted(n_ranks);
  MPI_Alltoall(n_asked.data(), 1, MPI_INT, n_wanted.data(), 1, MPI_INT, world);

  peers.clear();
  int first_sent = 0, first_received = 0;
  for (int rank = 0; rank < n_ranks; rank++) {
    if (rank == me || (n_asked[rank] == 0 && n_wanted[rank] == 0)) continue;
    peers.push_back({rank, first_sent, n_wanted[rank], first_received, n_asked[rank]});
    first_sent += n_wanted[rank];
    first_received += n_asked[rank];
  }
  sent_atoms.resize(first_sent + n_own);
  std::copy(asked_atoms.begin() + first_received, asked_atoms.end(),
            sent_atoms.begin() + first_sent);

  requests.clear();
  for (const auto &peer : peers)
    if (peer.n_sent > 0)
      MPI_Irecv(&sent_atoms[peer.first_sent], peer.n_sent, MPI_INT, peer.rank, tag, world,
                &requests.emplace_back());
  for (const auto &peer : peers)
    if (peer.n_received > 0)
      MPI_Isend(&asked_atoms[peer.first_received], peer.n_received, MPI_INT, peer.rank, tag, world,
                &requests.emplace_back());
  MPI_Waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE);
  for (const int atom : sent_atoms)
    if (atom < 0 || atom >= n_owned)
      throw ModelError("another rank asks for atom " + std::to_string(atom) + " of " +
                       std::to_string(n_owned) + "; this is a defect of the pair style");
}

/// Several ghosts of one atom send rows to it. They are added in the order in which they arrive, the first of every
/// atom at once, then the second: on any device the sums have a fixed order without atomic operations.
void GhostExchange::Implementation::order_targets()
{
  std::vector<int> multiplicity(n_owned), rank_of_row(sent_atoms.size());
  for (size_t row = 0; row < sent_atoms.size(); row++)
    rank_of_row[row] = multiplicity[sent_atoms[row]]++;

  target_atoms.clear();
  for (int atom = 0; atom < n_owned; atom++)
    if (multiplicity[atom] > 0) target_atoms.push_back(atom);
  std::stable_sort(target_atoms.begin(), target_atoms.end(), [&](int a, int b) {
    return multiplicity[a] > multiplicity[b];
  });
  std::vector<int> place(n_owned);
  for (size_t i = 0; i < target_atoms.size(); i++) place[target_atoms[i]] = static_cast<int>(i);

  std::vector<std::vector<int>> rows(target_atoms.empty() ? 0 : multiplicity[target_atoms[0]]);
  for (const int atom : target_atoms)
    for (int k = 0; k < multiplicity[atom]; k++) rows[k].push_back(NO_ROW);
  for (size_t row = 0; row < sent_atoms.size(); row++)
    rows[rank_of_row[row]][place[sent_atoms[row]]] = static_cast<int>(row);
  rows_of_targets.clear();
  for (const auto &of_k : rows) rows_of_targets.push_back(on_device(of_k));
}

bool GhostExchange::set_nodes(int n_local, const std::vector<int> &node_atom)
{
  return translated("planning exchanges", [&] {
    Implementation &x = *impl;
    const DeviceGuard guard(x.device);
    std::vector<int> node_of_atom(x.n_owned, NO_ROW);
    for (int node = 0; node < n_local; node++) node_of_atom[node_atom[node]] = node;
    auto nodes_of = [&](const std::vector<int> &atoms) {
      std::vector<int> nodes(atoms.size());
      std::transform(atoms.begin(), atoms.end(), nodes.begin(), [&](int atom) {
        return node_of_atom[atom];
      });
      return nodes;
    };
    auto sent = nodes_of(x.sent_atoms);
    if (std::find(sent.begin(), sent.end(), NO_ROW) != sent.end()) return false;
    std::vector<int> row_of_node(node_atom.size() - n_local);
    for (size_t i = 0; i < row_of_node.size(); i++) {
      const size_t ghost = node_atom[n_local + i] - x.n_owned;
      row_of_node[i] = ghost < x.row_of_ghost.size() ? x.row_of_ghost[ghost] : NO_ROW;
      if (row_of_node[i] == NO_ROW) return false;
    }

    // What is on the device already stays there.
    const bool changed = !x.nodes_known || sent != x.sent_nodes;
    if (changed) {
      x.sent_nodes = std::move(sent);
      x.target_nodes = nodes_of(x.target_atoms);
      x.sent_nodes_there = x.on_device(x.sent_nodes);
      x.target_nodes_there = x.on_device(x.target_nodes);
    }
    if (!x.nodes_known || row_of_node != x.row_of_ghost_node) {
      x.row_of_ghost_node = std::move(row_of_node);
      x.row_of_ghost_node_there = x.on_device(x.row_of_ghost_node);
      std::vector<int> node_of_row(x.n_received, NO_ROW), unused;
      for (size_t i = 0; i < x.row_of_ghost_node.size(); i++)
        node_of_row[x.row_of_ghost_node[i]] = static_cast<int>(i);
      for (int row = 0; row < x.n_received; row++)
        if (node_of_row[row] == NO_ROW) {
          unused.push_back(row);
          node_of_row[row] = 0;
        }
      x.ghost_node_of_row = x.on_device(node_of_row);
      x.rows_without_node = x.on_device(unused);
    }
    x.nodes_known = true;
    return true;
  });
}

// ----------------------------------------------------------------------
// one exchange
// ----------------------------------------------------------------------

/// Receive rows from the other ranks: from owners if `to_ghosts`, else from ghosts.
void GhostExchange::Implementation::post(int64_t columns, at::ScalarType dtype, bool to_ghosts)
{
  const int64_t n = to_ghosts ? n_received : n_sent();
  const bool direct = transport == Transport::DIRECT;
  turn = 1 - turn;
  bool fresh = false;
  arriving = landings[turn].rows(direct ? n : n - n_own, columns, dtype, &fresh);
  arrived = direct ? arriving : unpacked.rows(n, columns, dtype);
  // Work that the device has not done yet may use memory that its allocator hands out anew.
  if (fresh && direct) synchronize();

  // Counted in rows: in bytes a message may be longer than an int says.
  const auto bytes = columns * static_cast<int64_t>(at::elementSize(dtype));
  MPI_Type_contiguous(static_cast<int>(bytes), MPI_BYTE, &row_type);
  MPI_Type_commit(&row_type);
  requests.clear();
  char *const memory = static_cast<char *>(arriving.data_ptr());
  for (const auto &peer : peers) {
    const int64_t first = to_ghosts ? peer.first_received : peer.first_sent;
    const int count = to_ghosts ? peer.n_received : peer.n_sent;
    if (count > 0 && bytes > 0)
      MPI_Irecv(memory + first * bytes, count, row_type, peer.rank, tag, world,
                &requests.emplace_back());
  }
}

/// Send packed rows to the other ranks, and copy this one's own.
void GhostExchange::Implementation::dispatch(const Tensor &rows, bool to_ghosts)
{
  const int64_t n_away = rows.size(0) - n_own;
  Tensor leaving = rows;
  if (transport == Transport::HOST) {
    leaving = departure.rows(n_away, rows.size(1), rows.scalar_type());
    leaving.copy_(rows.narrow(0, 0, n_away), /*non_blocking=*/true);
  }
  if (n_own > 0)
    arrived.narrow(0, arrived.size(0) - n_own, n_own).copy_(rows.narrow(0, n_away, n_own));
  synchronize();

  const int64_t bytes = rows.size(1) * rows.element_size();
  const char *const memory = static_cast<const char *>(leaving.data_ptr());
  for (const auto &peer : peers) {
    const int64_t first = to_ghosts ? peer.first_sent : peer.first_received;
    const int count = to_ghosts ? peer.n_sent : peer.n_received;
    if (count > 0 && bytes > 0)
      MPI_Isend(memory + first * bytes, count, row_type, peer.rank, tag, world,
                &requests.emplace_back());
  }
}

void GhostExchange::send_owned(const Tensor &rows)
{
  translated("sending to ghosts", [&] {
    Implementation &x = *impl;
    const DeviceGuard guard(x.device);
    x.post(rows.size(1), rows.scalar_type(), true);
    auto packed = x.packed.rows(x.n_sent(), rows.size(1), rows.scalar_type());
    at::index_select_out(packed, rows, 0, x.sent_nodes_there);
    x.dispatch(packed, true);
  });
}

void GhostExchange::send_ghosts(const Tensor &rows)
{
  translated("sending to owners", [&] {
    Implementation &x = *impl;
    const DeviceGuard guard(x.device);
    x.post(rows.size(1), rows.scalar_type(), false);
    auto packed = x.packed.rows(x.n_received, rows.size(1), rows.scalar_type());
    if (rows.size(0) > 0) {
      at::index_select_out(packed, rows, 0, x.ghost_node_of_row);
      packed.index_fill_(0, x.rows_without_node, 0.0);
    } else
      packed.zero_();
    x.dispatch(packed, false);
  });
}

void GhostExchange::wait()
{
  translated("waiting for other ranks", [&] {
    Implementation &x = *impl;
    const DeviceGuard guard(x.device);
    MPI_Waitall(static_cast<int>(x.requests.size()), x.requests.data(), MPI_STATUSES_IGNORE);
    MPI_Type_free(&x.row_type);
    if (x.transport == Transport::HOST)
      x.arrived.narrow(0, 0, x.arriving.size(0)).copy_(x.arriving, /*non_blocking=*/true);
  });
}

void GhostExchange::receive_ghosts(const Tensor &rows)
{
  translated("receiving from owners", [&] {
    const DeviceGuard guard(impl->device);
    Tensor out = rows;
    at::index_select_out(out, impl->arrived, 0, impl->row_of_ghost_node_there);
  });
}

void GhostExchange::add_to_owned(const Tensor &rows)
{
  translated("receiving from ghosts", [&] {
    Implementation &x = *impl;
    if (x.target_atoms.empty()) return;
    const DeviceGuard guard(x.device);
    const auto n_targets = static_cast<int64_t>(x.target_atoms.size());
    auto sum = x.scratch(n_targets, rows.size(1), rows.scalar_type());
    auto term = x.scratch(n_targets, rows.size(1), rows.scalar_type());
    at::index_select_out(sum, rows, 0, x.target_nodes_there);
    for (const auto &of_targets : x.rows_of_targets) {
      auto terms = term.narrow(0, 0, of_targets.size(0));
      at::index_select_out(terms, x.arrived, 0, of_targets);
      sum.narrow(0, 0, of_targets.size(0)).add_(terms);
    }
    rows.index_copy_(0, x.target_nodes_there, sum);
  });
}

int GhostExchange::n_remote() const
{ return impl->n_received - impl->n_own; }

int GhostExchange::n_own() const
{ return impl->n_own; }

double GhostExchange::memory_usage() const
{
  const Implementation &x = *impl;
  double bytes = x.packed.bytes() + x.unpacked.bytes() + x.departure.bytes();
  for (const auto &landing : x.landings) bytes += landing.bytes();
  for (const auto *numbers : {&x.sent_atoms, &x.row_of_ghost, &x.target_atoms, &x.sent_nodes,
                              &x.target_nodes, &x.row_of_ghost_node})
    bytes += sizeof(int) * static_cast<double>(numbers->capacity());
  for (const auto *tensor : {&x.sent_nodes_there, &x.target_nodes_there, &x.row_of_ghost_node_there,
                             &x.ghost_node_of_row, &x.rows_without_node})
    if (tensor->defined()) bytes += static_cast<double>(tensor->nbytes());
  for (const auto &tensor : x.rows_of_targets) bytes += static_cast<double>(tensor.nbytes());
  return bytes;
}

// ----------------------------------------------------------------------
// the transport
// ----------------------------------------------------------------------

bool mpi_takes_gpu_memory()
{
  // MPICH and Open MPI; then MPICH and those made of it. Others have neither.
  constexpr int CUDA = 0;    // MPIX_GPU_SUPPORT_CUDA
  using Query = int (*)();
  using QueryKind = int (*)(int, int *);
  if (auto query = reinterpret_cast<Query>(dlsym(RTLD_DEFAULT, "MPIX_Query_cuda_support")))
    if (query() == 1) return true;
  int supported = 0;
  if (auto query = reinterpret_cast<QueryKind>(dlsym(RTLD_DEFAULT, "MPIX_GPU_query_support")))
    if (query(CUDA, &supported) == MPI_SUCCESS && supported) return true;
  return false;
}

/// Whether rows in the memory of the device arrive as they were sent, on all ranks, to ghosts and back. Collective.
static bool moves_rows_rightly(MPI_Comm world, const std::string &device)
{
  int me, n_ranks;
  MPI_Comm_rank(world, &me);
  MPI_Comm_size(world, &n_ranks);
  const int before = (me + n_ranks - 1) % n_ranks;
  int right = 1;
  const DeviceGuard guard{at::Device(device)};
  GhostExchange exchange(world, device, Transport::DIRECT, SELF_TEST_TAG);
  for (const int n : SELF_TEST_ROWS) {
    std::vector<Ghost> ghosts(n);
    for (int i = 0; i < n; i++) ghosts[i] = {n + i, before, i};
    std::vector<int> node_atom(2 * static_cast<size_t>(n));
    std::iota(node_atom.begin(), node_atom.end(), 0);
    exchange.plan(n, 2 * n, ghosts);
    exchange.set_nodes(n, node_atom);
    // Whole numbers that a float32 holds, and others on each of the nearest ranks.
    const int n_numbers = n * SELF_TEST_COLUMNS;
    auto numbers = [&](int rank) {
      return (at::arange(n_numbers, at::kFloat) + (rank % 16 * n_numbers))
          .view({n, SELF_TEST_COLUMNS})
          .to(at::Device(device));
    };
    const auto mine = numbers(me);
    auto ghost_rows = at::full_like(mine, -1.0);
    exchange.send_owned(mine);
    exchange.wait();
    exchange.receive_ghosts(ghost_rows);
    auto sum = mine.clone();
    exchange.send_ghosts(ghost_rows);
    exchange.wait();
    exchange.add_to_owned(sum);
    if (!ghost_rows.equal(numbers(before)) || !sum.equal(2 * mine)) right = 0;
  }
  MPI_Allreduce(MPI_IN_PLACE, &right, 1, MPI_INT, MPI_MIN, world);
  return right == 1;
}

ChosenTransport choose_transport(MPI_Comm world, const std::string &device,
                                 const std::string &keyword)
{
  return translated("testing the exchange between ranks", [&]() -> ChosenTransport {
    if (keyword == "host") return {Transport::HOST, ""};
    if (keyword == "auto" && !at::Device(device).is_cpu()) {
      int takes = mpi_takes_gpu_memory();
      MPI_Allreduce(MPI_IN_PLACE, &takes, 1, MPI_INT, MPI_MIN, world);
      if (!takes) return {Transport::HOST, "MPI does not say that it takes GPU memory"};
    }
    if (moves_rows_rightly(world, device)) return {Transport::DIRECT, ""};
    return {Transport::HOST, "in a test MPI did not move rows as they were"};
  });
}

}    // namespace hienet
