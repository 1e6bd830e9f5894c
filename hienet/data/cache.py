"""The cache: labelled frames as flat arrays in a folder, read through memory maps, so that memory does not limit them.

A folder holds `hienet_data.json`, the header, and parts, `part-00000` and so on, each the frames of some of the files
that were converted. In a part every quantity is one file of plain numbers (little endian, C order), a row for each
frame (`FRAME_ARRAYS`) or for each atom (`ATOM_ARRAYS`); `state.json` says how many rows are valid, and so how far a
conversion that was stopped has come. An index is a cache without positions and forces, of a database that is itself
read.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols
from numpy.typing import NDArray

from hienet.data.labels import FileLabels, LabelKeys, LabelReport
from hienet.data.reader import Frame
from hienet.errors import HIENetError

HEADER = "hienet_data.json"
FORMAT = "hienet-data"
FORMAT_VERSION = 1

FRAME_ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {
    "n_atoms": ("<i4", ()),
    "n_edges": ("<i4", ()),
    "cell": ("<f8", (3, 3)),
    "pbc": ("|b1", (3,)),
    "energy": ("<f8", ()),
    "stress": ("<f8", (6,)),
    "weights": ("<f8", (3,)),
    "n_labels": ("<i4", (3,)),
    "largest": ("<f8", (2,)),
    "force_squares": ("<f8", ()),
    "converged": ("|b1", ()),
    "file": ("<i4", ()),
    "index": ("<i4", ()),
}
"""Type and shape of a row: as in `hienet.data.dataset.FrameSummary`; the cell (Å); the stress (eV/Å^3, tension
positive, xx, yy, zz, yz, xz, xy), NaN where there is no label; of which file of the header the frame is which, from 0.
"""

ATOM_ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {
    "numbers": ("|u1", ()),
    "positions": ("<f8", (3,)),
    "forces": ("<f8", (3,)),
}
"""Atomic numbers, positions (Å), forces (eV/Å), NaN where there is no label."""

GROUP_TYPE = "<i4"
"""Of `group_KEY`, for each frame the line of `group_KEY.txt` with the value of that entry of its info."""

_MAPPED_BETWEEN_RELEASES = 16 * 2**20
"""So many bytes of maps are touched before the pages are handed back: they stay in the system's cache of files, but are
no part of this process any more, whose memory would else grow to the size of the data."""

_ATOMS_AT_A_TIME = 2**22

_PAGES_OF_ACCESS = 2**16
"""A system maps so many bytes around each place that is read."""


@dataclass(frozen=True)
class Header:
    """What a cache says of itself.

    Attributes:
        files: name, size and time of change (ns) of each file that was converted.
        parts: for each part the numbers of its files.
        cutoff: within which edges were counted (Å).
        keys: names of labels that were given.
        weight_key: entry of the frames' info with their weight; None: none were read.
        group_keys: entries of the frames' info that are kept.
        with_atoms: false for an index.
        complete: whether the conversion has come to its end.
        fingerprint: of all arrays; empty while it is not complete.
    """

    files: tuple[tuple[str, int, int], ...]
    parts: tuple[tuple[int, ...], ...]
    cutoff: float
    keys: LabelKeys
    weight_key: str | None
    group_keys: tuple[str, ...]
    with_atoms: bool
    complete: bool = False
    fingerprint: str = ""

    def as_json(self) -> str:
        """The contents of the file."""
        values = {**vars(self), "keys": vars(self.keys)}
        return json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **values}, indent=1)

    @property
    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """All arrays of a part."""
        of_atoms = ATOM_ARRAYS if self.with_atoms else {"numbers": ATOM_ARRAYS["numbers"]}
        return {**FRAME_ARRAYS, **{f"group_{key}": (GROUP_TYPE, ()) for key in self.group_keys}, **of_atoms}


@dataclass(frozen=True)
class PartState:
    """How far a part is.

    Attributes:
        n_frames, n_atoms: numbers of valid rows.
        file: position in the part's list of files of the next one to be read.
        frame: number of its frames that are done.
        labels: what was found, file by file.
        n_groups: for each group key the number of lines that are valid.
        done: whether all files are read.
        digest: of the arrays, when done.
    """

    n_frames: int = 0
    n_atoms: int = 0
    file: int = 0
    frame: int = 0
    labels: tuple[FileLabels, ...] = ()
    n_groups: Mapping[str, int] | None = None
    done: bool = False
    digest: str = ""

    def as_json(self) -> str:
        """The contents of the file."""
        return json.dumps({**vars(self), "labels": [file.as_dict() for file in self.labels]})


def is_cache(path: Path) -> bool:
    """Whether this is a folder with a header, whatever it says."""
    return (path / HEADER).is_file()


def read_header(folder: Path) -> Header:
    """The header of a cache.

    Raises:
        HIENetError: it is damaged, or of a newer version.
    """
    path = folder / HEADER
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            raise ValueError("it is no header of a cache")
        version = values.pop("format_version")
        if version <= FORMAT_VERSION:
            values["files"] = tuple((str(name), int(size), int(time)) for name, size, time in values["files"])
            values["parts"] = tuple(tuple(int(i) for i in part) for part in values["parts"])
            values["keys"] = LabelKeys(**values["keys"])
            values["group_keys"] = tuple(values["group_keys"])
            return Header(**values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HIENetError(
            f"`{path}` is damaged ({error}); convert the data again with `hienet data convert`"
        ) from error
    raise HIENetError(
        f"`{path}` has format version {version}, newer than {FORMAT_VERSION}; update hienet, or convert the data again"
    )


def read_state(part: Path) -> PartState:
    """How far a part is; not begun if it has no state.

    Raises:
        HIENetError: it is damaged.
    """
    path = part / "state.json"
    if not path.exists():
        return PartState()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values["labels"] = tuple(FileLabels.from_dict(file) for file in values["labels"])
        return PartState(**values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HIENetError(f"`{path}` is damaged ({error}); remove the folder, and convert the data again") from error


def part_folder(folder: Path, number: int) -> Path:
    """Of a part of the cache."""
    return folder / f"part-{number:05d}"


def n_rows(name: str, state: PartState) -> int:
    """How many rows an array of a part has."""
    return state.n_atoms if name in ATOM_ARRAYS else state.n_frames


def row_bytes(kind: tuple[str, tuple[int, ...]]) -> int:
    """Size of a row."""
    return int(np.dtype(kind[0]).itemsize * np.prod(kind[1], dtype=np.int64))


def digest_of_part(part: Path, header: Header, state: PartState) -> str:
    """SHA-256 of all arrays of a part."""
    digest = hashlib.sha256()
    for name, kind in header.arrays.items():
        left = n_rows(name, state) * row_bytes(kind)
        digest.update(f"{name} {left}".encode())
        with (part / f"{name}.bin").open("rb") as file:
            while left and (block := file.read(min(left, 2**22))):
                digest.update(block)
                left -= len(block)
    return digest.hexdigest()


class Store:
    """Frames of a cache, or of a database with an index, read one at a time.

    Attributes:
        folder: of the cache or index.
        header: what it says of itself.
        columns: for each of `FRAME_ARRAYS`, and each `group_KEY`, the rows of all frames, in memory.
        report: which labels were found.
    """

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            HIENetError: the cache is not complete, truncated or damaged.
        """
        self.folder, self.header = folder, read_header(folder)
        if not self.header.complete:
            raise HIENetError(
                f"`{folder}` is not complete; give the `hienet data convert` that began it again, which goes on with it"
            )
        parts = [part_folder(folder, i) for i in range(len(self.header.parts))]
        self.states = [read_state(part) for part in parts]
        by_part = list(zip(parts, self.states, strict=True))
        for part, state in by_part:
            _check_sizes(part, self.header, state)
        self.report = LabelReport(tuple(file for state in self.states for file in state.labels))
        self.columns = {
            name: np.concatenate(
                [_read_rows(part, name, kind, state) for part, state in zip(parts, self.states, strict=True)]
            )
            for name, kind in self.header.arrays.items()
            if name not in ATOM_ARRAYS
        }
        self._groups = {key: self._read_groups(key, parts) for key in self.header.group_keys}
        self.first_atom = np.concatenate([[0], np.cumsum(self.columns["n_atoms"], dtype=np.int64)])
        """`[n_frames + 1]`, over all parts."""
        self._maps = {
            name: [_Map(part / f"{name}.bin", ATOM_ARRAYS[name], state.n_atoms) for part, state in by_part]
            for name in (ATOM_ARRAYS if self.header.with_atoms else ("numbers",))
        }
        self._first_of_part = np.concatenate([[0], np.cumsum([state.n_atoms for state in self.states])])

    def __len__(self) -> int:
        return len(self.columns["n_atoms"])

    def _read_groups(self, key: str, parts: Sequence[Path]) -> list[str]:
        """Values of an entry of info; numbers of a part are made those of the whole."""
        values: list[str] = []
        start = 0
        for part, state in zip(parts, self.states, strict=True):
            lines = (part / f"group_{key}.txt").read_text(encoding="utf-8").split("\n")[: (state.n_groups or {})[key]]
            self.columns[f"group_{key}"][start : start + state.n_frames] += len(values)
            values += [json.loads(line) for line in lines]
            start += state.n_frames
        return values

    def group(self, key: str | None, frame: int) -> str:
        """Value of an entry of info, empty where there is none or it was not kept."""
        return self._groups[key][int(self.columns[f"group_{key}"][frame])] if key in self._groups else ""

    def rows_of_atoms(self, name: str, frame: int) -> NDArray[Any]:
        """The rows of `ATOM_ARRAYS` of one frame; a copy."""
        start, stop = self.first_atom[frame], self.first_atom[frame + 1]
        part = int(np.searchsorted(self._first_of_part, start, side="right")) - 1
        offset = self._first_of_part[part]
        return self._maps[name][part].rows(int(start - offset), int(stop - offset))

    def numbers(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Atomic numbers of all atoms of frames `start .. stop-1`."""
        first, last = self.first_atom[start], self.first_atom[stop]
        found = [np.zeros(0, dtype=np.uint8)]
        for part, rows in enumerate(self._maps["numbers"]):
            begin, end = self._first_of_part[part], self._first_of_part[part + 1]
            if first < end and last > begin:
                found.append(rows.rows(int(max(first, begin) - begin), int(min(last, end) - begin)))
        return np.concatenate(found)

    def structure(self, frame: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Positions and forces of a frame, `[n_atoms, 3]` each (Å, eV/Å)."""
        return self.rows_of_atoms("positions", frame), self.rows_of_atoms("forces", frame)

    def source(self, frame: int) -> str:
        """For messages: file and frame."""
        name = self.header.files[int(self.columns["file"][frame])][0]
        return f"`{name}`, frame {int(self.columns['index'][frame])}"

    def frame(self, frame: int) -> Frame:
        """A frame with its labels as results of a calculator, and the entries of info that were kept."""
        columns = self.columns
        positions, forces = self.structure(frame)
        atoms = ase.Atoms(
            numbers=self.numbers(frame, frame + 1),
            positions=positions,
            cell=columns["cell"][frame],
            pbc=columns["pbc"][frame],
        )
        atoms.info = {key: value for key in self.header.group_keys if (value := self.group(key, frame))}
        labels = {"energy": columns["energy"][frame], "forces": forces, "stress": columns["stress"][frame]}
        found = {name: value for name, value in labels.items() if np.isfinite(value).any()}
        if "energy" in found:
            found["energy"] = float(found["energy"])
        if found:
            atoms.calc = SinglePointCalculator(atoms, **found)
        weights = columns["weights"][frame]
        if (weights != 1.0).any():
            names = ("config_energy_weight", "config_forces_weight", "config_stress_weight")
            atoms.info |= dict(zip(names, weights.tolist(), strict=True))
        name = self.header.files[int(columns["file"][frame])][0]
        return Frame(atoms, name, int(columns["index"][frame]), bool(columns["converged"][frame]))

    def elements(self) -> set[str]:
        """Chemical symbols of all frames."""
        return {chemical_symbols[number] for number in np.flatnonzero(self.atoms_of_elements())}

    def atoms_of_elements(self) -> NDArray[np.int64]:
        """By atomic number how many atoms there are, `[256]`."""
        counts = np.zeros(256, dtype=np.int64)
        for rows in self._maps["numbers"]:
            for start in range(0, len(rows), _ATOMS_AT_A_TIME):
                counts += np.bincount(rows.rows(start, min(start + _ATOMS_AT_A_TIME, len(rows))), minlength=256)
        return counts

    def verify(self) -> None:
        """Compare all arrays with their fingerprints.

        Raises:
            HIENetError: a part has changed since it was written.
        """
        for i, state in enumerate(self.states):
            part = part_folder(self.folder, i)
            if digest_of_part(part, self.header, state) != state.digest:
                raise HIENetError(f"`{part}` has changed since it was written; convert the data again")


def iterate_store(folder: Path) -> Iterator[ase.Atoms]:
    """The frames of a cache as ASE's atoms."""
    store = Store(folder)
    for i in range(len(store)):
        yield store.frame(i).atoms


class _Map:
    """An array in a file, of which only what is read is in memory, and not for long."""

    def __init__(self, path: Path, kind: tuple[str, tuple[int, ...]], n_rows: int) -> None:
        self.dtype, self.shape = np.dtype(kind[0]), kind[1]
        self.row, self.n_rows = row_bytes(kind), n_rows
        self._touched = 0
        self._map: mmap.mmap | None = None
        self._array: NDArray[Any] = np.zeros((0, *self.shape), self.dtype)
        if n_rows:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), n_rows * self.row, access=mmap.ACCESS_READ)
            if hasattr(mmap, "MADV_RANDOM"):
                self._map.madvise(mmap.MADV_RANDOM)
            self._array = np.frombuffer(self._map, self.dtype, n_rows * int(np.prod(self.shape))).reshape(
                n_rows, *self.shape
            )

    def __len__(self) -> int:
        return self.n_rows

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """A copy."""
        found = self._array[start:stop].copy()
        self._touched += max(_PAGES_OF_ACCESS, found.nbytes)
        if self._touched > _MAPPED_BETWEEN_RELEASES and self._map is not None:
            self._touched = 0
            if hasattr(mmap, "MADV_DONTNEED"):
                self._map.madvise(mmap.MADV_DONTNEED)
        return found


def _check_sizes(part: Path, header: Header, state: PartState) -> None:
    for name, kind in header.arrays.items():
        path, expected = part / f"{name}.bin", n_rows(name, state) * row_bytes(kind)
        size = path.stat().st_size if path.exists() else 0
        if not state.done or size != expected:
            raise HIENetError(
                f"`{path}` has {size} bytes, expected {expected}: it is truncated or an incomplete copy; copy the "
                "folder again, or convert the data again"
            )


def _read_rows(part: Path, name: str, kind: tuple[str, tuple[int, ...]], state: PartState) -> NDArray[Any]:
    rows = np.fromfile(part / f"{name}.bin", dtype=kind[0])
    return rows.reshape(state.n_frames, *kind[1])
