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

#include <cstdint>
#include <string>
#include <vector>

namespace hienet {
struct DeviceAtoms;
}

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
  struct Member;
  struct Implementation;
  Implementation *impl;

  // For a style whose atoms LAMMPS keeps on a device: where that is, and during compute() the atoms.
  virtual std::string device_of_atoms() const;
  const hienet::DeviceAtoms *device_atoms = nullptr;

  void allocate();
  void forget_model();
  void check_neighbors();
  void check_pairs_of_types();
  void publish_comm_size();
  int agree(const std::string &, int = 0);

  std::vector<std::string> split_words(const std::vector<std::string> &);
  std::string contradiction(const std::string &) const;
  std::string agree_on_device();
  void agree_on_transport(const std::string &);
  std::string read_file(const std::string &);
  void load(const std::vector<std::string> &, const std::vector<std::string> &);
  void add_member(const std::string &, const std::vector<std::string> &, const std::string &);
  void report(const std::string &);
  std::string describe(const Member &) const;
  std::string describe_tables(const Member &) const;
  void warn(const Member &);

  void prepare_timing();
  std::string names_of_models() const;
  double buffer_bytes();

  double weight(const Member &) const;
  void mark_evaluations();
  bool is_trial();
  double common_scale() const;
  void tabulate_elements(bool);
  bool wants_deviation();
  void keep_special_neighbors();
  void look_at_list();
  const double (*positions() const)[3];
  int absent_groups() const;
  int type_in_network(int, int) const;
  bool ghosts_are_told() const;
  void tell_ghosts();
  std::string change_since_list() const;
  std::string build_graph(const Member &);
  std::string missing_neighbor(const Member &);
  std::string check_edges(const Member &);
  void warn_of_late_neighbors();
  std::string cause_of_absence(int, int) const;
  std::string begin_model(const Member &, int &);
  void evaluate_model(const Member &, bool);
  bool exchange_is_planned(const Member &);
  void plan_exchange(const Member &);
  void exchange_forward(const Member &, int);
  void exchange_reverse(const Member &, int);
  void accumulate(const Member &, bool);
  void add_virial(const double *, double);
  double add_results(const Member &, bool);
  double add_edges(const Member &, bool);
  void scatter(const Member &, bool, int64_t, int64_t);
  void find_deviation(bool);
  std::string circumstances(const Member &, bool has_edges = true) const;
  template <typename Work> void on_this_rank(const Member &, int, Work &&);
};

}    // namespace LAMMPS_NS

#endif
#endif
