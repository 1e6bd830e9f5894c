"""Numbers that a model takes from its training set: reference energies, scale, mean number of neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hienet.data.dataset import Dataset
from hienet.errors import HIENetError


@dataclass(frozen=True)
class ReferenceEnergies:
    """Energies of single atoms (eV), in the order of the elements, and how they were found."""

    energies: tuple[float, ...]
    note: str


def compositions(dataset: Dataset, elements: Sequence[str]) -> NDArray[np.float64]:
    """Number of atoms of each element in each frame, `[n_frames, n_elements]`."""
    counts = [np.bincount(graph.species.numpy(), minlength=len(elements)) for graph in dataset.graphs]
    return np.array(counts, dtype=np.float64)


def fit_reference_energies(
    dataset: Dataset, elements: Sequence[str], known: Mapping[str, float] | None = None
) -> ReferenceEnergies:
    """Least squares of the total energies on the composition; of all solutions the one of least norm.

    An element that cannot be told from others (all frames of one composition) shares the energy with them.

    Args:
        dataset: the training set.
        elements: the model's, in species order.
        known: energies (eV) of elements that are not fitted, such as those of isolated atoms.
    """
    known = {symbol: energy for symbol, energy in (known or {}).items() if symbol in elements}
    energies = np.array([known.get(symbol, 0.0) for symbol in elements])
    fitted = np.array([symbol not in known for symbol in elements])
    energy = dataset.energies()
    counts = compositions(dataset, elements)
    # A frame of elements that are known says nothing of the others.
    chosen = np.isfinite(energy) & (counts[:, fitted].sum(axis=1) > 0)
    if not fitted.any():
        return ReferenceEnergies(tuple(energies.tolist()), "known")
    if not chosen.any():
        note = "no energies: reference energies are 0"
        return ReferenceEnergies(tuple(energies.tolist()), f"known; of other elements {note}" if known else note)
    # Per atom, so that every frame counts the same.
    n_atoms = counts[chosen].sum(axis=1, keepdims=True)
    left = energy[chosen] - counts[chosen] @ energies
    solution, _, rank, _ = np.linalg.lstsq(counts[chosen][:, fitted] / n_atoms, left / n_atoms[:, 0], rcond=1e-10)
    energies[fitted] = solution
    note = f"least squares on {int(chosen.sum())} frames"
    if rank < fitted.sum():
        note += (
            f"; the compositions determine only {rank} of {int(fitted.sum())} reference energies, "
            "so the solution of least norm is taken"
        )
    if known:
        note = f"{', '.join(known)} known, the rest by {note}"
    return ReferenceEnergies(tuple(energies.tolist()), note)


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
    energy = dataset.energies()
    labelled = np.isfinite(energy)
    if not labelled.any():
        raise HIENetError("`data.shift_to_mean` needs energies, but no training frame has one; set it to false")
    counts = compositions(dataset, elements)[labelled]
    left = (energy[labelled] - counts @ np.array(reference.energies)) / counts.sum(axis=1)
    shift = float(left.mean())
    energies = tuple(energy + shift for energy in reference.energies)
    return ReferenceEnergies(energies, f"{reference.note}; shifted by {shift:.4f} eV to the mean energy per atom")


def force_rms(dataset: Dataset) -> float:
    """Root mean square of the labelled force components (eV/Å); 1 if there are none or all vanish."""
    forces = np.concatenate([targets.forces.double().numpy().ravel() for targets in dataset.targets])
    forces = forces[np.isfinite(forces)]
    rms = float(np.sqrt(np.mean(forces**2))) if len(forces) else 0.0
    return rms if rms > 0 else 1.0


def mean_number_of_neighbors(dataset: Dataset, cutoff: float) -> float:
    """Edges for each atom.

    Raises:
        HIENetError: there are no edges, so nothing can be learnt.
    """
    n_edges = sum(len(graph.center) for graph in dataset.graphs)
    n_atoms = sum(graph.n_local for graph in dataset.graphs)
    if n_edges == 0:
        raise HIENetError(
            f"no atom of the training frames has a neighbour within the cutoff of {cutoff:g} Å; "
            "raise `model.cutoff`, or check that positions and cells are in Å"
        )
    return n_edges / n_atoms
