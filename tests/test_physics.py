"""What any interatomic potential must obey, as sentences about the model."""

from __future__ import annotations

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk

from hienet.calculator import LoadedModel
from hienet.derivatives import predict
from hienet.graph import batch_graphs, graph_from_atoms
from hienet.testing import (
    finite_difference_forces,
    finite_difference_stress,
    random_rotation,
    rotated,
    silicon_carbide,
    tiny_model,
)


@pytest.fixture(scope="session")
def model(model_of_variant: LoadedModel) -> LoadedModel:
    """Every sentence is about every architecture."""
    return model_of_variant


def energy_of(model: LoadedModel, atoms: ase.Atoms) -> float:
    return float(model.predict(atoms, derivatives=False).energy[0])


def arrays(model: LoadedModel, atoms: ase.Atoms) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    prediction = model.predict(atoms)
    assert prediction.forces is not None
    assert prediction.stress is not None
    return (
        float(prediction.energy[0]),
        prediction.energies.numpy(),
        prediction.forces.numpy(),
        prediction.stress[0].numpy(),
    )


def test_the_model_depends_on_the_structure_at_all(model):
    energy, _, forces, stress = arrays(model, silicon_carbide())
    assert abs(energy - energy_of(model, silicon_carbide(seed=2))) > 1e-3
    assert np.abs(forces).max() > 1e-2
    assert np.abs(stress).max() > 1e-4


def test_rotating_a_structure_rotates_forces_and_stress(model):
    atoms, rotation = silicon_carbide(), random_rotation()
    energy, energies, forces, stress = arrays(model, atoms)
    energy_r, energies_r, forces_r, stress_r = arrays(model, rotated(atoms, rotation))
    assert energy_r == pytest.approx(energy, abs=1e-10)
    np.testing.assert_allclose(energies_r, energies, atol=1e-11)
    np.testing.assert_allclose(forces_r, forces @ rotation.T, atol=1e-11)
    np.testing.assert_allclose(stress_r, rotation @ stress @ rotation.T, atol=1e-12)


def test_inversion_changes_nothing_but_signs_unless_irreps_are_labelled_even(model):
    """SO(3)-equivariant models, such as the published HIENet, have paths with odd l1 + l2 + l3 for irreps that are all
    labelled even: they tell a chiral structure from its mirror image."""
    atoms = silicon_carbide()
    energy, _, forces, stress = arrays(model, atoms)
    energy_i, _, forces_i, stress_i = arrays(model, rotated(atoms, -np.eye(3)))
    if model.info["symmetry"] == "SO(3)":
        assert abs(energy_i - energy) > 1e-9
        return
    assert energy_i == pytest.approx(energy, abs=1e-10)
    np.testing.assert_allclose(forces_i, -forces, atol=1e-11)
    np.testing.assert_allclose(stress_i, stress, atol=1e-12)


def test_inversion_symmetry_holds_where_only_even_paths_exist():
    model = tiny_model(equivariant_irreps=("8x0e", "6x0e"))
    assert model.info["symmetry"] == "O(3)"
    atoms = silicon_carbide()
    energy, _, forces, stress = arrays(model, atoms)
    energy_i, _, forces_i, stress_i = arrays(model, rotated(atoms, -np.eye(3)))
    assert energy_i == pytest.approx(energy, abs=1e-10)
    np.testing.assert_allclose(forces_i, -forces, atol=1e-11)
    np.testing.assert_allclose(stress_i, stress, atol=1e-12)


def test_translation_changes_nothing(model):
    atoms = silicon_carbide()
    moved = atoms.copy()
    moved.translate((0.3, -7.1, 2.9))
    for value, expected in zip(arrays(model, moved), arrays(model, atoms), strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-10)


def test_permuting_atoms_permutes_energies_and_forces(model):
    atoms = silicon_carbide()
    order = np.random.default_rng(0).permutation(len(atoms))
    energy, energies, forces, stress = arrays(model, atoms)
    energy_p, energies_p, forces_p, stress_p = arrays(model, atoms[order])
    assert energy_p == pytest.approx(energy, abs=1e-10)
    np.testing.assert_allclose(energies_p, energies[order], atol=1e-11)
    np.testing.assert_allclose(forces_p, forces[order], atol=1e-11)
    np.testing.assert_allclose(stress_p, stress, atol=1e-12)


def test_wrapping_atoms_by_lattice_vectors_changes_nothing(model):
    atoms = silicon_carbide()
    wrapped = atoms.copy()
    wrapped.positions[0] += atoms.cell[0] - 2 * atoms.cell[2]
    wrapped.positions[5] -= 3 * atoms.cell[1]
    for value, expected in zip(arrays(model, wrapped), arrays(model, atoms), strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-10)


def test_another_choice_of_lattice_vectors_changes_nothing(model):
    atoms = silicon_carbide()
    sheared = atoms.copy()
    sheared.set_cell(np.array([[1, 1, 0], [0, 1, 0], [0, -1, 1]]) @ atoms.cell.array, scale_atoms=False)
    for value, expected in zip(arrays(model, sheared), arrays(model, atoms), strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-10)


@pytest.mark.parametrize("repeat", [(2, 1, 1), (2, 3, 1), (2, 2, 2)])
def test_energy_is_extensive(model, repeat):
    atoms = silicon_carbide()
    energy, energies, forces, stress = arrays(model, atoms)
    n = int(np.prod(repeat))
    energy_n, energies_n, forces_n, stress_n = arrays(model, atoms.repeat(repeat))
    assert energy_n == pytest.approx(n * energy, abs=1e-9)
    np.testing.assert_allclose(energies_n, np.tile(energies, n), atol=1e-10)
    np.testing.assert_allclose(forces_n, np.tile(forces, (n, 1)), atol=1e-10)
    np.testing.assert_allclose(stress_n, stress, atol=1e-11)


