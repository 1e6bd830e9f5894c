"""Frames from files, by ASE."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ase
import ase.io
import numpy as np
from ase.io.formats import filetype, get_compression

from hienet.data.extxyz import iterate_extxyz
from hienet.data.vasp import read_ionic_steps
from hienet.errors import HIENetError

_FORMATS = {
    ".extxyz": "extxyz",
    ".xyz": "extxyz",
    ".traj": "traj",
    ".db": "db",
    ".aselmdb": "aselmdb",
    ".json": "json",
}
_DATABASES = ("db", "json", "aselmdb")
_VASP = ("vasp-xml", "vasp-out")


@dataclass(frozen=True)
class Frame:
    """A structure and where it came from.

    Attributes:
        atoms: structure, with labels in `info`, `arrays` or an attached calculator.
        file: the file.
        index: position in the file, from 0.
        converged: false where the program says that the electronic structure did not converge.
        remark: what a user should know of the file at this frame; empty if nothing.
    """

    atoms: ase.Atoms
    file: str
    index: int
    converged: bool = True
    remark: str = ""

    @property
    def source(self) -> str:
        """For messages: file and frame."""
        return f"`{self.file}`, frame {self.index}"

    def group(self, key: str | None) -> str:
        """Value of an entry of `info`, such as `config_type`; empty if there is none."""
        return "" if key is None else str(self.atoms.info.get(key, ""))


def read_frames(files: Sequence[str | Path]) -> list[Frame]:
    """All frames of all files, in order.

    A name is that of one file, whatever characters it has: neither `@` nor `*` mean anything.

    Raises:
        HIENetError: no such file, a file that cannot be read, or one without frames.
    """
    frames: list[Frame] = []
    for file in files:
        frames.extend(_read_file(Path(file)))
    return frames


def _read_file(path: Path) -> list[Frame]:
    if not path.exists():
        raise HIENetError(
            f"there is no file `{path}`; check the path, which is relative to the folder `{Path.cwd()}`{_hint(path)}"
        )
    if path.is_dir() and not (path / "metadata.json").exists():
        raise HIENetError(f"`{path}` is a folder; name the files in it")
    if not path.is_file() and not path.is_dir():
        raise HIENetError(f"`{path}` is a pipe or a device, which cannot be read twice; give a file")
    if path.is_file() and path.stat().st_size == 0:
        raise HIENetError(f"`{path}` is empty; a data set needs at least one frame")
    frames: list[Frame] = []
    try:
        file_format = _format(path)
        for atoms in _iterate(path, file_format):
            frames.append(Frame(atoms, str(path), len(frames)))
    except HIENetError:
        raise
    except ImportError as error:
        package = str(error.name).replace("_", "-")
        raise HIENetError(
            f"`{path}` is of a format for which ASE needs the package {package}; install it "
            f"(pip install {package}), or give extxyz"
        ) from error
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HIENetError(
            f"ASE cannot read `{path}`, frame {len(frames)}: {reason}; mend the file, or give extxyz or another "
            "format that ASE reads"
        ) from error
    if not any(len(frame.atoms) for frame in frames):
        raise HIENetError(f"`{path}` contains no atoms; a data set needs at least one frame with atoms")
    for frame in frames:
        if len(frame.atoms) == 0:
            raise HIENetError(f"{frame.source} has no atoms; remove it")
        if (frame.atoms.numbers == 0).any():
            raise HIENetError(
                f"{frame.source}: atom {int((frame.atoms.numbers == 0).argmax())} is of no element (`X`); remove it, "
                "or name its element"
            )
        periodic = frame.atoms.cell.array[frame.atoms.pbc]
        if np.linalg.matrix_rank(periodic) < len(periodic):
            raise HIENetError(
                f"{frame.source} is periodic along {frame.atoms.pbc.tolist()}, but its lattice vectors there are "
                f"{periodic.tolist()}; give independent lattice vectors (`Lattice` of extxyz), or switch periodicity "
                "off (pbc)"
            )
    return _with_convergence(frames, path) if file_format in _VASP else frames


def _hint(path: Path) -> str:
    """What a name that is no file may have been meant as."""
    name = str(path)
    if any(character in name for character in "*?["):
        return ", and names with `*` are not expanded: list the files"
    if ":/" in name:
        return ", and databases of a server are not read: write the rows that are wanted into a file"
    if "@" in name:
        return ", and nothing after an `@` chooses frames: write the frames that are wanted into a file"
    return ""


def _format(path: Path) -> str:
    """ASE's name of the format; the ending of the name, where it is a known one, decides."""
    root, _ = get_compression(path.name)
    known = _FORMATS.get(Path(root).suffix.lower())
    return known if known is not None else str(filetype(_plain(path)))


def _plain(path: Path) -> str:
    """A name that cannot be taken for the address of a database."""
    return str(path.absolute())


def _iterate(path: Path, file_format: str) -> Iterator[ase.Atoms]:
    if file_format in ("extxyz", "xyz"):
        yield from iterate_extxyz(path)
    elif file_format in _DATABASES:
        yield from _iterate_database(path, file_format)
    else:
        yield from ase.io.iread(_plain(path), index=":", format=file_format, do_not_split_by_at_sign=True)


def _iterate_database(path: Path, kind: str) -> Iterator[ase.Atoms]:
    """Rows of an ASE database; their key-value pairs and data become entries of `info`."""
    from ase.db import connect

    with connect(_plain(path), type=kind, serial=True, use_lock_file=False) as database:
        for row in database.select():
            atoms = row.toatoms()
            atoms.info.update(row.data)
            atoms.info.update(row.key_value_pairs)
            yield atoms


def _with_convergence(frames: list[Frame], path: Path) -> list[Frame]:
    """Frames of a VASP calculation, marked where the electronic steps ran out."""
    steps = read_ionic_steps(path, _format(path))
    marked = [
        replace(frame, converged=converged) for frame, converged in zip(frames, steps.converged, strict=False)
    ] + frames[len(steps.converged) :]
    if len(steps.converged) > len(frames):
        remark = f"`{path}` ends in the middle of ionic step {len(frames)} (from 0), which is left out"
        marked[-1] = replace(marked[-1], remark=remark)
    return marked
