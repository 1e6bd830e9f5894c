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


def fit_reference_energies(dataset: Dataset, elements: Sequence[str]) -> ReferenceEnergies:
    """Least squares of the total energies on the composition; of all solutions the one of least norm.

    An element that cannot be told from others (all frames of one composition) shares the energy with them.
    """
    energy = dataset.energies()
    labelled = np.isfinite(energy)
    if not labelled.any():
        return ReferenceEnergies((0.0,) * len(elements), "no energies: reference energies are 0")
    counts = compositions(dataset, elements)[labelled]
    # Per atom, so that every frame counts the same.
    n_atoms = counts.sum(axis=1, keepdims=True)
    solution, _, rank, _ = np.linalg.lstsq(counts / n_atoms, energy[labelled] / n_atoms[:, 0], rcond=1e-10)
    note = f"least squares on {int(labelled.sum())} frames"
    if rank < len(elements):
        note += (
            f"; the compositions determine only {rank} of {len(elements)} reference energies, "
            "so the solution of least norm is taken"
        )
    return ReferenceEnergies(tuple(float(value) for value in solution), note)


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
