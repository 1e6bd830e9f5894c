"""A model with repulsion at short range in LAMMPS: like Python, on any number of ranks, and like `pair_style zbl`."""

from __future__ import annotations

from pathlib import Path

import ase
import numpy as np
import pytest
from conftest import with_velocities
from hienet_deploy.export import export
from runs import Setup, evaluate, run

from hienet.calculator import load_model
from hienet.lammps import create
from hienet.testing import silicon_carbide, write_tiny_checkpoint

OUTER = 1.11 + 0.76
"""Where it ends between Si and C (Å)."""


@pytest.fixture(scope="module")
def files(plugin, tmp_path_factory) -> dict[str, Path]:
    """The same network with it, in three files, and without."""
    folder = tmp_path_factory.mktemp("zbl")
    small: dict[str, object] = {"equivariant_irreps": ("6x0e+3x1e", "6x0e"), "l_max": 1, "scale": (40.0, 55.0)}
    checkpoint = write_tiny_checkpoint(folder / "zbl.pt", zbl=True, **small)
    without = write_tiny_checkpoint(folder / "none.pt", **small)
    return {
        "checkpoint": checkpoint,
        "float64": export(checkpoint, folder / "zbl64.hienet.pt", dtype="float64").path,
        "float32": export(checkpoint, folder / "zbl32.hienet.pt").path,
        "plain": export(checkpoint, folder / "zbl.hienet.pt", dtype="float64", compiled=False).path,
        "without": export(without, folder / "none.hienet.pt", dtype="float64", compiled=False).path,
    }


def dimer(distance: float) -> ase.Atoms:
    """Si and C in a box that one atom of the pair could leave."""
    atoms = ase.Atoms("SiC", positions=[[0, 0, 0], [0.6 * distance, 0, 0.8 * distance]], cell=np.eye(3) * 12.0)
    atoms.positions += 6.0 - 0.5 * atoms.positions[1]
    return atoms


def crystal(distance: float) -> ase.Atoms:
    """Rattled zincblende with neighbours about `distance` apart, two by one by one cells."""
    atoms = silicon_carbide((2, 1, 1), rattle=0.0)
    atoms.set_cell(atoms.cell.array * distance / 1.9, scale_atoms=True)
    atoms.rattle(0.02 * distance, seed=4)
    return atoms


@pytest.mark.parametrize("distance", [0.3, 1.0, OUTER - 1e-6, OUTER + 1e-6])
@pytest.mark.parametrize(("name", "tolerance"), [("float64", 1e-7), ("plain", 1e-12), ("float32", 1e-5)])
def test_a_dimer_is_that_of_python(name, tolerance, distance, files, tmp_path):
    atoms = dimer(distance)
    expected = load_model(files["checkpoint"]).predict(atoms)
    found = evaluate(atoms, Setup(files[name]), tmp_path)
    assert found.energy == pytest.approx(expected.energy.item(), rel=tolerance, abs=tolerance)
    size = max(10.0, float(expected.forces.abs().max()))
    np.testing.assert_allclose(found.forces, expected.forces.numpy(), atol=10 * tolerance * size)
    assert found.energy > 700 or distance > 0.3


@pytest.mark.parametrize("name", ["float64", "float32"])
def test_a_compressed_crystal_on_three_ranks(name, files, tmp_path):
    atoms = with_velocities(crystal(1.1))
    expected = run(atoms, Setup(files[name]), tmp_path, steps=3)
    found = run(atoms, Setup(files[name], before_box="processors 3 1 1"), tmp_path, 3, steps=3)
    tolerance = 1e-9 if name == "float64" else 1e-5
    for a, b in zip(found, expected, strict=True):
        assert b.energy > 300
        size = np.abs(b.forces).max()
        assert a.energy == pytest.approx(b.energy, rel=tolerance)
        np.testing.assert_allclose(a.forces / size, b.forces / size, atol=tolerance)
        np.testing.assert_allclose(a.stress, b.stress, rtol=tolerance, atol=tolerance * np.abs(b.stress).max())
    # As many exchanges as without it: three stages, two boundaries between them, there and back.
    assert found[0].exchanges == 2 * 2


@pytest.mark.parametrize("distance", [0.3, 0.4])
def test_the_difference_it_makes_is_lammps_own_zbl(distance, files, tmp_path):
    """Where the envelope is one. LAMMPS shifts the energy by a constant, so that forces are compared."""
    own = "pair_style hybrid/overlay hienet zbl 3.9 4.0\npair_coeff * * hienet {} C Si\n".format(files["without"])
    own += "pair_coeff 1 1 zbl 6 6\npair_coeff 1 2 zbl 6 14\npair_coeff 2 2 zbl 14 14"
    expected = evaluate(dimer(distance), Setup(files["without"], pair=own), tmp_path)
    found = evaluate(dimer(distance), Setup(files["plain"]), tmp_path)
    assert np.abs(found.forces).max() > 2000
    np.testing.assert_allclose(found.forces, expected.forces, rtol=0.01)
    assert found.energy == pytest.approx(expected.energy, rel=0.01)


def test_forces_are_the_derivative_of_the_energy(files, tmp_path):
    """Across the distance where it ends too."""
    setup = Setup(files["float64"])
    for distance in (0.3, 1.2, OUTER):
        step = 1e-5
        energies = [evaluate(dimer(distance + sign * step), setup, tmp_path).energy for sign in (-1, 1)]
        force = evaluate(dimer(distance), setup, tmp_path).forces[1] @ [0.6, 0, 0.8]
        assert force == pytest.approx((energies[0] - energies[1]) / (2 * step), rel=1e-6, abs=1e-5)


def test_a_collision_conserves_the_energy(files, tmp_path):
    """Two atoms thrown at each other turn round closer than half an angstrom; the steps are short, as recoils need."""
    atoms = dimer(1.6)
    axis = np.array([0.6, 0.0, 0.8])
    # 180 eV each, with masses of 28.
    atoms.set_array("velocities", np.array([350.0 * axis, -350.0 * axis]))
    setup = Setup(files["float64"], commands="timestep 0.00001", skin=2.0)
    setup.write(tmp_path / "data.test", atoms)
    lammps = create()
    try:
        lammps.commands_string(setup.preamble(atoms, tmp_path / "data.test") + "thermo_modify norm no\nrun 0 post no")
        rows = []
        for _ in range(40):
            rows.append((lammps.get_thermo("pe"), lammps.get_thermo("etotal")))
            lammps.command("run 15 post no")
    finally:
        lammps.close()
    potential, total = np.array(rows).T
    assert potential.max() > 300
    assert potential[-1] < 50
    assert np.ptp(total) < 0.05
