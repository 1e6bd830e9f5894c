// SPDX-License-Identifier: GPL-2.0-or-later

#include "committee.h"

#include "agreement.h"
#include "host_graph.h"
#include "model_error.h"
#include "resident_graph.h"

#include <algorithm>
#include <cstdio>

namespace hienet {

static std::string joined(const std::vector<std::string> &words)
{
  std::string text;
  for (const auto &word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

/// A number as users read it, by a format of printf.
static std::string number(const char *format, double value)
{
  char text[32];
  std::snprintf(text, sizeof(text), format, value);
  return text;
}

Committee::Committee(MPI_Comm world, const Placement &placement) :
    world(world), placement(placement)
{
  MPI_Comm_size(world, &n_ranks);
  if (placement.resident) resident = resident_atoms(placement.device);
}

// ----------------------------------------------------------------------
// the models
// ----------------------------------------------------------------------

void Committee::add(const std::string &file, const std::string &bytes,
                    const std::vector<std::string> &symbols)
{
  std::string problem;
  auto tried = [&](auto &&work) {
    try {
      work();
    } catch (const std::exception &exception) {
      problem = "model file `" + file + "`: " + exception.what();
    }
    agree(world, problem);
  };
  Metadata metadata;
  tried([&] {
    metadata = read_metadata(bytes);
  });

  Member member;
  member.file = file;
  member.index = static_cast<int>(members.size());
  member.species_of_type.assign(symbols.size() + 1, -1);
  for (size_t type = 1; type <= symbols.size(); type++) {
    const auto &symbol = symbols[type - 1];
    if (symbol == "NULL") continue;
    const auto found = std::find(metadata.elements.begin(), metadata.elements.end(), symbol);
    if (found == metadata.elements.end())
      throw AgreedError("element `" + symbol + "` of type " + std::to_string(type) +
                        " is not in the model `" + file +
                        "`; it knows: " + joined(metadata.elements));
    member.species_of_type[type] = static_cast<int>(found - metadata.elements.begin());
  }
  tried([&] {
    member.model =
        std::make_unique<StagedModel>(bytes, metadata, placement.device, placement.precision);
  });

  const size_t n_graphs = graphs.size();
  member.graph = graph_for(metadata, member.species_of_type);
  member.builds_graph = member.graph == n_graphs;
  if (members.empty())
    for (size_t type = 1; type <= symbols.size(); type++)
      if (member.species_of_type[type] >= 0) not_tabulated.push_back(static_cast<int>(type));
  members.push_back(std::move(member));
}

/// One that is there, or a new one.
size_t Committee::graph_for(const Metadata &metadata, const std::vector<int> &species_of_type)
{
  for (size_t k = 0; k < graphs.size(); k++)
    if (graphs[k]->serves(metadata.cutoff, species_of_type)) return k;
  std::unique_ptr<RankGraph> graph;
  if (resident)
    graph = std::make_unique<ResidentGraph>(metadata.cutoff, resident);
  else
    graph = std::make_unique<HostGraph>(metadata.cutoff);
  std::unique_ptr<GhostExchange> exchange;
  if (n_ranks > 1)
    exchange = std::make_unique<GhostExchange>(world, placement.device, placement.transport);
  graphs.push_back(
      std::make_unique<SharedGraph>(std::move(graph), std::move(exchange), species_of_type));
  return graphs.size() - 1;
}

std::string Committee::tabulate(const std::vector<char> &has_atoms)
{
  if (not_tabulated.empty()) return "";
  std::vector<int> present;
  for (const int type : not_tabulated) present.push_back(has_atoms[type]);
  if (n_ranks > 1)
    MPI_Allreduce(MPI_IN_PLACE, present.data(), static_cast<int>(present.size()), MPI_INT, MPI_MAX,
                  world);
  std::vector<int> rest;
  for (size_t k = 0; k < present.size(); k++)
    (present[k] ? tabulated : rest).push_back(not_tabulated[k]);
  if (rest.size() == not_tabulated.size()) return "";
  not_tabulated = rest;

  std::string text;
  for (auto &member : members) {
    std::set<int64_t> species;
    for (const int type : tabulated) species.insert(member.species_of_type[type]);
    if (species == member.tabulated) continue;    // types may share an element
    std::string problem;
    try {
      member.tables = member.model->load_elements({species.begin(), species.end()});
    } catch (const std::exception &exception) {
      problem = "model file `" + member.file + "`: " + exception.what();
    }
    agree(world, problem);
    member.tabulated = species;
    if (member.tables.bytes > 0)
      text += "HIENet model " + member.file + ": " + describe_tables(member) + "\n";
  }
  // A model without tables for some elements has none for any.
  if (std::none_of(members.begin(), members.end(), [](const Member &member) {
        return member.tables.bytes > 0;
      }))
    not_tabulated.clear();
  return text;
}

double Committee::cutoff() const
{
  double largest = 0.0;
  for (const auto &graph : graphs) largest = std::max(largest, graph->graph().cutoff());
  return largest;
}

const std::string &Committee::symbol(int type) const
{ return members[0].model->metadata().elements[members[0].species_of_type[type]]; }

/// Of a member's energy and forces in those of the committee.
double Committee::weight(const Member &member) const
{
  if (placement.driver == Driver::FIRST) return member.index == 0 ? 1.0 : 0.0;
  return 1.0 / static_cast<double>(members.size());
}

// ----------------------------------------------------------------------
// every step
// ----------------------------------------------------------------------

void Committee::evaluate(RankAtoms &atoms, const StepRequest &request, const Take &take)
{
  counts_.n_exchanges = counts_.n_ghosts = 0;
  counts_.n_edges = 0;
  if (request.compared) deviation_.begin(atoms.atoms().n_total, static_cast<int>(members.size()));
  for (auto &graph : graphs) graph->begin_step(atoms);
  timing_.stamp(rows_.graph);

  Evaluation evaluation(world, atoms, timing_, rows_, counts_);
  for (const auto &member : members) {
    const double share = weight(member);
    if (share == 0.0 && !request.compared) continue;
    const EvaluatedModel evaluated = {*member.model, *graphs[member.graph], member.builds_graph,
                                      member.rows, size() > 1 ? ", model " + member.file : ""};
    WantedResults wanted = request.wanted;
    wanted.forces |= request.compared;
    wanted.forces_added = share * request.unit;
    const Results results = evaluation.run(evaluated, wanted);
    take(evaluated.graph.graph(), results, share);
    if (request.compared) keep_forces(member, results, request.unit);
    timing_.stamp(rows_.results);
  }
}

void Committee::keep_forces(const Member &member, const Results &results, double unit)
{
  const auto &node_atom = graphs[member.graph]->graph().node_atom();
  for (size_t node = 0; node < node_atom.size(); node++) {
    double *const force = deviation_.force(node_atom[node], member.index);
    for (int a = 0; a < 3; a++) force[a] += unit * results.forces[3 * node + a];
  }
}

std::string Committee::late_neighbors()
{
  int me;
  MPI_Comm_rank(world, &me);
  int all_late = counts_.n_late, speaker = counts_.n_late > 0 ? me : n_ranks;
  counts_.n_late = 0;
  MPI_Allreduce(MPI_IN_PLACE, &all_late, 1, MPI_INT, MPI_SUM, world);
  MPI_Allreduce(MPI_IN_PLACE, &speaker, 1, MPI_INT, MPI_MIN, world);
  if (all_late == 0) return "";
  const std::string text = text_of(world, speaker, counts_.late);
  return me == 0 ? text : "";
}

// ----------------------------------------------------------------------
// for a user
// ----------------------------------------------------------------------

/// What a model's symmetry means for its energy.
static std::string symmetry_in_words(const std::string &symmetry)
{
  if (symmetry == "O(3)") return "O(3): a structure and its mirror image have the same energy";
  if (symmetry == "SO(3)")
    return "SO(3): a structure and its mirror image may have different energies";
  return "unknown: the file is older than this entry (`hienet info` derives it)";
}

std::string Committee::description() const
{
  std::string text;
  if (size() > 1)
    text += "HIENet committee of " + std::to_string(size()) +
        " models; energy, forces and virial of " +
        (placement.driver == Driver::MEAN ? "their mean" : "the first") + "\n";
  for (const auto &member : members) text += describe(member);
  return text;
}

std::string Committee::describe(const Member &member) const
{
  const auto &m = member.model->metadata();
  std::string text = "HIENet model " + member.file + "\n";
  text += "  format " + std::to_string(m.format_version) + ", written by hienet " +
      m.package_version + " on " + m.created + "\n";
  text += "  architecture " + m.architecture + ", " + std::to_string(m.n_parameters) +
      " parameters, " + std::to_string(m.stages.size()) + " stages, cutoff " +
      number("%.10g", m.cutoff) + " Angstrom\n";
  text += "  symmetry " + symmetry_in_words(m.symmetry) + "\n";
  text += "  dtype " + m.dtype + ", evaluated in " +
      (member.model->single_precision() ? "float32" : "float64") +
      "; energies, forces and virial are summed in float64\n";
  for (size_t type = 1; type < member.species_of_type.size(); type++) {
    const int species = member.species_of_type[type];
    text += "  type " + std::to_string(type) + " -> " +
        (species < 0 ? "NULL (another style)"
                     : m.elements[species] + " -> species " + std::to_string(species)) +
        "\n";
  }
  if (const std::string tables = describe_tables(member); !tables.empty())
    text += "  " + tables + "\n";
  text += "  training set: " + m.training + "\n";
  return text;
}

/// What is tabulated, or an empty string for a model without tables.
std::string Committee::describe_tables(const Member &member) const
{
  const auto &tables = member.tables;
  if (tables.bytes == 0) return "";
  const bool all = not_tabulated.empty();
  std::vector<std::string> elements;
  for (const int type : tabulated) {
    const auto &symbol = member.model->metadata().elements[member.species_of_type[type]];
    if (std::find(elements.begin(), elements.end(), symbol) == elements.end())
      elements.push_back(symbol);
  }
  return "tables for " + (all ? "these elements" : joined(elements)) + ": " +
      number("%.1f", 1e-6 * static_cast<double>(tables.bytes)) + " MB, built in " +
      number("%.1f", tables.seconds) + " s" +
      (all ? "" : "; other elements follow when atoms of them appear");
}

std::string Committee::names() const
{
  std::vector<std::string> files;
  for (const auto &member : members) files.push_back(member.file);
  return (size() > 1 ? "committee of " + std::to_string(size()) + ": " : "") + joined(files);
}

std::vector<std::string> Committee::warnings() const
{
  std::vector<std::string> texts;
  for (const auto &member : members) {
    const auto same = std::find_if(members.begin(), members.end(), [&](const Member &other) {
      return other.file == member.file;
    });
    if (same->index < member.index)
      texts.push_back("pair_coeff names the model " + member.file +
                      " twice; its deviation from itself is zero and makes that of the committee "
                      "too small");
    const auto &m = member.model->metadata();
    if (!m.smooth_cutoff)
      texts.push_back("the model " + member.file +
                      " has no smooth cutoff: its energy jumps when a neighbor crosses " +
                      number("%.10g", m.cutoff) +
                      " Angstrom, so NVE runs drift and minimizers may stall");
  }
  return texts;
}

/// One row for each part of an evaluation, in the order in which they follow each other. Stages of one name of
/// several members share a row.
void Committee::prepare_timing()
{
  timing_.clear();
  rows_.graph = timing_.section("Graph");
  rows_.edges = timing_.section("Edges");
  for (auto &member : members)
    for (const auto &stage : member.model->metadata().stages)
      member.rows.forward.push_back(timing_.section("Forward " + stage.name));
  rows_.readout = timing_.section("Readout");
  for (auto &member : members) {
    const auto &stages = member.model->metadata().stages;
    member.rows.backward.resize(stages.size());
    for (size_t k = stages.size(); k-- > 0;)
      member.rows.backward[k] = timing_.section("Backward " + stages[k].name);
  }
  rows_.edges_backward = timing_.section("Backward edges");
  rows_.results = timing_.section("Scatter");
  if (size() > 1) deviation_row_ = timing_.section("Deviation");
  if (n_ranks > 1) {
    rows_.plan = timing_.section("Exchange plan");
    rows_.copies = timing_.section("Exchange copies");
    rows_.exchange_forward = timing_.section("Exchange forward");
    rows_.exchange_backward = timing_.section("Exchange backward");
    rows_.agreement = timing_.section("Agreement");
  }
  rows_.other = timing_.section("Other");
}

double Committee::buffer_bytes() const
{
  double bytes = deviation_.memory_usage();
  for (const auto &graph : graphs) bytes += graph->memory_usage();
  return bytes;
}

double Committee::model_bytes() const
{
  double bytes = 0.0;
  for (const auto &member : members) bytes += member.model->memory_usage();
  return bytes;
}

}    // namespace hienet
