"""Space groups, by spglib."""

from __future__ import annotations

from typing import Any

import ase
import numpy as np
from numpy.typing import NDArray

from hienet.properties.optional import require

SYMPREC = 1e-3
"""Å, within which atoms are taken for images of each other."""


def dataset(atoms: ase.Atoms, symprec: float = SYMPREC) -> Any | None:
    """What spglib finds; None for what is not periodic in three directions, or has no symmetry that it can name."""
    spglib = require("spglib", "symmetry")
    if not atoms.pbc.all():
        return None
    try:
        return spglib.get_symmetry_dataset((atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers), symprec)
    except Exception:
        # spglib raises an error of its own, of a class that only new versions have.
        return None


def space_group(atoms: ase.Atoms, symprec: float = SYMPREC) -> str | None:
    """International symbol and number, such as `Fm-3m (225)`."""
    found = dataset(atoms, symprec)
    return None if found is None else f"{found.international} ({found.number})"


def point_operations(atoms: ase.Atoms, symprec: float = SYMPREC) -> NDArray[np.float64]:
    """Rotations of the crystal's point group in Cartesian coordinates, `[n, 3, 3]`; the identity if there is none."""
    found = dataset(atoms, symprec)
    if found is None:
        return np.eye(3)[None]
    rotations = np.unique(found.rotations, axis=0)
    columns = atoms.cell.array.T
    return np.array([columns @ rotation @ np.linalg.inv(columns) for rotation in rotations])
