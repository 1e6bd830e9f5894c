"""Programs that make their LAMMPS themselves: after an import of `hienet.lammps` they find MPI and the pair style."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import numpy as np
{first}
from ase.calculators.lammpslib import LAMMPSlib
{second}
from hienet.calculator import HIENetCalculator
from hienet.testing import silicon_carbide

model = sys.argv[1]
atoms = silicon_carbide()
right = atoms.copy()
right.calc = HIENetCalculator(model)
commands = ["pair_style hienet", f"pair_coeff * * {{model}} Si C"]
atoms.calc = LAMMPSlib(lmpcmds=commands, atom_types={{"Si": 1, "C": 2}}, keep_alive=True, log_file="log.lib")
np.testing.assert_allclose(atoms.get_potential_energy(), right.get_potential_energy(), rtol=0, atol=1e-5)
np.testing.assert_allclose(atoms.get_forces(), right.get_forces(), rtol=0, atol=1e-5)
atoms.positions += 0.1 * np.sin(np.arange(24.0)).reshape(8, 3)
right.positions = atoms.positions
np.testing.assert_allclose(atoms.get_forces(), right.get_forces(), rtol=0, atol=1e-5)
"""
IMPORT = "import hienet.lammps"


@pytest.mark.parametrize(("first", "second"), [(IMPORT, ""), ("", IMPORT)], ids=["before", "after"])
def test_lammpslib_of_ase_needs_an_import(first, second, models, tmp_path):
    """Before or after that of ASE."""
    environment = {name: value for name, value in os.environ.items() if name != "LAMMPS_PLUGIN_PATH"}
    program = PROGRAM.format(first=first, second=second)
    command = [sys.executable, "-c", program, str(models["float64"])]
    answer = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=environment, check=False
    )
    assert answer.returncode == 0, answer.stderr


def test_the_import_brings_no_symbols_of_mpi():
    """A program with another MPI must not find those of this one."""
    program = f"{IMPORT}\nimport ctypes\nassert not hasattr(ctypes.CDLL(None), 'MPI_Init')"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stderr
