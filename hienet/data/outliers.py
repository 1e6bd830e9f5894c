"""Frames that are unlike the others: labels or densities that would decide the statistics by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hienet.data.composition import least_absolute_deviations, parts
from hienet.data.dataset import Dataset
from hienet.units import EV_PER_CUBIC_ANGSTROM_IN_GPA

Array = NDArray[np.float64]

_TYPICAL = 0.8
"""The quantile that stands for what is typical: up to a fifth of the frames may be unlike the others."""
_TIMES_TYPICAL = 20.0
_TIMES_TYPICAL_NEIGHBORS = 10.0

# Whatever is typical of a set, up to here nothing is called unlike the others.
_ENERGY = 1.0  # eV/atom
_FORCE = 30.0  # eV/Å
_STRESS = 1.0  # eV/Å^3
_NEIGHBORS = 100.0

_NAMED = 5
_FRAMES_FITTED = 20_000
"""Of more frames, a random choice of so many gives the typical energies of the elements."""


@dataclass(frozen=True)
class Outlier:
    """A frame that is unlike the others.

    Attributes:
        index: in its data set.
        source: file and frame.
        reason: in which respect, in words.
    """

    index: int
    source: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source} ({self.reason})"


@dataclass(frozen=True)
class Limits:
    """What most frames of a set keep to.

    Attributes:
        elements: chemical symbols, in species order.
        references: energy of each element (eV), NaN where no frame tells; by least absolute deviations, which a few
            absurd energies do not move.
        center: median of what the references leave of the energies (eV/atom).
        energy: largest plausible distance from that (eV/atom).
        force: largest plausible component (eV/Å).
        stress: largest plausible component (eV/Å^3).
        neighbors: largest plausible number of neighbours, averaged over a frame.
    """

    elements: tuple[str, ...]
    references: Array
    center: float
    energy: float
    force: float
    stress: float
    neighbors: float

    def outliers(self, dataset: Dataset) -> list[Outlier]:
        """The frames of a set that exceed a limit; a set that the limits were not found from may be asked for too."""
        if len(dataset) == 0:
            return []
        left = _left_by(self.references, dataset)
        # Isolated atoms that have given the references are none, however far the bound ones are below.
        distances = np.minimum(np.abs(left), np.abs(left - self.center))
        above = np.where(left > self.center, "above", "below")
        (forces, stresses), neighbors = dataset.summary.largest.T, _neighbors(dataset)
        found = []
        exceeds = (distances > self.energy) | (forces > self.force) | (stresses > self.stress)
        for i in np.flatnonzero(exceeds | (neighbors > self.neighbors)).tolist():
            reasons = []
            if distances[i] > self.energy:
                reasons.append(f"energy {distances[i]:.3g} eV/atom {above[i]} that of the others")
            if forces[i] > self.force:
                reasons.append(f"a force of {forces[i]:.3g} eV/Å")
            if stresses[i] > self.stress:
                reasons.append(f"a stress of {stresses[i] * EV_PER_CUBIC_ANGSTROM_IN_GPA:.3g} GPa")
            if neighbors[i] > self.neighbors:
                reasons.append(f"{neighbors[i]:.3g} neighbours of an atom")
            found.append(Outlier(i, dataset.frames[i].source, ", ".join(reasons)))
        return found


def find_limits(dataset: Dataset, elements: Sequence[str], known: Mapping[str, float] | None = None) -> Limits:
    """What most frames keep to: 20 times what is typical (the 80 % quantile), 10 times for numbers of neighbours.

    Args:
        dataset: at least one frame.
        elements: chemical symbols, in species order.
        known: reference energies (eV) that were given.
    """
    references, n_fitted = _robust_references(dataset, elements, known or {})
    left = _left_by(references, dataset)
    left = left[np.isfinite(left)]
    center = float(np.median(left)) if len(left) else 0.0
    # A fit leaves nothing of as many energies as it has parameters; these say nothing of the spread.
    distances = np.sort(np.abs(left - center))[n_fitted:]
    spread = _typical(distances) / 1.2816  # standard deviation, were it a normal distribution
    return Limits(
        elements=tuple(elements),
        references=references,
        center=center,
        energy=max(_ENERGY, _TIMES_TYPICAL * spread),
        force=max(_FORCE, _TIMES_TYPICAL * _typical(dataset.summary.largest[:, 0])),
        stress=max(_STRESS, _TIMES_TYPICAL * _typical(dataset.summary.largest[:, 1])),
        neighbors=max(_NEIGHBORS, _TIMES_TYPICAL_NEIGHBORS * _typical(_neighbors(dataset))),
    )


def ordinary_frames(
    sets: Mapping[str, Dataset], elements: Sequence[str], known: Mapping[str, float] | None = None
) -> tuple[Dataset, list[str]]:
    """The training frames that statistics are made of, and what is to be said of those that are unlike them.

    Left out are outliers, and frames of weight 0.

    Args:
        sets: by name, `train` among them; the others are judged by its limits.
        elements: chemical symbols, in species order.
        known: reference energies (eV) that were given.
    """
    train = sets["train"]
    weighted = np.flatnonzero((train.weights() > 0).any(axis=1)).tolist() or list(range(len(train)))
    limits = find_limits(train.subset(weighted), elements, known)
    notes, left_out = [], set[int]()
    for name, dataset in sets.items():
        # That a frame of weight 0 is odd is known.
        found = [outlier for outlier in limits.outliers(dataset) if (dataset.weights()[outlier.index] > 0).any()]
        if found:
            notes.append(describe_outliers(found, len(dataset), name))
        if name == "train":
            left_out = {outlier.index for outlier in found}
    return train.subset([i for i in weighted if i not in left_out]), notes


_ADJECTIVE = {"train": "training"}
_USE = {
    "train": "trained on, but not used for reference energies, scale and mean number of neighbours",
    "validation": "used for the choice of the best epoch, and for the errors",
    "test": "used for the errors",
}


def describe_outliers(outliers: Sequence[Outlier], n_frames: int, name: str) -> str:
    """For the log: how many frames of the set `name`, which, what is done with them, and what to do."""
    named = "; ".join(str(outlier) for outlier in outliers[:_NAMED])
    rest = f"; and {len(outliers) - _NAMED} more" if len(outliers) > _NAMED else ""
    are, they, them = ("is", "It is", "it") if len(outliers) == 1 else ("are", "They are", "them")
    return (
        f"WARNING: {len(outliers)} of {n_frames} {_ADJECTIVE.get(name, name)} frames {are} unlike the others: "
        f"{named}{rest}. {they} {_USE[name]}; "
        f"if a calculation failed, remove {them}, or give {them} weight 0 (`config_weight=0`)"
    )


def _robust_references(dataset: Dataset, elements: Sequence[str], known: Mapping[str, float]) -> tuple[Array, int]:
    """Energies of the elements, NaN where no frame tells, and the number of them that were fitted."""
    references = np.array([known.get(symbol, np.nan) for symbol in elements], dtype=np.float64)
    sample = dataset
    if len(dataset) > _FRAMES_FITTED:
        chosen = np.random.default_rng(0).choice(len(dataset), _FRAMES_FITTED, replace=False)
        sample = dataset.subset(np.sort(chosen).tolist())
    energies = sample.energies()
    labelled = np.isfinite(energies)
    counts = sample.compositions(0, len(sample))[labelled]
    fitted = np.isnan(references) & (counts.sum(axis=0) > 0)
    if not fitted.any():
        return references, 0
    n_atoms = counts.sum(axis=1)
    held = np.where(np.isnan(references), 0.0, references)
    per_atom = (energies[labelled] - counts @ held) / n_atoms
    fractions = counts[:, fitted] / n_atoms[:, None]
    references[fitted] = least_absolute_deviations(fractions, per_atom)
    return references, int(np.linalg.matrix_rank(fractions))


def _left_by(references: Array, dataset: Dataset) -> Array:
    """`[n_frames]` energies less references (eV/atom), NaN where there is no label or no reference."""
    found = [np.zeros(0)]
    for frames, counts in parts(dataset):
        untold = (counts[:, np.isnan(references)] > 0).any(axis=1)
        left = (dataset.energies()[frames] - counts @ np.nan_to_num(references)) / counts.sum(axis=1)
        found.append(np.where(untold, np.nan, left))
    return np.concatenate(found)


def _typical(values: Array) -> float:
    """The 80 % quantile of the finite values, such that of two values the greater may be an outlier; 0 without any."""
    finite = values[np.isfinite(values)]
    return float(np.quantile(finite, _TYPICAL, method="lower")) if len(finite) else 0.0


def _neighbors(dataset: Dataset) -> Array:
    return np.asarray(dataset.summary.n_edges / dataset.summary.n_atoms)