def test_a_one_atom_cell_equals_its_supercell(model):
    cell = bulk("Si", "bcc", a=2.6)
    energy, _, forces, stress = arrays(model, cell)
    energy_8, _, _, stress_8 = arrays(model, cell.repeat(2))
    assert energy_8 == pytest.approx(8 * energy, abs=1e-9)
    np.testing.assert_allclose(stress_8, stress, atol=1e-11)
    np.testing.assert_allclose(forces, 0.0, atol=1e-11)


def test_a_batch_equals_its_structures_one_by_one(model):
    structures = [silicon_carbide(), bulk("Si"), ase.Atoms("C"), silicon_carbide((2, 1, 1), seed=3)]
    graphs = [graph_from_atoms(atoms, model.elements, model.cutoff) for atoms in structures]
    batch = predict(model.module, batch_graphs(graphs))
    assert batch.forces is not None
    assert batch.stress is not None
    start = 0
    for i, atoms in enumerate(structures):
        single = model.predict(atoms)
        stop = start + len(atoms)
        assert float(batch.energy[i]) == pytest.approx(float(single.energy[0]), abs=1e-10)
        torch.testing.assert_close(batch.forces[start:stop], single.forces, atol=1e-11, rtol=0)
        torch.testing.assert_close(batch.stress[i], single.stress[0], atol=1e-12, rtol=0, equal_nan=True)
        start = stop


@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False), (False, False, False)])
def test_forces_are_minus_the_gradient_of_the_energy(model, pbc):
    atoms = silicon_carbide()
    atoms.set_pbc(pbc)
    _, _, forces, _ = arrays(model, atoms)
    numeric = finite_difference_forces(lambda a: energy_of(model, a), atoms)
    np.testing.assert_allclose(forces, numeric, atol=2e-9)


def test_stress_is_the_strain_derivative_of_the_energy(model):
    atoms = silicon_carbide()
    _, _, _, stress = arrays(model, atoms)
    numeric = finite_difference_stress(lambda a: energy_of(model, a), atoms)
    np.testing.assert_allclose(stress, numeric, atol=1e-9)


def test_forces_sum_to_zero(model):
    _, _, forces, _ = arrays(model, silicon_carbide())
    np.testing.assert_allclose(forces.sum(axis=0), 0.0, atol=1e-12)


def test_an_isolated_atom_has_no_forces_and_an_undefined_stress(model):
    energy, _, forces, stress = arrays(model, ase.Atoms("Si"))
    assert np.isfinite(energy)
    np.testing.assert_array_equal(forces, 0.0)
    assert np.isnan(stress).all()


def test_two_far_atoms_are_two_isolated_atoms(model):
    pair = ase.Atoms("SiC", positions=[[0, 0, 0], [0, 0, model.cutoff + 1e-9]])
    assert energy_of(model, pair) == pytest.approx(
        energy_of(model, ase.Atoms("Si")) + energy_of(model, ase.Atoms("C")), abs=1e-12
    )


def pair_energy_and_force(model: LoadedModel, distance: float) -> tuple[float, float]:
    """A trimer whose third atom sits at `distance` of the first, whose environment is not empty without it."""
    atoms = ase.Atoms("SiCSi", positions=[[0, 0, 0], [1.8, 0.3, 0], [0, 0, distance]])
    energy, _, forces, _ = arrays(model, atoms)
    return energy, forces[2, 2]


def test_energy_and_forces_are_continuous_through_the_cutoff(model):
    inside = pair_energy_and_force(model, model.cutoff - 1e-5)
    outside = pair_energy_and_force(model, model.cutoff + 1e-5)
    assert inside[0] == pytest.approx(outside[0], abs=1e-9)
    assert inside[1] == pytest.approx(outside[1], abs=1e-9)


def test_the_slope_of_the_force_vanishes_at_the_cutoff(model):
    step = 1e-3
    forces = [pair_energy_and_force(model, model.cutoff + offset)[1] for offset in (-step, 0.0, step)]
    assert abs(forces[2] - forces[1]) / step < 1e-9
    assert abs(forces[1] - forces[0]) / step < 1e-3


def test_without_the_smooth_cutoff_the_energy_jumps_as_in_the_authors_model():
    model = tiny_model(smooth_cutoff=False)
    inside = pair_energy_and_force(model, model.cutoff - 1e-5)
    outside = pair_energy_and_force(model, model.cutoff + 1e-5)
    assert abs(inside[0] - outside[0]) > 1e-4


def test_float32_agrees_with_float64(architecture):
    single, double = (tiny_model(dtype, architecture=architecture) for dtype in (torch.float32, torch.float64))
    atoms = silicon_carbide((2, 1, 1))
    expected, found = arrays(double, atoms), arrays(single, atoms)
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    np.testing.assert_allclose(found[2], expected[2], atol=1e-4)
    np.testing.assert_allclose(found[3], expected[3], atol=1e-5)


def test_reference_energies_of_thousands_of_electronvolts_survive_float32(architecture):
    shift = (-1024.123456789, -528190.987654321)
    single, double = (
        tiny_model(dtype, architecture=architecture, shift=shift) for dtype in (torch.float32, torch.float64)
    )
    atoms = silicon_carbide()
    difference = single.predict(atoms).energies - double.predict(atoms).energies
    assert float(difference.abs().max()) < 1e-5
