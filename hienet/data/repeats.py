"""Frames with the same structure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import ase
import numpy as np
from numpy.typing import NDArray

from hienet.data.reader import Frame

_SAME = 2e-5


class Chained(Sequence[Frame]):
    """Several sequences as one, without a list of all their frames."""

    def __init__(self, parts: Sequence[Sequence[Frame]]) -> None:
        self._parts = parts
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(int)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Frame:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._parts[part][index - int(self._starts[part])]


def first_equals(frames: Sequence[Frame]) -> list[int]:
    """For each frame the index of the first that is equal to it, its own if there is none before.

    Equal are the same atoms in the same order at the same places, but for lattice vectors and the last digits that
    files keep. Candidates are neighbours in one projection of the coordinates, so that the time grows like the number
    of frames. No more than two of them are held at a time, beside what the sequence itself holds.
    """
    groups: dict[bytes, list[int]] = {}
    for i, frame in enumerate(frames):
        atoms = frame.atoms
        groups.setdefault(hashlib.blake2b(atoms.numbers.tobytes() + atoms.pbc.tobytes()).digest(), []).append(i)
    first = list(range(len(frames)))
    for members in groups.values():
        if len(members) > 1:
            _find_in_group(frames, members, first)
    return first


def _find_in_group(frames: Sequence[Frame], members: Sequence[int], first: list[int]) -> None:
    """Fill in `first` for structures of the same elements and periodicity."""
    size = len(_coordinates(frames[members[0]].atoms))
    direction = np.random.default_rng(0).normal(size=size)
    direction /= np.linalg.norm(direction)
    projections = np.array([_coordinates(frames[i].atoms) @ direction for i in members])
    order = np.argsort(projections, kind="stable")
    reach = _SAME * np.sqrt(size)
    done: set[int] = set()
    for position, k in enumerate(order):
        if members[k] in done:
            continue
        equal = [members[k]]
        coordinates: NDArray[np.float64] | None = None
        for other in order[position + 1 :]:
            if projections[other] - projections[k] > reach:
                break
            if coordinates is None:
                coordinates = _coordinates(frames[members[k]].atoms)
            if np.abs(_coordinates(frames[members[other]].atoms) - coordinates).max() <= _SAME:
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
