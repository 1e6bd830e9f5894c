// SPDX-License-Identifier: GPL-2.0-or-later

#include "staged_model.h"

#include "device_graph.h"
#include "device_guard.h"
#include "ghost_exchange.h"
#include "graph_tensors.h"
#include "model_archive.h"
#include "model_error.h"
#include "neighbor_graph.h"
#include "ops/cuda_kernels.h"
#include "ops/pooled_memory.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/DeviceGuard.h>
#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/cuda.h>
#include <torch/script.h>

#include "json.h"

#include <algorithm>
#include <cctype>
#include <chrono>
#include <optional>
#include <sstream>

namespace hienet {

using LAMMPS_NS::json;

static constexpr int NEWEST_FORMAT = 4;
static const char *const METHODS[] = {"embed_edges", "embed_nodes", "stage", "readout"};

// ----------------------------------------------------------------------
// the file
// ----------------------------------------------------------------------

static ModelError foreign(const std::string &why)
{
  return ModelError("the file is not a deployed HIENet model (" + why +
                    "); write one from a checkpoint with `hienet-deploy model.pt`");
}

static std::string read_description(const std::string &bytes)
{
  if (bytes.size() < 4 || bytes.compare(0, 2, "PK") != 0)
    throw foreign("it does not begin like a TorchScript archive");
  const auto damaged = [](const std::string &why) {
    return ModelError("the file is truncated or damaged (" + why +
                      "); copy it again, or write it again with `hienet-deploy model.pt`");
  };
  try {
    std::istringstream stream(bytes);
    caffe2::serialize::PyTorchStreamReader reader(&stream);
    const auto read = [&reader](const std::string &name) {
      auto [data, size] = reader.getRecord(name);
      return std::string(static_cast<const char *>(data.get()), size);
    };
    // Torch leaves the folder in which all records lie out of their names.
    const std::string damage = damage_of_archive(bytes, [&](const std::string &name) {
      return read(name.substr(name.find('/') + 1));
    });
    if (!damage.empty()) throw damaged(damage);
    if (!reader.hasRecord("extra/hienet.json")) throw foreign("it has no `hienet.json`");
    return read("extra/hienet.json");
  } catch (const ModelError &) {
    throw;
  } catch (const std::bad_alloc &) {
    throw ModelError("not enough memory to read the file");
  } catch (const std::exception &) {
    throw damaged("it is not a whole archive");
  }
}

/// "820 train, 90 validation frames; test MAE: 2.1 meV/atom, 48 meV/Angstrom, 0.4 GPa", or what there is of it.
static std::string summary(const json &training)
{
  if (!training.is_object()) return "not recorded";
  std::ostringstream text;
  text.precision(3);
  if (training.contains("n_frames") && training["n_frames"].is_object()) {
    for (const auto &item : training["n_frames"].items())
      if (item.value().is_number() && item.value().get<double>() > 0)
        text << (text.tellp() > 0 ? ", " : "") << item.value().dump() << " " << item.key();
    text << " frames";
  }
  const json errors = training.contains("errors") ? training["errors"] : json::object();
  for (const char *set : {"test", "validation"}) {
    if (!errors.is_object() || !errors.contains(set) || !errors[set].is_object()) continue;
    std::string separator = std::string("; ") + set + " MAE: ";
    for (const auto &[key, unit] : {std::pair{"energy_mae_mev_per_atom", "meV/atom"},
                                    {"forces_mae_mev_per_angstrom", "meV/Angstrom"},
                                    {"stress_mae_gpa", "GPa"}}) {
      if (!errors[set].contains(key) || !errors[set][key].is_number()) continue;
      text << separator << errors[set][key].get<double>() << " " << unit;
      separator = ", ";
    }
    break;
  }
  return text.tellp() > 0 ? text.str() : "recorded in the file (`hienet info` shows it)";
}

Metadata read_metadata(const std::string &bytes)
{
  const std::string text = read_description(bytes);
  try {
    const json data = json::parse(text);
    if (!data.is_object() || data.value("format", "") != "hienet-deployed")
      throw foreign("`hienet.json` describes something else");
    Metadata m;
    m.format_version = data.at("format_version").get<int>();
    m.package_version = data.value("package_version", "unknown");
    if (m.format_version > NEWEST_FORMAT)
      throw ModelError("the file has format version " + std::to_string(m.format_version) +
                       ", this pair style reads versions up to " + std::to_string(NEWEST_FORMAT) +
                       "; upgrade hienet (the file was written by hienet " + m.package_version +
                       ") and run `hienet build`");
    m.created = data.value("created", "unknown");
    m.architecture = data.at("architecture").get<std::string>();
    m.dtype = data.at("dtype").get<std::string>();
    m.training = summary(data.contains("training") ? data["training"] : json());
    m.elements = data.at("elements").get<std::vector<std::string>>();
    m.operators = data.value("operators", std::vector<std::string>());
    m.cutoff = data.at("cutoff").get<double>();
    m.edge_width = data.at("edge_width").get<int>();
    m.n_parameters = data.at("n_parameters").get<int64_t>();
    m.smooth_cutoff = data.value("smooth_cutoff", true);
    m.symmetry = data.value("symmetry", "unknown");
    for (const auto &stage : data.at("stages"))
      m.stages.push_back({stage.at("name").get<std::string>(), stage.at("width").get<int>(),
                          stage.at("exchanged_width").get<int>(),
                          stage.value("edge_width", m.edge_width)});
    if (m.stages.empty()) throw ModelError("the file is damaged: its model has no stages");
    m.edges_evolve = data.at("stages").front().contains("edge_width");
    for (const auto &stage : data.at("stages"))
      if (stage.contains("edge_width") != m.edges_evolve)
        throw ModelError("the file is damaged: some of its stages announce the columns of the "
                         "edges that they read, and some do not");
    for (const auto &stage : m.stages)
      if (stage.exchanged_width < 0 || stage.exchanged_width > stage.width)
        throw ModelError("the file is damaged: stage `" + stage.name +
                         "` exchanges more columns than its state has");
    if (m.dtype != "float32" && m.dtype != "float64")
      throw ModelError("the model's dtype is `" + m.dtype + "`; float32 and float64 can be run");
    if (!(m.cutoff > 0.0)) throw ModelError("the file is damaged: its cutoff is not positive");
    return m;
  } catch (const json::exception &error) {
    const std::string what = error.what();    // "[json.exception...] what is wrong"
    throw ModelError("the file's `hienet.json` is damaged (" + what.substr(what.find("] ") + 2) +
                     "); write the file again with `hienet-deploy`");
  }
}

// ----------------------------------------------------------------------
// device
// ----------------------------------------------------------------------

std::string choose_device(const std::string &keyword, int node_rank)
{
  return translated("looking for a GPU", [&]() -> std::string {
    if (keyword == "cpu") return "cpu";
    const int count = torch::cuda::is_available() ? static_cast<int>(torch::cuda::device_count())
                                                  : 0;
    if (keyword == "auto" && count == 0) return "cpu";
    if (count == 0)
      throw ModelError("`device " + keyword +
                       "` was asked for, but torch sees no CUDA GPU here; install a CUDA build of "
                       "torch and run `hienet build`, or use `device cpu`");
    if (keyword == "auto" || keyword == "cuda") return "cuda:" + std::to_string(node_rank % count);
    const int index = std::stoi(keyword.substr(5));
    if (index >= count)
      throw ModelError("`device " + keyword + "` was asked for, but torch sees " +
                       std::to_string(count) + " GPU(s), numbered from 0");
    return keyword;
  });
}

// ----------------------------------------------------------------------
// the model
// ----------------------------------------------------------------------

/// For the calls into the model: its device is the current one, the profiling executor does not re-optimise, which
/// costs many steps' time each time a shape changes, and gradients are on in an ordinary mode. All of it holds for
/// this thread and while the guard lives.
struct CallGuard {
  explicit CallGuard(torch::Device where) : device(where) {}
  c10::DeviceGuard device;
  OrdinaryMode ordinary;
  at::AutoGradMode grad{true};
  torch::jit::GraphOptimizerEnabledGuard optimizer{false};
};

struct StagedModel::Torch {
  torch::jit::Module module;
  torch::Device device{torch::kCPU};
  torch::ScalarType dtype = torch::kFloat64;

