"""Whether stresses are in eV/Å^3 with tension positive: energies, forces and stresses of similar frames tell."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import ase
import numpy as np
from numpy.typing import NDArray

from hienet.data.labels import Labels
from hienet.data.reader import Frame
from hienet.units import EV_PER_CUBIC_ANGSTROM_IN_GPA, EV_PER_CUBIC_ANGSTROM_IN_KBAR

_LARGEST_STRAIN = 0.08
_SMALLEST_STRAIN = 1e-3
_LARGEST_DISPLACEMENT = 0.5
_FEWEST_PAIRS = 4
_LARGEST_GROUP = 500
_IMPLAUSIBLE = 1.0

_UNITS: dict[str, float] = {
    "eV/Å^3, tension positive": 1.0,
    "eV/Å^3, compression positive": -1.0,
    "GPa, tension positive": 1 / EV_PER_CUBIC_ANGSTROM_IN_GPA,
    "GPa, compression positive": -1 / EV_PER_CUBIC_ANGSTROM_IN_GPA,
    "kbar, tension positive": 1 / EV_PER_CUBIC_ANGSTROM_IN_KBAR,
    "kbar, compression positive": -1 / EV_PER_CUBIC_ANGSTROM_IN_KBAR,
}
_RIGHT = "eV/Å^3, tension positive"
_STRESS_TIMES_VOLUME = {"eV (a stress times the volume)": 1.0, "eV (a virial)": -1.0}


@dataclass(frozen=True)
class _Pair:
    """Two similar frames: what of the change of energy the forces leave, and the work of the stress (eV)."""

    left: float
    work: float
    volume: float


def check_stress(frames: Sequence[Frame], labels: Sequence[Labels]) -> Iterator[str]:
    """A sentence for each file whose stresses are evidently in other units, or of the other sign.

    Between two frames of the same atoms the energy changes by the work of forces and stress,
    E2 - E1 = V sigma : strain - sum F . dr, with means of both frames on the right (trapezoidal rule, of third order
    in the changes). A unit is another factor on the first term. It is only named where it explains the energies, much
    better than eV/Å^3 does and better than no stress at all. Where no frames are similar enough, a typical stress of
    more than 160 GPa is pointed out.
    """
    labelled = [(frame, label) for frame, label in zip(frames, labels, strict=True) if label.stress is not None]
    for file, group in itertools.groupby(labelled, key=lambda pair: pair[0].file):
        members = list(group)
        pairs = list(_pairs(members))
        unit = _best_unit(pairs)
        if unit is not None and unit != _RIGHT:
            yield (
                f"the stresses of `{file}` do not fit its energies in {_RIGHT} (ASE's convention), but do in {unit}, "
                f"judged by {len(pairs)} pairs of similar frames; convert them, or set `training.stress_weight: 0`"
            )
        typical = float(np.median([np.abs(label.stress).max() for _, label in members if label.stress is not None]))
        if unit is None and typical > _IMPLAUSIBLE:
            yield (
                f"the stresses of `{file}` are typically {typical:.3g} eV/Å^3, which is "
                f"{typical * EV_PER_CUBIC_ANGSTROM_IN_GPA:.3g} GPa; if the numbers are in kbar or GPa, convert them to "
                "eV/Å^3 with tension positive"
            )


def _best_unit(pairs: Sequence[_Pair]) -> str | None:
    """The unit in which stresses explain the energies; None if that cannot be told."""
    if len(pairs) < _FEWEST_PAIRS:
        return None
    left = np.array([pair.left for pair in pairs])
    work = np.array([pair.work for pair in pairs])
    per_volume = work / np.array([pair.volume for pair in pairs])
    remaining = {name: _typical(left - factor * work) for name, factor in _UNITS.items()}
    remaining |= {name: _typical(left - factor * per_volume) for name, factor in _STRESS_TIMES_VOLUME.items()}
    best = min(remaining, key=lambda name: remaining[name])
    if remaining[_RIGHT] < 0.5 * _typical(left):
        return _RIGHT
    explains = remaining[best] < 0.3 * _typical(left) and remaining[best] < 0.2 * remaining[_RIGHT]
    return best if explains else None


def _typical(values: NDArray[np.float64]) -> float:
    return float(np.median(np.abs(values)))


def _pairs(members: Sequence[tuple[Frame, Labels]]) -> Iterator[_Pair]:
    """Frames of the same atoms that follow each other in the file, or in volume, and differ little but in strain."""
    groups: dict[tuple[int, ...], list[tuple[ase.Atoms, Labels]]] = {}
    for frame, label in members:
        if label.energy is not None and frame.converged:
            groups.setdefault(tuple(frame.atoms.numbers.tolist()), []).append((frame.atoms, label))
    for group in groups.values():
        chosen = group[:_LARGEST_GROUP]
        by_volume = sorted(range(len(chosen)), key=lambda i: float(chosen[i][0].cell.volume))
        neighbors = {*itertools.pairwise(range(len(chosen))), *itertools.pairwise(by_volume)}
        for first, second in sorted({(min(pair), max(pair)) for pair in neighbors}):
            pair = _compare(*chosen[first], *chosen[second])
            if pair is not None:
                yield pair


def _compare(first: ase.Atoms, label: Labels, second: ase.Atoms, other: Labels) -> _Pair | None:
    """The two sides of the equation for one pair; None if the frames differ too much, or too little in strain."""
    assert label.stress is not None
    assert other.stress is not None
    assert label.energy is not None
    assert other.energy is not None
    cell = 0.5 * (first.cell.array + second.cell.array)
    strain = np.linalg.solve(cell, second.cell.array - first.cell.array)
    strain = 0.5 * (strain + strain.T)
    if not _SMALLEST_STRAIN <= np.abs(strain).max() <= _LARGEST_STRAIN:
        return None
    scaled = second.cell.scaled_positions(second.positions) - first.cell.scaled_positions(first.positions)
    moved = (scaled - np.round(scaled)) @ cell
    if np.abs(moved).max() > _LARGEST_DISPLACEMENT:
        return None
    left = other.energy - label.energy
    if label.forces is not None and other.forces is not None:
        left += float((0.5 * (label.forces + other.forces) * moved).sum())
    elif np.abs(moved).max() > 1e-3:
        return None
    volumes = first.cell.volume, second.cell.volume
    stress = 0.5 * (volumes[0] * label.stress + volumes[1] * other.stress)
    return _Pair(left, float((stress * strain).sum()), 0.5 * sum(volumes))
