"""Folders of DeePMD-kit: `type.raw`, `type_map.raw` and arrays in `set.*`, of one composition or of mixed types.

Lengths are in Å, energies in eV. A `virial` is in eV, -volume times the stress, as everywhere in this package.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ase
import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

_TYPES, _NAMES = "type.raw", "type_map.raw"


def is_deepmd(folder: Path) -> bool:
    """Whether a folder is a system of DeePMD-kit."""
    return (folder / _TYPES).is_file()


def iterate_deepmd(folder: Path) -> Iterator[ase.Atoms]:
    """The frames of a system, set by set; labels are entries `energy`, `forces` and `virial`.

    In a system of mixed types each frame has its own types in `real_atom_types.npy`; atoms of type -1 only fill rows.

    Raises:
        ValueError: a file is missing, or its shape does not fit the others.
    """
    types = _whole_numbers(folder / _TYPES)
    numbers = _atomic_numbers(folder / _NAMES)
    periodic = not (folder / "nopbc").exists()
    sets = sorted(path for path in folder.glob("set.*") if path.is_dir())
    if not sets:
        raise ValueError("there is no folder `set.*` in it")
    for part in sets:
        yield from _frames(part, types, numbers, periodic)


def _frames(part: Path, types: NDArray[np.int64], numbers: NDArray[np.int64], periodic: bool) -> Iterator[ase.Atoms]:
    n_atoms = len(types)
    positions = _array(part, "coord", n_atoms * 3)
    if positions is None:
        raise ValueError(f"`{part.name}` has no `coord.npy`")
    n_frames = len(positions)
    cells = _array(part, "box", 9, n_frames)
    if periodic and cells is None:
        raise ValueError(f"`{part.name}` has no `box.npy`, and the folder no `nopbc`")
    of_frames = _array(part, "real_atom_types", n_atoms, n_frames)
    labels = {
        "energy": _array(part, "energy", 1, n_frames),
        "forces": _array(part, "force", n_atoms * 3, n_frames),
        "virial": _array(part, "virial", 9, n_frames),
    }
    for i in range(n_frames):
        own = types if of_frames is None else of_frames[i].astype(np.int64)
        real = own >= 0
        if own.max() >= len(numbers):
            raise ValueError(f"type {own.max()} is not among the {len(numbers)} of `{_NAMES}`")
        atoms = ase.Atoms(
            numbers=numbers[own[real]],
            positions=positions[i].reshape(n_atoms, 3)[real],
            cell=cells[i].reshape(3, 3) if periodic and cells is not None else None,
            pbc=periodic,
        )
        if labels["energy"] is not None:
            atoms.info["energy"] = float(labels["energy"][i, 0])
        if labels["forces"] is not None:
            atoms.arrays["forces"] = np.array(labels["forces"][i], dtype=np.float64).reshape(n_atoms, 3)[real]
        if labels["virial"] is not None and periodic:
            atoms.info["virial"] = np.array(labels["virial"][i], dtype=np.float64).reshape(3, 3)
        yield atoms


def _array(part: Path, name: str, n_columns: int, n_frames: int | None = None) -> NDArray[np.float64] | None:
    """`[n_frames, n_columns]`, read where it is needed only; None if there is no such file."""
    path = part / f"{name}.npy"
    if not path.exists():
        return None
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.size == 0 or array.size != len(array) * n_columns or (n_frames is not None and len(array) != n_frames):
        expected = f"[{'n_frames' if n_frames is None else n_frames}, {n_columns}]"
        raise ValueError(f"`{part.name}/{path.name}` has the shape {list(array.shape)}, expected {expected}")
    return array.reshape(len(array), n_columns)


def _whole_numbers(path: Path) -> NDArray[np.int64]:
    words = path.read_text(encoding="utf-8").split()
    if not words:
        raise ValueError(f"`{path.name}` is empty")
    return np.array([int(word) for word in words], dtype=np.int64)


def _atomic_numbers(path: Path) -> NDArray[np.int64]:
    """By type."""
    if not path.is_file():
        raise ValueError(f"there is no `{path.name}`, which says of which element each type is; add it")
    names = path.read_text(encoding="utf-8").split()
    unknown = [name for name in names if name not in atomic_numbers]
    if unknown:
        raise ValueError(f"`{path.name}` names `{unknown[0]}`, which is no element")
    return np.array([atomic_numbers[name] for name in names], dtype=np.int64)
