// SPDX-License-Identifier: GPL-2.0-or-later
// A deployed model (docs/conventions.md, "A model is stages"): reading it, and walking it forwards and
// backwards. Knows torch (behind a pointer) and nothing of LAMMPS.

#ifndef HIENET_STAGED_MODEL_H
#define HIENET_STAGED_MODEL_H

#include "model_error.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace at {
class Tensor;
}

namespace hienet {

class DeviceGraph;
class GhostExchange;
class NeighborGraph;
struct GraphTensors;

/// What a stage reads: the columns of the state, how many of them neighbours need, and the columns of the edges.
struct StageInfo {
  std::string name;
  int width;
  int exchanged_width;
  int edge_width;
};

/// What a deployed file says of itself.
struct Metadata {
  int format_version;
  std::string package_version, created, architecture, dtype, training;
  std::vector<std::string> elements;     // in species order
  std::vector<std::string> operators;    // compiled ones that the model calls, `hienet::name`
  double cutoff;                         // Angstrom
  int edge_width;
  std::vector<StageInfo> stages;
  bool edges_evolve;    // stages return, beside the state, the edges that the next one reads
  int64_t n_parameters;
  bool smooth_cutoff;
  std::string symmetry;    // of the energy: O(3), SO(3); "unknown" in files that do not say it
};

/// Read the description out of the bytes of a deployed file. Throws ModelError.
Metadata read_metadata(const std::string &bytes);

/// Network precision: the file's own, float64, or float32.
enum class Precision { MODEL, DOUBLE, SINGLE };

/// "cpu" or "cuda:N" for a rank, from the keyword `auto`, `cpu`, `cuda` or `cuda:N`.
///
/// `node_rank` counts the ranks of one machine; they share its visible GPUs in turn. Throws ModelError.
std::string choose_device(const std::string &keyword, int node_rank);

/// What a model tabulated for the elements in use.
struct Tables {
  int64_t bytes = 0;
  double seconds = 0.0;    // that it took
};

/// A loaded model and the state of one evaluation. Every member throws ModelError.
///
/// With S stages, and what is in parentheses on several ranks only, `x` being the exchange of the graph:
///
///     begin(graph); forward(0)
///     for k = 1 .. S-1:  (send_state(k, x); x.wait(); receive_state(k, x);) forward(k)
///     readout(energies)
///     for k = S-1 .. 1:  backward(k); (send_gradient(k, x); x.wait(); receive_gradient(k, x))
///     backward(0); finish(edge_gradients)
///
/// A rank without atoms makes the same calls, which then do nothing.
class StagedModel {
 public:
  StagedModel(const std::string &bytes, const Metadata &metadata, const std::string &device,
              Precision precision);
  ~StagedModel();
  StagedModel(const StagedModel &) = delete;
  StagedModel &operator=(const StagedModel &) = delete;

  const Metadata &metadata() const { return metadata_; }
  int n_stages() const { return static_cast<int>(metadata_.stages.size()); }
  const std::string &device() const { return device_; }
  bool single_precision() const;

  /// Build what the model tabulates for these species: before anything else, and again, with those of before, when
  /// others are to be evaluated.
  Tables load_elements(const std::vector<int64_t> &species);

  /// Bytes of the weights and tables of the file.
  double memory_usage() const;

  /// The graph is to stay as it is until `finish`.
  void begin(const NeighborGraph &graph);
  void begin(const DeviceGraph &graph);
  void forward(int k);

  /// Energies ([n_local], float64, eV), on the model's device, or on the host.
  at::Tensor readout();
  void readout(std::vector<double> &energies);
  void backward(int k);

  /// dE/d(edge_vectors) ([n_edges, 3], eV/Angstrom): on the model's device and in its precision, undefined if nothing
  /// depends on the edges; or on the host, in float64.
  at::Tensor finish();
  void finish(std::vector<double> &edge_gradients);

  /// The exchanged columns of the state that stage `k` reads, owners to ghosts.
  void send_state(int k, GhostExchange &exchange);
  void receive_state(int k, GhostExchange &exchange);

  /// The gradient with respect to them, ghosts to owners, where it is added.
  void send_gradient(int k, GhostExchange &exchange);
  void receive_gradient(int k, GhostExchange &exchange);

 private:
  void begin(const GraphTensors &graph);

  struct Torch;
  std::unique_ptr<Torch> torch_;
  Metadata metadata_;
  std::string device_;
};

}    // namespace hienet

#endif
