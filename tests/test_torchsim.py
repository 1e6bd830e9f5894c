"""The interface to TorchSim, held by its own validator and against the calculator of ASE."""

from __future__ import annotations

from pathlib import Path

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.geometry import find_mic

from hienet.calculator import HIENetCalculator
from hienet.errors import HIENetError
from hienet.testing import write_tiny_checkpoint

torch_sim = pytest.importorskip("torch_sim", reason="`pip install torch-sim-atomistic` tests the interface to TorchSim")

from torch_sim.models.interface import validate_model_outputs  # noqa: E402

from hienet.torchsim import HIENetModel  # noqa: E402


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("torchsim") / "m.pt", elements=("Si", "Fe", "O", "H"))


def systems() -> list[ase.Atoms]:
    """Of different sizes, triclinic, with an atom outside the cell."""
    rows = [bulk("Si", cubic=True), bulk("Fe") * (2, 1, 1), bulk("Si")]
    for i, atoms in enumerate(rows):
        atoms.rattle(0.1, seed=i)
    rows[2].positions[0] += 3 * rows[2].cell[1]
    return rows


def test_it_satisfies_the_validator_of_torchsim(path: Path) -> None:
    validate_model_outputs(HIENetModel(path), torch.device("cpu"), torch.float64)


def test_all_systems_have_the_numbers_of_the_calculator(path: Path) -> None:
    state = torch_sim.io.atoms_to_state(systems(), torch.device("cpu"), torch.float64)
    found = HIENetModel(path)(state)
    first = 0
    for i, atoms in enumerate(systems()):
        atoms.calc = HIENetCalculator(path)
        mine = slice(first, first + len(atoms))
        assert float(found["energy"][i]) == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
        assert found["forces"][mine].numpy() == pytest.approx(atoms.get_forces(), abs=1e-11)
        assert found["energies"][mine].numpy() == pytest.approx(atoms.get_potential_energies(), rel=1e-12)
        assert found["stress"][i].numpy() == pytest.approx(atoms.get_stress(voigt=False), abs=1e-12)
        first += len(atoms)


def test_results_are_those_that_are_asked_for(path: Path) -> None:
    state = torch_sim.io.atoms_to_state([bulk("Si")], torch.device("cpu"), torch.float64)
    model = HIENetModel(path, dtype=torch.float32, compute_stress=False)
    assert model.dtype == torch.float32
    assert set(model(state)) == {"energy", "energies", "forces"}
    model.compute_forces = False
    assert set(model(state)) == {"energy", "energies"}


def test_the_stress_of_a_molecule_is_not_a_number(path: Path) -> None:
    state = torch_sim.io.atoms_to_state([molecule("H2O")], torch.device("cpu"), torch.float64)
    state.pbc = False
    found = HIENetModel(path)(state)
    assert found["stress"].isnan().all()
    assert found["forces"].isfinite().all()


def test_an_unknown_element_is_named(path: Path) -> None:
    state = torch_sim.io.atoms_to_state([bulk("Cu")], torch.device("cpu"), torch.float64)
    with pytest.raises(HIENetError, match=r"the structure contains Cu, but the model knows only Si, Fe, O, H"):
        HIENetModel(path)(state)


def test_torchsim_runs_dynamics_of_several_systems(path: Path) -> None:
    final = torch_sim.integrate(
        system=systems()[:2],
        model=HIENetModel(path),
        integrator=torch_sim.nve,
        n_steps=3,
        temperature=300.0,
        timestep=0.001,
    )
    for atoms, after in zip(systems()[:2], torch_sim.io.state_to_atoms(final), strict=True):
        _, moved = find_mic(after.positions - atoms.positions, atoms.cell)
        assert 1e-4 < moved.max() < 0.1
    assert np.isfinite(final.energy.numpy()).all()