  // Of one evaluation:
  std::optional<GraphTensors> graph;
  torch::Tensor species, center, neighbor;
  torch::Tensor edge_vectors, edges;
  std::vector<torch::Tensor> inputs, outputs;              // states
  std::vector<torch::Tensor> edge_inputs, edge_outputs;    // edges
  torch::Tensor energies;
  torch::Tensor gradient;          // with respect to the state last differentiated
  torch::Tensor edges_gradient;    // with respect to the edges that the same stage reads

  int64_t n_ghosts() const { return graph->n_nodes - graph->n_local; }
  torch::TensorOptions options() const
  { return torch::TensorOptions().dtype(dtype).device(device); }
  torch::Tensor no_rows(int columns) const { return torch::empty({0, columns}, options()); }

  torch::Tensor call(const char *method, std::vector<c10::IValue> arguments)
  { return module.get_method(method)(std::move(arguments)).toTensor(); }

  void set_graph(const GraphTensors &g)
  {
    graph = g;
    species = g.species.to(device);
    center = g.center.to(device);
    neighbor = g.neighbor.to(device);
    edge_vectors = g.edge_vectors.to(device, dtype).detach().requires_grad_(true);
  }

  void release()
  {
    graph.reset();
    for (auto *tensor : {&species, &center, &neighbor, &edge_vectors, &edges, &edges_gradient,
                         &energies, &gradient})
      *tensor = torch::Tensor();
    for (auto *tensors : {&inputs, &outputs, &edge_inputs, &edge_outputs}) tensors->clear();
  }
};

/// Compiled operators must be in the library that this style was linked with, and have kernels for the device.
static void check_operators(const Metadata &metadata, const std::string &device)
{
  for (const auto &name : metadata.operators)
    if (!c10::Dispatcher::singleton().findOp({name, ""}))
      throw ModelError("the file needs the compiled operator `" + name +
                       "`, which this pair style does not have; upgrade hienet and run "
                       "`hienet build`");
  if (!metadata.operators.empty() && device != "cpu" && !has_cuda_kernels())
    throw ModelError("the file calls compiled operators, which were built without kernels for `" +
                     device +
                     "`; run `hienet build` where torch is a CUDA build and `nvcc` is found, write "
                     "the file with `hienet-deploy --no-compile`, or use `device cpu`");
}

/// Convert the floating-point tensors of the file's own dtype; the others (indices, float64 reference
/// energies of a float32 model) keep theirs.
static void convert(torch::jit::Module &module, torch::ScalarType from, torch::ScalarType to)
{
  size_t converted = 0;
  auto convert_one = [&](at::Tensor tensor) {
    if (tensor.scalar_type() != from) return;
    tensor.set_data(tensor.to(to));
    converted++;
  };
  for (const auto &tensor : module.parameters()) convert_one(tensor);
  for (const auto &tensor : module.buffers()) convert_one(tensor);
  if (converted == 0)
    throw ModelError(
        "the file's weights are frozen in its own precision; use `precision model`, or "
        "write it with `hienet-deploy --dtype`");
}

StagedModel::StagedModel(const std::string &bytes, const Metadata &metadata,
                         const std::string &device, Precision precision) :
    torch_(std::make_unique<Torch>()), metadata_(metadata), device_(device)
{
  check_operators(metadata, device);
  const OrdinaryMode ordinary;
  translated("the file is damaged or was written for another version of torch", [&] {
    std::istringstream stream(bytes);
    torch_->module = torch::jit::load(stream, torch::kCPU);
  });
  for (const char *name : METHODS)
    if (!torch_->module.find_method(name))
      throw foreign(std::string("it has no method `") + name + "`");

  translated("preparing the model", [&] {
    torch_->device = torch::Device(device);
    const auto own = metadata.dtype == "float32" ? torch::kFloat32 : torch::kFloat64;
    torch_->dtype = own;
    if (precision == Precision::DOUBLE) torch_->dtype = torch::kFloat64;
    if (precision == Precision::SINGLE) torch_->dtype = torch::kFloat32;
    torch_->module.eval();
    if (torch_->dtype != own) convert(torch_->module, own, torch_->dtype);
    torch_->module.to(torch_->device);
    for (auto parameter : torch_->module.parameters()) parameter.requires_grad_(false);
  });
}

StagedModel::~StagedModel()
{
  torch_.reset();
  release_pooled_memory();
}

bool StagedModel::single_precision() const
{ return torch_->dtype == torch::kFloat32; }

Tables StagedModel::load_elements(const std::vector<int64_t> &species)
{
  Tables tables;
  // Files of older versions have no such method, and nothing to tabulate.
  if (!torch_->module.find_method("load_elements")) return tables;
  translated("tabulating the pairs of elements", [&] {
    const CallGuard guard(torch_->device);
    const at::NoGradGuard no_grad;
    const auto start = std::chrono::steady_clock::now();
    const auto list = torch::tensor(species, torch::kInt64).to(torch_->device);
    tables.bytes = torch_->module.get_method("load_elements")({list}).toInt();
    tables.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  });
  return tables;
}

double StagedModel::memory_usage() const
{
  double bytes = 0.0;
  for (const auto &tensor : torch_->module.parameters()) bytes += tensor.nbytes();
  for (const auto &tensor : torch_->module.buffers()) bytes += tensor.nbytes();
  return bytes;
}

// ----------------------------------------------------------------------
// by stages. `outputs[k]` is what stage k returned, `inputs[k]` what it read: a leaf of its own, so that
// each stage is differentiated by itself and gradients can travel between ranks in between. The same for edges
// where stages return them; otherwise all stages read one leaf, and its gradient is their sum.
// ----------------------------------------------------------------------

/// The vectors of a graph, where they are.
static GraphTensors tensors_of(const NeighborGraph &graph)
{
  auto indices = [](const std::vector<int64_t> &v) {
    return torch::from_blob(const_cast<int64_t *>(v.data()), {static_cast<int64_t>(v.size())},
                            torch::kInt64);
  };
  return {graph.n_local,
          graph.n_nodes,
          graph.node_atom,
          indices(graph.species),
          indices(graph.center),
          indices(graph.neighbor),
          torch::from_blob(const_cast<double *>(graph.edge_vectors.data()), {graph.n_edges(), 3},
                           torch::kFloat64)};
}

void StagedModel::begin(const NeighborGraph &graph)
{
  const OrdinaryMode ordinary;
  begin(tensors_of(graph));
}

void StagedModel::begin(const DeviceGraph &graph)
{ begin(graph.tensors()); }

void StagedModel::begin(const GraphTensors &graph)
{
  translated("preparing the edges", [&] {
    Torch &t = *torch_;
    const CallGuard guard(t.device);
    t.release();
    t.set_graph(graph);
    for (auto *tensors : {&t.inputs, &t.outputs, &t.edge_inputs, &t.edge_outputs})
      tensors->resize(n_stages());
    if (graph.n_local == 0) return;
    t.edges = t.call("embed_edges", {t.edge_vectors});
    if (t.edges.dim() != 2 || t.edges.size(0) != graph.n_edges() ||
        t.edges.size(1) != metadata_.edge_width) {
      std::ostringstream message;
      message << "the model's `embed_edges` returned a tensor of shape " << t.edges.sizes()
              << " for " << graph.n_edges() << " edges, and the file announces "
              << metadata_.edge_width << " columns; write the file again with `hienet-deploy`";
      throw ModelError(message.str());
    }
    t.edge_inputs[0] = t.edges.detach().requires_grad_(true);
    const at::NoGradGuard no_grad;
    t.inputs[0] = t.call("embed_nodes", {t.species});
  });
}

void StagedModel::forward(int k)
{
  if (torch_->graph->n_local == 0) return;
  translated(("stage `" + metadata_.stages[k].name + "`").c_str(), [&] {
    Torch &t = *torch_;
    const CallGuard guard(t.device);
    const bool evolve = metadata_.edges_evolve;
    if (!t.inputs[k].defined()) t.inputs[k] = t.outputs[k - 1].detach().requires_grad_(true);
    if (k > 0)
      t.edge_inputs[k] = evolve ? t.edge_outputs[k - 1].detach().requires_grad_(true)
                                : t.edge_inputs[k - 1];
    const auto result = t.module.get_method("stage")(
        {static_cast<int64_t>(k), t.inputs[k], t.edge_inputs[k], t.species, t.center, t.neighbor,
         static_cast<int64_t>(t.graph->n_local)});
    auto wrong = [&](const std::string &what) {
      return ModelError("stage `" + metadata_.stages[k].name + "` returned " + what +
                        " than the file announces; write the file again with `hienet-deploy`");
    };
    if (result.isTuple() != evolve) throw wrong("something else");
    if (evolve) {
      const auto &elements = result.toTupleRef().elements();
      if (elements.size() != 2) throw wrong("something else");
      t.outputs[k] = elements[0].toTensor();
      t.edge_outputs[k] = elements[1].toTensor();
    } else
      t.outputs[k] = result.toTensor();
    const bool last = k + 1 == n_stages();
    if (t.outputs[k].dim() != 2 || t.outputs[k].size(0) != t.graph->n_local ||
        (!last && t.outputs[k].size(1) != metadata_.stages[k + 1].width))
      throw wrong("a state of another shape");
    // Nothing reads the edges that the last stage returns.
    if (evolve && !last &&
        (t.edge_outputs[k].dim() != 2 || t.edge_outputs[k].size(0) != t.graph->n_edges() ||
         t.edge_outputs[k].size(1) != metadata_.stages[k + 1].edge_width))
      throw wrong("edges of another shape");
  });
}

torch::Tensor StagedModel::readout()
{
  Torch &t = *torch_;
  return translated("the readout", [&] {
    const CallGuard guard(t.device);
    const int64_t n_local = t.graph->n_local;
    if (n_local == 0)
      return torch::empty({0}, torch::TensorOptions().dtype(torch::kFloat64).device(t.device));
    t.energies = t.call("readout", {t.outputs.back(), t.species.narrow(0, 0, n_local)});
    if (t.energies.dim() != 1 || t.energies.size(0) != n_local)
      throw ModelError("the model returned energies of a wrong shape; write the file again with "
                       "`hienet-deploy`");
    return t.energies.detach().to(torch::kFloat64);
  });
}

void StagedModel::readout(std::vector<double> &energies)
{
  const auto on_device = readout();
  translated("the energies", [&] {
    const auto host = on_device.to(torch::kCPU).contiguous();
    energies.assign(host.data_ptr<double>(), host.data_ptr<double>() + host.numel());
  });
}

void StagedModel::backward(int k)
{
  Torch &t = *torch_;
  if (t.graph->n_local == 0) return;
  translated(("differentiating stage `" + metadata_.stages[k].name + "`").c_str(), [&] {
    const CallGuard guard(t.device);
    const bool last = k + 1 == n_stages();
    std::vector<torch::Tensor> outputs, seeds;
    auto add = [&](const torch::Tensor &output, const torch::Tensor &seed) {
      if (!seed.defined() || !output.requires_grad()) return;
      outputs.push_back(output);
      seeds.push_back(seed);
    };
    if (last) {
      const auto energy = t.energies.sum();
      add(energy, torch::ones_like(energy));
    } else {
      add(t.outputs[k], t.gradient);
      if (metadata_.edges_evolve) add(t.edge_outputs[k], t.edges_gradient);
    }
    std::vector<torch::Tensor> wanted = {t.edge_inputs[k]};
    if (k > 0) wanted.push_back(t.inputs[k]);
    std::vector<torch::Tensor> g(2);
    if (!outputs.empty()) g = torch::autograd::grad(outputs, wanted, seeds, false, false, true);
    if (metadata_.edges_evolve || !t.edges_gradient.defined())
      t.edges_gradient = g[0];
    else if (g[0].defined())
      t.edges_gradient = t.edges_gradient + g[0];
    if (k > 0) t.gradient = g[1].defined() ? g[1] : torch::zeros_like(t.inputs[k]);
    for (auto *tensors : {&t.inputs, &t.outputs, &t.edge_inputs, &t.edge_outputs})
      (*tensors)[k] = torch::Tensor();
    t.energies = torch::Tensor();
  });
}

torch::Tensor StagedModel::finish()
{
  Torch &t = *torch_;
  return translated("differentiating the edges", [&] {
    const CallGuard guard(t.device);
    torch::Tensor g;
    if (t.edges_gradient.defined() && t.edges.requires_grad())
      g = torch::autograd::grad({t.edges}, {t.edge_vectors}, {t.edges_gradient}, false, false,
                                true)[0];
    t.release();
    return g.defined() ? g.detach() : g;
  });
}

void StagedModel::finish(std::vector<double> &edge_gradients)
{
  const int64_t n_edges = torch_->graph->n_edges();
  const auto on_device = finish();
  translated("the gradients of the edges", [&] {
    edge_gradients.resize(3 * static_cast<size_t>(n_edges));
    auto host = torch::from_blob(edge_gradients.data(), {n_edges, 3}, torch::kFloat64);
    if (on_device.defined())
      host.copy_(on_device);
    else
      host.zero_();
  });
}

// ----------------------------------------------------------------------
// the exchanged columns. What needs no ghosts is done while rows are on their way.
// ----------------------------------------------------------------------

void StagedModel::send_state(int k, GhostExchange &exchange)
{
  Torch &t = *torch_;
  const auto &stage = metadata_.stages[k];
  translated("sending features", [&] {
    const DeviceGuard guard(t.device);
    exchange.send_owned(t.graph->n_local > 0 ? t.outputs[k - 1].narrow(1, 0, stage.exchanged_width)
                                             : t.no_rows(stage.exchanged_width));
    if (t.n_ghosts() == 0) return;
    t.inputs[k] = torch::empty({t.graph->n_nodes, stage.width}, t.options());
    t.inputs[k].narrow(0, 0, t.graph->n_local).copy_(t.outputs[k - 1]);
  });
}

void StagedModel::receive_state(int k, GhostExchange &exchange)
{
  Torch &t = *torch_;
  if (t.n_ghosts() == 0) return;
  const auto &stage = metadata_.stages[k];
  translated("receiving features", [&] {
    const DeviceGuard guard(t.device);
    const auto ghosts = t.inputs[k].narrow(0, t.graph->n_local, t.n_ghosts());
    exchange.receive_ghosts(ghosts.narrow(1, 0, stage.exchanged_width));
    ghosts.narrow(1, stage.exchanged_width, stage.width - stage.exchanged_width).zero_();
    t.inputs[k].requires_grad_(true);
  });
}

void StagedModel::send_gradient(int k, GhostExchange &exchange)
{
  Torch &t = *torch_;
  const int columns = metadata_.stages[k].exchanged_width;
  translated("sending gradients", [&] {
    const DeviceGuard guard(t.device);
    exchange.send_ghosts(
        t.n_ghosts() > 0
            ? t.gradient.narrow(0, t.graph->n_local, t.n_ghosts()).narrow(1, 0, columns)
            : t.no_rows(columns));
    if (t.graph->n_local == 0) return;
    // Autograd may hand out what it keeps elsewhere too, and tensors whose rows are one and the same.
    const bool own = t.gradient.use_count() == 1 && t.gradient.storage().use_count() == 1 &&
        t.gradient.is_contiguous();
    auto owned = t.gradient.narrow(0, 0, t.graph->n_local);
    t.gradient = own ? owned : owned.clone();
  });
}

void StagedModel::receive_gradient(int k, GhostExchange &exchange)
{
  Torch &t = *torch_;
  if (t.graph->n_local == 0) return;
  translated("receiving gradients", [&] {
    const DeviceGuard guard(t.device);
    exchange.add_to_owned(t.gradient.narrow(1, 0, metadata_.stages[k].exchanged_width));
  });
}

}    // namespace hienet
