"""Data sets that are larger than memory: frames of caches and databases, whose graphs are made when they are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, overload

import numpy as np
import torch
from ase.data import atomic_numbers
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray

from hienet.data.cache import Store, n_rows, row_bytes
from hienet.data.dataset import Dataset, FrameSummary, Targets
from hienet.data.labels import LabelKeys, LabelReport, Labels
from hienet.data.reader import Frame
from hienet.errors import HIENetError
from hienet.files import atomic_path
from hienet.graph import AtomicGraph
from hienet.neighbors import neighbor_list
from hienet.torch_state import own_torch_state

Item = TypeVar("Item")

_THREADS = 2
_FRAMES_AT_A_TIME = 2000


class OnDemand(Sequence[Item], Generic[Item]):
    """A sequence whose items are made when they are asked for, and not kept."""

    def __init__(self, length: int, make: Callable[[int], Item]) -> None:
        self._length, self._make = length, make

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return [self._make(i) for i in range(self._length)[index]]
        return self._make(range(self._length)[index])

    def __iter__(self) -> Iterator[Item]:
        return map(self._make, range(self._length))


class StoredRow(NamedTuple):
    """A frame as it is stored: `[n_atoms]`, `[n_atoms, 3]` twice, `[3, 3]`, `[3]`, `[6]`; units as everywhere."""

    numbers: NDArray[np.uint8]
    positions: NDArray[np.float64]
    forces: NDArray[np.float64]
    cell: NDArray[np.float64]
    pbc: NDArray[np.bool_]
    stress: NDArray[np.float64]


class StoredDataset(Dataset):
    """Frames of stores, in their order or a part of it."""

    in_memory = False

    def __init__(
        self,
        stores: Sequence[Store],
        elements: Sequence[str],
        cutoff: float,
        dtype: torch.dtype = torch.float32,
        weighted: bool = True,
        progress: Callable[[int], None] = lambda frames: None,
    ) -> None:
        """
        Args:
            stores: at least one.
            elements: the model's, in species order.
            cutoff: Å.
            dtype: of edge vectors, forces and stresses.
            weighted: whether weights of frames count.
            progress: called with the number of frames whose edges have been counted, where that must be done.

        Raises:
            HIENetError: an unknown element, or a label that `dtype` does not hold.
        """
        self.elements, self.cutoff, self.dtype = tuple(elements), cutoff, dtype
        self.stores = list(stores)
        self.report = LabelReport(tuple(file for store in stores for file in store.report.files))
        self.remarks = []
        self._species = _species_of_numbers(self.stores, self.elements)
        self._store = np.concatenate([np.full(len(store), i, dtype=np.int32) for i, store in enumerate(stores)])
        self._row = np.concatenate([np.arange(len(store), dtype=np.int64) for store in stores])
        edges = [edges_within(store, cutoff, progress) for store in stores]
        self.summary = FrameSummary(
            n_atoms=self._column("n_atoms").astype(np.int64),
            n_edges=np.concatenate(edges).astype(np.int64),
            energy=self._column("energy"),
            n_labels=self._column("n_labels").astype(np.int64),
            largest=self._column("largest"),
            force_squares=self._column("force_squares"),
            weights=self._column("weights") if weighted else np.ones((len(self._row), 3)),
            converged=self._column("converged"),
        )
        self._require_precision()

    def _column(self, name: str) -> NDArray[Any]:
        return np.concatenate([store.columns[name] for store in self.stores])

    def _require_precision(self) -> None:
        limit = float(torch.finfo(self.dtype).max)
        exceeding = np.flatnonzero((self.summary.largest > limit).any(axis=1))
        if len(exceeding):
            i = int(exceeding[0])
            raise HIENetError(
                f"{self.source(i)}: a component of its forces or stress is {np.nanmax(self.summary.largest[i]):.3g}, "
                f"more than {self.dtype} holds; remove the frame, or leave the label out of it"
            )

    def source(self, index: int) -> str:
        """For messages: file and frame."""
        return self.stores[self._store[index]].source(int(self._row[index]))

    @property
    def frames(self) -> Sequence[Frame]:
        """Structures and their origin, read when they are asked for."""
        return OnDemand(len(self), lambda i: self.stores[self._store[i]].frame(int(self._row[i])))

    @property
    def labels(self) -> Sequence[Labels]:
        """One for each frame, read when they are asked for."""
        return OnDemand(len(self), self._label)

    def _label(self, index: int) -> Labels:
        store, row = self.stores[self._store[index]], int(self._row[index])
        _, forces = store.structure(row)
        energy, stress = store.columns["energy"][row], store.columns["stress"][row]
        return Labels(
            None if np.isnan(energy) else float(energy),
            forces if np.isfinite(forces).any() else None,
            voigt_6_to_full_3x3_stress(stress) if np.isfinite(stress).any() else None,
        )

    def groups(self, key: str | None) -> Sequence[str]:
        """For each frame the value of an entry of its info, empty where there is none or it was not kept."""
        return OnDemand(len(self), lambda i: self.stores[self._store[i]].group(key, int(self._row[i])))

    def subset(self, indices: Sequence[int]) -> StoredDataset:
        """The frames with these indices."""
        chosen = np.asarray(indices, dtype=np.int64)
        part = object.__new__(StoredDataset)
        part.__dict__.update(self.__dict__)
        part._store, part._row = self._store[chosen], self._row[chosen]
        part.summary = self.summary.take(chosen)
        return part

    def read(self, indices: Sequence[int]) -> list[StoredRow]:
        """These frames as they are stored."""
        found = []
        for index in indices:
            store, row = self.stores[self._store[index]], int(self._row[index])
            columns = store.columns
            positions, forces = store.structure(row)
            cell, pbc, stress = (columns[name][row] for name in ("cell", "pbc", "stress"))
            found.append(StoredRow(store.rows_of_atoms("numbers", row), positions, forces, cell, pbc, stress))
        return found

    @own_torch_state()
    def batch(self, indices: Sequence[int]) -> tuple[AtomicGraph, Targets]:
        """These frames as one graph, and their targets."""
        chosen = np.asarray(indices, dtype=np.int64)
        n_atoms = self.summary.n_atoms[chosen]
        starts = np.concatenate([[0], np.cumsum(n_atoms)])
        rows = self.read(indices)
        edges = []
        for i, (row, start) in enumerate(zip(rows, starts.tolist(), strict=False)):
            try:
                center, neighbor, vectors = neighbor_list(row.positions, row.cell, row.pbc, self.cutoff)
            except HIENetError as error:
                raise HIENetError(f"{self.source(int(chosen[i]))}: {error}") from error
            edges.append((center + start, neighbor + start, vectors))
        volume = np.abs(np.linalg.det(np.array([row.cell for row in rows])))
        # A cell without volume is given an infinite one, which makes the predicted stress zero, not NaN.
        volume[volume < _NO_VOLUME] = np.inf
        center, neighbor, vectors = (np.concatenate([edge[i] for edge in edges]) for i in range(3))
        graph = AtomicGraph(
            species=torch.from_numpy(self._species[np.concatenate([row.numbers for row in rows])]),
            center=torch.from_numpy(center),
            neighbor=torch.from_numpy(neighbor),
            edge_vectors=torch.from_numpy(vectors).to(self.dtype),
            n_local=int(starts[-1]),
            structure=torch.from_numpy(np.repeat(np.arange(len(chosen)), n_atoms)),
            n_structures=len(chosen),
            volume=torch.from_numpy(volume).to(self.dtype),
        )
        return graph, Targets(
            energy=torch.from_numpy(self.summary.energy[chosen]),
            n_atoms=torch.from_numpy(n_atoms.astype(np.float64)),
            forces=torch.from_numpy(np.concatenate([row.forces for row in rows])).to(self.dtype),
            stress=torch.from_numpy(np.array([row.stress for row in rows])).to(self.dtype),
            weights=torch.from_numpy(self.summary.weights[chosen]),
        )

    def compositions(self, start: int, stop: int) -> NDArray[np.float64]:
        """Number of atoms of each element in frames `start .. stop-1`, `[stop - start, n_elements]`."""
        n_elements = len(self.elements)
        counts = np.zeros((stop - start, n_elements))
        stores, rows = self._store[start:stop], self._row[start:stop]
        for number in np.unique(stores):
            here = np.flatnonzero(stores == number)
            store = self.stores[number]
            # Whole stretches of the store are read at once; frames in between are not counted.
            for part in np.array_split(here, max(1, len(here) // _FRAMES_AT_A_TIME)):
                first, last = int(rows[part].min()), int(rows[part].max()) + 1
                if last - first > 4 * len(part):
                    species = [self._species[store.numbers(row, row + 1)] for row in rows[part].tolist()]
                    counts[part] = [np.bincount(each, minlength=n_elements) for each in species]
                    continue
                sizes = store.columns["n_atoms"][first:last]
                of_atom = np.repeat(np.arange(last - first), sizes)
                cells = of_atom * n_elements + self._species[store.numbers(first, last)]
                table = np.bincount(cells, minlength=(last - first) * n_elements).reshape(-1, n_elements)
                counts[part] = table[rows[part] - first]
        return counts

    def add_to(self, digest: hashlib._Hash) -> None:
        """Feed what identifies structures and labels of all frames."""
        for store in self.stores:
            digest.update(store.header.fingerprint.encode())
        digest.update(self._store.tobytes())
        digest.update(self._row.tobytes())
        digest.update(repr(self.cutoff).encode())
        if (self.summary.weights != 1.0).any():
            digest.update(self.summary.weights.tobytes())


_NO_VOLUME = 1e-10  # Å^3


def _species_of_numbers(stores: Sequence[Store], elements: Sequence[str]) -> NDArray[np.int64]:
    """By atomic number the index in the element list, -1 where there is none."""
    unknown = sorted(set().union(*(store.elements() for store in stores)) - set(elements))
    if unknown:
        raise HIENetError(
            f"`{stores[0].folder}` contains {', '.join(unknown)}, but the model knows only {', '.join(elements)}; "
            "use a model that was trained with these elements"
        )
    species = np.full(256, -1, dtype=np.int64)
    for i, symbol in enumerate(elements):
        species[atomic_numbers[symbol]] = i
    return species


def edges_within(
    store: Store, cutoff: float, progress: Callable[[int], None] = lambda frames: None
) -> NDArray[np.int32]:
    """Number of edges of each frame. For another cutoff than that of the conversion they are counted, and kept.

    Raises:
        HIENetError: the cache is not that which was counted.
    """
    if cutoff == store.header.cutoff:
        return np.asarray(store.columns["n_edges"])
    path = store.folder / f"n_edges_{cutoff:g}.bin"
    if path.exists():
        counted = np.fromfile(path, dtype="<i4")
        if len(counted) == len(store):
            return counted
    counted = np.zeros(len(store), dtype="<i4")

    def count(start: int) -> int:
        stop = min(start + _FRAMES_AT_A_TIME, len(store))
        for i in range(start, stop):
            positions, _ = store.structure(i)
            try:
                found = neighbor_list(positions, store.columns["cell"][i], store.columns["pbc"][i], cutoff)
            except HIENetError as error:
                raise HIENetError(f"{store.source(i)}: {error}") from error
            counted[i] = len(found[0])
        return stop - start

    done = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        for number in pool.map(count, range(0, len(store), _FRAMES_AT_A_TIME)):
            done += number
            progress(done)
    try:
        with atomic_path(path) as temporary:
            counted.tofile(temporary)
    except HIENetError:
        # A cache that cannot be written to is counted anew each time.
        pass
    return counted


def bytes_of(store: Store) -> int:
    """Size of all arrays on the disc."""
    return sum(
        n_rows(name, state) * row_bytes(kind) for state in store.states for name, kind in store.header.arrays.items()
    )


def require_same_labels(store: Store, keys: LabelKeys, weight_key: str | None) -> None:
    """Refuse names of labels other than those of the conversion.

    Raises:
        HIENetError: with both.
    """
    header = store.header
    for name, value in vars(keys).items():
        kept = getattr(header.keys, name)
        if value is not None and value != kept:
            raise HIENetError(
                f"`data.{name}_key` is `{value}`, but `{store.folder}` was made with {kept or 'none'}; leave it out, "
                f"or convert the data again with --{name}-key {value}"
            )
    if weight_key is not None and header.weight_key not in (weight_key, None):
        raise HIENetError(
            f"`data.weight_key` is `{weight_key}`, but `{store.folder}` was made with `{header.weight_key}`; give that "
            f"one, or convert the data again with --weight-key {weight_key}"
        )


def open_store(path: Path) -> Store:
    """A cache, or a database with its index.

    Raises:
        HIENetError: it cannot be used.
    """
    from hienet.data.aselmdb import SUFFIX, AseLmdbStore

    return AseLmdbStore(path) if path.suffix == SUFFIX else Store(path)
