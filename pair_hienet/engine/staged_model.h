// SPDX-License-Identifier: GPL-2.0-or-later
// A deployed model (docs/conventions.md, "A model is stages"), which is walked forwards and backwards. Knows torch (behind a
// pointer) and nothing of LAMMPS.

#ifndef HIENET_STAGED_MODEL_H
#define HIENET_STAGED_MODEL_H

#include "metadata.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace at {
class Tensor;
}

namespace hienet {

class GhostExchange;
struct GraphTensors;

/// Network precision: the file's own, float64, or float32.
enum class Precision { MODEL, DOUBLE, SINGLE };

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
///     energies = readout()
///     for k = S-1 .. 1:  backward(k); (send_gradient(k, x); x.wait(); receive_gradient(k, x))
///     backward(0); edge_gradients = finish()
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

  /// What the graph refers to is to stay as it is until `finish`.
  void begin(const GraphTensors &graph);
  void forward(int k);

  /// Energies ([n_local], float64, eV), on the model's device.
  at::Tensor readout();
  void backward(int k);

  /// dE/d(edge_vectors) ([n_edges, 3], eV/Angstrom), on the model's device and in its precision; undefined if nothing
  /// depends on the edges.
  at::Tensor finish();

  /// The exchanged columns of the state that stage `k` reads, owners to ghosts.
  void send_state(int k, GhostExchange &exchange);
  void receive_state(int k, GhostExchange &exchange);

  /// The gradient with respect to them, ghosts to owners, where it is added.
  void send_gradient(int k, GhostExchange &exchange);
  void receive_gradient(int k, GhostExchange &exchange);

 private:
  struct Torch;
  std::unique_ptr<Torch> torch_;
  Metadata metadata_;
  std::string device_;
};

}    // namespace hienet

#endif
