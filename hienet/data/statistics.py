"""Numbers that a model takes from its training set: reference energies, scale, mean number of neighbours.

They are those of ordinary frames: what `hienet.data.outliers` finds is left out by the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hienet.data.composition import Array, least_squares_of_parts, parts, sums_over_atoms
from hienet.data.dataset import Dataset
from hienet.errors import HIENetError

_LEAST_PART_OF_SPREAD = 0.1
_IMPLAUSIBLE_BINDING = 20.0  # eV/atom
_NEGLIGIBLE_SPREAD = 1e-8
_FRAMES_FOR_STRESS = 2000
_NEGLIGIBLE_SCALE = 1e-4  # eV, eV/Å


@dataclass(frozen=True)
class ReferenceEnergies:
    """Energies of single atoms (eV), in the order of the elements, and how they were found."""

    energies: tuple[float, ...]
    note: str


@dataclass(frozen=True)
class Statistic:
    """A number, and how it was found."""

    value: float
    note: str


def fit_reference_energies(
    dataset: Dataset, elements: Sequence[str], known: Mapping[str, float] | None = None
) -> ReferenceEnergies:
    """Least squares of the total energies on the composition; of all solutions the one of least norm.

    An element that cannot be told from others (all frames of one composition) shares the energy with them; one that no
    frame has gets 0.

    Args:
        dataset: ordinary frames of the training set.
        elements: the model's, in species order.
        known: energies (eV) of elements that are not fitted, such as those of isolated atoms.
    """
    known = {symbol: energy for symbol, energy in (known or {}).items() if symbol in elements}
    energies = np.array([known.get(symbol, 0.0) for symbol in elements])
    fitted = np.array([symbol not in known for symbol in elements])
    if not fitted.any():
        return ReferenceEnergies(_as_tuple(energies), "known")
    held, seen, n_frames = energies.copy(), np.zeros(len(elements), dtype=bool), 0

    def equations() -> Iterator[tuple[Array, Array]]:
        nonlocal seen, n_frames
        for frames, counts in parts(dataset):
            total = dataset.energies()[frames]
            # A frame of elements that are known says nothing of the others.
            chosen = np.isfinite(total) & (counts[:, fitted].sum(axis=1) > 0)
            if chosen.any():
                counts, total = counts[chosen], total[chosen]
                # Per atom, so that every frame counts the same.
                n_atoms = counts.sum(axis=1)
                seen = seen | (counts.sum(axis=0) > 0)
                n_frames += len(counts)
                yield counts[:, fitted] / n_atoms[:, None], (total - counts @ held) / n_atoms

    energies[fitted], rank = least_squares_of_parts(equations(), int(fitted.sum()))
    if not n_frames:
        note = "no energies: reference energies are 0"
        return ReferenceEnergies(_as_tuple(energies), f"known; of other elements {note}" if known else note)
    note = f"least squares on {n_frames} frames"
    n_sought = int((fitted & seen).sum())
    if rank < n_sought:
        note += (
            f"; the compositions determine only {rank} of {n_sought} reference energies, "
            "so the solution of least norm is taken"
        )
    unseen = [symbol for symbol, missing in zip(elements, fitted & ~seen, strict=True) if missing]
    if unseen:
        note += f"; 0 for {', '.join(unseen)}, which no frame with an energy contains"
    if known:
        note = f"{', '.join(known)} known, the rest by {note}"
    return ReferenceEnergies(_as_tuple(energies), note)


def given_reference_energies(energies: Mapping[str, float], elements: Sequence[str]) -> ReferenceEnergies:
    """Reference energies that were given by element.

    Raises:
        HIENetError: one is missing.
    """
    missing = [symbol for symbol in elements if symbol not in energies]
    if missing:
        raise HIENetError(
            f"`data.reference_energies` has no energy for {', '.join(missing)}, got {', '.join(energies) or 'none'}; "
            "add them, or use least_squares"
        )
    return ReferenceEnergies(tuple(float(energies[symbol]) for symbol in elements), "given")


def shifted_to_mean(reference: ReferenceEnergies, dataset: Dataset, elements: Sequence[str]) -> ReferenceEnergies:
    """Reference energies plus b, the mean over frames of (E - sum of reference energies) / n_atoms.

    With given energies of isolated atoms this is the scale-shifted BOTNet (Batatia et al., arXiv 2205.06643).

    Raises:
        HIENetError: no frame has an energy.
    """
    left = energies_left(reference, dataset, elements)
    if not len(left):
        raise HIENetError("`data.shift_to_mean` needs energies, but no training frame has one; set it to false")
    shift = float(left.mean())
    energies = tuple(energy + shift for energy in reference.energies)
    return ReferenceEnergies(energies, f"{reference.note}; shifted by {shift:.4f} eV to the mean energy per atom")


def energies_left(reference: ReferenceEnergies, dataset: Dataset, elements: Sequence[str]) -> Array:
    """What the reference energies leave of the labels, for each frame that has one (eV/atom)."""
    left = (dataset.energies() - sums_over_atoms(dataset, np.array(reference.energies))) / dataset.summary.n_atoms
    return left[np.isfinite(left)]


def force_rms(dataset: Dataset) -> float | None:
    """Root mean square of the labelled force components (eV/Å); None if there are none."""
    n_components = int(dataset.summary.n_labels[:, 1].sum())
    return float(np.sqrt(dataset.summary.force_squares.sum() / n_components)) if n_components else None


def spreads_of_labels(dataset: Dataset, shift: Sequence[float]) -> tuple[float, float, float]:
    """Standard deviation of the energies per atom that reference energies leave (eV/atom), root mean square of the
    force components (eV/Å), standard deviation of the stress components (eV/Å^3): 1 where there are none or they do not
    vary.

    Args:
        dataset: of training.
        shift: reference energies (eV), in species order.
    """
    left = energies_left(ReferenceEnergies(tuple(shift), ""), dataset, dataset.elements)
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(_FRAMES_FOR_STRESS, len(dataset))).round().astype(int))
    stress = np.concatenate([dataset.batch([int(i)])[1].stress.double().numpy().ravel() for i in chosen])
    stress = stress[np.isfinite(stress)]
    found = (np.std(left) if len(left) else 0.0, force_rms(dataset) or 0.0, np.std(stress) if len(stress) else 0.0)
    energy, forces, of_stress = (float(value) if value > _NEGLIGIBLE_SPREAD else 1.0 for value in found)
    return energy, forces, of_stress


def find_scale(dataset: Dataset, reference: ReferenceEnergies, elements: Sequence[str]) -> Statistic:
    """The root mean square of the force components, but at least a tenth of the spread of energies per atom.

    The latter matters where forces vanish by symmetry, as in perfect crystals: energies could not be learnt as millions
    of times the scale. Without forces, or if nothing varies, it is 1.
    """
    # Nothing is learnt of the energies of atoms without neighbours.
    bound = dataset.subset(np.flatnonzero(dataset.summary.n_edges > 0).tolist())
    left = energies_left(reference, bound, elements)
    spread = float(np.std(left)) if len(left) else 0.0
    least = _LEAST_PART_OF_SPREAD * spread
    rms = force_rms(dataset)
    if rms is None:
        return Statistic(max(1.0, least), "no training forces")
    if max(rms, least) < _NEGLIGIBLE_SCALE:
        return Statistic(1.0, f"the training forces vanish, their RMS is {rms:.1e} eV/Å, and energies do not vary")
    if rms < least:
        return Statistic(
            least,
            f"the training forces nearly vanish, their RMS is {rms:.1e} eV/Å; "
            f"a tenth of the energies' spread of {spread:.3g} eV/atom is taken",
        )
    return Statistic(rms, "RMS of training forces")


def mean_number_of_neighbors(dataset: Dataset, cutoff: float) -> Statistic:
    """Edges for each atom; at least 1, since sums over neighbours are divided by it.

    Raises:
        HIENetError: there are no edges, so nothing can be learnt.
    """
    n_edges, n_atoms = int(dataset.summary.n_edges.sum()), int(dataset.summary.n_atoms.sum())
    if n_edges == 0:
        raise HIENetError(
            f"no atom of the training frames has a neighbour within the cutoff of {cutoff:g} Å; "
            "raise `model.cutoff`, or check that positions and cells are in Å"
        )
    mean = n_edges / n_atoms
    if mean < 1.0:
        return Statistic(1.0, f"1 in place of {mean:.2g}, because most atoms have no neighbour within the cutoff")
    return Statistic(mean, "of the training frames")


def describe_unseen_elements(sets: Mapping[str, Dataset], elements: Sequence[str]) -> list[str]:
    """A warning for elements of which no training frame has an atom; `sets` by name, `train` among them."""
    present = {name: _frames_with_elements(data) for name, data in sets.items()}
    unseen = np.flatnonzero(present["train"][0] == 0)
    notes = []
    for index in unseen.tolist():
        where = [
            f"; it is in {number[index]} of the {name} frames (first: {sets[name].frames[first[index]].source}), whose "
            "errors mean nothing: have such frames in the training set, too"
            for name, (number, first) in present.items()
            if number[index]
        ]
        notes.append(
            f"WARNING: no training frame contains {elements[index]}, of which the model learns nothing{''.join(where)}"
        )
    return notes


def _frames_with_elements(dataset: Dataset) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each element the number of frames that contain it, and the index of the first, -1 if there is none."""
    number = np.zeros(len(dataset.elements), dtype=np.int64)
    first = np.full(len(dataset.elements), -1, dtype=np.int64)
    for frames, counts in parts(dataset):
        contained = counts > 0
        new = contained.any(axis=0) & (first < 0)
        first[new] = frames.start + contained[:, new].argmax(axis=0)
        number += contained.sum(axis=0)
    return number, first


def describe_what_is_left(shift: Sequence[float], dataset: Dataset, elements: Sequence[str]) -> list[str]:
    """A warning if reference energies leave so much of the energies that they are not of the same calculations."""
    left = energies_left(ReferenceEnergies(tuple(shift), ""), dataset, elements)
    typical = float(np.median(left)) if len(left) else 0.0
    if abs(typical) < _IMPLAUSIBLE_BINDING:
        return []
    return [
        f"WARNING: the reference energies leave {typical:.4g} eV/atom of the energies of most frames, which no binding "
        "explains; give reference energies of the same kind of calculation, or let them be found by least_squares"
    ]


def _as_tuple(values: Array) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
