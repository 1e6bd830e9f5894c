"""Molecular dynamics: energy and momentum are conserved, pressure pushes outwards, the cutoff is not felt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ase
import numpy as np
import pytest
from conftest import with_velocities
from runs import TIMEOUT, Setup, run

from hienet.calculator import load_model
from hienet.lammps import create, run_deck
from hienet.testing import silicon_carbide

TRAINED = Path(__file__).resolve().parents[2] / "lammps_examples" / "sic.hienet.pt"
"""Trained on the forces and stresses of 3C-SiC: real solids hold together with it."""


def total_energies(setup: Setup, folder: Path, timestep: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Total energies (eV) and total momenta (atomic mass units x Å/ps) along a run in the microcanonical ensemble."""
    atoms = with_velocities(silicon_carbide((2, 1, 1), rattle=0.05), size=4.0)
    setup.write(folder / "data.test", atoms)
    lammps = create()
    energies, momenta = [], []
    try:
        lammps.commands_string(setup.preamble(atoms, folder / "data.test"))
        lammps.commands_string(f"timestep {timestep}\nthermo_style custom etotal\nrun 0")
        for _ in range(10):
            lammps.command(f"run {steps // 10} pre no post no")
            energies.append(lammps.get_thermo("etotal"))
            n = lammps.extract_global("nlocal")
            momenta.append(28.0 * np.array(lammps.numpy.extract_atom("v")[:n]).sum(0))
    finally:
        lammps.close()
    return np.array(energies), np.array(momenta)


@pytest.mark.parametrize(("dtype", "rounding"), [("float64", 1e-9), ("float32", 1e-4)])
def test_the_total_energy_varies_with_the_square_of_the_timestep(dtype, rounding, models, tmp_path):
    """As the velocity Verlet scheme does with exact forces; a force that is not the derivative drifts instead."""
    setup, duration = Setup(models[dtype]), 0.1
    spread = {}
    for timestep in (0.002, 0.001):
        energies, momenta = total_energies(setup, tmp_path, timestep, round(duration / timestep))
        spread[timestep] = np.ptp(energies)
        assert np.abs(momenta - momenta[0]).max() < rounding
    assert spread[0.002] > 20 * rounding, "the run must be violent enough to show something"
    assert spread[0.001] < spread[0.002] / 3 + rounding


def volume_after(strain: float, folder: Path, style: str) -> tuple[float, float]:
    """Relative change of volume, and pressure (bar) before, of SiC that starts with strained axes."""
    atoms = silicon_carbide((2, 1, 1), rattle=0.01)
    atoms.set_cell(atoms.cell.array * (1 + strain), scale_atoms=True)
    setup = Setup(TRAINED)
    setup.write(folder / "data.test", atoms)
    lammps = create()
    try:
        lammps.commands_string(setup.preamble(atoms, folder / "data.test"))
        lammps.commands_string("unfix nve\nvelocity all create 100 1\nthermo_style custom press vol")
        lammps.commands_string(f"fix n all npt temp 100 100 0.1 {style} 0 0 1.0\nrun 0")
        before, pressure = lammps.get_thermo("vol"), lammps.get_thermo("press")
        lammps.command("run 10")
        return lammps.get_thermo("vol") / before - 1, pressure
    finally:
        lammps.close()


@pytest.mark.parametrize("style", ["iso", "aniso", "tri"])
def test_a_compressed_crystal_expands_and_a_stretched_one_contracts(style, tmp_path):
    change, pressure = volume_after(-0.04, tmp_path, style)
    assert pressure > 1e4
    assert change > 0.01
    change, pressure = volume_after(0.04, tmp_path, style)
    assert pressure < -1e4
    assert change < -0.01


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_atom_crosses_the_cutoff_smoothly(ranks, models, tmp_path):
    """A third atom leaves the neighbourhood of two, on another rank: a run at constant velocity through the cutoff."""
    cutoff, step = 4.0, 0.01
    atoms = ase.Atoms("CSiSi", [[5.0, 5.0, 5.0], [5.0, 6.8, 5.0], [4.0 + cutoff, 5.0, 5.2]], cell=[14, 10, 10])
    atoms.pbc = False
    setup = Setup(models["float64"], before_box=f"processors {ranks} 1 1\natom_modify map array", skin=0.3)
    setup.write(tmp_path / "data.test", atoms)
    # `fix move` moves the atom whatever the forces; 130 steps of 0.01 Å end far outside.
    deck_commands = f"group mover id 3\nunfix nve\nfix go mover move linear {step / 0.001} 0 0 units box"
    positions, energies, forces = scan(atoms, setup, deck_commands, tmp_path, ranks, steps=130)
    assert positions == pytest.approx(atoms.positions[2, 0] + step * np.arange(131)[-len(positions) :])
    outside = np.hypot(positions - 5.0, 0.2) >= cutoff
    assert outside[0] == 0
    assert outside[-1] == 1
    oracle = load_model(models["float64"])
    apart = sum(float(oracle.predict(atoms[part]).energy) for part in ([0, 1], [2]))
    np.testing.assert_allclose(energies[outside], apart, atol=1e-8)
    np.testing.assert_allclose(forces[outside], 0.0, atol=1e-8)
    # The force is the derivative all the way, so that it has no jump either: the energy is the integral of the force.
    work = np.concatenate([[0.0], np.cumsum(0.5 * step * (forces[1:] + forces[:-1]))])
    assert np.abs(energies - energies[0]).max() > 1e-3
    np.testing.assert_allclose(energies - energies[0], -work, atol=1e-2 * np.abs(energies - energies[0]).max())
    jumps = np.abs(np.diff(forces))
    assert jumps.max() < 0.25 * np.abs(forces).max()
    last = np.flatnonzero(~outside)[-3:]
    assert np.abs(forces[last]).max() < 0.02 * np.abs(forces).max()


def scan(atoms: ase.Atoms, setup: Setup, commands: str, folder: Path, ranks: int, steps: int) -> np.ndarray:
    """Position x of the third atom, energy, and x component of its force, at every step of a run."""
    deck = f"""{setup.preamble(atoms, folder / "data.test")}
{commands}
variable energy equal pe
variable force equal fx[3]
variable place equal x[3]
thermo 1
fix out all print 1 "${{place}} ${{energy}} ${{force}}" file {folder}/scan screen no title ""
run {steps}
"""
    run_deck(deck, ranks, timeout=TIMEOUT, cwd=folder)
    return np.loadtxt(folder / "scan").T


def test_four_ranks_follow_the_trajectory_of_one_in_single_precision(models, tmp_path):
    """Twenty steps in float32: the differences stay at rounding."""
    atoms = with_velocities(silicon_carbide((2, 2, 1)))
    setup = Setup(models["float32"])
    one = run(atoms, setup, tmp_path)[-1]
    four = run(atoms, replace(setup, before_box="processors 2 2 1"), tmp_path, 4)[-1]
    assert four.energy == pytest.approx(one.energy, rel=1e-5)
    np.testing.assert_allclose(four.forces, one.forces, atol=1e-3)
    np.testing.assert_allclose(four.stress, one.stress, atol=1e-4)
