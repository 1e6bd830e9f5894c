#!/usr/bin/env bash
# A small LAMMPS with KOKKOS, for the tests of pair_style hienet/kk:
#
#   tests/kokkos/build_lammps.sh SOURCE FOLDER [CMAKE ARGUMENT ...]
#   HIENET_KOKKOS_LAMMPS=FOLDER/build .venv/bin/python -m pytest tests/lammps/test_lammps_kokkos.py
#
# SOURCE is LAMMPS' source, a folder or a tarball; `apt-get source --download-only lammps` fetches one where apt lists
# sources. FOLDER gets a copy of what is needed of it, without most KOKKOS styles, which take the longest to compile, and
# the build. A plugin cannot share a KOKKOS library that is built into LAMMPS: an installed one is used, with shared
# libraries (Debian: libkokkos-dev). If CMake does not find it, or it runs on something other than OpenMP threads, say so:
#
#   tests/kokkos/build_lammps.sh SOURCE FOLDER -DKokkos_DIR=/path/to/lib/cmake/Kokkos -DKokkos_ENABLE_OPENMP=OFF
set -euo pipefail
if [ $# -lt 2 ]; then
  sed -n '2,14s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
root=$(cd "$(dirname "$0")/../.." && pwd)
python=$(realpath -s "${PYTHON:-$root/.venv/bin/python}")
given=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)
shift 2

source="$folder/source"
if [ ! -e "$source/src/version.h" ]; then
  rm -rf "$source" "$folder/unpacked"
  if [ -f "$given" ]; then
    mkdir "$folder/unpacked"
    tar -xf "$given" -C "$folder/unpacked"
    # With or without a folder around it.
    given=$(dirname "$(dirname "$(find "$folder/unpacked" -maxdepth 3 -path '*/src/version.h')")")
  fi
  if [ ! -f "$given/src/version.h" ]; then
    echo "error: \`$given\` is not LAMMPS' source: it has no src/version.h; give its folder or its tarball" >&2
    exit 1
  fi
  mkdir -p "$source"
  cp -r "$given"/{cmake,lib,src} "$source/"
  # What CMake reads of it.
  for part in doc examples bench potentials python tools fortran third_party unittest LICENSE README; do
    if [ -e "$given/$part" ]; then cp -r "$given/$part" "$source/"; fi
  done
  rm -rf "$folder/unpacked"

  # Of the KOKKOS styles those of the tests, and what KOKKOS itself is made of.
  kept='^((fix_(nve|nvt|nph|npt|nh|nh_sphere|langevin|setforce|momentum|minimize|property_atom|neigh_history|deform)'
  kept+='|pair_(zbl|lj_cut|hybrid|hybrid_overlay|hybrid_scaled)|compute_temp|atom_vec_(atomic|charge|ellipsoid))_kokkos'
  kept+='|pair_kokkos|atom_vec_kokkos)\.(h|cpp)$'
  find "$source/src/KOKKOS" -maxdepth 1 -regextype posix-extended \
    -regex '.*/(pair|fix|compute|bond|angle|dihedral|improper|atom_vec)_[^/]*' -printf '%f\n' | grep -vE "$kept" |
    while read -r name; do rm "$source/src/KOKKOS/$name"; done
fi

# MPICH of the environment of Python, which has a library and no compiler wrapper that FindMPI could ask.
mpi=$("$python" -c 'import sys; print(sys.prefix)')
arguments=(-DMPI_CXX_SKIP_MPICXX=ON -DMPI_CXX_LIB_NAMES=mpi "-DMPI_mpi_LIBRARY=$mpi/lib/libmpi.so"
  "-DMPI_CXX_HEADER_DIR=$mpi/include")
if [ ! -e "$mpi/include/mpi.h" ]; then arguments=(); fi
if command -v ninja >/dev/null; then arguments+=(-G Ninja); fi
cmake -S "$source/cmake" -B "$folder/build" -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS=-O1 -DCMAKE_CXX_STANDARD=20 \
  -DBUILD_SHARED_LIBS=ON -DBUILD_MPI=ON -DBUILD_OMP=ON -DPKG_KOKKOS=ON -DPKG_PLUGIN=ON -DEXTERNAL_KOKKOS=ON \
  -DKokkos_ENABLE_OPENMP=ON -DWITH_JPEG=OFF -DWITH_PNG=OFF -DWITH_GZIP=OFF -DWITH_FFMPEG=OFF -DWITH_CURL=OFF \
  "${arguments[@]}" "$@"
cmake --build "$folder/build" --parallel "${JOBS:-2}"
echo "built $folder/build/lmp"
