"""Frames from files, folders and patterns of names."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import ase
import numpy as np
from ase.io.formats import UnknownFileTypeError

from hienet.data.formats import Format, files_in, find_format, is_one_data_set
from hienet.data.vasp import read_ionic_steps
from hienet.errors import HIENetError

_VASP = ("vasp-xml", "vasp-out")
_PATTERN = "*?["
_SURELY_A_VOLUME = 1e-2  # Å^3


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
    """All frames of all files, in order; see `iterate_frames`."""
    return list(iterate_frames(files))


def iterate_frames(files: Sequence[str | Path]) -> Iterator[Frame]:
    """All frames of all files, in order, of which no more than needed are held at a time.

    A name is that of a file, whatever characters it has; that of a folder, of which all files are read that have the
    name of a known format; or, where there is no such file, a pattern with `*`, `?` or `[`.

    Raises:
        HIENetError: no such file, a file that cannot be read, or one without frames.
    """
    for path in find_files(files):
        yield from iterate_file(path)


def find_files(names: Sequence[str | Path]) -> list[Path]:
    """The files, and folders that are one data set, that names, folders and patterns stand for.

    Raises:
        HIENetError: there is none.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if not path.exists() and any(character in str(name) for character in _PATTERN):
            matching = [Path(match) for match in sorted(glob.glob(str(name), recursive=True))]
            if not matching:
                raise HIENetError(
                    f"no file matches `{name}`; check the pattern, which is relative to the folder `{Path.cwd()}`"
                )
            found += [file for match in matching for file in _files_at(match)]
        else:
            found += _files_at(path)
    return found


def _files_at(path: Path) -> list[Path]:
    if path.is_dir() and not is_one_data_set(path):
        files = files_in(path)
        if not files:
            raise HIENetError(
                f"`{path}` is a folder in which no file has the name of a known format; name the files in it"
            )
        return files
    return [path]


def iterate_file(path: Path) -> Iterator[Frame]:
    """The frames of one file, or of a folder that is one data set.

    Raises:
        HIENetError: as `iterate_frames`.
    """
    if not path.exists():
        raise HIENetError(
            f"there is no file `{path}`; check the path, which is relative to the folder `{Path.cwd()}`{_hint(path)}"
        )
    if not path.is_file() and not path.is_dir():
        raise HIENetError(f"`{path}` is a pipe or a device, which cannot be read twice; give a file")
    if path.is_file() and path.stat().st_size == 0:
        raise HIENetError(f"`{path}` is empty; a data set needs at least one frame")
    frames = _checked(path)
    # VASP's own files tell at their end what is said of the frames before, and are never large.
    with _explained(path, None, 0):
        is_vasp = find_format(path).name in _VASP
    yield from _with_convergence(list(frames), path) if is_vasp else frames


def _checked(path: Path) -> Iterator[Frame]:
    """The frames as they stand in the file, each fit for use."""
    with _explained(path, None, 0):
        file_format = find_format(path)
    iterator = file_format.iterate(path)
    index, n_with_atoms, empty = 0, 0, ""
    while True:
        with _explained(path, file_format, index):
            atoms = next(iterator, None)
        if atoms is None:
            break
        frame = Frame(atoms, str(path), index)
        n_with_atoms += len(atoms) > 0
        empty = empty or ("" if len(atoms) else frame.source)
        if empty and n_with_atoms:
            raise HIENetError(f"{empty} has no atoms; remove it")
        if len(atoms):
            _check(frame)
            yield frame
        index += 1
    if not n_with_atoms:
        raise HIENetError(f"`{path}` contains no atoms; a data set needs at least one frame with atoms")


@contextmanager
def _explained(path: Path, file_format: Format | None, index: int) -> Iterator[None]:
    """What goes wrong within is one sentence that names the file and the frame."""
    try:
        yield
    except HIENetError:
        raise
    except ImportError as error:
        package = str(error.name).replace("_", "-")
        who = "ASE needs" if file_format is None or file_format.by_ase else "this program needs"
        raise HIENetError(
            f"`{path}` is of a format for which {who} the package {package}; install it "
            f"(pip install {package}), or give extxyz"
        ) from error
    except UnknownFileTypeError as error:
        raise HIENetError(
            f"`{path}` is of no known format, by its name and its content; give the file the ending of what it is, "
            "such as .extxyz or .extxyz.gz"
        ) from error
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if file_format is not None and not file_format.by_ase:
            raise HIENetError(
                f"`{path}` cannot be read as {file_format.name}, frame {index}: {reason}; mend the file, or give extxyz"
            ) from error
        raise HIENetError(
            f"ASE cannot read `{path}`, frame {index}: {reason}; mend the file, or give extxyz or another "
            "format that ASE reads"
        ) from error


def _check(frame: Frame) -> None:
    atoms = frame.atoms
    if (atoms.numbers == 0).any():
        raise HIENetError(
            f"{frame.source}: atom {int((atoms.numbers == 0).argmax())} is of no element (`X`); remove it, "
            "or name its element"
        )
    if atoms.pbc.all() and abs(np.linalg.det(atoms.cell.array)) > _SURELY_A_VOLUME:
        return
    periodic = atoms.cell.array[atoms.pbc]
    if np.linalg.matrix_rank(periodic) < len(periodic):
        raise HIENetError(
            f"{frame.source} is periodic along {atoms.pbc.tolist()}, but its lattice vectors there are "
            f"{periodic.tolist()}; give independent lattice vectors (`Lattice` of extxyz), or switch periodicity "
            "off (pbc)"
        )


def _hint(path: Path) -> str:
    """What a name that is no file may have been meant as."""
    name = str(path)
    if ":/" in name:
        return ", and databases of a server are not read: write the rows that are wanted into a file"
    if "@" in name:
        return ", and nothing after an `@` chooses frames: write the frames that are wanted into a file"
    return ""


def _with_convergence(frames: list[Frame], path: Path) -> list[Frame]:
    """Frames of a VASP calculation, marked where the electronic steps ran out."""
    steps = read_ionic_steps(path, find_format(path).name)
    marked = [
        replace(frame, converged=converged) for frame, converged in zip(frames, steps.converged, strict=False)
    ] + frames[len(steps.converged) :]
    if len(steps.converged) > len(frames):
        remark = f"`{path}` ends in the middle of ionic step {len(frames)} (from 0), which is left out"
        marked[-1] = replace(marked[-1], remark=remark)
    return marked
