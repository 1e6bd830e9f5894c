// SPDX-License-Identifier: GPL-2.0-or-later
// What device_array.h makes of arrays in the layouts that KOKKOS has on GPUs (columns side by side) and on CPUs (rows side
// by side), in float32 and float64, compared with plain loops. Prints what is wrong and ends with 1.

#include "engine/device_array.h"

#include <ATen/ATen.h>

#include <cstdio>
#include <random>
#include <vector>

using namespace hienet;

static int n_problems = 0;

static void expect(bool right, const char *what)
{
  if (right) return;
  std::printf("wrong: %s\n", what);
  n_problems++;
}

/// An array with memory of its own, in either layout and with room to spare.
template <typename T> struct Owned {
  static constexpr int64_t SPARE = 3;
  Owned(int64_t rows, int64_t columns, bool by_rows, T filling) :
      numbers((rows + SPARE) * (std::max<int64_t>(columns, 1) + SPARE), filling)
  {
    const auto kind = std::is_same_v<T, int> ? DeviceArray::INT32
        : std::is_same_v<T, float>           ? DeviceArray::FLOAT32
                                             : DeviceArray::FLOAT64;
    array = {kind,
             numbers.data(),
             rows,
             columns,
             by_rows && columns ? columns + SPARE : 1,
             by_rows ? 1 : rows + SPARE};
  }
  T &at(int64_t i, int64_t j = 0)
  { return numbers[i * array.row_stride + (array.columns ? j * array.column_stride : 0)]; }
  std::vector<T> numbers;
  DeviceArray array;
};

template <typename T> static void check_positions_and_forces(bool by_rows)
{
  constexpr int64_t n = 11;
  Owned<T> x(n + 2, 3, by_rows, T(-1)), f(n + 2, 3, by_rows, T(0.5));
  for (int64_t i = 0; i < n; i++)
    for (int64_t a = 0; a < 3; a++) x.at(i, a) = T(0.1) * T(10 * i + a);
  const at::Tensor positions = positions_of(x.array, n, at::kCPU);
  const double *const found = positions.const_data_ptr<double>();
  expect(positions.sizes() == at::IntArrayRef({n, 3}) && positions.is_contiguous() &&
             positions.scalar_type() == at::kDouble,
         "shape, layout or type of the positions");
  for (int64_t i = 0; i < n; i++)
    for (int64_t a = 0; a < 3; a++) expect(found[3 * i + a] == double(x.at(i, a)), "a position");

  const std::vector<int64_t> rows = {9, 0, 4};
  const auto values = at::arange(9, at::kDouble).view({3, 3});
  add_to_rows(f.array, at::tensor(rows), values);
  for (int64_t i = 0; i < n + 2; i++)
    for (int64_t a = 0; a < 3; a++) {
      T expected = T(0.5);
      for (size_t k = 0; k < rows.size(); k++)
        if (rows[k] == i) expected += T(3 * k + a);
      expect(f.at(i, a) == expected, "a force");
    }
  add_to_rows(f.array, at::empty({0}, at::kLong), at::empty({0, 3}, at::kDouble));
  expect(positions_of(x.array, 0, at::kCPU).sizes() == at::IntArrayRef({0, 3}), "no positions");
}

/// Rows that differ in length, one of them empty, of atoms that come in any order; marked entries; old numbers behind.
static void check_candidates(bool by_rows)
{
  constexpr int n_atoms = 9, most = 7, mask = 0x1FFFFFFF;
  std::mt19937 random(5);
  const std::vector<int> order = {6, 0, 3, 2, 8};
  Owned<int> centers(n_atoms, 0, by_rows, -7), lengths(n_atoms, 0, by_rows, 5),
      entries(n_atoms, most, by_rows, -9);
  std::vector<std::vector<int>> kept(n_atoms);
  for (size_t k = 0; k < order.size(); k++) {
    const int i = order[k];
    centers.at(k) = i;
    lengths.at(i) = i == 3 ? 0 : 1 + random() % most;
    for (int j = 0; j < lengths.at(i); j++) {
      kept[i].push_back(random() % 40);
      entries.at(i, j) = kept[i].back() | (j % 2 ? 1 << 30 : 0);
    }
  }
  const DeviceNeighborList list = {centers.array, lengths.array, entries.array,
                                   static_cast<int64_t>(order.size()), mask};
  const auto [center, neighbor] = candidates_of(list, at::kCPU);
  std::vector<int> expected_centers, expected_neighbors;
  for (int i : {0, 2, 3, 6, 8})
    for (int j : kept[i]) {
      expected_centers.push_back(i);
      expected_neighbors.push_back(j);
    }
  expect(center.scalar_type() == at::kInt && neighbor.scalar_type() == at::kInt, "types of a list");
  expect(center.equal(at::tensor(expected_centers, at::kInt)), "the centers");
  expect(neighbor.equal(at::tensor(expected_neighbors, at::kInt)), "the neighbors");

  for (int i = 0; i < n_atoms; i++) lengths.at(i) = 0;
  expect(candidates_of(list, at::kCPU).second.numel() == 0, "a list without neighbors");
  auto none = list;
  none.n_centers = 0;
  expect(candidates_of(none, at::kCPU).first.numel() == 0, "a list without atoms");
}

int main()
{
  for (const bool by_rows : {true, false}) {
    check_positions_and_forces<double>(by_rows);
    check_positions_and_forces<float>(by_rows);
    check_candidates(by_rows);
  }
  std::printf("%d wrong\n", n_problems);
  return n_problems > 0;
}
