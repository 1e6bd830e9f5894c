"""Databases of ASE in LMDB, as Meta's Open Materials and Open Catalyst sets are: rows are read when they are needed.

Beside the database stands an index, a cache without positions and forces: what statistics and the planning of batches
need of every row.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hienet.data.cache import Store, is_cache, read_header
from hienet.data.convert import Progress, convert
from hienet.data.formats import atoms_of_row, open_aselmdb
from hienet.data.labels import LabelKeys, LabelReader
from hienet.data.reader import Frame
from hienet.data.weights import DEFAULT_KEY
from hienet.errors import HIENetError

SUFFIX = ".aselmdb"


def index_of(path: Path) -> Path:
    """The folder of the index of a database."""
    return path.with_name(f"{path.name}.hienet-index")


def make_index(
    path: Path,
    cutoff: float,
    keys: LabelKeys,
    weight_key: str | None,
    say: Callable[[str], None] = lambda text: None,
    progress: Progress = lambda frames, files: None,
) -> None:
    """Read a database once, unless there is an index made for the same labels.

    Raises:
        HIENetError: a row cannot be read, or the index not be written.
    """
    folder = index_of(path)
    if is_cache(folder):
        header = read_header(folder)
        others = any(name not in (None, getattr(header.keys, key)) for key, name in vars(keys).items())
        if others or weight_key not in (None, header.weight_key) or _is_older(folder, path):
            raise HIENetError(
                f"the index `{folder}` was made for other names of labels, or before the database changed; remove it, "
                "so that it is made anew"
            )
        if header.complete:
            return
        keys, weight_key = header.keys, header.weight_key
    say(f"`{path}` has no index yet: all its rows are read once, and `{folder}` is written")
    try:
        convert([path], folder, cutoff, keys, weight_key or DEFAULT_KEY, with_atoms=False, progress=progress)
    except HIENetError as error:
        raise HIENetError(
            f"{error} (making the index of `{path}`; a cache of it elsewhere: `hienet data convert {path} -o FOLDER`)"
        ) from error


def _is_older(folder: Path, path: Path) -> bool:
    _, size, time = read_header(folder).files[0]
    stat = path.stat()
    return (stat.st_size, stat.st_mtime_ns) != (size, time)


class AseLmdbStore(Store):
    """A database with its index."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            HIENetError: no index, or a damaged one; the database cannot be opened, or is not that of the index.
        """
        super().__init__(index_of(path))
        self.path = path
        try:
            self._database = open_aselmdb(path)
        except ImportError as error:
            raise HIENetError(
                f"`{path}` needs the packages ase-db-backends and lmdb; install them (pip install 'hienet[data]')"
            ) from error
        if len(self._database.ids) != len(self):
            raise HIENetError(
                f"`{path}` has {len(self._database.ids)} rows, its index {len(self)}; remove `{self.folder}`, so that "
                "it is made anew"
            )
        self._used = {file.file: file for file in self.report.files}

    def structure(self, frame: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Positions and forces of a row, `[n_atoms, 3]` each (Å, eV/Å)."""
        atoms = atoms_of_row(self._database.get(id=self._database.ids[int(self.columns["index"][frame])]))
        row = Frame(atoms, self.header.files[0][0], int(self.columns["index"][frame]))
        (labels,) = LabelReader(self.header.keys, self._used).read([row])
        forces = np.full((len(atoms), 3), np.nan) if labels.forces is None else labels.forces
        return atoms.positions, forces
