"""`hienet smoothness`: is the energy a smooth function, at the cutoff, where atoms are close, and between?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.data import atomic_numbers, covalent_radii
from matplotlib.figure import Figure

from hienet.errors import HIENetError
from hienet.figure import BLUE, COLORS, ORANGE, as_text, own_style, save_figure, tidy
from hienet.properties.engine import Array, Engine
from hienet.properties.progress import Progress, silent
from hienet.properties.screen import Column, Outcome
from hienet.properties.structures import Structure
from hienet.units import EV_PER_CUBIC_ANGSTROM_IN_GPA as GPA

_STEP = 1e-4
"""Å, on either side of the cutoff."""


@dataclass(frozen=True)
class SmoothnessSettings:
    """What is looked at.

    Attributes:
        n_points: on each curve.
        smallest: shortest distance of a dimer, as a part of the sum of covalent radii.
        compression: lengths of the cell, from and to, as parts of the given ones.
        path: Å, the way of an atom through its crystal.
        seed: of that atom and its direction.
    """

    n_points: int = 200
    smallest: float = 0.35
    compression: tuple[float, float] = (0.6, 1.5)
    path: float = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.compression
        if self.n_points < 20 or not 0.0 < self.smallest < 1.0 or not 0.0 < low < 1.0 < high:
            raise HIENetError(
                "smoothness needs at least 20 points, a shortest distance between 0 and 1 radii, and lengths around 1, "
                f"got {self.n_points}, {self.smallest:g} and {low:g} to {high:g}"
            )


@dataclass(frozen=True)
class Dimer:
    """Two atoms alone; energies without those of the atoms far apart.

    Attributes:
        symbols: of the two.
        distances: `[n]` (Å).
        energies: `[n]` (eV).
        forces: `[n]` (eV/Å), positive where they repel each other.
        cutoff_jump: step of the energy at the cutoff (eV); None where the cutoff is unknown.
    """

    symbols: tuple[str, str]
    distances: Array
    energies: Array
    forces: Array
    cutoff_jump: float | None

    @property
    def sign_changes(self) -> int:
        """Of the force, where it is more than noise; one for a plain bond, none without a bond."""
        signs = np.sign(self.forces[np.abs(self.forces) > 0.02])
        return int((np.diff(signs) != 0).sum())

    @property
    def tortuosity(self) -> float:
        """All that the energy goes up and down, over the least that leads through its minimum: 1 for a plain bond."""
        lowest = self.energies.min()
        least = (self.energies[0] - lowest) + (self.energies[-1] - lowest)
        return float(np.abs(np.diff(self.energies)).sum() / least) if least > 1e-9 else float("nan")

    @property
    def repels_when_close(self) -> bool:
        """At the shortest distance."""
        return bool(self.forces[0] > 0)


@dataclass(frozen=True)
class Compression:
    """A crystal whose cell is scaled; energies and pressures of equal indices.

    Attributes:
        scales: `[n]` of the lengths.
        energies: `[n]` (eV/atom).
        pressures: `[n]` (GPa).
    """

    scales: Array
    energies: Array
    pressures: Array

    @property
    def minima(self) -> int:
        """Of the energy; more than one means holes, into which a compressed crystal falls."""
        e = self.energies
        inner = (e[1:-1] < e[:-2]) & (e[1:-1] < e[2:])
        return int(inner.sum()) + int(e[0] < e[1])


@dataclass(frozen=True)
class Way:
    """An atom that moves through its crystal along a line.

    Attributes:
        distances: `[n]` (Å).
        energies: `[n]` (eV).
        forces: `[n]` (eV/Å) on the atom, along the line.
    """

    distances: Array
    energies: Array
    forces: Array

    @property
    def inconsistency(self) -> float:
        """eV; largest difference of the energy and the integral of the force, Simpson's rule, along the way."""
        step = self.distances[1] - self.distances[0]
        work = np.cumsum((self.forces[:-2:2] + 4.0 * self.forces[1:-1:2] + self.forces[2::2]) * step / 3.0)
        return float(np.abs(self.energies[2::2] - self.energies[0] + work).max())

    @property
    def largest_step(self) -> float:
        """eV/Å; largest change of the force from point to point beyond that of a parabola through its neighbours."""
        return float(np.abs(np.diff(self.forces, 3)).max())


