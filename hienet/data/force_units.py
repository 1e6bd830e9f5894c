"""Whether energies and forces belong together: between similar frames the energy changes by the work of the forces."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import ase
import numpy as np
from ase.units import Bohr, Hartree, Rydberg, kcal, kJ, mol
from numpy.typing import NDArray

from hienet.data.labels import Labels
from hienet.data.reader import Frame

_LARGEST_DISPLACEMENT = 0.3  # Å
_SMALLEST_DISPLACEMENT = 1e-3
_LARGEST_CHANGE_OF_CELL = 1e-4  # Å
_FEWEST_PAIRS = 4
_LARGEST_GROUP = 500

_KCAL, _KJ = kcal / mol, kJ / mol
_UNITS: dict[str, float] = {
    "": 1.0,
    "forces of the opposite sign, as gradients of the energy have": -1.0,
    "energies in Hartree and forces in Hartree/Bohr, or both in Rydberg and Rydberg/Bohr": 1 / Bohr,
    "energies in Hartree beside forces in eV/Å": 1 / Hartree,
    "forces in Hartree/Bohr beside energies in eV": Hartree / Bohr,
    "energies in Rydberg beside forces in eV/Å": 1 / Rydberg,
    "forces in Rydberg/Bohr beside energies in eV": Rydberg / Bohr,
    "energies in kcal/mol beside forces in eV/Å": 1 / _KCAL,
    "forces in kcal/(mol Å) beside energies in eV": _KCAL,
    "energies in kJ/mol beside forces in eV/Å": 1 / _KJ,
    "forces in kJ/(mol Å) beside energies in eV": _KJ,
}
"""What a file may hold, and the factor by which its energies change more than the work of its forces."""


def check_forces(frames: Sequence[Frame], labels: Sequence[Labels]) -> Iterator[str]:
    """A sentence for each file whose energies and forces are evidently not in eV and eV/Å.

    For frames of the same atoms and cell, E2 - E1 = -sum (F1 + F2) / 2 . dr, with an error of third order. Another
    factor on the right is only named where it explains the energies, much better than 1 does.
    """
    for file, group in itertools.groupby(zip(frames, labels, strict=True), key=lambda pair: pair[0].file):
        changes = list(_changes(group))
        unit = _best_unit(changes)
        if unit:
            yield (
                f"the forces of `{file}` do not fit its energies in eV/Å and eV, judged by {len(changes)} pairs of "
                f"similar frames, as if it had {unit}; convert them to eV and eV/Å"
            )


def _best_unit(changes: Sequence[tuple[float, float]]) -> str:
    """The mistake that explains the energies; empty if none does, or none is needed."""
    if len(changes) < _FEWEST_PAIRS:
        return ""
    energy, work = np.array(changes).T
    left = {name: _typical(energy - factor * work) for name, factor in _UNITS.items()}
    best = min(left, key=lambda name: left[name])
    if left[""] < 0.3 * _typical(energy):
        return ""
    return best if left[best] < 0.3 * _typical(energy) and left[best] < 0.2 * left[""] else ""


def _typical(values: NDArray[np.float64]) -> float:
    return float(np.median(np.abs(values)))


def _changes(members: Iterator[tuple[Frame, Labels]]) -> Iterator[tuple[float, float]]:
    """Change of the energy and work of the forces (eV, if units are right) between frames that follow each other."""
    groups: dict[tuple[int, ...], list[tuple[ase.Atoms, Labels]]] = {}
    for frame, label in members:
        if label.energy is not None and label.forces is not None and frame.converged:
            group = groups.setdefault(tuple(frame.atoms.numbers.tolist()), [])
            if len(group) < _LARGEST_GROUP:
                group.append((frame.atoms, label))
    for group in groups.values():
        for (first, label), (second, other) in itertools.pairwise(group):
            if np.abs(second.cell.array - first.cell.array).max() > _LARGEST_CHANGE_OF_CELL:
                continue
            moved = second.positions - first.positions
            if first.cell.rank == 3:
                scaled = first.cell.scaled_positions(moved)
                moved = (scaled - np.where(first.pbc, np.round(scaled), 0)) @ first.cell.array
            if not _SMALLEST_DISPLACEMENT <= np.abs(moved).max() <= _LARGEST_DISPLACEMENT:
                continue
            assert label.energy is not None
            assert other.energy is not None
            assert label.forces is not None
            assert other.forces is not None
            work = -float((0.5 * (label.forces + other.forces) * moved).sum())
            if np.isfinite(work):
                yield other.energy - label.energy, work
