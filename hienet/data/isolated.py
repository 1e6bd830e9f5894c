"""Isolated atoms among the frames, whose energies are reference energies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ase
import numpy as np
from ase.geometry import minkowski_reduce

from hienet.data.labels import Labels
from hienet.data.reader import Frame

_FARTHEST_BOND = 8.0
_NAMED = 3


@dataclass(frozen=True)
class IsolatedAtoms:
    """Energies of isolated atoms.

    Attributes:
        energies: of each element that has any (eV); of several the lowest, which is that of the ground state.
        note: where they were found; empty if there are none.
    """

    energies: dict[str, float]
    note: str


def is_isolated(atoms: ase.Atoms) -> bool:
    """Whether this is one atom, and its periodic images, if any, are more than 8 Å away."""
    if len(atoms) != 1:
        return False
    if not atoms.pbc.any():
        return True
    vectors, _ = minkowski_reduce(atoms.cell.complete(), pbc=atoms.pbc)
    return bool(np.linalg.norm(vectors[atoms.pbc], axis=1).min() > _FARTHEST_BOND)


def isolated_atoms(frames: Sequence[Frame], labels: Sequence[Labels]) -> IsolatedAtoms:
    """The isolated atoms that have an energy."""
    found: dict[str, list[tuple[float, Frame]]] = {}
    for frame, label in zip(frames, labels, strict=True):
        if label.energy is not None and is_isolated(frame.atoms):
            found.setdefault(str(frame.atoms.symbols[0]), []).append((label.energy, frame))
    lowest = {symbol: min(members, key=lambda member: member[0]) for symbol, members in sorted(found.items())}
    parts = []
    for symbol, (energy, frame) in lowest.items():
        highest = max(member[0] for member in found[symbol])
        several = f", the lowest of {len(found[symbol])} up to {highest:.4f}" if highest > energy else ""
        parts.append(f"{symbol} {energy:.4f} eV ({frame.source}{several})")
    return IsolatedAtoms({symbol: energy for symbol, (energy, _) in lowest.items()}, ", ".join(parts))