@dataclass(frozen=True)
class Smoothness:
    """Of a structure and its elements."""

    dimers: list[Dimer]
    compression: Compression | None
    way: Way


def smoothness(
    atoms: ase.Atoms,
    engine: Engine,
    settings: SmoothnessSettings | None = None,
    progress: Progress | None = None,
) -> Smoothness:
    """Dimers of all pairs of elements, the cell compressed and stretched, and an atom moved.

    Args:
        atoms: a structure; compression needs a cell.
        engine: what gives energies and forces.
        settings: what is looked at.
        progress: told of each curve.
    """
    settings, progress = settings or SmoothnessSettings(), progress or silent()
    symbols = sorted(set(atoms.get_chemical_symbols()))
    pairs = list(combinations_with_replacement(symbols, 2))
    progress.begin("curves", len(pairs) + 2)
    dimers = []
    for pair in pairs:
        dimers.append(_dimer(pair, engine, settings))
        progress.advance()
    compression = _compress(atoms, engine, settings) if atoms.pbc.all() and atoms.cell.rank == 3 else None
    progress.advance()
    way = _move(atoms, engine, settings)
    progress.advance()
    return Smoothness(dimers, compression, way)


def _dimer(symbols: tuple[str, str], engine: Engine, settings: SmoothnessSettings) -> Dimer:
    radii = sum(covalent_radii[atomic_numbers[symbol]] for symbol in symbols)
    farthest = 6.0 if engine.cutoff is None else engine.cutoff + 0.3
    distances = np.linspace(settings.smallest * radii, farthest, settings.n_points)
    around = [] if engine.cutoff is None else [engine.cutoff - _STEP, engine.cutoff + _STEP]
    found = engine.calculate([_pair(symbols, distance) for distance in (*distances, *around, 4.0 * farthest)])
    apart = found[-1].energy
    energies = np.array([each.energy for each in found[: len(distances)]]) - apart
    forces = np.array([each.forces[1, 0] for each in found[: len(distances)]])
    jump = None if engine.cutoff is None else abs(found[-2].energy - found[-3].energy)
    return Dimer(symbols, distances, energies, forces, jump)


def _pair(symbols: tuple[str, str], distance: float) -> ase.Atoms:
    return ase.Atoms(list(symbols), positions=[[0.0, 0.0, 0.0], [distance, 0.0, 0.0]])


def _compress(atoms: ase.Atoms, engine: Engine, settings: SmoothnessSettings) -> Compression:
    scales = np.linspace(*settings.compression, settings.n_points)
    cells = []
    for scale in scales:
        cell = ase.Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
        cell.set_cell(atoms.cell.array * scale, scale_atoms=True)
        cells.append(cell)
    found = engine.calculate(cells)
    pressures = [float("nan") if each.stress is None else -each.stress[:3].mean() * GPA for each in found]
    return Compression(scales, np.array([each.energy for each in found]) / len(atoms), np.array(pressures))


