"""`hienet alloy`: formation energies of random alloys over composition, by special quasirandom structures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.data import atomic_numbers
from matplotlib.figure import Figure

from hienet.errors import HIENetError
from hienet.figure import BLUE, GRAY, ORANGE, save_figure, tidy
from hienet.properties.engine import Array, Engine
from hienet.properties.optional import require
from hienet.properties.progress import Progress, silent
from hienet.properties.relax import RelaxSettings, relax
from hienet.properties.screen import Column
from hienet.properties.supercells import repeated


@dataclass(frozen=True)
class AlloySettings:
    """Which alloys.

    Attributes:
        replace: element of the structure whose sites are mixed.
        by: element that is put there.
        n_compositions: number of compositions, both ends among them.
        n_atoms: at least so many in the supercell.
        iterations: arrangements that are tried for each composition.
        fmax: eV/Å, of the relaxations.
        max_steps: of the relaxations.
    """

    replace: str
    by: str
    n_compositions: int = 9
    n_atoms: int = 32
    iterations: int = 20000
    fmax: float = 0.01
    max_steps: int = 500

    def __post_init__(self) -> None:
        for symbol in (self.replace, self.by):
            if symbol not in atomic_numbers or symbol == "X":
                raise HIENetError(f"`{symbol}` is not an element; write its symbol, such as Cu")
        if self.replace == self.by:
            raise HIENetError(f"an alloy needs two elements, got {self.replace} twice")
        if self.n_compositions < 3 or self.iterations < 1:
            raise HIENetError(f"an alloy needs at least 3 compositions and one arrangement, got {self.n_compositions}")


@dataclass(frozen=True)
class Alloy:
    """Results at `[n]` compositions in growing order.

    Attributes:
        settings: what was asked.
        fractions: of mixed sites that hold the element `by`.
        formation: eV/atom, against the mixture of both ends.
        volumes: Å^3/atom.
        structures: relaxed ones.
        objectives: how far the short-range order is from random, as sqsgenerator has it; 0 is best.
        converged: whether a relaxation reached its limit.
    """

    settings: AlloySettings
    fractions: Array
    formation: Array
    volumes: Array
    structures: list[ase.Atoms]
    objectives: Array
    converged: list[bool]

    def rows(self) -> list[dict[str, Any]]:
        """For tables."""
        return [
            {
                "formula": atoms.get_chemical_formula(),
                f"fraction_{self.settings.by}": float(self.fractions[i]),
                "formation_energy_mev_per_atom": 1e3 * float(self.formation[i]),
                "volume_angstrom3_per_atom": float(self.volumes[i]),
                "short_range_order": float(self.objectives[i]),
                "converged": self.converged[i],
            }
            for i, atoms in enumerate(self.structures)
        ]


def columns(by: str) -> tuple[Column, ...]:
    """Of the table that is printed."""
    return (
        Column("formula", "formula"),
        Column(f"fraction_{by}", f"fraction\n{by}", ".3f"),
        Column("formation_energy_mev_per_atom", "formation energy\nmeV/atom", ".2f"),
        Column("volume_angstrom3_per_atom", "volume\nÅ³/atom", ".3f"),
        Column("short_range_order", "short-range\norder", ".3f"),
        Column("converged", "converged"),
    )


def alloy(atoms: ase.Atoms, engine: Engine, settings: AlloySettings, progress: Progress | None = None) -> Alloy:
    """Formation energies, E(x) - (1 - x) E(0) - x E(1), of relaxed special quasirandom structures.

    These have, for their size, the pair correlations of a random alloy (Zunger et al., Phys. Rev. Lett. 65, 353
    (1990)). Atoms and cells are relaxed.

    Args:
        atoms: a crystal with the element `replace`.
        engine: what gives energies.
        settings: which alloys.
        progress: told of each arrangement and relaxation.

    Raises:
        HIENetError: no crystal, no such sites, an element that the model does not know, or a relaxation that failed.
    """
    progress = progress or silent()
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        raise HIENetError("the structure is not a crystal: it is not periodic in three directions")
    symbols = atoms.get_chemical_symbols()
    if settings.replace not in symbols:
        raise HIENetError(f"the structure has no {settings.replace}; it holds {', '.join(sorted(set(symbols)))}")
    if settings.by in symbols:
        raise HIENetError(f"the structure holds {settings.by} already; give the crystal without it")
    cell = repeated(atoms, settings.n_atoms)
    sites = [i for i, symbol in enumerate(cell.get_chemical_symbols()) if symbol == settings.replace]
    numbers = np.unique(np.linspace(0, len(sites), settings.n_compositions).round().astype(int))
    if len(numbers) < 3:
        raise HIENetError(f"only {len(sites)} sites are mixed, too few for compositions between; raise --atoms")
    for symbol in (settings.by, settings.replace):
        trial = cell.copy()
        trial.symbols[sites[0]] = symbol
        engine.require_elements(trial)
    progress.begin("arrangements", len(numbers))
    mixed, objectives = [], []
    for number in numbers:
        arrangement, objective = quasirandom(cell, sites, settings.by, int(number), settings.iterations)
        mixed.append(arrangement)
        objectives.append(objective)
        progress.advance()
    relaxing = RelaxSettings(symmetry=False, fmax=settings.fmax, max_steps=settings.max_steps)
    found = relax(mixed, engine, relaxing, progress)
    for result in found:
        if result.error is not None:
            formula = result.atoms.get_chemical_formula()
            raise HIENetError(f"{formula} could not be relaxed: {result.error}") from result.error
    energies = np.array([result.energies[-1] for result in found]) / len(cell)
    fractions = numbers / len(sites)
    formation = energies - (1.0 - fractions) * energies[0] - fractions * energies[-1]
    return Alloy(
        settings,
        fractions,
        formation,
        np.array([result.atoms.get_volume() for result in found]) / len(cell),
        [result.atoms for result in found],
        np.array(objectives),
        [result.converged for result in found],
    )


def quasirandom(
    cell: ase.Atoms, sites: Sequence[int], by: str, number: int, iterations: int
) -> tuple[ase.Atoms, float]:
    """A cell with `number` of its sites taken by another element, as random as the best of so many arrangements.

    Returns:
        the structure, and how far its short-range order is from random.
    """
    result = cell.copy()
    if number == len(sites):
        result.symbols[list(sites)] = by
    if number in (0, len(sites)):
        return result, 0.0
    generator = require("sqsgenerator", "alloys")
    mixed = cell[list(sites)]
    replace = mixed.get_chemical_symbols()[0]
    configuration = generator.parse_config(
        {
            "structure": {
                "lattice": mixed.cell.array.tolist(),
                "coords": mixed.get_scaled_positions().tolist(),
                "species": mixed.get_chemical_symbols(),
            },
            "composition": {replace: len(sites) - number, by: number},
            "iterations": iterations,
        }
    )
    if not hasattr(configuration, "composition"):
        raise HIENetError(f"sqsgenerator takes no such alloy: {configuration}")
    best = generator.optimize(configuration).best()
    result.symbols[list(sites)] = generator.to_ase(best.structure()).get_chemical_symbols()
    return result, float(best.objective)


def draw(path: Path, found: Alloy, title: str) -> None:
    """Formation energy and volume against composition, with the hull and Vegard's law."""
    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    x = found.fractions
    left.plot(x, 1e3 * found.formation, "o-", color=BLUE, linewidth=1.2, markersize=5, label="quasirandom")
    hull = lower_hull(x, found.formation)
    left.plot(x[hull], 1e3 * found.formation[hull], "--", color=ORANGE, linewidth=1.2, label="convex hull")
    left.axhline(0.0, color=GRAY, linewidth=0.8)
    left.set_ylabel("formation energy (meV/atom)")
    right.plot(x, found.volumes, "o-", color=BLUE, linewidth=1.2, markersize=5, label="quasirandom")
    right.plot(x[[0, -1]], found.volumes[[0, -1]], ":", color=GRAY, linewidth=1.2, label="Vegard's law")
    right.set_ylabel("volume (Å³/atom)")
    for axis in (left, right):
        axis.set_xlabel(f"fraction of {found.settings.by} on the sites of {found.settings.replace}")
        axis.legend(frameon=False, fontsize=9)
        tidy(axis)
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path)


def lower_hull(x: Array, y: Array) -> list[int]:
    """Indices of the points on the lower convex hull; x grows."""
    hull: list[int] = []
    for i in range(len(x)):
        while len(hull) >= 2:
            a, b = hull[-2], hull[-1]
            if (y[b] - y[a]) * (x[i] - x[a]) < (y[i] - y[a]) * (x[b] - x[a]):
                break
            hull.pop()
        hull.append(i)
    return hull
