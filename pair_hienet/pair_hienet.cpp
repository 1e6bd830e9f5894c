// SPDX-License-Identifier: GPL-2.0-or-later

#include "pair_hienet.h"

#include "neighbor_graph.h"
#include "staged_model.h"
#include "thread_pool.h"
#include "timing_breakdown.h"

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "force.h"
#include "info.h"
#include "memory.h"
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
#include <map>
#include <memory>
#include <set>
#include <sstream>

using namespace LAMMPS_NS;

/// Edges are shared among threads, and summed, by blocks of so many nodes.
static constexpr int64_t BLOCK = 256;

/// The nine components of a virial, in the order of centroid stresses: xx, yy, zz, xy, xz, yz, yx, zx, zy.
static constexpr int VIRIAL_ROW[9] = {0, 1, 2, 0, 0, 1, 1, 2, 2};
static constexpr int VIRIAL_COLUMN[9] = {0, 1, 2, 1, 2, 2, 0, 0, 1};

/// What a block of centers adds to the sums over the rank.
struct BlockSums {
  double virial[9] = {};
  double gradient = 0.0;    // of all components; not finite if one of them is not
};

/// Numbers of the rows of the timing breakdown.
struct Sections {
  int graph, edges, readout, edges_backward, scatter, other;
  std::vector<int> forward, backward;                            // by stage
  int copies, exchange_forward, exchange_backward, agreement;    // on several ranks
};

struct PairHIENet::Implementation {
  // settings
  std::string device = "auto";
  int threads = 0;    // 0: as many as LAMMPS' own threads
  hienet::Precision precision = hienet::Precision::MODEL;

  // pair_coeff
  std::string file;
  std::unique_ptr<hienet::StagedModel> model;
  hienet::Tables tables;
  std::vector<int> species_of_type;    // [ntypes + 1], -1 for NULL
  double energy_unit = 1.0;            // eV in LAMMPS' unit of energy

  // fix adapt and hybrid/scaled reach these through extract()
  double scale = 1.0;
  double cutoff = 0.0;

  // one evaluation
  hienet::NeighborGraph graph;
  hienet::RowBuffer buffer;
  std::vector<double> energies, edge_gradients;
  std::vector<BlockSums> block_sums;

  // one run
  hienet::TimingBreakdown timing;
  Sections sections;

  // one rank: owner[i] is the local index of the atom of which i is an image
  std::vector<int> owner;
  int owner_atoms = -1;
  bigint owner_build = -1;
};

// ----------------------------------------------------------------------

PairHIENet::PairHIENet(LAMMPS *lmp) : Pair(lmp), impl(new Implementation)
{
  one_coeff = 1;
  manybody_flag = 1;
  restartinfo = 0;
  single_enable = 0;
  respa_enable = 0;
  no_virial_fdotr_compute = 1;
  centroidstressflag = CENTROID_AVAIL;
  unit_convert_flag = utils::get_supported_conversions(utils::ENERGY);

  // Comm and PairHybrid size their buffers before the model is known.
  comm_forward = comm_reverse = 1;

  // For `compute pair`: exchanges between ranks in the last evaluation, edges, ghost atoms in use.
  nextra = 3;
  pvector = new double[nextra]();
}

PairHIENet::~PairHIENet()
{
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
  for (int i = 0; i < n; i++)
    for (int j = 0; j < n; j++) {
      setflag[i][j] = 0;
      cutsq[i][j] = 0.0;
    }
  allocated = 1;
}

