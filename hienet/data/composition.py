"""Energies as a sum over the elements: numbers of atoms, and fits of energies to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from hienet.data.dataset import Dataset

Array = NDArray[np.float64]

_ITERATIONS = 50
_CHANGE = 1e-6  # eV


_FRAMES_AT_A_TIME = 50_000
"""So many rows of a table of compositions are held at a time: with 100 elements 40 MB."""


def parts(dataset: Dataset) -> Iterator[tuple[slice, Array]]:
    """All frames, a part at a time, with the number of atoms of each element `[n_frames_of_part, n_elements]`."""
    for start in range(0, len(dataset), _FRAMES_AT_A_TIME):
        stop = min(start + _FRAMES_AT_A_TIME, len(dataset))
        yield slice(start, stop), dataset.compositions(start, stop)


def sums_over_atoms(dataset: Dataset, values: Array) -> Array:
    """For each frame the sum over its atoms of a value `[n_elements]` of their element, `[n_frames]`."""
    return np.concatenate([np.zeros(0), *(counts @ values for _, counts in parts(dataset))])


def least_squares(fractions: Array, energies: Array) -> tuple[Array, int]:
    """Energies of the elements `[n_elements]` (eV) of least squares, of all solutions that of least norm; the rank.

    Args:
        fractions: `[n_frames, n_elements]`, part of each element in the atoms of each frame.
        energies: `[n_frames]` (eV/atom).
    """
    return least_squares_of_parts([(fractions, energies)], fractions.shape[1])


def least_squares_of_parts(equations: Iterable[tuple[Array, Array]], n_elements: int) -> tuple[Array, int]:
    """The same for frames of which a part is seen at a time; zeros and rank 0 if there is none.

    What is kept of the parts before is the triangular factor of their equations, which has the same solutions and the
    same singular values.
    """
    kept: tuple[Array, Array] | None = None
    for fractions, energies in equations:
        if kept is None:
            kept = fractions, energies
            continue
        stacked = np.column_stack([np.vstack([kept[0], fractions]), np.concatenate([kept[1], energies])])
        factor = np.asarray(np.linalg.qr(stacked, mode="r"))
        kept = factor[:, :-1], factor[:, -1]
    if kept is None:
        return np.zeros(n_elements), 0
    solution, _, rank, _ = np.linalg.lstsq(*kept, rcond=1e-10)
    return np.asarray(solution, dtype=np.float64), int(rank)


def least_absolute_deviations(fractions: Array, energies: Array) -> Array:
    """Energies of the elements `[n_elements]` (eV) that minimise the sum of absolute deviations, by reweighted squares.

    A few absurd energies hardly move them. Arguments as in `least_squares`.
    """
    solution, _ = least_squares(fractions, energies)
    for _ in range(_ITERATIONS):
        deviations = np.abs(energies - fractions @ solution)
        # Where nothing is left the weight would be infinite.
        smallest = max(1e-3 * float(np.median(deviations)), _CHANGE)
        weights = 1.0 / np.sqrt(np.maximum(deviations, smallest))
        previous, (solution, _) = solution, least_squares(fractions * weights[:, None], energies * weights)
        if np.abs(solution - previous).max() < _CHANGE:
            break
    return solution
