// SPDX-License-Identifier: GPL-2.0-or-later
// What torch throws, as one readable sentence. Knows nothing of LAMMPS; torch behind a function.

#ifndef HIENET_MODEL_ERROR_H
#define HIENET_MODEL_ERROR_H

#include <exception>
#include <stdexcept>
#include <utility>

namespace hienet {

/// Anything that stops the evaluation; the message is one readable sentence.
struct ModelError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// "`what`: ..." of whatever was thrown.
ModelError readable_error(const char *what, std::exception_ptr thrown);

/// Run `work`, turning whatever it throws into a ModelError of one sentence.
template <typename Work> auto translated(const char *what, Work &&work) -> decltype(work())
{
  try {
    return std::forward<Work>(work)();
  } catch (const ModelError &) {
    throw;
  } catch (...) {
    throw readable_error(what, std::current_exception());
  }
}

}    // namespace hienet

#endif
