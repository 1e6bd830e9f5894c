"""The operators run on as many threads as torch was told to use; threads of the user may share a calculator."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hienet_deploy.export import export

from hienet.calculator import HIENetCalculator
from hienet.testing import silicon_carbide


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_operators_use_torchs_number_of_threads(threads):
    """Compiled without OpenMP, or with another runtime than torch's, they would not."""
    torch.set_num_threads(threads)
    try:
        assert torch.ops.hienet.threads() == threads
    finally:
        torch.set_num_threads(1)


@pytest.fixture(scope="module", params=["checkpoint", "compiled", "plain"])
def file(request, operators, checkpoint_path, tmp_path_factory):
    if request.param == "checkpoint":
        return checkpoint_path
    output = tmp_path_factory.mktemp("threads") / "tiny.hienet.pt"
    return export(checkpoint_path, output, compiled=request.param == "compiled", dtype="float64").path


def numbers(atoms, calculator):
    """Energy alone first: without derivatives, which are wanted from the second call on."""
    atoms = atoms.copy()
    atoms.calc = calculator
    found = [atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(), atoms.get_potential_energies()]
    return np.concatenate([np.ravel(value) for value in found])


def test_threads_that_share_a_calculator_get_the_numbers_of_their_own_atoms(file):
    """Of structures of different elements too, for which a compiled file exchanges its tables."""
    structures = [silicon_carbide(rattle=0.02 * k, seed=k) for k in range(1, 5)]
    structures[2].symbols[:] = "Si"
    structures[3].symbols[:] = "C"
    right = [numbers(atoms, HIENetCalculator(file)) for atoms in structures]
    shared = HIENetCalculator(file)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: numbers(structures[k % 4], shared), range(40)))
    for k, values in enumerate(found):
        np.testing.assert_allclose(values, right[k % 4], rtol=0, atol=1e-9)
