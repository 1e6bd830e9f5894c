"""Several models in one ASE calculator."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest

from hienet.calculator import HIENetCalculator, force_deviation
from hienet.errors import HIENetError
from hienet.testing import silicon_carbide, write_tiny_checkpoint

PROPERTIES = ("energy", "energies", "forces", "stress")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("committee")
    return [str(write_tiny_checkpoint(folder / f"{seed}.pt", seed=seed)) for seed in range(3)]


def results(path, atoms) -> dict:
    atoms = atoms.copy()
    atoms.calc = HIENetCalculator(path)
    return {name: atoms.calc.get_property(name, atoms) for name in (*PROPERTIES, "force_deviation")}


def test_a_committee_gives_the_means_of_its_models(files):
    atoms = silicon_carbide()
    alone = [results(file, atoms) for file in files]
    found = results(files, atoms)
    for name in PROPERTIES:
        values = np.array([one[name] for one in alone])
        assert np.ptp(values, axis=0).max() > 1e-4
        np.testing.assert_allclose(found[name], values.mean(0), atol=1e-12)


def test_the_deviation_is_the_spread_of_the_models_forces(files):
    atoms = silicon_carbide()
    forces = np.array([results(file, atoms)["forces"] for file in files])
    found = results(files, atoms)["force_deviation"]
    expected = np.sqrt(sum(((one - forces.mean(0)) ** 2).sum(1) for one in forces) / 3)
    assert found.shape == (len(atoms),)
    assert found.max() > 1e-4
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(force_deviation(forces[[0, 0]]), 0.0, atol=1e-12)


def test_one_model_has_no_deviation(files):
    np.testing.assert_array_equal(results(files[0], silicon_carbide())["force_deviation"], 0.0)


def test_results_of_a_committee_can_be_written_and_read(files, tmp_path):
    atoms = silicon_carbide()
    atoms.calc = HIENetCalculator(files)
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    ase.io.write(tmp_path / "frame.extxyz", atoms)
    read = ase.io.read(tmp_path / "frame.extxyz")
    assert read.get_potential_energy() == pytest.approx(energy)
    np.testing.assert_allclose(read.get_forces(), forces, atol=1e-7)


def test_a_committee_of_nobody_is_refused():
    with pytest.raises(HIENetError, match=r"no model: give a file, or a list of the files of a committee"):
        HIENetCalculator([])
