"""Numbers from the demo's runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.build import bulk
from ase.eos import EquationOfState
from ase.units import GPa
from numpy.typing import NDArray

from hienet.calculator import HIENetCalculator
from hienet.errors import HIENetError

DFT_LATTICE_CONSTANT = 4.3897
"""Å; Birch-Murnaghan fit to the frames `eos` of the data set."""

DFT_BULK_MODULUS = 209.4
"""GPa; the same fit."""


@dataclass(frozen=True)
class Equation:
    """Minimum of a Birch-Murnaghan equation of state: lattice constant (Å) and bulk modulus (GPa)."""

    lattice_constant: float
    bulk_modulus: float


def equation_of_state(model: Path) -> Equation:
    """From energies at 11 volumes within 6 % of DFT's."""
    calculator = HIENetCalculator(model, dtype="float64")
    volumes, energies = [], []
    for factor in np.linspace(0.94, 1.06, 11):
        atoms = bulk("SiC", "zincblende", a=DFT_LATTICE_CONSTANT * factor ** (1 / 3), cubic=True)
        atoms.calc = calculator
        volumes.append(atoms.get_volume())
        energies.append(atoms.get_potential_energy())
    volume, _, bulk_modulus = EquationOfState(volumes, energies, eos="birchmurnaghan").fit()
    return Equation(float(volume ** (1 / 3)), float(bulk_modulus / GPa))


@dataclass(frozen=True)
class Dynamics:
    """Thermodynamic output of one run: columns by LAMMPS' names, metal units."""

    columns: dict[str, NDArray[np.float64]]
    n_atoms: int
    atom_steps_per_second: float

    def _settled(self, name: str) -> NDArray[np.float64]:
        values = self.columns[name]
        return values[int(0.4 * len(values)) :]

    @property
    def mean_volume(self) -> float:
        """Å^3, without the first 40 % of the run."""
        return float(self._settled("Volume").mean())

    @property
    def mean_volume_error(self) -> float:
        """Its standard error (Å^3), from the means of three blocks."""
        blocks = [block.mean() for block in np.array_split(self._settled("Volume"), 3)]
        return float(np.std(blocks, ddof=1) / np.sqrt(3))

    @property
    def mean_temperature(self) -> float:
        """K, without the first 40 % of the run."""
        return float(self._settled("Temp").mean())

    @property
    def drift(self) -> float:
        """Slope of the total energy (meV/atom/ps), by least squares over all but the first tenth of the run."""
        return self._slope_and_error()[0]

    @property
    def drift_error(self) -> float:
        """Its standard error (meV/atom/ps)."""
        return self._slope_and_error()[1]

    def _slope_and_error(self) -> tuple[float, float]:
        time, energy = self.columns["Time"], self.columns["TotEng"]
        settled = time >= 0.1 * time[-1]
        fit, covariance = np.polyfit(time[settled], 1e3 * energy[settled] / self.n_atoms, 1, cov=True)
        return float(fit[0]), float(np.sqrt(covariance[0, 0]))


def thermal_expansion(cold: Dynamics, hot: Dynamics, difference: float) -> tuple[float, float]:
    """Linear expansion between two runs that lie `difference` K apart, and its standard error (1/K)."""
    ratio = (hot.mean_volume / cold.mean_volume) ** (1 / 3)
    relative = np.hypot(hot.mean_volume_error / hot.mean_volume, cold.mean_volume_error / cold.mean_volume)
    return (ratio - 1) / difference, float(ratio * relative / 3 / difference)


def read_dynamics(log: Path) -> Dynamics:
    """From what LAMMPS printed.

    Raises:
        HIENetError: the run did not finish.
    """
    text = log.read_text()
    loop = re.search(r"Loop time of (\S+) on \d+ procs for (\d+) steps with (\d+) atoms", text)
    if loop is None:
        raise HIENetError(f"`{log}` does not hold a complete run; delete it and start again")
    seconds, steps, n_atoms = float(loop[1]), int(loop[2]), int(loop[3])
    lines = text[: loop.start()].splitlines()
    head = max(i for i, line in enumerate(lines) if line.split()[:1] == ["Step"])
    names = lines[head].split()
    rows = np.array(
        [[float(word) for word in line.split()] for line in lines[head + 1 :] if len(line.split()) == len(names)]
    )
    return Dynamics(dict(zip(names, rows.T, strict=True)), n_atoms, steps * n_atoms / seconds)


def read_rdf(path: Path) -> dict[str, NDArray[np.float64]]:
    """Distances `r` (Å) and g(r) of `Si-Si`, `Si-C` and `C-C`, from the file that the deck `nvt` writes."""
    rows = np.array(
        [line.split() for line in path.read_text().splitlines() if not line.startswith("#")][1:], dtype=float
    )
    return {"r": rows[:, 1], "Si-Si": rows[:, 2], "Si-C": rows[:, 4], "C-C": rows[:, 6]}
