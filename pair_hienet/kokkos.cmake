# pair_style hienet/kk in the plugin: for a LAMMPS that was built with KOKKOS, given by its build folder.
#
#   cmake -S . -B build -DHIENET_LAMMPS_BUILD=/path/to/lammps/build -DPython_EXECUTABLE=$(which python)
#
# An installed LAMMPS has no headers of KOKKOS, and does not say with which precision and layout of views it was compiled:
# its source and its build folder do. Sets HIENET_LAMMPS_INCLUDE and HIENET_LAMMPS_DEFINITIONS, and defines
# hienet::lammps_kokkos.

load_cache("${HIENET_LAMMPS_BUILD}" READ_WITH_PREFIX LAMMPS_BUILD_ CMAKE_HOME_DIRECTORY LAMMPS_SIZES PKG_KOKKOS KOKKOS_PREC
           KOKKOS_LAYOUT Kokkos_DIR)
get_filename_component(HIENET_LAMMPS_INCLUDE "${LAMMPS_BUILD_CMAKE_HOME_DIRECTORY}/../src" ABSOLUTE)
if(NOT EXISTS "${HIENET_LAMMPS_INCLUDE}/pair.h")
  message(FATAL_ERROR "`HIENET_LAMMPS_BUILD` is `${HIENET_LAMMPS_BUILD}`, which is no build folder of LAMMPS whose source is still "
                      "there: there is no `${HIENET_LAMMPS_INCLUDE}/pair.h`; give the folder in which `cmake` has built LAMMPS")
endif()
if(NOT LAMMPS_BUILD_PKG_KOKKOS)
  message(FATAL_ERROR "the LAMMPS of `${HIENET_LAMMPS_BUILD}` has no KOKKOS; build it with -DPKG_KOKKOS=ON, or leave "
                      "HIENET_LAMMPS_BUILD out for a plugin without `hienet/kk`")
endif()
if(NOT LAMMPS_BUILD_Kokkos_DIR)
  message(FATAL_ERROR "the LAMMPS of `${HIENET_LAMMPS_BUILD}` has its KOKKOS library built in, which a plugin cannot share; build "
                      "LAMMPS with -DEXTERNAL_KOKKOS=ON, or the pair style inside LAMMPS (pair_hienet.cmake)")
endif()

string(TOUPPER "${LAMMPS_BUILD_LAMMPS_SIZES}" sizes)
set(HIENET_LAMMPS_DEFINITIONS "LAMMPS_${sizes}")

find_package(Kokkos REQUIRED CONFIG PATHS "${LAMMPS_BUILD_Kokkos_DIR}" NO_DEFAULT_PATH)
get_target_property(kokkos_type Kokkos::kokkoscore TYPE)
if(NOT kokkos_type STREQUAL "SHARED_LIBRARY")
  message(FATAL_ERROR "the KOKKOS library in `${Kokkos_DIR}` is static: the plugin would bring a second one with a state of its "
                      "own; build KOKKOS with -DBUILD_SHARED_LIBS=ON, or the pair style inside LAMMPS (pair_hienet.cmake)")
endif()
add_library(hienet::lammps_kokkos INTERFACE IMPORTED)
target_include_directories(hienet::lammps_kokkos INTERFACE "${HIENET_LAMMPS_INCLUDE}/KOKKOS")
target_link_libraries(hienet::lammps_kokkos INTERFACE Kokkos::kokkos)
string(TOUPPER "${LAMMPS_BUILD_KOKKOS_LAYOUT}" layout)
string(TOUPPER "${LAMMPS_BUILD_KOKKOS_PREC}" precision)
string(REPLACE "DOUBLE" "DOUBLE_DOUBLE" precision "${precision}")
string(REPLACE "MIXED" "SINGLE_DOUBLE" precision "${precision}")
string(REGEX REPLACE "^SINGLE$" "SINGLE_SINGLE" precision "${precision}")
target_compile_definitions(hienet::lammps_kokkos INTERFACE LMP_KOKKOS HIENET_KOKKOS)
if(precision)
  target_compile_definitions(hienet::lammps_kokkos INTERFACE "LMP_KOKKOS_${precision}")
endif()
if(layout)
  target_compile_definitions(hienet::lammps_kokkos INTERFACE "LMP_KOKKOS_LAYOUT_${layout}")
endif()
message(STATUS "KOKKOS ${Kokkos_VERSION}: ${Kokkos_DIR} (devices ${Kokkos_DEVICES})")
