"""Labelled frames of copper for the example model `copper.pt`: crystals, strained crystals, hot crystals and melts.

Their labels are those of effective medium theory (EMT), which ASE has built in: a description of copper that takes
milliseconds where DFT takes minutes. All else is as with DFT. `python frames.py` writes `copper.extxyz`.
"""

from __future__ import annotations

from collections.abc import Iterator

import ase
import ase.io
import numpy as np
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.langevin import Langevin

LATTICE_CONSTANT = 3.59
"""Å, of copper in EMT."""

ATOMS = 32
TEMPERATURES = {"crystal": (300, 600, 900, 1200, 1500), "melt": (1200, 1500, 2000, 2500, 3000)}
"""K, of the dynamics from which frames are taken."""


def labelled(atoms: ase.Atoms, config_type: str) -> ase.Atoms:
    """A copy with the energy (eV), forces (eV/Å) and stress (eV/Å³) of EMT."""
    atoms.calc = EMT()
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": atoms.get_stress()}
    copy = atoms.copy()
    copy.info["config_type"] = config_type
    copy.calc = SinglePointCalculator(copy, **results)
    return copy


def crystal(volume: float = 1.0) -> ase.Atoms:
    """The crystal with its volume multiplied."""
    return bulk("Cu", a=LATTICE_CONSTANT * volume ** (1 / 3), cubic=True) * (2, 2, 2)


def strained(generator: np.random.Generator, n: int) -> Iterator[ase.Atoms]:
    """Crystals with random strains and displacements."""
    for _ in range(n):
        atoms = crystal()
        strain = generator.normal(0.0, 0.02, (3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
        atoms.positions += generator.normal(0.0, 0.05, atoms.positions.shape)
        yield labelled(atoms, "strained")


def dynamics(generator: np.random.Generator, kind: str, temperature: float, volume: float) -> Iterator[ase.Atoms]:
    """Five frames of dynamics at constant volume, of a crystal or of what was melted at 5000 K before."""
    atoms = crystal(volume)
    atoms.calc = EMT()
    # Twice the temperature: half of the kinetic energy becomes potential energy.
    spread = np.sqrt(2 * units.kB * temperature * atoms.get_masses())
    atoms.set_momenta(spread[:, None] * generator.normal(size=(len(atoms), 3)))
    bath = {"friction": 0.02 / units.fs, "rng": generator, "fixcm": False}
    if kind == "melt":
        Langevin(atoms, 3 * units.fs, temperature_K=5000, **bath).run(500)
    motion = Langevin(atoms, 3 * units.fs, temperature_K=temperature, **bath)
    motion.run(200)
    for _ in range(5):
        motion.run(60)
        yield labelled(atoms, f"{kind}_{temperature}K")


def main() -> None:
    generator = np.random.default_rng(1)
    frames = [labelled(crystal(volume), "volumes") for volume in np.linspace(0.85, 1.2, 10)]
    frames += strained(generator, 20)
    for kind, temperatures in TEMPERATURES.items():
        for temperature in temperatures:
            # Thermal expansion and that of melting, a little less and a little more.
            least = 0.98 if kind == "crystal" else 1.02
            for volume in (least, least + 0.05, least + 0.12):
                frames += dynamics(generator, kind, temperature, volume)
    ase.io.write("copper.extxyz", frames)
    print(f"{len(frames)} frames of {ATOMS} atoms in copper.extxyz")


if __name__ == "__main__":
    main()
