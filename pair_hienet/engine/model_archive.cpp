// SPDX-License-Identifier: GPL-2.0-or-later
// The format is PKWARE's APPNOTE.TXT 6.3; numbers of sections below are its.

#include "model_archive.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>

namespace hienet {

// ----------------------------------------------------------------------
// CRC-32 (4.4.7): reflected, polynomial 0xedb88320, eight bytes at a time
// ----------------------------------------------------------------------

using CrcTables = std::array<std::array<uint32_t, 256>, 8>;

static CrcTables make_tables()
{
  CrcTables tables;
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; bit++) value = (value >> 1) ^ (value & 1 ? 0xedb88320u : 0);
    tables[0][i] = value;
  }
  for (size_t k = 1; k < tables.size(); k++)
    for (uint32_t i = 0; i < 256; i++)
      tables[k][i] = (tables[k - 1][i] >> 8) ^ tables[0][tables[k - 1][i] & 255];
  return tables;
}

static uint32_t crc32(const unsigned char *data, uint64_t size)
{
  static const CrcTables t = make_tables();
  uint32_t crc = 0xffffffffu;
  for (; size >= 8; data += 8, size -= 8)
    crc = t[7][data[0] ^ (crc & 255)] ^ t[6][data[1] ^ (crc >> 8 & 255)] ^
        t[5][data[2] ^ (crc >> 16 & 255)] ^ t[4][data[3] ^ (crc >> 24)] ^ t[3][data[4]] ^
        t[2][data[5]] ^ t[1][data[6]] ^ t[0][data[7]];
  for (; size > 0; data++, size--) crc = (crc >> 8) ^ t[0][(crc ^ *data) & 255];
  return ~crc;
}

// ----------------------------------------------------------------------
// the directory
// ----------------------------------------------------------------------

/// Little-endian numbers at any place; outside the archive `good` becomes false.
struct Reader {
  const std::string &bytes;
  bool good = true;

  bool has(uint64_t start, uint64_t size)
  {
    good = good && start <= bytes.size() && size <= bytes.size() - start;
    return good;
  }
  uint64_t number(uint64_t start, int size)
  {
    uint64_t value = 0;
    if (has(start, size))
      for (int i = size; i-- > 0;)
        value = value << 8 | static_cast<unsigned char>(bytes[start + i]);
    return value;
  }
};

static constexpr uint32_t LOCAL_HEADER = 0x04034b50, ENTRY = 0x02014b50, END = 0x06054b50,
                          END_64 = 0x06064b50, LOCATOR_64 = 0x07064b50;
static constexpr uint64_t IN_EXTRA_FIELD = 0xffffffffu;    // a number that has no room in 32 bits
static constexpr int STORED = 0, DEFLATED = 8;
static constexpr uint64_t DEFLATE_LIMIT = 1032;    // no compressed byte stands for more

/// Where the central directory lies, and how many entries it has.
struct Directory {
  uint64_t start, size, n_entries;
};

/// 4.3.14 to 4.3.16
static std::optional<Directory> find_directory(Reader &in)
{
  const size_t end = in.bytes.rfind("PK\x05\x06");
  if (end == std::string::npos || !in.has(end, 22)) return std::nullopt;
  if (end >= 20 && in.number(end - 20, 4) == LOCATOR_64) {
    const uint64_t end_64 = in.number(end - 12, 8);
    if (in.number(end_64, 4) == END_64 && in.has(end_64, 56))
      return Directory{in.number(end_64 + 48, 8), in.number(end_64 + 40, 8),
                       in.number(end_64 + 32, 8)};
    return std::nullopt;
  }
  return Directory{in.number(end + 16, 4), in.number(end + 12, 4), in.number(end + 10, 2)};
}

/// An entry of the directory (4.3.12).
struct Entry {
  std::string name;
  int method;
  uint32_t crc;
  uint64_t compressed_size, size, header;
  uint64_t next;    // where the next entry begins
};

static std::optional<Entry> read_entry(Reader &in, uint64_t at)
{
  if (in.number(at, 4) != ENTRY || !in.has(at, 46)) return std::nullopt;
  const uint64_t name_size = in.number(at + 28, 2), extra_size = in.number(at + 30, 2);
  const uint64_t extra = at + 46 + name_size, next = extra + extra_size + in.number(at + 32, 2);
  if (!in.has(at, next - at)) return std::nullopt;
  Entry entry{in.bytes.substr(at + 46, name_size),
              static_cast<int>(in.number(at + 10, 2)),
              static_cast<uint32_t>(in.number(at + 16, 4)),
              in.number(at + 20, 4),
              in.number(at + 24, 4),
              in.number(at + 42, 4),
              next};
  // 4.5.3: those that did not fit follow each other in an extra field.
  for (uint64_t field = extra; field + 4 <= extra + extra_size;) {
    const uint64_t id = in.number(field, 2), stop = field + 4 + in.number(field + 2, 2);
    uint64_t place = field + 4;
    if (id == 1)
      for (uint64_t *value : {&entry.size, &entry.compressed_size, &entry.header}) {
        if (*value != IN_EXTRA_FIELD || place + 8 > stop) continue;
        *value = in.number(place, 8);
        place += 8;
      }
    field = stop;
  }
  return entry;
}

/// Whether the record of an entry is as it was written.
static bool is_whole(Reader &in, const Entry &entry, const Inflate &inflate)
{
  if (in.number(entry.header, 4) != LOCAL_HEADER || !in.has(entry.header, 30)) return false;
  const uint64_t name_size = in.number(entry.header + 26, 2);
  const uint64_t start = entry.header + 30 + name_size + in.number(entry.header + 28, 2);
  if (!in.has(entry.header + 30, name_size) || !in.has(start, entry.compressed_size)) return false;
  if (in.bytes.compare(entry.header + 30, name_size, entry.name) != 0) return false;
  if (entry.method == STORED)
    return entry.size == entry.compressed_size &&
        crc32(reinterpret_cast<const unsigned char *>(in.bytes.data()) + start, entry.size) ==
        entry.crc;
  if (entry.method != DEFLATED || entry.size / DEFLATE_LIMIT > entry.compressed_size) return false;
  const std::string data = inflate(entry.name);
  return data.size() == entry.size &&
      crc32(reinterpret_cast<const unsigned char *>(data.data()), data.size()) == entry.crc;
}

std::string damage_of_archive(const std::string &bytes, const Inflate &inflate)
{
  Reader in{bytes};
  const auto directory = find_directory(in);
  if (!directory || !in.has(directory->start, directory->size)) return "its end is missing";
  uint64_t at = directory->start;
  for (uint64_t i = 0; i < directory->n_entries; i++) {
    const auto entry = read_entry(in, at);
    if (!entry) return "its table of contents is unreadable";
    if (!is_whole(in, *entry, inflate)) {
      // The name may be what is damaged, and a message is text.
      const bool readable = std::all_of(entry->name.begin(), entry->name.end(), [](char c) {
        return c >= ' ' && c <= '~';
      });
      return (readable ? "the record `" + entry->name + "`" : std::string("a record")) +
          " does not match its checksum";
    }
    at = entry->next;
  }
  return at == directory->start + directory->size ? "" : "its table of contents is incomplete";
}

}    // namespace hienet
