# pair_style hienet inside LAMMPS' own build; nothing of LAMMPS is changed or overwritten.
#
#   cmake -S lammps/cmake -B build -DCMAKE_CXX_STANDARD=20 -DPython_EXECUTABLE=$(which python) \
#         -DCMAKE_PROJECT_lammps_INCLUDE=/path/to/hienet/pair_hienet/pair_hienet.cmake
#
# CMake reads this file behind LAMMPS' project() command. LAMMPS finds styles by the names of files in its src/ folder, so
# the sources are linked into it (and can be removed again); torch is added to the library when its target exists.

include("${CMAKE_CURRENT_LIST_DIR}/libtorch.cmake")
add_subdirectory("${CMAKE_CURRENT_LIST_DIR}/ops" hienet_ops)

function(hienet_add_pair_style)
  set(names pair_hienet.h pair_hienet.cpp deviation_readers.h deviation_readers.cpp evaluation_marker.h evaluation_marker.cpp
      device_array.h device_array.cpp device_atoms.h device_graph.h device_graph.cpp device_guard.h edge_check.h edge_check.cpp
      force_deviation.h force_deviation.cpp ghost_exchange.h ghost_exchange.cpp graph_tensors.h model_archive.h
      model_archive.cpp model_error.h model_error.cpp neighbor_graph.h neighbor_graph.cpp resident_data.h resident_data.cpp
      row_buffer.h row_buffer.cpp staged_model.h staged_model.cpp thread_pool.h timing_breakdown.h timing_breakdown.cpp)
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
cmake_language(DEFER CALL target_link_libraries lammps PRIVATE hienet::libtorch ${CMAKE_DL_LIBS}
               "-Wl,--no-as-needed,$<TARGET_FILE:hienet_ops>,--as-needed")
cmake_language(DEFER CALL add_dependencies lammps hienet_ops)
