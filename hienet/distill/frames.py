"""Frames to be labelled: strained and rattled crystals to begin with, later those on which a committee disagrees."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ase
import ase.io
import numpy as np

from hienet.files import atomic_path
from hienet.properties.engine import Array
from hienet.properties.supercells import repeated


def first_frames(
    atoms: ase.Atoms, n_strained: int, n_vacancies: int, strain: float, rattle: float, seed: int
) -> list[ase.Atoms]:
    """Random symmetric strains and displacements of a crystal, from none to the largest; some with an atom missing.

    Cells of at least 8 atoms take turns with ones of at least 32, so that small strains of small cells and
    displacements of many atoms both occur.

    Args:
        atoms: the crystal.
        n_strained: number of frames.
        n_vacancies: number of further frames, with one atom missing.
        strain: largest component.
        rattle: Å, largest standard deviation of the displacements.
        seed: of the random numbers.
    """
    random = np.random.default_rng(seed)
    small, large = repeated(atoms, 8), repeated(atoms, 32)
    frames = [_plain(small, "crystal")]
    for i in range(n_strained):
        part = (i + 1) / n_strained
        frames.append(_distorted(small if i % 2 else large, part * strain, part * rattle, random, "strained"))
    for _ in range(n_vacancies):
        frame = _distorted(large, 0.5 * strain, 0.5 * rattle, random, "vacancy")
        del frame[int(random.integers(len(frame)))]
        frames.append(frame)
    return frames


def _plain(atoms: ase.Atoms, kind: str) -> ase.Atoms:
    plain = ase.Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    plain.info["config_type"] = kind
    return plain


def _distorted(atoms: ase.Atoms, strain: float, rattle: float, random: np.random.Generator, kind: str) -> ase.Atoms:
    frame = _plain(atoms, kind)
    tensor = random.uniform(-strain, strain, (3, 3))
    frame.set_cell(atoms.cell.array @ (np.eye(3) + 0.5 * (tensor + tensor.T)), scale_atoms=True)
    frame.positions += random.normal(0.0, rattle, frame.positions.shape)
    return frame


def of_trajectory(frames: Sequence[ase.Atoms], kind: str) -> list[ase.Atoms]:
    """Frames without velocities and results, with a kind."""
    return [_plain(frame, kind) for frame in frames]


def choose(deviations: Array, threshold: float, number: int) -> list[int]:
    """Frames of a trajectory to be labelled, in order.

    Of those with a deviation above the threshold the first, where the model begins to fail, and others at equal
    distances in time, since neighbours in time are alike.

    Args:
        deviations: `[n_frames]` (eV/Å).
        threshold: eV/Å.
        number: at most.
    """
    uncertain = np.flatnonzero(deviations > threshold)
    if len(uncertain) <= number:
        return [int(i) for i in uncertain]
    return [int(i) for i in uncertain[np.unique(np.linspace(0, len(uncertain) - 1, number).round().astype(int))]]


def write(frames: Sequence[ase.Atoms], path: Path) -> None:
    """As extxyz, with their labels."""
    with atomic_path(path) as temporary:
        ase.io.write(temporary, list(frames), format="extxyz")


def read(path: Path) -> list[ase.Atoms]:
    """What `write` wrote."""
    return list(ase.io.read(path, index=":", format="extxyz"))
