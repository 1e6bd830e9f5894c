"""On one rank LAMMPS computes what Python computes: first the inputs of the network, then energy, forces and stress."""

from __future__ import annotations

import ase.neighborlist
import numpy as np
import pytest
import torch
from analytic import CUTOFF, LJ_STAGES, Recorder, write_deployed
from runs import BAR_IN_LAMMPS, Setup, evaluate, lammps_cell

from hienet.calculator import load_model
from hienet.lammps import create
from hienet.testing import awkward_structures, silicon_carbide

STRUCTURES = awkward_structures()
SYSTEMS = pytest.mark.parametrize("name", STRUCTURES)


def sorted_edges(i, j, vectors) -> tuple[np.ndarray, np.ndarray]:
    """Pairs `[n, 2]` and vectors `[n, 3]` in an order that depends on neither the list nor its shifts."""
    x, y, z = np.round(vectors, 4).T
    order = np.lexsort((z, y, x, j, i))
    return np.stack([i, j], 1)[order], vectors[order]


@SYSTEMS
def test_the_network_receives_every_neighbour_and_image_once(name, models, tmp_path):
    """The model writes its inputs to a file; ASE's neighbour list is the judge.

    An edge vector tells periodic images apart as the shift does, and checks the geometry besides.
    """
    atoms = STRUCTURES[name]
    record = tmp_path / "graph.pt"
    model = write_deployed(Recorder(str(record)), tmp_path / "recorder.hienet.pt", LJ_STAGES)
    evaluate(atoms, Setup(model, before_box="atom_modify sort 0 0"), tmp_path)
    species, center, neighbor, vectors = (t.numpy() for t in torch.load(record))
    assert species.tolist() == [["C", "Si"].index(s) for s in atoms.symbols]
    assert (np.diff(center) >= 0).all(), "edges must be sorted by center"
    i, j, d = ase.neighborlist.neighbor_list("ijD", atoms, CUTOFF)
    expected_pairs, expected_vectors = sorted_edges(i, j, d @ lammps_cell(atoms)[1].T)
    pairs, found_vectors = sorted_edges(center, neighbor, vectors)
    np.testing.assert_array_equal(pairs, expected_pairs)
    np.testing.assert_allclose(found_vectors, expected_vectors, atol=1e-9)


@SYSTEMS
def test_energy_forces_and_stress_are_those_of_python(name, models, tmp_path):
    atoms = STRUCTURES[name]
    expected = load_model(models["float64"]).predict(atoms)
    found = evaluate(atoms, Setup(models["float64"]), tmp_path)
    assert found.energy == pytest.approx(expected.energy.item(), abs=1e-8)
    np.testing.assert_allclose(found.energies, expected.energies.numpy(), atol=1e-8)
    np.testing.assert_allclose(found.forces, expected.forces.numpy(), atol=1e-7)
    np.testing.assert_allclose(found.stress, expected.stress[0].numpy(), atol=1e-9)
    assert found.exchanges == 0
    assert found.ghosts == 0


@SYSTEMS
def test_per_atom_energies_and_stresses_add_up(name, models, tmp_path):
    atoms = STRUCTURES[name]
    found = evaluate(atoms, Setup(models["float64"]), tmp_path)
    assert found.energies.sum() == pytest.approx(found.energy, abs=1e-8)
    cell, rotation = lammps_cell(atoms)
    pressure = -rotation @ found.stress @ rotation.T * BAR_IN_LAMMPS
    total = -pressure * abs(np.linalg.det(cell))
    order = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2), (1, 0), (2, 0), (2, 1)]
    scale = max(1.0, np.abs(total).max())
    np.testing.assert_allclose(found.atom_stress / scale, [total[ij] / scale for ij in order[:6]], atol=1e-9)
    np.testing.assert_allclose(found.centroid_stress / scale, [total[ij] / scale for ij in order], atol=1e-9)


def test_an_analytic_model_agrees_with_lammps_own_pair_style(models, tmp_path):
    """Lennard-Jones as a deployed file against `pair_style lj/cut`: signs, factors and orders are LAMMPS' own."""
    atoms = STRUCTURES["tilt -"]
    found = evaluate(atoms, Setup(models["lj"]), tmp_path)
    lj = "pair_style hybrid/overlay lj/cut 4.0 hienet\npair_coeff * * lj/cut 0.05 2.0\n"
    lj += f"pair_coeff * * hienet {models['lj']} C Si\n"
    both = evaluate(atoms, Setup(models["lj"], pair=lj), tmp_path)
    for quantity in ("energy", "forces", "stress", "energies", "atom_stress", "centroid_stress"):
        np.testing.assert_allclose(
            getattr(both, quantity), 2 * np.asarray(getattr(found, quantity)), rtol=1e-10, atol=1e-9
        )


@pytest.mark.parametrize("symbols", [("Si", "C"), ("C", "Si", "Si"), ("Si", "C", "Si", "C")])
def test_types_may_be_reversed_unused_or_share_an_element(symbols, models, tmp_path):
    atoms = STRUCTURES["small cell"]
    expected = evaluate(atoms, Setup(models["float64"]), tmp_path)
    found = evaluate(atoms, Setup(models["float64"], type_symbols=symbols), tmp_path)
    assert found.energy == pytest.approx(expected.energy, abs=1e-10)
    np.testing.assert_allclose(found.forces, expected.forces, atol=1e-10)


def test_an_unused_type_changes_nothing(models, tmp_path):
    atoms = STRUCTURES["small cell"][[i for i, s in enumerate(STRUCTURES["small cell"].symbols) if s == "Si"]]
    expected = load_model(models["float64"]).predict(atoms)
    found = evaluate(atoms, Setup(models["float64"], type_symbols=("C", "Si")), tmp_path)
    np.testing.assert_allclose(found.forces, expected.forces.numpy(), atol=1e-7)


