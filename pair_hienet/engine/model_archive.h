// SPDX-License-Identifier: GPL-2.0-or-later
// Zip archives carry a CRC-32 of every record, which torch does not compare when it reads one.

#ifndef HIENET_MODEL_ARCHIVE_H
#define HIENET_MODEL_ARCHIVE_H

#include <functional>
#include <string>

namespace hienet {

/// The uncompressed bytes of a compressed record, by its name.
using Inflate = std::function<std::string(const std::string &)>;

/// What does not fit together in the bytes of a zip archive, as a clause; empty if every record is as it was written.
///
/// Times and attributes, which nobody reads, are not looked at. `inflate` may throw.
std::string damage_of_archive(const std::string &bytes, const Inflate &inflate);

}    // namespace hienet

#endif
