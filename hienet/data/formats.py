"""The table of file formats: what a file is, by its name or its first bytes, and the function that reads its frames.

A new format is a function from a path to frames of ASE, and an entry of `FORMATS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import ase
import ase.io
from ase.io.formats import filetype, get_compression, open_with_compression

from hienet.data.deepmd import is_deepmd, iterate_deepmd
from hienet.data.extxyz import iterate_extxyz
from hienet.data.json_structures import is_mlearn, is_mptrj, iterate_mlearn, iterate_mptrj

_BYTES_LOOKED_AT = 4096


@dataclass(frozen=True)
class Format:
    """One kind of file, or of folder.

    Attributes:
        name: for messages and tables.
        iterate: the frames of a file, labels in `info`, `arrays` or an attached calculator.
        suffixes: endings of names (lower case, without that of a compression) that may be this format.
        recognizes: whether the first bytes are those of this format; None: the ending decides. Folders have none.
        is_folder: whether a folder of this kind is one data set, not a collection of files.
    """

    name: str
    iterate: Callable[[Path], Iterator[ase.Atoms]]
    suffixes: tuple[str, ...] = ()
    recognizes: Callable[[bytes], bool] | None = None
    is_folder: Callable[[Path], bool] | None = None

    @property
    def by_ase(self) -> bool:
        """Whether ASE reads it."""
        return self.iterate not in (iterate_mptrj, iterate_mlearn, iterate_deepmd, _iterate_cache)


def _iterate_database(kind: str) -> Callable[[Path], Iterator[ase.Atoms]]:
    """Rows of an ASE database; their key-value pairs and data become entries of `info`."""

    def iterate(path: Path) -> Iterator[ase.Atoms]:
        from ase.db import connect

        with connect(plain_name(path), type=kind, serial=True, use_lock_file=False) as database:
            for row in database.select():
                yield atoms_of_row(row)

    return iterate


_open_databases: WeakValueDictionary[tuple[str, int], Any] = WeakValueDictionary()
"""By name and time of change. LMDB refuses to open a file twice in a process."""


def open_aselmdb(path: Path) -> Any:
    """An LMDB database of ASE, to be read only; closed when nobody holds it any more.

    Raises:
        ImportError: the packages for it are missing.
    """
    import lmdb
    from ase.db import connect

    key = str(path.resolve()), path.stat().st_mtime_ns
    database = _open_databases.get(key)
    if database is None:
        # The backend of ASE tries to open a file that it could not open once more when it is deleted.
        lmdb.open(str(path), subdir=False, readonly=True, lock=False).close()
        database = connect(
            plain_name(path), type="aselmdb", serial=True, use_lock_file=False, readonly=True, readahead=False
        )
        _open_databases[key] = database
    return database


def _iterate_aselmdb(path: Path) -> Iterator[ase.Atoms]:
    database = open_aselmdb(path)
    for row in database.select():
        yield atoms_of_row(row)


def atoms_of_row(row: object) -> ase.Atoms:
    """A row of an ASE database with its key-value pairs and data as entries of `info`."""
    atoms: ase.Atoms = row.toatoms()  # type: ignore[attr-defined]
    atoms.info.update(row.data)  # type: ignore[attr-defined]
    atoms.info.update(row.key_value_pairs)  # type: ignore[attr-defined]
    return atoms


def _iterate_with_ase(file_format: str) -> Callable[[Path], Iterator[ase.Atoms]]:
    def iterate(path: Path) -> Iterator[ase.Atoms]:
        yield from ase.io.iread(plain_name(path), index=":", format=file_format, do_not_split_by_at_sign=True)

    return iterate


def _iterate_cache(path: Path) -> Iterator[ase.Atoms]:
    """A cache of `hienet data convert`."""
    # The cache reads labels, which know frames, which know formats.
    from hienet.data.cache import iterate_store

    return iterate_store(path)


FORMATS = (
    Format("extxyz", iterate_extxyz, (".extxyz", ".xyz")),
    Format("traj", _iterate_with_ase("traj"), (".traj",)),
    Format("db", _iterate_database("db"), (".db",)),
    Format("aselmdb", _iterate_aselmdb, (".aselmdb",)),
    Format("mlearn", iterate_mlearn, (".json",), recognizes=is_mlearn),
    Format("mptrj", iterate_mptrj, (".json",), recognizes=is_mptrj),
    Format("json", _iterate_database("json"), (".json",)),
    Format("deepmd", iterate_deepmd, is_folder=is_deepmd),
    Format(
        "bundletrajectory",
        _iterate_with_ase("bundletrajectory"),
        is_folder=lambda path: (path / "metadata.json").exists(),
    ),
    Format("cache", _iterate_cache, is_folder=lambda path: (path / "hienet_data.json").is_file()),
)
"""In this order; the first that fits is taken. Whatever fits none is left to ASE, which looks at name and content."""

_NAMES_KNOWN_TO_ASE = ("vasprun.xml", "outcar")
"""Beginnings of names, in lower case, that are read where a folder is given."""


def find_format(path: Path) -> Format:
    """The format of a file or folder that exists."""
    if path.is_dir():
        for candidate in FORMATS:
            if candidate.is_folder is not None and candidate.is_folder(path):
                return candidate
    else:
        suffix = suffix_of(path)
        for candidate in FORMATS:
            if suffix in candidate.suffixes and (candidate.recognizes is None or candidate.recognizes(_head(path))):
                return candidate
    name = str(filetype(plain_name(path)))
    return Format(name, iterate_extxyz if name in ("extxyz", "xyz") else _iterate_with_ase(name))


def is_one_data_set(path: Path) -> bool:
    """Whether a folder is itself a data set of some format."""
    return any(candidate.is_folder is not None and candidate.is_folder(path) for candidate in FORMATS)


def files_in(folder: Path) -> list[Path]:
    """What can be read in a folder and those below it, in the order of names."""
    found: list[Path] = []
    for name, folders, files in os.walk(folder):
        here = Path(name)
        if here != folder and is_one_data_set(here):
            found.append(here)
            folders.clear()
            continue
        known = {suffix for candidate in FORMATS for suffix in candidate.suffixes}
        found += [
            here / file
            for file in files
            if not file.startswith(".")
            and (suffix_of(Path(file)) in known or file.lower().startswith(_NAMES_KNOWN_TO_ASE))
        ]
    return sorted(found)


def suffix_of(path: Path) -> str:
    """The ending of a name in lower case, that of a compression left out."""
    root, _ = get_compression(path.name)
    return Path(root).suffix.lower()


def plain_name(path: Path) -> str:
    """A name that cannot be taken for the address of a database."""
    return str(path.absolute())


def _head(path: Path) -> bytes:
    with open_with_compression(str(path), "rb") as file:
        return bytes(file.read(_BYTES_LOOKED_AT)).lstrip()
