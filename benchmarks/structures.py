"""Structures that the benchmarks measure. Needs only ASE and numpy, so that the peers' environments can use it too."""

from __future__ import annotations

import re

import ase
import numpy as np
from ase.build import bulk

RATTLE = 0.05
"""Standard deviation of the displacements (Å)."""
ALLOY = ("Co", "Cr", "Fe", "Mn", "Ni")
NAMES = "si64, si64-45, sic512, alloy108 (any number of whole cells: 8 atoms, or 4 for the alloy)"


def structure(name: str) -> ase.Atoms:
    """The structure of that name, such as `si64`: rattled, always the same.

    `si`: diamond, a = 5.43 Å, 28 neighbours within 5 Å. `sic`: zincblende, a = 4.39 Å. `alloy`: random fcc CoCrFeMnNi,
    a = 3.6 Å. `si64-45`: scaled until an atom has 45 neighbours within 5 Å.

    Raises:
        ValueError: no such structure.
    """
    scaled = re.fullmatch(r"si(\d+)-(\d+)", name)
    if scaled is not None:
        return silicon_with_neighbors(int(scaled[1]), float(scaled[2]), cutoff=5.0)
    match = re.fullmatch(r"(si|sic|alloy)(\d+)", name)
    if match is None:
        raise ValueError(f"unknown structure `{name}`; expected a name like {NAMES}")
    kind, n_atoms = match[1], int(match[2])
    if kind == "alloy":
        return alloy(n_atoms)
    cell = bulk("Si", "diamond", a=5.43, cubic=True) if kind == "si" else bulk("SiC", "zincblende", a=4.39, cubic=True)
    return _repeated(cell, n_atoms)


def alloy(n_atoms: int) -> ase.Atoms:
    """Random fcc CoCrFeMnNi in equal parts."""
    atoms = _repeated(bulk("Ni", "fcc", a=3.6, cubic=True), n_atoms)
    order = np.random.default_rng(0).permutation(n_atoms)
    atoms.set_chemical_symbols([ALLOY[i % len(ALLOY)] for i in order])
    return atoms


def silicon_with_neighbors(n_atoms: int, neighbors: float, cutoff: float) -> ase.Atoms:
    """Rattled diamond silicon, compressed or expanded until an atom has that many neighbours on average.

    Args:
        n_atoms: a multiple of 8.
        neighbors: mean number within the cutoff.
        cutoff: Å.
    """
    atoms = structure(f"si{n_atoms}")
    low, high = 0.3, 3.0
    for _ in range(30):
        scale = 0.5 * (low + high)
        low, high = (scale, high) if _mean_neighbors(atoms, scale, cutoff) > neighbors else (low, scale)
    atoms.set_cell(scale * atoms.cell.array, scale_atoms=True)
    return atoms


def _mean_neighbors(atoms: ase.Atoms, scale: float, cutoff: float) -> float:
    from ase.neighborlist import neighbor_list

    return len(neighbor_list("i", atoms, cutoff / scale)) / len(atoms)


def _repeated(cell: ase.Atoms, n_atoms: int) -> ase.Atoms:
    """As near to a cube as whole cells allow, rattled."""
    n_cells, rest = divmod(n_atoms, len(cell))
    if rest or n_cells < 1:
        raise ValueError(f"{n_atoms} atoms are not a whole number of cells of {len(cell)} atoms; take a multiple")
    divisors = [d for d in range(1, n_cells + 1) if n_cells % d == 0]
    triples = [(a, b, n_cells // (a * b)) for a in divisors for b in divisors if b >= a and n_cells % (a * b) == 0]
    atoms = cell.repeat(min(triples, key=lambda triple: max(triple) - min(triple)))
    atoms.rattle(RATTLE, seed=0)
    return atoms


def small_cell_of_all_elements(atoms: ase.Atoms) -> ase.Atoms:
    """Eight atoms with every element of `atoms`: what a model makes once for each element is there after it."""
    small = structure("si8")
    elements = sorted(set(atoms.symbols))
    small.set_chemical_symbols([elements[i % len(elements)] for i in range(len(small))])
    return small
