"""Files, folders and patterns of a configuration as one data set: in memory, or read when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hienet.data.aselmdb import SUFFIX, make_index
from hienet.data.cache import Store, is_cache
from hienet.data.dataset import Dataset, build_dataset, elements_of
from hienet.data.labels import LabelKeys
from hienet.data.reader import Frame, find_files, iterate_file
from hienet.data.stored import StoredDataset, edges_within, open_store, require_same_labels
from hienet.errors import HIENetError


def is_store(path: Path) -> bool:
    """Whether frames are read from here when they are needed: a cache, or an LMDB database of ASE."""
    return is_cache(path) or path.suffix == SUFFIX


def find_stores(names: Sequence[str | Path]) -> list[Path]:
    """The stores that names stand for; empty if they are all files to be read into memory.

    Raises:
        HIENetError: there is no such file, or there are both.
    """
    paths = find_files(names)
    stores = [path for path in paths if is_store(path) and path.exists()]
    others = [path for path in paths if path not in stores]
    if stores and others:
        raise HIENetError(
            f"`{stores[0]}` is read when it is needed, `{others[0]}` as a whole, and one set cannot have both; make a "
            f"cache of all of them: hienet data convert {others[0]} {stores[0]} ... -o FOLDER"
        )
    return stores


def prepare_stores(
    names: Sequence[str | Path],
    cutoff: float,
    keys: LabelKeys,
    weight_key: str | None,
    say: Callable[[str], None] = lambda text: None,
    count: bool = True,
) -> None:
    """Write what stores lack: the index of a database, numbers of edges within another cutoff.

    Where several processes train, one does it, before the others open the stores. Without `count`, numbers of edges
    within another cutoff are not asked for.

    Raises:
        HIENetError: a frame cannot be read, or the index not be written.
    """
    for path in find_stores(names):
        if path.suffix == SUFFIX:
            make_index(path, cutoff, keys, weight_key, say)
        store = open_store(path)
        if count and cutoff != store.header.cutoff:
            say(f"counting the edges of `{path}` within {cutoff:g} Å, which has those within {store.header.cutoff:g} Å")
            edges_within(store, cutoff)


@dataclass(frozen=True)
class DataSource:
    """Frames in memory, or stores.

    Attributes:
        frames: of files; None where there are stores.
        stores: those there are.
    """

    frames: list[Frame] | None
    stores: list[Store]

    @classmethod
    def open(
        cls, names: Sequence[str | Path], keys: LabelKeys | None = None, weight_key: str | None = None
    ) -> DataSource:
        """Read files, or open stores that are prepared.

        Raises:
            HIENetError: they cannot be read, or stores were made with other names of labels.
        """
        paths = find_stores(names)
        if not paths:
            return cls([frame for path in find_files(names) for frame in iterate_file(path)], [])
        stores = [open_store(path) for path in paths]
        for store in stores:
            require_same_labels(store, keys or LabelKeys(), weight_key)
        return cls(None, stores)

    def elements(self) -> tuple[str, ...]:
        """Chemical symbols, in alphabetical order."""
        if self.frames is not None:
            return elements_of(self.frames)
        return tuple(sorted(set().union(*(store.elements() for store in self.stores))))

    def dataset(
        self,
        elements: Sequence[str],
        cutoff: float,
        dtype: torch.dtype = torch.float32,
        keys: LabelKeys | None = None,
        may_lack_all: bool = False,
        weight_key: str | None = None,
    ) -> Dataset:
        """As `build_dataset`."""
        if self.frames is not None:
            return build_dataset(self.frames, elements, cutoff, dtype, keys, may_lack_all, weight_key)
        return StoredDataset(self.stores, elements, cutoff, dtype, weight_key is not None)
