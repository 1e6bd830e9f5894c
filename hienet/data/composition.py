"""Energies as a sum over the elements: numbers of atoms, and fits of energies to them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hienet.data.dataset import Dataset

Array = NDArray[np.float64]

_ITERATIONS = 50
_CHANGE = 1e-6  # eV


def compositions(dataset: Dataset, n_elements: int) -> Array:
    """Number of atoms of each element in each frame, `[n_frames, n_elements]`."""
    counts = [np.bincount(graph.species.numpy(), minlength=n_elements) for graph in dataset.graphs]
    return np.array(counts, dtype=np.float64).reshape(len(dataset), n_elements)


def least_squares(fractions: Array, energies: Array) -> tuple[Array, int]:
    """Energies of the elements `[n_elements]` (eV) of least squares, of all solutions that of least norm; the rank.

    Args:
        fractions: `[n_frames, n_elements]`, part of each element in the atoms of each frame.
        energies: `[n_frames]` (eV/atom).
    """
    solution, _, rank, _ = np.linalg.lstsq(fractions, energies, rcond=1e-10)
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
