// SPDX-License-Identifier: GPL-2.0-or-later

#include "model_error.h"

#include <c10/util/Exception.h>

#include <new>
#include <string>

namespace hienet {

static constexpr const char *OUT_OF_MEMORY =
    "not enough memory for the network; use more ranks, a smaller system, or `precision mixed`";

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

ModelError readable_error(const char *what, std::exception_ptr thrown)
{
  std::string message;
  try {
    std::rethrow_exception(std::move(thrown));
  } catch (const std::bad_alloc &) {
    message = "out of memory";
  } catch (const c10::Error &error) {
    message = error.what_without_backtrace();
  } catch (const std::exception &error) {
    message = error.what();
  }
  // Exhausted memory arrives as any of the above, depending on the device and on who asked for it.
  // An exception of an operator passes through the interpreter of TorchScript, which keeps its text alone.
  if (message.find("allocate memory") != std::string::npos ||
      message.find("out of memory") != std::string::npos ||
      message.find("bad_alloc") != std::string::npos)
    return ModelError(std::string(what) + ": " + OUT_OF_MEMORY);
  return ModelError(std::string(what) + ": " + first_sentence(message));
}

}    // namespace hienet