@pytest.mark.parametrize("style", ["precision model", "precision double", "precision mixed"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_single_precision_stays_within_its_tolerance(style, dtype, models, tmp_path):
    atoms = STRUCTURES["bulk"]
    exact = evaluate(atoms, Setup(models["float64"]), tmp_path)
    found = evaluate(atoms, Setup(models[dtype], style=style), tmp_path)
    assert found.energy == pytest.approx(exact.energy, rel=1e-5)
    np.testing.assert_allclose(found.forces, exact.forces, atol=1e-4)
    np.testing.assert_allclose(found.stress, exact.stress, atol=1e-5)


def test_the_number_of_threads_is_given_back(models, tmp_path):
    """LAMMPS runs inside this process: torch computes with other threads during a step only."""
    before = torch.get_num_threads()
    expected = evaluate(STRUCTURES["bulk"], Setup(models["float64"]), tmp_path)
    found = evaluate(STRUCTURES["bulk"], Setup(models["float64"], style="threads 2"), tmp_path)
    assert torch.get_num_threads() == before
    np.testing.assert_allclose(found.forces, expected.forces, atol=1e-9)


def test_forces_are_the_derivative_of_the_energy(models, tmp_path):
    atoms = STRUCTURES["small cell"]
    setup, step = Setup(models["float64"]), 1e-4
    forces = evaluate(atoms, setup, tmp_path).forces
    for index in [(0, 0), (3, 1), (7, 2)]:
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[index] += sign * step
            energies.append(evaluate(moved, setup, tmp_path).energy)
        assert forces[index] == pytest.approx(-(energies[0] - energies[1]) / (2 * step), abs=2e-6)


def test_press_is_the_derivative_by_finite_strain_of_a_sheared_cell(models, tmp_path):
    """All six components through `thermo_style ... pxx`, with the strain applied to the restricted triclinic box."""
    atoms = silicon_carbide(1)
    shear = np.array([[1, 0, 0], [0.3, 1, 0], [-0.2, 0.25, 1]])
    cell, rotation = lammps_cell(atoms)
    atoms.positions = atoms.positions @ rotation.T
    atoms.set_cell(cell, scale_atoms=False)
    atoms.set_cell(cell @ shear, scale_atoms=True)
    setup, step = Setup(models["float64"]), 1e-5
    stress = evaluate(atoms, setup, tmp_path).stress
    for i, j in [(0, 0), (1, 1), (2, 2), (1, 0), (2, 0), (2, 1)]:
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            # Only one off-diagonal entry: the cell stays lower triangular, as LAMMPS wants it.
            strain[i, j] += sign * step
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            energies.append(evaluate(strained, setup, tmp_path).energy)
        derivative = (energies[0] - energies[1]) / (2 * step) / atoms.get_volume()
        assert stress[i, j] == pytest.approx(derivative, abs=1e-6), f"component {'xyz'[i]}{'xyz'[j]}"


def test_scale_can_be_changed_by_fix_adapt(models, tmp_path):
    atoms = STRUCTURES["small cell"]
    full = evaluate(atoms, Setup(models["float64"]), tmp_path)
    half = evaluate(
        atoms,
        Setup(models["float64"], commands="variable half equal 0.5\nfix s all adapt 0 pair hienet scale * * v_half"),
        tmp_path,
    )
    np.testing.assert_allclose(half.forces, 0.5 * full.forces, atol=1e-10)
    assert half.energy == pytest.approx(0.5 * full.energy)


def test_units_real_give_the_same_physics(models, tmp_path):
    atoms = STRUCTURES["cluster"]
    expected = evaluate(atoms, Setup(models["float64"]), tmp_path)
    real = evaluate(atoms, Setup(models["float64"], before_box="units real"), tmp_path)
    assert real.energy == pytest.approx(expected.energy * 23.060549, rel=1e-7)
    np.testing.assert_allclose(real.forces, expected.forces * 23.060549, rtol=1e-7)


def test_clear_run_twice_and_pair_coeff_again(models, tmp_path):
    """One LAMMPS instance through `run 0` twice, a second `pair_coeff`, and `clear`."""
    atoms = STRUCTURES["small cell"]
    setup = Setup(models["float64"])
    expected = evaluate(atoms, setup, tmp_path).energy
    lammps = create()
    try:
        for _ in range(2):
            lammps.commands_string(setup.preamble(atoms, tmp_path / "data.test") + "run 0\nrun 0\n")
            assert lammps.get_thermo("pe") == pytest.approx(expected, abs=1e-9)
            lammps.commands_string(f"pair_coeff * * {models['float64']} C Si\nrun 0\nrun 3")
            lammps.command("clear")
    finally:
        lammps.close()


def test_energies_and_virial_may_be_asked_for_apart(models, tmp_path):
    """Steps without energy, without virial, and with both leave the same trajectory."""
    atoms = STRUCTURES["small cell"]
    setup, finals = Setup(models["float64"]), []
    setup.write(tmp_path / "data.test", atoms)
    for thermo in (1, 4):
        lammps = create()
        try:
            lammps.commands_string(setup.preamble(atoms, tmp_path / "data.test"))
            lammps.commands_string("velocity all create 300 1\nfix 2 all nph iso 0 0 0.1\nunfix nve")
            lammps.commands_string(f"thermo {thermo}\nrun 4")
            finals.append(lammps.get_thermo("pe"))
        finally:
            lammps.close()
    assert finals[0] == pytest.approx(finals[1], abs=1e-9)
