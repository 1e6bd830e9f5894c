// SPDX-License-Identifier: GPL-2.0-or-later

#include "model_error.h"

#include <c10/util/Exception.h>

#include <new>

namespace hienet {

/// The one line of a torch message that says what happened: no C++ stack, no TorchScript traceback.
static std::string first_sentence(const std::string &text)
{
  const std::string marker = "Error: ";
  const auto found = text.rfind(marker);
  std::string rest = found == std::string::npos ? text : text.substr(found + marker.size());
  const auto start = rest.find_first_not_of(" \n\t");
  if (start == std::string::npos) return "no further information";
  rest = rest.substr(start, rest.find('\n', start) - start);
  return rest.size() > 300 ? rest.substr(0, 300) + "..." : rest;
}

/// What to try where memory is exhausted, or an empty string.
///
/// It arrives as any kind of exception, depending on the device and on who asked for it; one of an operator passes
/// through the interpreter of TorchScript, which keeps its text alone.
static std::string remedy_for_memory(const std::string &message)
{
  auto says = [&](const char *words) {
    return message.find(words) != std::string::npos;
  };
  // torch's caching allocator; the runtime, for pinned memory and kernels; cuBLAS, for its workspace.
  if (says("CUDA out of memory") || says("CUDA error: out of memory") ||
      says("CUBLAS_STATUS_ALLOC_FAILED"))
    return "not enough memory on the GPU for the network; use more GPUs, a smaller system, or "
           "`precision mixed`";
  if (says("allocate memory") || says("out of memory") || says("bad_alloc"))
    return "not enough memory for the network; use more ranks, a smaller system, or `precision "
           "mixed`";
  return "";
}

void throw_model_error(const char *what)
{
  std::string message;
  try {
    throw;
  } catch (const ModelError &) {
    throw;
  } catch (const std::bad_alloc &) {
    message = "out of memory";
  } catch (const c10::Error &error) {
    message = error.what_without_backtrace();
  } catch (const std::exception &error) {
    message = error.what();
  }
  const std::string remedy = remedy_for_memory(message);
  throw ModelError(std::string(what) + ": " + (remedy.empty() ? first_sentence(message) : remedy));
}

}    // namespace hienet
