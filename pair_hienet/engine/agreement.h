// SPDX-License-Identifier: GPL-2.0-or-later
// What ranks tell each other before they go on or stop together. Knows MPI alone.

#ifndef HIENET_AGREEMENT_H
#define HIENET_AGREEMENT_H

#include <mpi.h>

#include <stdexcept>
#include <string>

namespace hienet {

/// Thrown by all ranks at once, with one message: none of them is left waiting. A ModelError concerns one rank alone.
struct AgreedError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The least of the ranks' votes. If some of them have a problem to report, which is a sentence, that of the first becomes
/// an AgreedError. Collective.
int agree(MPI_Comm world, const std::string &problem, int vote = 0);

/// The text of rank `speaker` on all ranks. Collective.
std::string text_of(MPI_Comm world, int speaker, const std::string &mine);

}    // namespace hienet

#endif
