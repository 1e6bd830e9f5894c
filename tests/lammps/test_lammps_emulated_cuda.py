"""LAMMPS on the kernels for GPUs, which an emulation runs on the CPU; started by tests/test_cuda_kernels.py."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from runs import Setup, evaluate

from hienet.calculator import load_model
from hienet.testing import awkward_structures

pytestmark = pytest.mark.skipif(
    "HIENET_TEST_EMULATED_CUDA" not in os.environ, reason="run by `test_operators_on_emulated_kernels`"
)


@pytest.mark.parametrize("name", ["small cell", "bulk"])
def test_lammps_computes_with_the_kernels(name, operators, models, tmp_path):
    atoms = awkward_structures()[name]
    # The checkpoint is plain torch; tables differ from it by as much as they are allowed.
    expected = load_model(models["checkpoint"]).predict(atoms)
    before = torch.ops.hienet_emulation.launches()
    found = evaluate(atoms, Setup(models["float64"]), tmp_path)
    assert torch.ops.hienet_emulation.launches() > before
    assert found.energy == pytest.approx(float(expected.energy[0]), abs=1e-5)
    np.testing.assert_allclose(found.forces, expected.forces.numpy(), atol=1e-5)
    np.testing.assert_allclose(found.stress, expected.stress[0].numpy(), atol=1e-6)
