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
  void setup() override;
  double init_one(int, int) override;
  void *extract(const char *, int &) override;
  double memory_usage() override;

  int pack_forward_comm(int, int *, double *, int, int *) override;
  void unpack_forward_comm(int, int, double *) override;
  int pack_reverse_comm(int, int, double *) override;
  void unpack_reverse_comm(int, int *, double *) override;

 protected:
  struct Implementation;
  Implementation *impl;

  void allocate();
  void forget_model();
  std::string read_file(const std::string &);
  void load(const std::string &, char **);
  void report(const std::string &);
  void check_exclusions();
  int absent_groups() const;
  void publish_comm_size();
  void agree(const std::string &);

  void prepare_timing();
  double buffer_bytes();

  void refresh_owners();
  std::string build_graph();
  std::string begin_model();
  void evaluate_model();
  void exchange_forward(int);
  void exchange_reverse(int);
  void accumulate();
  void scatter(int64_t, int64_t);
  template <typename Work> void on_this_rank(int, Work &&);
};

}    // namespace LAMMPS_NS

#endif
#endif
