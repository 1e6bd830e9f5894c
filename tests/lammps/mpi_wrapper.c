// SPDX-License-Identifier: GPL-2.0-or-later
// Stands between LAMMPS and MPI, by way of MPI's profiling interface: what the ranks send each other for pair_style hienet
// is counted, or lost. The environment variable MPI_WRAPPER says which:
//
//   count     the first rank prints the bytes of a row of each message of features or gradients
//   silence   features and gradients arrive as zeros
//   damage    the rows of the self-test arrive as zeros
//   gpu       MPI says that it takes the memory of GPUs

#include <mpi.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Of pair_hienet/ghost_exchange.cpp.
enum { EXCHANGE_TAG = 18505, SELF_TEST_TAG = 18506 };

static int is_asked_for(const char *what)
{
  const char *asked = getenv("MPI_WRAPPER");
  return asked && strcmp(asked, what) == 0;
}

int MPI_Isend(const void *rows, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm, MPI_Request *request)
{
  int bytes = 0, rank = 0;
  PMPI_Type_size(type, &bytes);
  PMPI_Comm_rank(comm, &rank);
  // Which atoms are wanted is told in integers.
  if (type != MPI_INT) {
    if (tag == EXCHANGE_TAG && rank == 0 && is_asked_for("count")) printf("\nROW %d\n", bytes);
    if ((tag == EXCHANGE_TAG && is_asked_for("silence")) || (tag == SELF_TEST_TAG && is_asked_for("damage")))
      memset((void *) rows, 0, (size_t) count * bytes);
  }
  return PMPI_Isend(rows, count, type, to, tag, comm, request);
}

int MPIX_Query_cuda_support(void)
{ return is_asked_for("gpu"); }
