# Defines MPI::MPI_CXX, of the Python environment of Python_EXECUTABLE or as CMake finds it.

include("${CMAKE_CURRENT_LIST_DIR}/libtorch.cmake")
hienet_find_python_prefix(HIENET_PYTHON_PREFIX)
# MPICH's wheel has its header and library, but no compiler wrapper that FindMPI can question.
if(HIENET_PYTHON_PREFIX AND EXISTS "${HIENET_PYTHON_PREFIX}/include/mpi.h" AND NOT TARGET MPI::MPI_CXX)
  add_library(MPI::MPI_CXX INTERFACE IMPORTED)
  target_include_directories(MPI::MPI_CXX INTERFACE "${HIENET_PYTHON_PREFIX}/include")
  set(MPI_FOUND TRUE)
  set(MPI_CXX_FOUND TRUE)
elseif(NOT TARGET MPI::MPI_CXX)
  find_package(MPI REQUIRED CXX)
endif()
