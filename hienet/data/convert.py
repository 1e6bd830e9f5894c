"""`hienet data convert`: frames of any files into a cache, by several processes, and on from where it was stopped."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from hienet.data.cache import (
    HEADER,
    Header,
    PartState,
    digest_of_part,
    is_cache,
    n_rows,
    part_folder,
    read_header,
    read_state,
    row_bytes,
)
from hienet.data.labels import LabelKeys, LabelReader, Labels
from hienet.data.reader import Frame, iterate_file
from hienet.data.weights import frame_weights
from hienet.errors import HIENetError
from hienet.files import atomic_path, make_folder
from hienet.neighbors import neighbor_list

DEFAULT_GROUPS = ("config_type", "mp_id", "material_id")
"""Entries of info that are kept, where frames have them."""

_PARTS = 64
_FRAMES_AT_A_TIME = 512
_THREADS = 2

Progress = Callable[[int, int], None]
"""Called with the number of frames done, and of files read to their end."""


def convert(
    files: Sequence[Path],
    folder: Path,
    cutoff: float,
    keys: LabelKeys | None = None,
    weight_key: str | None = None,
    group_keys: Sequence[str] = DEFAULT_GROUPS,
    processes: int = 1,
    with_atoms: bool = True,
    progress: Progress = lambda frames, files: None,
) -> Header:
    """Write a cache, or go on with one that was begun with the same files and options.

    Args:
        files: at least one; each with its frames in order.
        folder: the cache.
        cutoff: within which edges are counted (Å).
        keys: names of labels, where not to be found automatically.
        weight_key: entry of the frames' info with their weight in the loss.
        group_keys: entries of the frames' info to keep.
        processes: how many convert files side by side.
        with_atoms: false for an index, without positions and forces.
        progress: see there.

    Raises:
        HIENetError: a file or label cannot be read, the folder holds something else, or the disc is full; what was
            done is kept.
    """
    header = Header(
        files=tuple((str(file), *_size_and_time(file)) for file in files),
        parts=_parts(files),
        cutoff=cutoff,
        keys=keys or LabelKeys(),
        weight_key=weight_key,
        group_keys=tuple(group_keys),
        with_atoms=with_atoms,
    )
    begun = _begin(folder, header)
    if begun.complete:
        return begun
    numbers = range(len(header.parts))
    if processes == 1 or len(header.parts) == 1:
        for number in numbers:
            convert_part(folder, header, number, _after(_done(folder, header), progress))
    else:
        # Processes that are forked from this one would inherit threads.
        context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
        context.set_forkserver_preload([__name__])
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            futures = [pool.submit(convert_part, folder, header, number) for number in numbers]
            try:
                for future in futures:
                    while wait([future], timeout=0.5).not_done:
                        progress(*_done(folder, header))
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    states = [read_state(part_folder(folder, number)) for number in numbers]
    progress(sum(state.n_frames for state in states), len(files))
    digests = "".join(state.digest for state in states)
    complete = replace(header, complete=True, fingerprint=hashlib.sha256(digests.encode()).hexdigest())
    write_header(folder, complete)
    return complete


def _after(before: tuple[int, int], progress: Progress) -> Progress:
    """Progress of one part, of which others came before."""
    return lambda frames, files: progress(before[0] + frames, before[1] + files)


def _done(folder: Path, header: Header) -> tuple[int, int]:
    """Numbers of frames and of files that are done."""
    states = [read_state(part_folder(folder, number)) for number in range(len(header.parts))]
    return sum(state.n_frames for state in states), sum(state.file for state in states)


def _size_and_time(path: Path) -> tuple[int, int]:
    """Of a file, or of all files in a folder."""
    if not path.exists():
        raise HIENetError(f"there is no file `{path}`; check the path, which is relative to the folder `{Path.cwd()}`")
    stats = [each.stat() for each in (path.rglob("*") if path.is_dir() else [path])]
    return sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)


def _parts(files: Sequence[Path]) -> tuple[tuple[int, ...], ...]:
    """Files in their order, in not too many parts."""
    return tuple(tuple(int(i) for i in part) for part in np.array_split(np.arange(len(files)), min(_PARTS, len(files))))


def _begin(folder: Path, header: Header) -> Header:
    """The header of the folder, which is that of this conversion."""
    if is_cache(folder):
        begun = read_header(folder)
        if replace(begun, complete=False, fingerprint="") != header:
            what = "files" if begun.files != header.files else "options"
            raise HIENetError(
                f"`{folder}` was made of other {what}, or they have changed since; choose another folder with "
                "--output, or remove it first"
            )
        return begun
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise HIENetError(f"`{folder}` exists and is no cache; choose another folder with --output")
    make_folder(folder, "--output")
    write_header(folder, header)
    return header


def write_header(folder: Path, header: Header) -> None:
    with atomic_path(folder / HEADER) as temporary:
        temporary.write_text(header.as_json(), encoding="utf-8")


def convert_part(
    folder: Path, header: Header, number: int, progress: Progress = lambda frames, files: None
) -> PartState:
    """Convert the files of one part, from where it was stopped."""
    part = part_folder(folder, number)
    make_folder(part, "--output")
    state = read_state(part)
    if state.done:
        return state
    labels = LabelReader(header.keys, {file.file: file for file in state.labels})
    begun = state.n_frames
    with PartWriter(part, header, state) as writer, ThreadPoolExecutor(_THREADS) as pool:
        files = header.parts[number]
        for position in range(state.file, len(files)):
            skipped = state.frame if position == state.file else 0
            frames = iterate_file(Path(header.files[files[position]][0]))
            for chunk in _chunks(itertools.islice(frames, skipped, None)):
                columns = _columns(chunk, labels.read(chunk), header, pool)
                columns["file"] = np.full(len(chunk), files[position])
                groups = {key: [frame.group(key) for frame in chunk] for key in header.group_keys}
                writer.append(columns, groups)
                writer.state = replace(
                    writer.state, file=position, frame=chunk[-1].index + 1, labels=tuple(labels.files.values())
                )
                writer.save()
                progress(writer.state.n_frames - begun, position - state.file)
            writer.state = replace(writer.state, file=position + 1, frame=0)
        writer.finish()
        return writer.state


def _chunks(frames: Iterator[Frame]) -> Iterator[list[Frame]]:
    while chunk := list(itertools.islice(frames, _FRAMES_AT_A_TIME)):
        yield chunk


def _columns(
    frames: Sequence[Frame], labels: Sequence[Labels], header: Header, pool: ThreadPoolExecutor
) -> dict[str, NDArray[Any]]:
    """All arrays but `file` and groups."""
    n_atoms = np.array([len(frame.atoms) for frame in frames])
    energy = np.array([np.nan if label.energy is None else label.energy for label in labels])
    forces = [
        np.full((n, 3), np.nan) if label.forces is None else label.forces
        for n, label in zip(n_atoms, labels, strict=True)
    ]
    stress = np.array(
        [np.full(6, np.nan) if label.stress is None else full_3x3_to_voigt_6_stress(label.stress) for label in labels]
    )
    n_labels = [np.isfinite(energy), [np.isfinite(force).sum() for force in forces], np.isfinite(stress).sum(axis=1)]

    def n_edges(frame: Frame) -> int:
        atoms = frame.atoms
        try:
            return len(neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, header.cutoff)[0])
        except HIENetError as error:
            raise HIENetError(f"{frame.source}: {error}") from error

    return {
        "n_atoms": n_atoms,
        "n_edges": np.array(list(pool.map(n_edges, frames))),
        "cell": np.array([frame.atoms.cell.array for frame in frames]),
        "pbc": np.array([frame.atoms.pbc for frame in frames]),
        "energy": energy,
        "stress": stress,
        "weights": frame_weights(frames, header.weight_key),
        "n_labels": np.array(n_labels).T,
        "largest": np.array([[_largest(force), _largest(row)] for force, row in zip(forces, stress, strict=True)]),
        "force_squares": np.array([np.nansum(force**2) for force in forces]),
        "converged": np.array([frame.converged for frame in frames]),
        "index": np.array([frame.index for frame in frames]),
        "numbers": np.concatenate([frame.atoms.numbers for frame in frames]),
        "positions": np.concatenate([frame.atoms.positions for frame in frames]).reshape(-1, 3),
        "forces": np.concatenate(forces).reshape(-1, 3),
    }


def _largest(values: NDArray[np.float64]) -> float:
    labelled = np.abs(values[np.isfinite(values)])
    return float(labelled.max()) if labelled.size else float("nan")


class PartWriter:
    """Appends rows to the arrays of a part; what is beyond the last saved state does not count."""

    def __init__(self, part: Path, header: Header, state: PartState | None = None) -> None:
        self.part, self.header, self.state = part, header, state or PartState()
        self._stack = ExitStack()
        self._files: dict[str, BinaryIO] = {}
        self._numbers: dict[str, dict[str, int]] = {}
        self._texts: dict[str, BinaryIO] = {}

    def __enter__(self) -> PartWriter:
        for name, kind in self.header.arrays.items():
            self._files[name] = self._open(f"{name}.bin", n_rows(name, self.state) * row_bytes(kind))
        for key in self.header.group_keys:
            path = self.part / f"group_{key}.txt"
            n_lines = (self.state.n_groups or {}).get(key, 0)
            lines = path.read_text(encoding="utf-8").split("\n")[:n_lines] if path.exists() else []
            self._numbers[key] = {json.loads(line): i for i, line in enumerate(lines)}
            self._texts[key] = self._open(path.name, sum(len(line.encode()) + 1 for line in lines))
        return self

    def _open(self, name: str, size: int) -> BinaryIO:
        path = self.part / name
        path.touch()
        file = self._stack.enter_context(path.open("r+b"))
        file.truncate(size)
        file.seek(size)
        return file

    def __exit__(self, *error: object) -> None:
        try:
            self._stack.close()
        except OSError:
            # What is buffered cannot be written, and is not counted by any state.
            if error[0] is None:
                raise

    def append(self, columns: dict[str, NDArray[Any]], groups: Mapping[str, Sequence[str]]) -> None:
        """Add rows: of all arrays but those of `groups`, for each key the values of these frames."""
        for key, values in groups.items():
            columns[f"group_{key}"] = np.array([self._number(key, value) for value in values])
        with _disc_explained(self.part):
            for name, (kind, shape) in self.header.arrays.items():
                rows = np.ascontiguousarray(columns[name], dtype=kind)
                self._files[name].write(rows.reshape(-1, *shape).tobytes())
        self.state = replace(
            self.state,
            n_frames=self.state.n_frames + len(columns["n_atoms"]),
            n_atoms=self.state.n_atoms + len(columns["numbers"]),
        )

    def _number(self, key: str, value: str) -> int:
        known = self._numbers[key]
        if value not in known:
            known[value] = len(known)
            with _disc_explained(self.part):
                self._texts[key].write((json.dumps(value) + "\n").encode())
        return known[value]

    def save(self) -> None:
        """Count what was appended."""
        with _disc_explained(self.part):
            for file in (*self._files.values(), *self._texts.values()):
                file.flush()
        self.state = replace(self.state, n_groups={key: len(known) for key, known in self._numbers.items()})
        with atomic_path(self.part / "state.json") as temporary:
            temporary.write_text(self.state.as_json(), encoding="utf-8")

    def finish(self) -> None:
        """Say that all is done."""
        self.save()
        self.state = replace(self.state, done=True, digest=digest_of_part(self.part, self.header, self.state))
        self.save()


class _disc_explained:  # noqa: N801 - a context, like the functions of contextlib
    """A full disc is one sentence that says how to go on."""

    def __init__(self, part: Path) -> None:
        self.part = part

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise HIENetError(
                f"cannot write to `{self.part}`: {error.strerror or os.strerror(error.errno or 0)}; free some space, "
                "and give the same command again, which goes on from there"
            ) from error
