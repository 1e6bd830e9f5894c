"""The engine of the pair style in a program that is not LAMMPS, which finds it as a CMake package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hienet.build import find_toolchain
from hienet.calculator import load_model
from hienet.testing import awkward_structures

PROJECT = """
cmake_minimum_required(VERSION 3.20)
project(consumer LANGUAGES CXX)
find_package(hienet_engine REQUIRED CONFIG PATHS "{engine}" NO_DEFAULT_PATH)
add_executable(check_engine "{source}")
target_link_libraries(check_engine PRIVATE hienet::engine)
"""


@pytest.fixture(scope="module")
def program(plugin, tmp_path_factory) -> Path:
    """check_engine, compiled by a project of its own against what `hienet build` has installed."""
    tools = find_toolchain()
    folder = tmp_path_factory.mktemp("consumer")
    source = Path(__file__).parent / "check_engine.cpp"
    (folder / "CMakeLists.txt").write_text(PROJECT.format(engine=tools.sources / "engine", source=source))
    configure = [tools.cmake, "-S", folder, "-B", folder / "build", f"-DCMAKE_CXX_COMPILER={tools.compiler}"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-DHIENET_PLUGIN_DIR={plugin.parent}"]
    if tools.ninja is not None:
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tools.ninja}"]
    for command in (configure, [tools.cmake, "--build", folder / "build"]):
        answer = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert answer.returncode == 0, answer.stdout + answer.stderr
    return folder / "build" / "check_engine"


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("resident", ["no", "yes"])
def test_the_engine_without_lammps_gives_the_numbers_of_python(ranks, resident, program, models, tmp_path):
    """Two steps with one neighbour list; the second moves the atoms. Then two atoms are at one place."""
    atoms = awkward_structures()["small cell"]
    lines = [str(len(atoms)), *(" ".join(f"{x:.17g}" for x in vector) for vector in atoms.cell.array)]
    types = [1 + ["C", "Si"].index(symbol) for symbol in atoms.symbols]
    lines += [f"{t} " + " ".join(f"{x:.17g}" for x in r) for t, r in zip(types, atoms.positions, strict=True)]
    (tmp_path / "atoms.txt").write_text("\n".join(lines) + "\n")
    launcher = [Path(sys.executable).parent / "mpirun", "-np", str(ranks)] if ranks > 1 else []
    command = [*launcher, program, models["float64"], tmp_path / "atoms.txt", resident, "C", "Si"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr

    output = answer.stdout.splitlines()
    assert output[0] == "HIENet model model"
    steps = [np.array([float(x) for x in line.split()[1:]]) for line in output if line.startswith("step")]
    assert len(steps) == 2
    deployed = load_model(models["float64"])
    for step, numbers in enumerate(steps):
        atoms.positions += step * 0.02 * np.sin(1.0 + np.arange(3 * len(atoms))).reshape(-1, 3)
        expected = deployed.predict(atoms)
        assert numbers[0] == pytest.approx(float(expected.energy[0]), abs=1e-9)
        xx, yy, zz, xy, xz, yz, yx, zx, zy = numbers[1:10]
        virial = np.array([[xx, xy, xz], [yx, yy, yz], [zx, zy, zz]])
        stress = -(virial + virial.T) / 2 / atoms.get_volume()
        np.testing.assert_allclose(stress, expected.stress[0].numpy(), atol=1e-10)
        np.testing.assert_allclose(numbers[10:].reshape(-1, 3), expected.forces.numpy(), atol=1e-9)
    failures = [line for line in output if line.startswith("rank")]
    assert sorted(failures) == [f"rank {k}: two atoms are at the same place" for k in range(ranks)]
