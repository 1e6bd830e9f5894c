"""Frames with the same structure."""

from __future__ import annotations

from collections.abc import Sequence

import ase
import numpy as np
from numpy.typing import NDArray

_SAME = 2e-5


def first_equals(structures: Sequence[ase.Atoms]) -> list[int]:
    """For each structure the index of the first that is equal to it, its own if there is none before.

    Equal are the same atoms in the same order at the same places, but for lattice vectors and the last digits that
    files keep. Candidates are neighbours in one projection of the coordinates, so that the time grows like the number
    of structures.
    """
    groups: dict[tuple[bytes, bytes], list[int]] = {}
    for i, atoms in enumerate(structures):
        groups.setdefault((atoms.numbers.tobytes(), atoms.pbc.tobytes()), []).append(i)
    first = list(range(len(structures)))
    for members in groups.values():
        if len(members) > 1:
            _find_in_group(structures, members, first)
    return first


def _find_in_group(structures: Sequence[ase.Atoms], members: Sequence[int], first: list[int]) -> None:
    """Fill in `first` for structures of the same elements and periodicity."""
    size = len(_coordinates(structures[members[0]]))
    direction = np.random.default_rng(0).normal(size=size)
    direction /= np.linalg.norm(direction)
    projections = np.array([_coordinates(structures[i]) @ direction for i in members])
    order = np.argsort(projections, kind="stable")
    reach = _SAME * np.sqrt(size)
    done: set[int] = set()
    for position, k in enumerate(order):
        if members[k] in done:
            continue
        coordinates = _coordinates(structures[members[k]])
        equal = [members[k]]
        for other in order[position + 1 :]:
            if projections[other] - projections[k] > reach:
                break
            if np.abs(_coordinates(structures[members[other]]) - coordinates).max() <= _SAME:
                equal.append(members[other])
        done.update(equal)
        for member in equal:
            first[member] = min(equal)


def _coordinates(atoms: ase.Atoms) -> NDArray[np.float64]:
    """Numbers that change smoothly with positions and cell, and not at all with lattice vectors.

    As many for all structures of the same elements and periodicity.
    """
    positions, cell = atoms.positions, atoms.cell.array
    parts = [cell.ravel()]
    if atoms.pbc.any() and atoms.cell.rank == 3:
        angles = 2 * np.pi * np.linalg.solve(cell.T, positions.T).T
        parts += [np.where(atoms.pbc, np.cos(angles), angles).ravel(), np.where(atoms.pbc, np.sin(angles), 0).ravel()]
    else:
        parts += [positions.ravel(), np.zeros(positions.size)]
    return np.concatenate(parts)