void PairHIENet::forget_model()
{
  impl->model.reset();
  impl->owner_atoms = -1;
  if (allocated)
    for (int i = 1; i <= atom->ntypes; i++)
      for (int j = 1; j <= atom->ntypes; j++) setflag[i][j] = 0;
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
  forget_model();

  for (int i = 0; i < narg; i += 2) {
    const std::string keyword = arg[i];
    if (keyword != "device" && keyword != "threads" && keyword != "precision")
      error->all(FLERR,
                 "pair_style hienet: unknown keyword `{}`; keywords are `device`, `threads` and "
                 "`precision`",
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

/// Stop all ranks if one of them has a problem to report; every rank must call this.
void PairHIENet::agree(const std::string &problem)
{
  int speaker = problem.empty() ? comm->nprocs : comm->me;
  if (comm->nprocs > 1) MPI_Allreduce(MPI_IN_PLACE, &speaker, 1, MPI_INT, MPI_MIN, world);
  if (speaker == comm->nprocs) return;
  int length = static_cast<int>(problem.size());
  MPI_Bcast(&length, 1, MPI_INT, speaker, world);
  std::string message = problem;
  message.resize(length);
  MPI_Bcast(message.data(), length, MPI_CHAR, speaker, world);
  error->all(FLERR, "pair_style hienet: {}", message);
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

void PairHIENet::coeff(int narg, char **arg)
{
  if (narg < 3 || strcmp(arg[0], "*") != 0 || strcmp(arg[1], "*") != 0)
    error->all(FLERR,
               "pair_style hienet: expected `pair_coeff * * FILE.hienet.pt SYMBOL ...` with one "
               "symbol for each atom type");
  const int n_symbols = narg - 3;
  if (n_symbols != atom->ntypes)
    error->all(FLERR,
               "pair_style hienet: pair_coeff gives {} element symbol(s), but there are {} atom "
               "type(s); give one symbol for each type, in type order, or NULL for a type that "
               "another style handles",
               n_symbols, atom->ntypes);

  if (!allocated) allocate();
  forget_model();
  load(arg[2], arg + 3);

  const auto &species = impl->species_of_type;
  for (int i = 1; i <= atom->ntypes; i++)
    for (int j = 1; j <= atom->ntypes; j++) setflag[i][j] = species[i] >= 0 && species[j] >= 0;
}

void PairHIENet::load(const std::string &name, char **symbols)
{
  const std::string bytes = read_file(name);
  std::string problem, device;
  hienet::Metadata metadata;
  const int node_rank = rank_on_machine(world);
  try {
    metadata = hienet::read_metadata(bytes);
    device = hienet::choose_device(impl->device, node_rank);
  } catch (const std::exception &exception) {
    problem = fmt::format("model file `{}`: {}", name, exception.what());
  }
  agree(problem);

  int kinds[2] = {device == "cpu", device != "cpu"};
  MPI_Allreduce(MPI_IN_PLACE, kinds, 2, MPI_INT, MPI_SUM, world);
  if (kinds[0] > 0 && kinds[1] > 0)
    agree(fmt::format("{} rank(s) would run on a CPU and {} on a GPU; use `device cpu`, or start "
                      "ranks only where torch sees a GPU",
                      kinds[0], kinds[1]));

  impl->species_of_type.assign(atom->ntypes + 1, -1);
  for (int type = 1; type <= atom->ntypes; type++) {
    const std::string symbol = symbols[type - 1];
    if (symbol == "NULL") continue;
    const auto found = std::find(metadata.elements.begin(), metadata.elements.end(), symbol);
    if (found == metadata.elements.end())
      error->all(
          FLERR,
          "pair_style hienet: element `{}` of type {} is not in the model `{}`; it knows: {}",
          symbol, type, name, joined(metadata.elements));
    impl->species_of_type[type] = static_cast<int>(found - metadata.elements.begin());
  }

  try {
    impl->model = std::make_unique<hienet::StagedModel>(bytes, metadata, device, impl->precision);
    const hienet::ThreadsGuard threads(impl->threads ? impl->threads : comm->nthreads);
    const auto &types = impl->species_of_type;
    std::set<int64_t> species(types.begin(), types.end());
    species.erase(-1);
    impl->tables = impl->model->load_elements({species.begin(), species.end()});
  } catch (const std::exception &exception) {
    problem = fmt::format("model file `{}`: {}", name, exception.what());
  }
  agree(problem);

  impl->file = name;
  impl->cutoff = metadata.cutoff;
  for (int k = 1; k < impl->model->n_stages(); k++)
    comm_forward = comm_reverse = std::max(comm_forward, impl->model->doubles_per_row(k));
  publish_comm_size();
  prepare_timing();
  report(device);
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

  const auto &m = impl->model->metadata();
  std::string text = fmt::format("HIENet model {}\n", impl->file);
  text += fmt::format("  format {}, written by hienet {} on {}\n", m.format_version,
                      m.package_version, m.created);
  text += fmt::format("  architecture {}, {} parameters, {} stages, cutoff {} Angstrom\n",
                      m.architecture, m.n_parameters, m.stages.size(), m.cutoff);
  text += fmt::format(
      "  dtype {}, evaluated in {}; energies, forces and virial are summed in float64\n", m.dtype,
      impl->model->single_precision() ? "float32" : "float64");
  for (int type = 1; type <= atom->ntypes; type++) {
    const int species = impl->species_of_type[type];
    if (species < 0)
      text += fmt::format("  type {} -> NULL (another style)\n", type);
    else
      text += fmt::format("  type {} -> {} -> species {}\n", type, m.elements[species], species);
  }
  for (const auto &[where, ranks] : ranks_of_device)
    text += fmt::format("  device {}: rank(s) {}\n", where, joined(ranks));
  text +=
      fmt::format("  threads for each rank: {}\n", impl->threads ? impl->threads : comm->nthreads);
  if (const auto &tables = impl->tables; tables.bytes > 0)
    text += fmt::format("  tables for these elements: {:.1f} MB, built in {:.1f} s\n",
                        1e-6 * tables.bytes, tables.seconds);
  text += fmt::format("  training set: {}\n", m.training);
  utils::logmesg(lmp, text);
  if (!m.smooth_cutoff)
    error->warning(FLERR,
                   "the model {} has no smooth cutoff: its energy jumps when a neighbor crosses {} "
                   "Angstrom, so NVE runs drift and minimizers may stall",
                   impl->file, m.cutoff);
}

// ----------------------------------------------------------------------
// before a run
// ----------------------------------------------------------------------

void PairHIENet::init_style()
{
  if (!impl->model)
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

  check_exclusions();
  publish_comm_size();
  impl->owner_atoms = -1;
  neighbor->add_request(this, NeighConst::REQ_FULL);
}

/// A many-body energy needs every neighbour: refuse what would take pairs out of the list.
void PairHIENet::check_exclusions()
{
  if (neighbor->nex_type || neighbor->nex_group || neighbor->nex_mol)
    error->all(FLERR,
               "pair_style hienet: `neigh_modify exclude` takes neighbors away from a many-body "
               "potential; remove it (`neigh_modify exclude none`), and hold atoms with `fix "
               "setforce 0 0 0` instead");
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

  if (atom->molecular == Atom::ATOMIC) return;
  bigint bonded = atom->nbonds;
  if (atom->nspecial)
    for (int i = 0; i < atom->nlocal; i++) bonded += atom->nspecial[i][2];
  bigint all_bonded = 0;
  MPI_Allreduce(&bonded, &all_bonded, 1, MPI_LMP_BIGINT, MPI_SUM, world);
  for (int k = 1; k <= 3 && all_bonded > 0; k++)
    if (force->special_lj[k] == 0.0 && force->special_coul[k] == 0.0)
      error->all(
          FLERR,
          "pair_style hienet: special_bonds excludes 1-{} neighbors (weight 0) of this bonded "
          "system; use `special_bonds lj/coul 1.0 1.0 1.0`",
          k + 1);
}

/// Called at the start of a run, after Comm::init has settled the reach of ghost atoms.
void PairHIENet::setup()
{
  const double reach = comm->get_comm_cutoff();
  if (reach < impl->cutoff)
    error->all(FLERR,
               "pair_style hienet: ghost atoms reach {} Angstrom, less than the model's cutoff {}; "
               "raise or remove `comm_modify cutoff`",
               reach, impl->cutoff);
}

double PairHIENet::init_one(int i, int j)
{
  if (setflag[i][j] == 0)
    error->all(FLERR,
               "pair_style hienet: the pair of types {} and {} has no style; a type that is NULL "
               "for hienet needs another style under `pair_style hybrid`",
               i, j);
  return impl->cutoff;
}

void *PairHIENet::extract(const char *name, int &dim)
{
  dim = 0;
  if (strcmp(name, "scale") == 0) return &impl->scale;
  if (strcmp(name, "cutoff") == 0) return &impl->cutoff;
  return nullptr;
}

/// Bytes of what grows with the number of atoms.
double PairHIENet::buffer_bytes()
{
  return Pair::memory_usage() + impl->graph.memory_usage() + impl->buffer.memory_usage() +
      sizeof(double) * (impl->energies.capacity() + impl->edge_gradients.capacity()) +
      sizeof(BlockSums) * impl->block_sums.capacity() + sizeof(int) * impl->owner.capacity();
}

double PairHIENet::memory_usage()
{ return buffer_bytes() + (impl->model ? impl->model->memory_usage() : 0.0); }

// ----------------------------------------------------------------------
// the timing breakdown
// ----------------------------------------------------------------------

/// One row for each part of an evaluation, in the order in which they follow each other.
void PairHIENet::prepare_timing()
{
  auto &timing = impl->timing;
  auto &sections = impl->sections;
  const auto &stages = impl->model->metadata().stages;
  const int n_stages = impl->model->n_stages();
  timing.clear();
  sections.forward.resize(n_stages);
  sections.backward.resize(n_stages);
  sections.graph = timing.add_section("Graph");
  sections.edges = timing.add_section("Edges");
  for (int k = 0; k < n_stages; k++)
    sections.forward[k] = timing.add_section("Forward " + stages[k].name);
  sections.readout = timing.add_section("Readout");
  for (int k = n_stages - 1; k >= 0; k--)
    sections.backward[k] = timing.add_section("Backward " + stages[k].name);
  sections.edges_backward = timing.add_section("Backward edges");
  sections.scatter = timing.add_section("Scatter");
  if (comm->nprocs > 1) {
    sections.copies = timing.add_section("Exchange copies");
    sections.exchange_forward = timing.add_section("Exchange forward");
    sections.exchange_backward = timing.add_section("Exchange backward");
    sections.agreement = timing.add_section("Agreement");
  }
  sections.other = timing.add_section("Other");
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
                     impl->file, impl->timing.evaluations(), table,
                     all_buffers / 1024.0 / std::max<bigint>(atom->natoms, 1), largest_peak);
  }
  impl->timing.reset();
}

// ----------------------------------------------------------------------
// every step
// ----------------------------------------------------------------------

void PairHIENet::compute(int eflag, int vflag)
{
  auto &timing = impl->timing;
  timing.start();
  ev_init(eflag, vflag);
  std::fill(pvector, pvector + nextra, 0.0);
  const hienet::ThreadsGuard threads(impl->threads ? impl->threads : comm->nthreads);
  timing.stamp(impl->sections.other);

  evaluate_model();
  accumulate();
  timing.stamp(impl->sections.scatter);

  // LAMMPS' timers begin with the first step of the run.
  if (update->setupflag) timing.reset();
}

/// On one rank every ghost is an image of an owned atom; which one changes only with the neighbour list.
void PairHIENet::refresh_owners()
{
  const int n_atoms = atom->nlocal + atom->nghost;
  if (neighbor->ago > 0 && impl->owner_atoms == n_atoms && impl->owner_build == neighbor->ncalls)
    return;
  impl->buffer.reshape(n_atoms, 1, false);
  for (int i = 0; i < atom->nlocal; i++) impl->buffer.value(i) = i;
  comm->forward_comm(this, 1);
  impl->owner.resize(n_atoms);
  for (int i = 0; i < n_atoms; i++) impl->owner[i] = static_cast<int>(impl->buffer.value(i));
  impl->owner_atoms = n_atoms;
  impl->owner_build = neighbor->ncalls;
}

/// Returns what is wrong, or an empty string.
std::string PairHIENet::build_graph()
{
  const int n_atoms = atom->nlocal + atom->nghost;
  // LAMMPS' arrays are one block of memory.
  const hienet::AtomsView atoms = {
      atom->nlocal, n_atoms,
      n_atoms > 0 ? reinterpret_cast<const double (*)[3]>(atom->x[0]) : nullptr, atom->type};
  const hienet::NeighborListView neighbors = {list->inum, list->ilist, list->numneigh,
                                              list->firstneigh, NEIGHMASK};
  const int *owner = comm->nprocs == 1 ? impl->owner.data() : nullptr;
  auto id = [this](int i) {
    return atom->tag_enable ? atom->tag[i] : i + 1;
  };
  try {
    impl->graph.build(atoms, neighbors, impl->species_of_type, impl->cutoff, owner);
  } catch (const hienet::GraphError &problem) {
    if (problem.kind == hienet::GraphError::NOT_FINITE)
      return fmt::format(
          "the position of atom {} or of its neighbor {} is not finite at step {}; use "
          "a shorter timestep, or minimize first",
          id(problem.i), id(problem.j), update->ntimestep);
    return fmt::format("atoms {} and {} are at the same place at step {}; remove one of them (see "
                       "`delete_atoms overlap`)",
                       id(problem.i), id(problem.j), update->ntimestep);
  } catch (const std::bad_alloc &) {
    return fmt::format("not enough memory for the neighbors of {} atoms; use more ranks",
                       atom->nlocal);
  }
  pvector[1] = impl->graph.n_edges();
  pvector[2] = impl->graph.n_nodes - impl->graph.n_local;
  return "";
}

/// The first steps, up to the first exchange. Returns what is wrong, or an empty string.
std::string PairHIENet::begin_model()
{
  auto &model = *impl->model;
  if (comm->nprocs == 1) refresh_owners();
  const std::string problem = build_graph();
  if (!problem.empty()) return problem;
  impl->timing.stamp(impl->sections.graph);
  const bigint n_atoms = static_cast<bigint>(atom->nlocal) + atom->nghost;
  if (comm->nprocs > 1 && n_atoms * comm_forward > INT_MAX)
    return fmt::format("{} owned and ghost atoms on a rank are too many to exchange {} numbers "
                       "each; use more ranks",
                       n_atoms, comm_forward);
  try {
    model.begin(impl->graph);
    impl->timing.stamp(impl->sections.edges);
    model.forward(0);
    impl->timing.stamp(impl->sections.forward[0]);
  } catch (const std::exception &exception) {
    return fmt::format("{} (step {}, rank {}, {} atoms, {} edges)", exception.what(),
                       update->ntimestep, comm->me, impl->graph.n_local, impl->graph.n_edges());
  }
  return "";
}

/// Work for a section of the timing breakdown. After the first exchange the ranks are at different points, and
/// a failure concerns one of them alone.
template <typename Work> void PairHIENet::on_this_rank(int section, Work &&work)
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
    error->one(FLERR, "pair_style hienet: {} (step {}, rank {}, {} atoms, {} edges)", problem,
               update->ntimestep, comm->me, impl->graph.n_local, impl->graph.n_edges());
  impl->timing.stamp(section);
}

/// Forwards and backwards through the stages. On one rank ghosts fold onto their owners: nothing is exchanged.
void PairHIENet::evaluate_model()
{
  auto &model = *impl->model;
  const auto &sections = impl->sections;
  agree(begin_model());
  impl->timing.stamp(comm->nprocs > 1 ? sections.agreement : sections.other);

  for (int k = 1; k < model.n_stages(); k++) {
    if (comm->nprocs > 1) exchange_forward(k);
    on_this_rank(sections.forward[k], [&] {
      model.forward(k);
    });
  }
  on_this_rank(sections.readout, [&] {
    model.readout(impl->energies);
  });
  for (int k = model.n_stages() - 1; k >= 0; k--) {
    on_this_rank(sections.backward[k], [&] {
      model.backward(k);
    });
    if (comm->nprocs > 1 && k > 0) exchange_reverse(k);
  }
  on_this_rank(sections.edges_backward, [&] {
    model.finish(impl->edge_gradients);
  });
}

/// The state that stage k reads: owners to ghosts.
void PairHIENet::exchange_forward(int k)
{
  auto &model = *impl->model;
  const int n_atoms = atom->nlocal + atom->nghost;
  on_this_rank(impl->sections.copies, [&] {
    model.export_state(k, n_atoms, impl->buffer);
  });
  comm->forward_comm(this, impl->buffer.stride());
  if (comm->me == 0) pvector[0] += 1.0;
  impl->timing.stamp(impl->sections.exchange_forward);
  on_this_rank(impl->sections.copies, [&] {
    model.import_state(k, impl->buffer);
  });
}

/// The gradient with respect to it: ghosts to owners.
void PairHIENet::exchange_reverse(int k)
{
  auto &model = *impl->model;
  const int n_atoms = atom->nlocal + atom->nghost;
  on_this_rank(impl->sections.copies, [&] {
    model.export_gradient(k, n_atoms, impl->buffer);
  });
  comm->reverse_comm(this, impl->buffer.stride());
  if (comm->me == 0) pvector[0] += 1.0;
  impl->timing.stamp(impl->sections.exchange_backward);
  on_this_rank(impl->sections.copies, [&] {
    model.import_gradient(k, impl->buffer);
  });
}

/// Energies and dE/d(edge_vectors) -> energy, forces and virial: the signs of docs/conventions.md.
///
/// With r = r_neighbor - r_center and g = dE/dr of an edge: F_center += g, F_neighbor -= g. The edge's virial
/// -r (x) g is shared equally by its two atoms in a stress per atom; in a centroid stress, of which heat fluxes are
/// made, the neighbor has all of it, since the energy is the center's and the heat flows to where it is.
void PairHIENet::accumulate()
{
  const auto &graph = impl->graph;
  const double unit = impl->energy_unit * impl->scale;

  double total = 0.0;
  for (int node = 0; node < graph.n_local; node++) {
    const double energy = unit * impl->energies[node];
    total += energy;
    if (eflag_atom) eatom[graph.node_atom[node]] += energy;
  }
  if (eflag_global) eng_vdwl += total;

  const int64_t n_blocks = (graph.n_nodes + BLOCK - 1) / BLOCK;
  impl->block_sums.assign(n_blocks, BlockSums());
  hienet::parallel_for(n_blocks, 1, [&](int64_t begin, int64_t end) {
    scatter(begin * BLOCK, std::min<int64_t>(end * BLOCK, graph.n_nodes));
  });

  double checksum = total;
  for (const auto &sums : impl->block_sums) {
    checksum += sums.gradient;
    if (!vflag_global) continue;
    const double *w = sums.virial;
    for (int a = 0; a < 6; a++) virial[a] += a < 3 ? w[a] : 0.5 * (w[a] + w[a + 3]);
  }
  if (!std::isfinite(checksum))
    error->one(
        FLERR,
        "pair_style hienet: the energy or a force is not finite at step {} on rank {}; atoms "
        "are probably far closer than in the training set: minimize first or use a shorter "
        "timestep",
        update->ntimestep, comm->me);
}

/// All that edges give to the nodes `first .. last-1`.
///
/// A thread looks at every edge, and takes what falls to its own nodes: each atom's terms are added in the order of
/// the edges, whatever the number of threads, and no two threads write to one atom.
void PairHIENet::scatter(int64_t first, int64_t last)
{
  const auto &graph = impl->graph;
  const double unit = impl->energy_unit * impl->scale;
  double **const f = atom->f;
  const int64_t *const neighbors = graph.neighbor.data();
  const int *const node_atom = graph.node_atom.data();

  auto gradient = [&](int64_t e) {
    const double *dedr = &impl->edge_gradients[3 * e];
    return std::array<double, 3>{unit * dedr[0], unit * dedr[1], unit * dedr[2]};
  };
  auto add_virial = [&](int64_t e, const std::array<double, 3> &g, double *w) {
    const double *r = &graph.edge_vectors[3 * e];
    for (int a = 0; a < 9; a++) w[a] -= r[VIRIAL_ROW[a]] * g[VIRIAL_COLUMN[a]];
  };
  auto share_virial = [&](int i, const double *w) {
    for (int a = 0; a < 6 && vflag_atom; a++)
      vatom[i][a] += a < 3 ? 0.5 * w[a] : 0.25 * (w[a] + w[a + 3]);
  };
  auto to_neighbor = [&](int64_t e, const std::array<double, 3> &g) {
    if (neighbors[e] < first || neighbors[e] >= last) return;
    const int j = node_atom[neighbors[e]];
    for (int a = 0; a < 3; a++) f[j][a] -= g[a];
    if (!vflag_atom && !cvflag_atom) return;
    double w[9] = {};
    add_virial(e, g, w);
    share_virial(j, w);
    for (int a = 0; a < 9 && cvflag_atom; a++) cvatom[j][a] += w[a];
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
    for (int a = 0; a < 3; a++) f[i][a] += force[a];
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
{ return impl->buffer.pack(n, atoms, buf); }

void PairHIENet::unpack_forward_comm(int n, int first, double *buf)
{ impl->buffer.unpack(n, first, buf); }

int PairHIENet::pack_reverse_comm(int n, int first, double *buf)
{ return impl->buffer.pack_range(n, first, buf); }

void PairHIENet::unpack_reverse_comm(int n, int *atoms, double *buf)
{ impl->buffer.add(n, atoms, buf); }
