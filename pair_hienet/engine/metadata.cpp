// SPDX-License-Identifier: GPL-2.0-or-later

#include "metadata.h"

#include "json.h"
#include "model_archive.h"

#include <caffe2/serialize/inline_container.h>

#include <sstream>
#include <utility>

namespace hienet {

static constexpr int NEWEST_FORMAT = 4;

ModelError foreign_file(const std::string &why)
{
  return ModelError("the file is not a deployed HIENet model (" + why +
                    "); write one from a checkpoint with `hienet-deploy model.pt`");
}

static std::string read_description(const std::string &bytes)
{
  if (bytes.size() < 4 || bytes.compare(0, 2, "PK") != 0)
    throw foreign_file("it does not begin like a TorchScript archive");
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
    if (!reader.hasRecord("extra/hienet.json")) throw foreign_file("it has no `hienet.json`");
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
      throw foreign_file("`hienet.json` describes something else");
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

}    // namespace hienet
