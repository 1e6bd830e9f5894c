"""Frames as extxyz, with the labels that were read under the names that everybody knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from hienet.data.dataset import Dataset
from hienet.data.labels import Labels
from hienet.data.reader import Frame
from hienet.data.weights import PART_KEYS
from hienet.files import atomic_path


def write_frames(dataset: Dataset, path: str | Path) -> None:
    """Write structures, their labels as `energy`, `forces` and `stress`, and the plain entries of `info`.

    Nothing else of the frames is written, so that no other energy or stress can be taken for the label, and whatever
    a frame carries can be written.
    """
    frames = [labelled_atoms(*pair) for pair in zip(dataset.frames, dataset.labels, strict=True)]
    with atomic_path(path) as temporary:
        ase.io.write(temporary, frames, format="extxyz")


def labelled_atoms(frame: Frame, labels: Labels) -> ase.Atoms:
    """The structure with these labels, and the plain entries of `info`."""
    source = frame.atoms
    atoms = ase.Atoms(source.numbers, positions=source.positions, cell=source.cell, pbc=source.pbc)
    atoms.info = {
        name: text
        for name, value in source.info.items()
        if isinstance(name, str) and name.isidentifier() and (text := _plain(name, value)) is not None
    }
    atoms.info |= {"source_file": _one_line(frame.file), "source_frame": frame.index}
    results = {name: value for name, value in vars(labels).items() if value is not None}
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def _plain(name: str, value: Any) -> Any:
    """A value that extxyz can hold, or None: names that the format or labels use are not for others."""
    is_label = any(part in name.lower() for part in _LABEL_PARTS) and name not in PART_KEYS
    if name.lower() in _RESERVED or is_label:
        return None
    if isinstance(value, (bool, int, float, np.integer, np.floating, np.bool_)):
        return value
    return _one_line(value) if isinstance(value, str) and value.strip() else None


_RESERVED = ("lattice", "properties", "pbc", "magmom", "dipole", "charge")
_LABEL_PARTS = ("energy", "force", "stress", "virial")


def _one_line(text: str) -> str:
    """Without what would end the line, or what could not be written."""
    return "".join(character if character.isprintable() else " " for character in text).replace("\\", "/")