def _move(atoms: ase.Atoms, engine: Engine, settings: SmoothnessSettings) -> Way:
    random = np.random.default_rng(settings.seed)
    index = int(random.integers(len(atoms)))
    direction = random.standard_normal(3)
    direction /= np.linalg.norm(direction)
    # An odd number of points, for Simpson's rule.
    distances = np.linspace(0.0, settings.path, 2 * (settings.n_points // 2) + 1)
    moved = []
    for distance in distances:
        each = ase.Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        each.positions[index] += distance * direction
        moved.append(each)
    found = engine.calculate(moved)
    return Way(
        distances,
        np.array([each.energy for each in found]),
        np.array([each.forces[index] @ direction for each in found]),
    )


def smoothness_of_structures(
    structures: Sequence[Structure], engine: Engine, settings: SmoothnessSettings, progress: Progress
) -> list[Outcome | HIENetError]:
    """Outcomes for `screen`."""
    return [_outcome(s, smoothness(s.atoms, engine, settings, progress)) for s in structures]


def _outcome(structure: Structure, found: Smoothness) -> Outcome:
    jumps = [dimer.cutoff_jump for dimer in found.dimers if dimer.cutoff_jump is not None]
    row: dict[str, Any] = {
        "formula": structure.atoms.get_chemical_formula(),
        "pairs": len(found.dimers),
        "cutoff_jump_mev": 1e3 * max(jumps) if jumps else None,
        "largest_number_of_sign_changes": max(dimer.sign_changes for dimer in found.dimers),
        "largest_tortuosity": max(dimer.tortuosity for dimer in found.dimers),
        "all_repel_when_close": all(dimer.repels_when_close for dimer in found.dimers),
        "minima_under_compression": None if found.compression is None else found.compression.minima,
        "force_inconsistency_mev": 1e3 * found.way.inconsistency,
        "largest_force_step_mev_per_angstrom": 1e3 * found.way.largest_step,
    }
    details: dict[str, Any] = {
        "dimers": {
            "-".join(dimer.symbols): {
                "distances_angstrom": dimer.distances,
                "energies_ev": dimer.energies,
                "forces_ev_per_angstrom": dimer.forces,
                "sign_changes": dimer.sign_changes,
                "tortuosity": dimer.tortuosity,
            }
            for dimer in found.dimers
        },
        "way": {
            "distances_angstrom": found.way.distances,
            "energies_ev": found.way.energies,
            "forces_ev_per_angstrom": found.way.forces,
        },
    }
    if found.compression is not None:
        details["compression"] = {
            "scales": found.compression.scales,
            "energies_ev_per_atom": found.compression.energies,
            "pressures_gpa": found.compression.pressures,
        }
    return Outcome(row, details, draw=lambda path: _draw(path, structure.name, found))


COLUMNS = (
    Column("formula", "formula"),
    Column("cutoff_jump_mev", "jump at cutoff\nmeV", ".2g"),
    Column("largest_number_of_sign_changes", "changes of\nforce's sign", "d"),
    Column("largest_tortuosity", "tortuosity\n", ".2f"),
    Column("all_repel_when_close", "all repel\nwhen close"),
    Column("minima_under_compression", "minima under\ncompression", "d"),
    Column("force_inconsistency_mev", "energy - work\nmeV", ".2g"),
)


@own_style()
def _draw(path: Path, name: str, found: Smoothness) -> None:
    figure = Figure(figsize=(11.5, 3.9), layout="constrained")
    dimers, compression, way = figure.subplots(1, 3)
    depth = max(0.5, -min(float(dimer.energies.min()) for dimer in found.dimers))
    for color, dimer in zip(COLORS * len(found.dimers), found.dimers, strict=False):
        dimers.plot(dimer.distances, dimer.energies, color=color, linewidth=1.2, label="–".join(dimer.symbols))
    dimers.set_ylim(-1.3 * depth, 3.0 * depth)
    dimers.set_xlabel("distance (Å)")
    dimers.set_ylabel("energy of two atoms (eV)")
    dimers.legend(frameon=False, fontsize=8, ncols=1 + len(found.dimers) // 8)
    dimers.set_title("dimers", fontsize=10.5)
    if found.compression is not None:
        c = found.compression
        energies = c.energies - c.energies.min()
        compression.plot(c.scales, energies, color=BLUE, linewidth=1.2)
        compression.set_ylim(-0.03 * min(energies.max(), 12.0), 1.05 * min(energies.max(), 12.0))
        compression.set_xlabel("length of the cell / given length")
        compression.set_ylabel("energy above the lowest (eV/atom)")
    else:
        compression.text(0.5, 0.5, "no cell", transform=compression.transAxes, ha="center", color="0.5")
    compression.set_title("compression", fontsize=10.5)
    way.plot(found.way.distances, found.way.energies - found.way.energies[0], color=BLUE, label="energy (eV)")
    way.plot(found.way.distances, found.way.forces, color=ORANGE, label="force along the way (eV/Å)")
    way.set_xlabel("displacement of an atom (Å)")
    way.legend(frameon=False, fontsize=8)
    way.set_title(f"one atom moved; energy − work {1e3 * found.way.inconsistency:.1g} meV", fontsize=10.5)
    for axis in (dimers, compression, way):
        tidy(axis)
    figure.suptitle(f"smoothness, {as_text(name)}", fontsize=11)
    save_figure(figure, path)
