"""Comparison of a deployed file with its source model on structures that exercise every element."""

from __future__ import annotations

from dataclasses import dataclass

import ase
import numpy as np
from ase.data import atomic_numbers, covalent_radii

from hienet.calculator import LoadedModel
from hienet.derivatives import Prediction, to_voigt

FORCE_TOLERANCES = {"float32": 1e-5, "float64": 1e-8}
"""Largest error of a force (eV/Å) that an export allows unless told otherwise; relative above 1."""


@dataclass(frozen=True)
class Comparison:
    """Largest errors of one structure: energy (eV/atom), forces (eV/Å), stress (eV/Å^3; None without a cell)."""

    name: str
    n_atoms: int
    energy: float
    forces: float
    stress: float | None
    passed: bool


def verification_structures(
    elements: tuple[str, ...], seed: int = 0, overlapping: bool = False
) -> dict[str, ase.Atoms]:
    """Random close-packed alloys of all elements at normal density (in groups of at most eight), a slab and a cluster.

    Bond lengths follow the covalent radii, so that every element pair of a group is met within the cutoff. With
    `overlapping` there is also the cluster at a fifth of its size.
    """
    rng = np.random.default_rng(seed)
    structures: dict[str, ase.Atoms] = {}
    for start in range(0, len(elements), 8):
        group = elements[start : start + 8]
        bond = 2.0 * float(np.mean([covalent_radii[atomic_numbers[symbol]] for symbol in group]))
        spacing = bond * np.sqrt(2.0)
        basis = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
        cells = np.array([[i, j, k] for i in range(2) for j in range(2) for k in range(2)])
        positions = (cells[:, None, :] + basis[None]).reshape(-1, 3) * spacing
        symbols = [group[i] for i in rng.permutation(np.arange(len(positions)) % len(group))]
        cell = 2.0 * spacing * (np.eye(3) + 0.03 * rng.standard_normal((3, 3)))
        scaled = positions / (2.0 * spacing)
        atoms = ase.Atoms(symbols, cell=cell, scaled_positions=scaled, pbc=True)
        atoms.rattle(0.05 * bond, rng=rng)
        label = f"{group[0]}..{group[-1]}" if len(group) > 1 else group[0]
        structures[f"crystal {label}"] = atoms
        if start == 0:
            slab = atoms.copy()
            slab.set_pbc((True, True, False))
            structures[f"slab {label}"] = slab
            cluster = atoms[: min(12, len(atoms))]
            cluster.set_cell(None)
            cluster.set_pbc(False)
            structures[f"cluster {label}"] = cluster
            if overlapping:
                dense = cluster.copy()
                dense.positions *= 0.2
                structures[f"overlapping {label}"] = dense
    structures[f"atom {elements[0]}"] = ase.Atoms(elements[0])
    return structures


@dataclass(frozen=True)
class Reference:
    """A structure and what the source model predicts for it in float64."""

    name: str
    atoms: ase.Atoms
    prediction: Prediction
    reference_energies: np.ndarray
    """`[n_atoms]` (eV)."""


def references(source: LoadedModel, structures: dict[str, ase.Atoms]) -> list[Reference]:
    """What `source` predicts for each structure."""
    shift = source.info["hyperparameters"]["shift"]
    return [
        Reference(
            name, atoms, source.predict(atoms), np.array([shift[source.elements.index(s)] for s in atoms.symbols])
        )
        for name, atoms in structures.items()
    ]


def compare(expected: list[Reference], deployed: LoadedModel, tolerance: float) -> list[Comparison]:
    """Errors of `deployed` on each structure.

    `tolerance` is for energy (eV/atom), forces (eV/Å) and stress (eV/Å^3) alike, relative above 1. A compiled model has
    the tables of one structure's elements at a time: those of all pairs of 89 elements would take gigabytes and
    minutes, and few of the pairs meet in any structure.
    """
    comparisons = []
    for reference in expected:
        deployed.unload_elements()
        comparisons.append(_compared(reference, deployed.predict(reference.atoms), tolerance))
    return comparisons


def _compared(reference: Reference, found: Prediction, tolerance: float) -> Comparison:
    atoms, expected = reference.atoms, reference.prediction
    assert expected.forces is not None
    assert found.forces is not None
    assert expected.stress is not None
    assert found.stress is not None
    # Without reference energies: they are exact in both, and would hide the network's errors in a relative measure.
    energies = expected.energies.numpy() - reference.reference_energies
    errors = {
        "energy": (abs(float(found.energy - expected.energy)) / len(atoms), _largest(energies)),
        "forces": (_largest(found.forces.double() - expected.forces), _largest(expected.forces)),
    }
    has_stress = atoms.cell.rank == 3
    if has_stress:
        errors["stress"] = (
            _largest(to_voigt(found.stress.double() - expected.stress)),
            _largest(to_voigt(expected.stress)),
        )
    passed = all(error <= tolerance * max(1.0, magnitude) for error, magnitude in errors.values())
    stress = errors["stress"][0] if has_stress else None
    return Comparison(reference.name, len(atoms), errors["energy"][0], errors["forces"][0], stress, passed)


def _largest(values: object) -> float:
    return float(np.abs(np.asarray(values)).max())
