"""Structures from files, each with a name of its own; what cannot be read is named and stops nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ase

from hienet.data.reader import Frame, read_frames
from hienet.errors import HIENetError


@dataclass(frozen=True)
class Structure:
    """A structure of a user's file.

    Attributes:
        name: of its results: the file's name without ending, with the number of the frame where there are several.
        file: where it is from.
        atoms: the structure.
    """

    name: str
    file: str
    atoms: ase.Atoms


@dataclass(frozen=True)
class Failure:
    """What could not be done, and why, in a sentence."""

    name: str
    file: str
    reason: str


def read_structures(files: Sequence[str | Path]) -> tuple[list[Structure], list[Failure]]:
    """All structures of all files, in order, and the files that cannot be read.

    Args:
        files: anything that ASE reads; each may hold many frames.
    """
    structures: list[Structure] = []
    failures: list[Failure] = []
    taken: set[str] = set()
    for file in files:
        stem = _stem(Path(file))
        try:
            frames = read_frames([file])
        except HIENetError as error:
            failures.append(Failure(_unique(stem, taken), str(file), str(error)))
            continue
        for frame in frames:
            name = _unique(stem if len(frames) == 1 else f"{stem}-{frame.index:04d}", taken)
            reason = _problem(frame)
            if reason is not None:
                failures.append(Failure(name, str(file), reason))
            else:
                structures.append(Structure(name, str(file), _plain(frame.atoms)))
    return structures, failures


def read_one(file: str | Path) -> Structure:
    """The structure of a file that must hold just one.

    Raises:
        HIENetError: it cannot be read, or holds several.
    """
    structures, failures = read_structures([file])
    if failures:
        raise HIENetError(failures[0].reason)
    if len(structures) != 1:
        raise HIENetError(f"`{file}` holds {len(structures)} structures, but one is needed; write it to a file alone")
    return structures[0]


def _stem(path: Path) -> str:
    """A name for results: `POSCAR` in a folder says nothing, its folder does."""
    name = path.name if path.suffix == "" else path.stem
    if name.upper() in ("POSCAR", "CONTCAR", "OUTCAR", "XDATCAR", "VASPRUN") and path.absolute().parent.name:
        name = f"{path.absolute().parent.name}-{name}"
    return re.sub(r"[^\w.+()-]", "_", name) or "structure"


def _unique(name: str, taken: set[str]) -> str:
    chosen, count = name, 1
    while chosen.lower() in taken:
        count += 1
        chosen = f"{name}_{count}"
    taken.add(chosen.lower())
    return chosen


def _problem(frame: Frame) -> str | None:
    occupancy = frame.atoms.info.get("occupancy")
    if isinstance(occupancy, dict) and any(
        abs(sum(site.values()) - 1.0) > 1e-3 or len(site) > 1 for site in occupancy.values()
    ):
        return (
            f"{frame.source} has sites that are partly occupied, which are no atoms; order it first, for example with "
            "`hienet alloy`"
        )
    return None


def _plain(atoms: ase.Atoms) -> ase.Atoms:
    """Elements, positions, cell and periodicity alone: others' results are none of ours, constraints would hold."""
    return ase.Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
