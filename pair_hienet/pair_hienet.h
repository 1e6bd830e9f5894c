/* -*- c++ -*- ----------------------------------------------------------
   SPDX-License-Identifier: GPL-2.0-or-later

   pair_style hienet: HIENet machine-learned potentials in LAMMPS.
------------------------------------------------------------------------- */

#ifdef PAIR_CLASS
// clang-format off
PairStyle(hienet,PairHIENet);
// clang-format on
#else

#ifndef LMP_PAIR_HIENET_H
#define LMP_PAIR_HIENET_H

#include "pair.h"

#include <string>
#include <vector>

namespace hienet {
class RankGraph;
struct DeviceAtoms;
struct Results;
}    // namespace hienet

namespace LAMMPS_NS {

class PairHIENet : public Pair {
 public:
  PairHIENet(class LAMMPS *);
  ~PairHIENet() override;
  void compute(int, int) override;
  void finish() override;
  void settings(int, char **) override;
  void coeff(int, char **) override;
  void init_style() override;
  double init_one(int, int) override;
  void *extract(const char *, int &) override;
  void *extract_peratom(const char *, int &) override;
  double memory_usage() override;

  int pack_forward_comm(int, int *, double *, int, int *) override;
  void unpack_forward_comm(int, int, double *) override;
  int pack_reverse_comm(int, int, double *) override;
  void unpack_reverse_comm(int, int *, double *) override;

 protected:
  // For a style whose atoms LAMMPS keeps on a device: where that is, and during compute() the atoms.
  virtual std::string device_of_atoms() const;
  const hienet::DeviceAtoms *device_atoms = nullptr;

  void keep_special_neighbors();

 private:
  struct Settings;
  struct Implementation;
  Implementation *impl;

  void allocate();
  void forget_models();
  void check_neighbors();
  void check_pairs_of_types();
  void publish_comm_size();
  template <typename Work> void translated(Work &&);

  std::vector<std::string> split_words(const std::vector<std::string> &);
  std::string contradiction(const std::string &) const;
  std::string agree_on_device();
  void agree_on_transport(const std::string &);
  std::string read_file(const std::string &);
  void load(const std::vector<std::string> &, const std::vector<std::string> &);
  void report(const std::string &);
  std::vector<char> types_with_atoms() const;
  int n_threads() const;

  double buffer_bytes();
  void mark_evaluations();
  bool is_trial();
  double common_scale() const;
  bool wants_deviation();
  void add_results(const hienet::RankGraph &, const hienet::Results &, double);
  void find_deviation(bool);
};

}    // namespace LAMMPS_NS

#endif
#endif
