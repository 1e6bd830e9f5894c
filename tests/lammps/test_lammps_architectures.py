"""Every architecture runs in LAMMPS like the tiny HIENet on which the other tests of this folder dwell."""

from __future__ import annotations

import pytest
import torch
from hienet_deploy.export import export
from runs import Setup, evaluate, run

from hienet.calculator import load_model
from hienet.testing import silicon_carbide, write_tiny_checkpoint


def test_one_rank_and_three_give_the_numbers_of_the_source(variant, tmp_path):
    """Subdomains are thinner than the cutoff, so that features pass through ranks that are not neighbours."""
    source = write_tiny_checkpoint(tmp_path / "m.pt", **variant, scale=(40.0, 55.0))
    setup = Setup(export(source, dtype="float64").path)
    atoms = silicon_carbide()
    expected = load_model(source).predict(atoms)
    assert expected.forces is not None
    assert expected.forces.abs().max() > 0.05
    for found in (evaluate(atoms, setup, tmp_path), run(atoms, setup, tmp_path, ranks=3, steps=0)[0]):
        assert found.energy == pytest.approx(float(expected.energy[0]), abs=1e-6)
        torch.testing.assert_close(torch.tensor(found.energies), expected.energies, rtol=0, atol=1e-6)
        torch.testing.assert_close(torch.tensor(found.forces), expected.forces, rtol=0, atol=1e-6)
        torch.testing.assert_close(torch.tensor(found.stress), expected.stress[0], rtol=0, atol=1e-7)
