// SPDX-License-Identifier: GPL-2.0-or-later
// What stops an evaluation, said in one sentence whoever threw it. Knows torch (in its source) and nothing of LAMMPS.

#ifndef HIENET_MODEL_ERROR_H
#define HIENET_MODEL_ERROR_H

#include <stdexcept>
#include <string>
#include <utility>

namespace hienet {

/// Anything that stops the evaluation; the message is one readable sentence.
struct ModelError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// From within a `catch`: throws a ModelError, "what: the one line that says what happened", for the exception that is
/// being handled. Exhausted memory, of the host or of a GPU, becomes a sentence that says what to try.
[[noreturn]] void throw_model_error(const char *what);

/// Run `work`, turning whatever it throws into a ModelError.
template <typename Work> auto translated(const char *what, Work &&work) -> decltype(work())
{
  try {
    return std::forward<Work>(work)();
  } catch (...) {
    throw_model_error(what);
  }
}

}    // namespace hienet

#endif
