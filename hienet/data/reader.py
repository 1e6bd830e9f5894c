"""Frames from files, by ASE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ase
import ase.io

from hienet.errors import HIENetError


@dataclass(frozen=True)
class Frame:
    """A structure and where it came from.

    Attributes:
        atoms: structure, with labels in `info`, `arrays` or an attached calculator.
        file: the file.
        index: position in the file, from 0.
    """

    atoms: ase.Atoms
    file: str
    index: int

    @property
    def source(self) -> str:
        """For messages: file and frame."""
        return f"`{self.file}`, frame {self.index}"

    def group(self, key: str | None) -> str:
        """Value of an entry of `info`, such as `config_type`; empty if there is none."""
        return "" if key is None else str(self.atoms.info.get(key, ""))


def read_frames(files: Sequence[str | Path]) -> list[Frame]:
    """All frames of all files, in order.

    Raises:
        HIENetError: no such file, a file that ASE cannot read, or one without frames.
    """
    frames: list[Frame] = []
    for file in files:
        frames.extend(_read_file(Path(file)))
    return frames


def _read_file(path: Path) -> list[Frame]:
    if not path.exists():
        raise HIENetError(f"there is no file `{path}`; check the path, which is relative to the folder `{Path.cwd()}`")
    if path.is_file() and path.stat().st_size == 0:
        raise HIENetError(f"`{path}` is empty; a data set needs at least one frame")
    try:
        frames = [Frame(atoms, str(path), i) for i, atoms in enumerate(ase.io.iread(path, index=":"))]
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HIENetError(
            f"ASE cannot read `{path}`: {reason}; give extxyz or another format that ASE reads"
        ) from error
    if not any(len(frame.atoms) for frame in frames):
        raise HIENetError(f"`{path}` contains no atoms; a data set needs at least one frame with atoms")
    for frame in frames:
        if len(frame.atoms) == 0:
            raise HIENetError(f"{frame.source} has no atoms; remove it")
    return frames
