// SPDX-License-Identifier: GPL-2.0-or-later

#include "staged_model.h"

#include "../ops/cuda_kernels.h"
#include "../ops/pooled_memory.h"
#include "device_guard.h"
#include "ghost_exchange.h"
#include "graph_tensors.h"
#include "model_error.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/script.h>

#include <chrono>
#include <optional>
#include <sstream>

namespace hienet {

static const char *const METHODS[] = {"embed_edges", "embed_nodes", "stage", "readout"};

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
      throw foreign_file(std::string("it has no method `") + name + "`");

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
