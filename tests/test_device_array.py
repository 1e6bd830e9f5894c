"""Arrays of KOKKOS as tensors, in all layouts and precisions: no LAMMPS that the tests can count on has KOKKOS."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch
from torch.utils import cpp_extension

from hienet.build import find_toolchain


def test_layouts_and_precisions(tmp_path):
    """tests/check_device_array.cpp, which says what is wrong."""
    tools = find_toolchain()
    here = Path(__file__).parent
    # In one piece, because most of the time goes into torch's headers.
    source = tmp_path / "check.cpp"
    source.write_text('#include "engine/device_array.cpp"\n#include "check_device_array.cpp"\n')
    folders = [str(tools.sources), str(here), *cpp_extension.include_paths()]
    libraries = Path(torch.__file__).parent / "lib"
    program = tmp_path / "check"
    command = [str(tools.compiler), "-std=c++20", "-O0", *(f"-I{folder}" for folder in folders), str(source)]
    command += ["-o", str(program), f"-L{libraries}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{libraries}"]
    subprocess.run(command, check=True, timeout=300)
    answer = subprocess.run([program], capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stdout
    assert answer.stdout.endswith("0 wrong\n")
