// SPDX-License-Identifier: GPL-2.0-or-later

#include "pair_hienet.h"

#include "deviation_readers.h"
#include "engine/agreement.h"
#include "engine/committee.h"
#include "engine/model_error.h"
#include "engine/placement.h"
#include "engine/thread_pool.h"
#include "evaluation_marker.h"
#include "lammps_atoms.h"

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "force.h"
#include "group.h"
#include "info.h"
#include "memory.h"
#include "modify.h"
#include "neighbor.h"
#include "timer.h"
#include "update.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>
#include <memory>
#include <sstream>

using namespace LAMMPS_NS;

/// The group `all` is LAMMPS' first.
static constexpr int ALL = 0;

/// Whether the graph is built on the device of the model; by default on a GPU.
enum class Resident { AUTO, YES, NO };

/// What pair_style says.
struct PairHIENet::Settings {
  std::string device = "auto";
  int threads = 0;    // 0: as many as LAMMPS' own threads
  hienet::Precision precision = hienet::Precision::MODEL;
  std::string exchange = "auto";
  hienet::Driver driver = hienet::Driver::MEAN;
  Resident resident = Resident::AUTO;
};

struct PairHIENet::Implementation {
  Implementation(LAMMPS *lmp, PairHIENet &pair, std::function<void(hienet::RowBuffer &)> carry) :
      atoms(lmp, pair, std::move(carry)), readers(lmp)
  {
  }

  Settings settings;
  std::unique_ptr<hienet::Committee> committee;    // of the models that pair_coeff names
  hienet::ChosenTransport transport;               // on several ranks
  bool resident = false;
  hienet::LammpsAtoms atoms;
  hienet::RowBuffer *in_transit = nullptr;    // what Comm packs and unpacks

  double energy_unit = 1.0;      // eV in LAMMPS' unit of energy
  std::vector<char> has_pair;    // [(ntypes + 1)^2], whether the style is in charge of two types

  // [ntypes + 1][ntypes + 1], of which the half with i <= j counts: given away by extract(), and never reallocated,
  // because `compute fep` keeps the address for life
  double **scale_of_types = nullptr;
  double unit = 1.0;    // of one evaluation: energy_unit times the one scale

  // `fix pair`
  hienet::DeviationReaders readers;
  bool readers_known = false;    // for this run
  int reads_expected = 0;        // calls of extract_peratom() that follow an evaluation
  // other calls, of fixes when they are created, which have not asked for the trigger yet
  int reads_announced = 0;
  hienet::EvaluationMarker *marker = nullptr;
  bool deviation_known = false;    // of the last step
};

// ----------------------------------------------------------------------

