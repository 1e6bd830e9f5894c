"""Structure and motion in a trajectory: radial distribution functions, displacements, diffusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import ase
import numpy as np

from hienet.neighbors import neighbor_list
from hienet.properties.engine import Array

_CUBIC_CENTIMETRES = 1e-4
"""1 Å^2/ps in cm^2/s."""


def radial_distribution(
    frames: Sequence[ase.Atoms], largest: float = 6.0, n_bins: int = 120
) -> tuple[Array, dict[str, Array]]:
    """g(r) for each pair of elements, and of all atoms.

    g_AB(r) = n_AB(r) V / (4 pi r^2 dr N_A N_B), with n_AB(r) the number of ordered pairs A, B at distances r +- dr/2,
    periodic images included; it tends to 1.

    Args:
        frames: with the same atoms.
        largest: Å.
        n_bins: of equal width.

    Returns:
        distances `[n_bins]` (Å), and g(r) `[n_bins]` by names such as `Mg-O` and `all`.
    """
    edges = np.linspace(0.0, largest, n_bins + 1)
    centers = 0.5 * (edges[1:] + edges[:-1])
    shell = 4.0 / 3.0 * np.pi * (edges[1:] ** 3 - edges[:-1] ** 3)
    symbols = np.array(frames[0].get_chemical_symbols())
    kinds = sorted(set(symbols.tolist()))
    sums = {pair: np.zeros(n_bins) for pair in combinations_with_replacement(kinds, 2)}
    whole = np.zeros(n_bins)
    for atoms in frames:
        center, neighbor, vectors = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, largest)
        distances = np.linalg.norm(vectors, axis=1)
        volume = atoms.get_volume()
        whole += np.histogram(distances, edges)[0] * volume / (shell * len(atoms) ** 2)
        for first, second in sums:
            chosen = (symbols[center] == first) & (symbols[neighbor] == second)
            number = int((symbols == first).sum()) * int((symbols == second).sum())
            sums[first, second] += np.histogram(distances[chosen], edges)[0] * volume / (shell * number)
    found = {"-".join(pair): values / len(frames) for pair, values in sums.items()}
    if len(kinds) > 1:
        found["all"] = whole / len(frames)
    return centers, found


@dataclass(frozen=True)
class Motion:
    """Mean squared displacements.

    Attributes:
        times: `[n]` (ps).
        displacements: `[n]` (Å^2) for each element.
        coefficients: diffusion coefficient of each element and its standard error (cm^2/s).
    """

    times: Array
    displacements: dict[str, Array]
    coefficients: dict[str, tuple[float, float]]


def mean_squared_displacement(frames: Sequence[ase.Atoms], interval: float) -> Motion:
    """Of each element, averaged over atoms and starting times, without the motion of the centre of mass.

    <|r(t) - r(0)|^2> = 6 D t; D is the slope over the second half of the times, up to half of the trajectory, and its
    error the spread of the slopes of three groups of atoms.

    Args:
        frames: of equal intervals, with positions that are not wrapped.
        interval: ps between frames.
    """
    positions = np.array([atoms.positions for atoms in frames])
    masses = frames[0].get_masses()
    positions -= (positions * masses[None, :, None]).sum(1, keepdims=True) / masses.sum()
    symbols = np.array(frames[0].get_chemical_symbols())
    n_lags = max(2, len(frames) // 2)
    times: Array = np.arange(n_lags, dtype=np.float64) * interval
    each = np.zeros((n_lags, positions.shape[1]))
    for lag in range(1, n_lags):
        each[lag] = ((positions[lag:] - positions[:-lag]) ** 2).sum(2).mean(0)
    displacements: dict[str, Array] = {}
    coefficients: dict[str, tuple[float, float]] = {}
    half = n_lags // 2
    for symbol in sorted(set(symbols.tolist())):
        mine = each[:, symbols == symbol]
        displacements[symbol] = mine.mean(1)
        slopes = [_slope(times[half:], part.mean(1)[half:]) for part in np.array_split(mine, 3, axis=1) if part.size]
        error = float(np.std(slopes, ddof=1) / np.sqrt(len(slopes))) if len(slopes) > 2 else float("nan")
        coefficient = _slope(times[half:], displacements[symbol][half:])
        coefficients[symbol] = (coefficient / 6.0 * _CUBIC_CENTIMETRES, error / 6.0 * _CUBIC_CENTIMETRES)
    return Motion(times, displacements, coefficients)


def _slope(times: Array, values: Array) -> float:
    return float(np.polyfit(times, values, 1)[0]) if len(times) > 1 else float("nan")
