# pair_style hienet inside LAMMPS' own build; nothing of LAMMPS is changed or overwritten.
#
#   cmake -S lammps/cmake -B build -DCMAKE_CXX_STANDARD=20 -DPython_EXECUTABLE=$(which python) \
#         -DCMAKE_PROJECT_lammps_INCLUDE=/path/to/hienet/pair_hienet/pair_hienet.cmake
#
# CMake reads this file behind LAMMPS' project() command. LAMMPS finds styles by the names of files in its src/ folder, so
# the sources are linked into it (and can be removed again); torch is added to the library when its target exists.

include("${CMAKE_CURRENT_LIST_DIR}/libtorch.cmake")
add_subdirectory("${CMAKE_CURRENT_LIST_DIR}/ops" hienet_ops)
set(HIENET_LAMMPS_INCLUDE "${CMAKE_CURRENT_SOURCE_DIR}/../src")
add_subdirectory("${CMAKE_CURRENT_LIST_DIR}/engine" hienet_engine)

function(hienet_add_pair_style)
  set(names pair_hienet.h pair_hienet.cpp deviation_readers.h deviation_readers.cpp evaluation_marker.h evaluation_marker.cpp
      lammps_atoms.h lammps_atoms.cpp)
  if(PKG_KOKKOS)
    list(APPEND names KOKKOS/pair_hienet_kokkos.h KOKKOS/pair_hienet_kokkos.cpp)
  endif()
  foreach(place ${names})
    get_filename_component(name "${place}" NAME)
    set(link "${CMAKE_CURRENT_SOURCE_DIR}/../src/${place}")
    if(NOT EXISTS "${link}")
      file(CREATE_LINK "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/${name}" "${link}" SYMBOLIC)
    endif()
  endforeach()
endfunction()
hienet_add_pair_style()

list(APPEND CMAKE_BUILD_RPATH "${HIENET_TORCH_LIBRARY_FOLDER}")
list(APPEND CMAKE_INSTALL_RPATH "${HIENET_TORCH_LIBRARY_FOLDER}")
# no-as-needed: the operators register themselves, and nothing refers to them by name. In one word, because CMake removes
# flags that come twice.
cmake_language(DEFER CALL target_link_libraries lammps PRIVATE hienet_engine
               "-Wl,--no-as-needed,$<TARGET_FILE:hienet_ops>,--as-needed")

# The MPI that LAMMPS has found by then, or its own for one rank.
function(hienet_give_mpi_to_engine)
  if(TARGET MPI::MPI_CXX)
    get_target_property(folders MPI::MPI_CXX INTERFACE_INCLUDE_DIRECTORIES)
  endif()
  if(NOT folders)
    set(folders "${HIENET_LAMMPS_INCLUDE}/STUBS")
  endif()
  target_include_directories(hienet_engine PUBLIC ${folders})
endfunction()
cmake_language(DEFER CALL hienet_give_mpi_to_engine)
