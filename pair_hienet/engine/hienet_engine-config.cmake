# The engine of pair_style hienet for programs other than LAMMPS, as `hienet build` has compiled it:
#
#   find_package(hienet_engine REQUIRED CONFIG PATHS /path/to/pair_hienet/engine)
#   target_link_libraries(my_program PRIVATE hienet::engine)
#
# with -DPython_EXECUTABLE=$(which python) for torch, MPI and the libraries of that environment. Libraries elsewhere:
# -DHIENET_PLUGIN_DIR=/path/to/folder.

include("${CMAKE_CURRENT_LIST_DIR}/../mpi.cmake")
set(places "${HIENET_PLUGIN_DIR}" "$ENV{HIENET_PLUGIN_DIR}" "${HIENET_PYTHON_PREFIX}/lib/hienet")
find_library(HIENET_ENGINE_LIBRARY hienet_engine HINTS ${places})
find_library(HIENET_OPS_LIBRARY hienet_ops HINTS ${places})
# MPICH's wheel has no compiler wrapper that would say what to link.
find_library(HIENET_MPI_LIBRARY mpi HINTS "${HIENET_PYTHON_PREFIX}/lib")
if(NOT HIENET_ENGINE_LIBRARY OR NOT HIENET_OPS_LIBRARY)
  set(hienet_engine_FOUND FALSE)
  set(hienet_engine_NOT_FOUND_MESSAGE "libhienet_engine.a and libhienet_ops.so are not in `${HIENET_PYTHON_PREFIX}/lib/hienet`; run \
`hienet build` in that Python environment, or give the folder by HIENET_PLUGIN_DIR")
  return()
endif()

if(NOT TARGET hienet::engine)
  add_library(hienet::engine STATIC IMPORTED)
  get_filename_component(folder "${HIENET_OPS_LIBRARY}" DIRECTORY)
  set_target_properties(hienet::engine PROPERTIES IMPORTED_LOCATION "${HIENET_ENGINE_LIBRARY}"
                        INTERFACE_COMPILE_FEATURES cxx_std_20
                        INTERFACE_INCLUDE_DIRECTORIES "${CMAKE_CURRENT_LIST_DIR}/..")
  # no-as-needed: the operators register themselves, and nothing refers to them by name.
  target_link_libraries(hienet::engine INTERFACE "-Wl,--no-as-needed" "${HIENET_OPS_LIBRARY}" "-Wl,--as-needed"
                        hienet::libtorch MPI::MPI_CXX ${HIENET_MPI_LIBRARY} ${CMAKE_DL_LIBS}
                        "-Wl,-rpath,${folder}:${HIENET_TORCH_LIBRARY_FOLDER}:${HIENET_PYTHON_PREFIX}/lib")
endif()