PairHIENet::PairHIENet(LAMMPS *lmp) : Pair(lmp)
{
  impl = new Implementation(lmp, *this, [this](hienet::RowBuffer &rows) {
    impl->in_transit = &rows;
    comm->forward_comm(this, rows.columns());
  });
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

void PairHIENet::forget_models()
{
  impl->committee.reset();
  impl->deviation_known = false;
  if (allocated)
    for (int i = 1; i <= atom->ntypes; i++)
      for (int j = 1; j <= atom->ntypes; j++) {
        setflag[i][j] = 0;
        impl->scale_of_types[i][j] = 1.0;
      }
}

/// Work of the engine, whose errors stop LAMMPS: all ranks together, or one that the others cannot wait for.
template <typename Work> void PairHIENet::translated(Work &&work)
{
  try {
    work();
  } catch (const hienet::AgreedError &exception) {
    error->all(FLERR, "pair_style hienet: {}", exception.what());
  } catch (const hienet::ModelError &exception) {
    error->one(FLERR, "pair_style hienet: {}", exception.what());
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

/// Takes a value that is one of several words, and says whether it is.
template <typename T>
static std::function<bool(const std::string &)> one_of(T &setting, std::map<std::string, T> choices)
{
  return [&setting, choices](const std::string &value) {
    const auto found = choices.find(value);
    if (found != choices.end()) setting = found->second;
    return found != choices.end();
  };
}

void PairHIENet::settings(int narg, char **arg)
{
  using hienet::Driver;
  using hienet::Precision;
  Settings &s = impl->settings;
  s = Settings();
  forget_models();

  struct Keyword {
    const char *name, *choices;
    std::function<bool(const std::string &)> take;    // a value; false if it is none
  };
  const Keyword keywords[] = {
      {"device", "auto, cpu, cuda or cuda:N",
       [&](const std::string &value) {
         s.device = value;
         return is_device(value);
       }},
      {"threads", "",
       [&](const std::string &value) {
         s.threads = utils::inumeric(FLERR, value, false, lmp);
         if (s.threads < 1)
           error->all(FLERR, "pair_style hienet: `threads {}` must be at least 1", value);
         return true;
       }},
      {"precision", "model, double or mixed",
       one_of<Precision>(s.precision,
                         {{"model", Precision::MODEL},
                          {"double", Precision::DOUBLE},
                          {"mixed", Precision::SINGLE}})},
      {"exchange", "auto, direct or host",    // `staged` is what `host` was called
       one_of<std::string>(
           s.exchange,
           {{"auto", "auto"}, {"direct", "direct"}, {"host", "host"}, {"staged", "host"}})},
      {"committee", "mean or first",
       one_of<Driver>(s.driver, {{"mean", Driver::MEAN}, {"first", Driver::FIRST}})},
      {"resident", "auto, yes or no",
       one_of<Resident>(s.resident,
                        {{"auto", Resident::AUTO}, {"yes", Resident::YES}, {"no", Resident::NO}})},
  };
  for (int i = 0; i < narg; i += 2) {
    const std::string name = arg[i];
    const auto *const keyword =
        std::find_if(std::begin(keywords), std::end(keywords), [&](const Keyword &known) {
          return name == known.name;
        });
    if (keyword == std::end(keywords))
      error->all(FLERR,
                 "pair_style hienet: unknown keyword `{}`; keywords are `device`, `threads`, "
                 "`precision`, `exchange`, `committee` and `resident`",
                 name);
    if (i + 1 == narg) error->all(FLERR, "pair_style hienet: keyword `{}` has no value", name);
    if (!keyword->take(arg[i + 1]))
      error->all(FLERR, "pair_style hienet: `{} {}` is not known; use {}", name, arg[i + 1],
                 keyword->choices);
  }
}

/// Of a rank.
int PairHIENet::n_threads() const
{ return impl->settings.threads ? impl->settings.threads : comm->nthreads; }

// ----------------------------------------------------------------------
// pair_coeff
// ----------------------------------------------------------------------

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
  translated([&] {
    hienet::agree(world, problem);
  });

  bigint size = static_cast<bigint>(bytes.size());
  MPI_Bcast(&size, 1, MPI_LMP_BIGINT, 0, world);
  bytes.resize(size);
  constexpr bigint CHUNK = 1 << 28;    // an MPI count is an int
  for (bigint first = 0; first < size; first += CHUNK)
    MPI_Bcast(&bytes[first], static_cast<int>(std::min(CHUNK, size - first)), MPI_CHAR, 0, world);
  return bytes;
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
  forget_models();
  load({words.begin(), words.end() - symbols.size()}, symbols);

  const auto &committee = *impl->committee;
  for (int i = 1; i <= atom->ntypes; i++)
    for (int j = 1; j <= atom->ntypes; j++)
      setflag[i][j] = committee.knows(i) && committee.knows(j);
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
  const bool agreed = impl->settings.device == "auto" || impl->settings.device == device ||
      (impl->settings.device == "cuda" && device != "cpu");
  if (!agreed)
    return fmt::format("`device {}` was asked for, but KOKKOS keeps the atoms on the device `{}`; "
                       "leave the keyword out, or use hienet/kk/host or hienet",
                       impl->settings.device, device);
  if (impl->settings.resident == Resident::NO)
    return "`resident no` is not for hienet/kk, whose atoms are on the device; leave the keyword "
           "out, or use hienet";
  return "";
}

/// The device of this rank, which must be of one kind on all. Collective.
std::string PairHIENet::agree_on_device()
{
  std::string problem, device;
  const int node_rank = hienet::rank_on_machine(world);
  try {
    device = device_of_atoms();
    if (device.empty())
      device = hienet::choose_device(impl->settings.device, node_rank);
    else
      problem = contradiction(device);
  } catch (const std::exception &exception) {
    problem = exception.what();
  }
  translated([&] {
    hienet::agree(world, problem);
    hienet::require_one_kind(world, device);
  });
  return device;
}

/// Whose memory the exchanges between ranks use. Collective.
void PairHIENet::agree_on_transport(const std::string &device)
{
  const std::string &wanted = impl->settings.exchange;
  // The ranks test it together: the failure of one of them leaves the others waiting.
  translated([&] {
    impl->transport = hienet::choose_transport(world, device, wanted);
  });
  if (wanted == "direct" && impl->transport.transport != hienet::Transport::DIRECT)
    error->all(FLERR,
               "pair_style hienet: `exchange direct` was asked for, but {}; use `exchange host`, "
               "or an MPI that takes the memory of these devices",
               impl->transport.reason);
}

/// Read the models of pair_coeff. Collective.
void PairHIENet::load(const std::vector<std::string> &files,
                      const std::vector<std::string> &symbols)
{
  const Settings &settings = impl->settings;
  const std::string device = agree_on_device();
  if (comm->nprocs > 1) agree_on_transport(device);
  impl->resident = settings.resident == Resident::YES ||
      (settings.resident == Resident::AUTO && device != "cpu") || !device_of_atoms().empty();
  std::unique_ptr<hienet::Committee> committee;
  translated([&] {
    committee = std::make_unique<hienet::Committee>(
        world,
        hienet::Placement{device, settings.precision, impl->transport.transport, impl->resident,
                          settings.driver});
  });
  for (const auto &file : files) {
    const std::string bytes = read_file(file);
    translated([&] {
      committee->add(file, bytes, symbols);
    });
  }
  committee->prepare_timing();
  if (committee->size() > 1)
    comm_reverse = std::max(comm_reverse, 3 * static_cast<int>(committee->size()));
  publish_comm_size();
  std::vector<char> is_known(atom->ntypes + 1);
  for (int type = 1; type <= atom->ntypes; type++) is_known[type] = committee->knows(type);
  impl->atoms.serve(committee->cutoff(), is_known);
  impl->committee = std::move(committee);
  translated([&] {
    const hienet::ThreadsGuard threads(n_threads());
    impl->committee->tabulate(types_with_atoms());
  });
  report(device);
}

/// Of owned and ghost atoms, [ntypes + 1].
std::vector<char> PairHIENet::types_with_atoms() const
{
  std::vector<char> has_atoms(atom->ntypes + 1);
  for (int i = 0; i < atom->nlocal + atom->nghost; i++) has_atoms[atom->type[i]] = 1;
  return has_atoms;
}

/// PairHybrid copies the sizes of its sub-styles when it creates them, before they have read a model.
void PairHIENet::publish_comm_size()
{
  if (!force->pair || force->pair == this) return;
  force->pair->comm_forward = std::max(force->pair->comm_forward, comm_forward);
  force->pair->comm_reverse = std::max(force->pair->comm_reverse, comm_reverse);
}

/// Tell the user which files, which network and which devices compute. Collective.
void PairHIENet::report(const std::string &device)
{
  const std::string devices = hienet::describe_devices(world, device);
  if (comm->me != 0) return;
  std::string text = impl->committee->description() + devices;
  if (comm->nprocs > 1) {
    const auto &[transport, reason] = impl->transport;
    text += fmt::format("  exchange between ranks: {}{}\n",
                        transport == hienet::Transport::DIRECT ? "direct" : "host",
                        reason.empty() ? "" : " (" + reason + ")");
  }
  if (!device_of_atoms().empty())
    text += "  the atoms stay where KOKKOS has them, and the graph is built there\n";
  else if (impl->resident)
    text += "  the graph is built on the device, from positions alone\n";
  text += fmt::format("  threads for each rank: {}\n", n_threads());
  utils::logmesg(lmp, text);
  for (const auto &warning : impl->committee->warnings()) error->warning(FLERR, "{}", warning);
}

// ----------------------------------------------------------------------
// before a run
// ----------------------------------------------------------------------

void PairHIENet::init_style()
{
  if (!impl->committee)
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
  impl->atoms.distrust_list();
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
  const double cutoff = impl->committee->cutoff();
  if (reach < cutoff)
    error->all(FLERR,
               "pair_style hienet: ghost atoms reach {} Angstrom, less than the model's cutoff {}; "
               "raise or remove `comm_modify cutoff`",
               reach, cutoff);
}

/// Under `hybrid` a pair of types that is given to another style as well vanishes from this one's list.
void PairHIENet::check_pairs_of_types()
{
  const auto &committee = *impl->committee;
  for (int i = 1; i <= atom->ntypes; i++)
    for (int j = i; j <= atom->ntypes; j++)
      if (committee.knows(i) && committee.knows(j) && !impl->has_pair[i * (atom->ntypes + 1) + j])
        error->all(FLERR,
                   "pair_style hienet: under `pair_style hybrid` a pair_coeff takes the pair of "
                   "types {} ({}) and {} "
                   "({}) away from the network, whose energy needs all neighbors; use `pair_style "
                   "hybrid/overlay` to add "
                   "another style to it, or NULL for a type that the network shall not see",
                   i, committee.symbol(i), j, committee.symbol(j));
}

double PairHIENet::init_one(int i, int j)
{
  if (setflag[i][j] == 0)
    error->all(FLERR,
               "pair_style hienet: the pair of types {} and {} has no style; a type that is NULL "
               "for hienet needs another style under `pair_style hybrid`",
               i, j);
  impl->has_pair[i * (atom->ntypes + 1) + j] = impl->has_pair[j * (atom->ntypes + 1) + i] = 1;
  return impl->committee->cutoff();
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
  return impl->deviation_known ? impl->committee->deviation().of_atoms().data() : nullptr;
}

/// Bytes of what grows with the number of atoms.
double PairHIENet::buffer_bytes()
{
  double bytes = Pair::memory_usage() + impl->atoms.memory_usage();
  if (impl->committee) bytes += impl->committee->buffer_bytes();
  return bytes;
}

double PairHIENet::memory_usage()
{ return buffer_bytes() + (impl->committee ? impl->committee->model_bytes() : 0.0); }

/// Called at the end of a run or minimization, before LAMMPS' own breakdown: the timing breakdown of the pair style.
void PairHIENet::finish()
{
  auto &timing = impl->committee->timing();
  const bool wanted = timing.evaluations() > 0 && timer->has_normal();
  if (wanted) {
    const std::string table = timing.table(world);
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
                     impl->committee->names(), timing.evaluations(), table,
                     all_buffers / 1024.0 / std::max<bigint>(atom->natoms, 1), largest_peak);
  }
  timing.reset();
  impl->reads_expected = 0;
  const std::string late = impl->committee->late_neighbors();
  if (!late.empty()) error->warning(FLERR, "pair_style hienet: {}", late);
}

// ----------------------------------------------------------------------
// every step
// ----------------------------------------------------------------------

void PairHIENet::compute(int eflag, int vflag)
{
  if (!impl->committee || !list)
    error->all(FLERR,
               "pair_style hienet: there is no neighbor list yet; no `run ... pre no` behind "
               "`pair_style`");
  auto &committee = *impl->committee;
  auto &timing = committee.timing();
  timing.start();
  ev_init(eflag, vflag);
  const bool trial = is_trial();
  impl->unit = impl->energy_unit * common_scale();
  const hienet::ThreadsGuard threads(n_threads());
  translated([&] {
    const std::string tables = committee.tabulate(types_with_atoms());
    if (comm->me == 0 && !tables.empty()) utils::logmesg(lmp, tables);
  });
  const bool deviation_wanted = !trial && wants_deviation();
  timing.stamp(committee.rows().other);

  impl->atoms.lend(device_atoms);
  impl->atoms.look_at_list(list, [this] {
    check_neighbors();
  });
  hienet::StepRequest request;
  request.wanted = {!device_atoms, bool(vflag_global), bool(vflag_atom), bool(cvflag_atom)};
  request.unit = impl->unit;
  request.compared = deviation_wanted && committee.size() > 1;
  translated([&] {
    committee.evaluate(
        impl->atoms, request,
        [this](const hienet::RankGraph &graph, const hienet::Results &results, double share) {
          add_results(graph, results, share);
        });
  });
  if (!trial) {
    // `compute pair` adds up the ranks, which exchange together.
    const auto &counts = committee.counts();
    pvector[0] = comm->me == 0 ? counts.n_exchanges : 0.0;
    pvector[1] = static_cast<double>(counts.n_edges);
    pvector[2] = counts.n_ghosts;
    pvector[3] = pvector[4] = 0.0;
    find_deviation(deviation_wanted);
  }

  // LAMMPS' timers begin with the first step of the run.
  if (update->setupflag) timing.reset();
}

/// A share of the results of a model into LAMMPS' arrays: energy, forces and virial by the signs of docs/conventions.md.
void PairHIENet::add_results(const hienet::RankGraph &graph, const hienet::Results &results,
                             double share)
{
  const auto &node_atom = graph.node_atom();
  const double unit = share * impl->unit;
  double total = 0.0;
  for (int node = 0; node < graph.n_local(); node++) {
    const double energy = unit * results.energies[node];
    total += energy;
    if (eflag_atom) eatom[node_atom[node]] += energy;
  }
  if (eflag_global) eng_vdwl += total;

  const bool add_forces = results.forces && !device_atoms;
  for (size_t node = 0; node < node_atom.size(); node++) {
    const int i = node_atom[node];
    for (int a = 0; a < 3 && add_forces; a++) atom->f[i][a] += unit * results.forces[3 * node + a];
    for (int a = 0; a < 6 && vflag_atom; a++)
      vatom[i][a] += unit * results.atom_virials[6 * node + a];
    for (int a = 0; a < 9 && cvflag_atom; a++)
      cvatom[i][a] += unit * results.centroid_virials[9 * node + a];
  }
  // Nine components, symmetrised, into LAMMPS' six.
  const double *const w = results.virial;
  for (int a = 0; a < 6 && vflag_global; a++)
    virial[a] += unit * (a < 3 ? w[a] : 0.5 * (w[a] + w[a + 3]));
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
  const auto &committee = *impl->committee;
  double found = 1.0;
  int first = 0;    // type of the network
  for (int i = 1; i <= atom->ntypes; i++)
    for (int j = i; j <= atom->ntypes; j++) {
      if (!committee.knows(i) || !committee.knows(j)) continue;
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
  auto &deviation = impl->committee->deviation();
  impl->deviation_known = wanted;
  if (impl->committee->size() == 1) {
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
      if (comm->me == 0) pvector[0] += 1.0;
    }
    deviation.finish(atom->nlocal);
    impl->readers.show(deviation.of_atoms());
    double sums[2] = {deviation.sum(), static_cast<double>(impl->committee->n_atoms())};
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
  impl->committee->timing().stamp(impl->committee->deviation_row());
}

/// LAMMPS leaves bonded neighbours of weight zero out of its lists.
void PairHIENet::keep_special_neighbors()
{ impl->atoms.keep_special_neighbors(); }

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
