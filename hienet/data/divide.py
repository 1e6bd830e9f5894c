"""`hienet data split`: files or a cache in two or three, at random or so that groups stay together."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np

from hienet.data.cache import ATOM_ARRAYS, Store, is_cache, part_folder
from hienet.data.convert import PartWriter, write_header
from hienet.data.labels import LabelKeys, LabelReader
from hienet.data.reader import iterate_frames
from hienet.data.split import Split, split_frames
from hienet.data.writer import labelled_atoms
from hienet.errors import HIENetError
from hienet.files import atomic_path, make_folder

PARTS = ("train", "validation", "test")
_FRAMES_AT_A_TIME = 1000


def split_groups(groups: Sequence[str], validation: float, test: float, seed: int) -> Split:
    """Draw whole groups for validation and test, until they have that fraction of the frames, or a little more.

    Args:
        groups: `[n_frames]`, the group of each frame.
        validation, test: fractions; a positive one takes at least one group.
        seed: of the random order of groups.

    Raises:
        HIENetError: too few groups to leave one for training.
    """
    members: dict[str, list[int]] = {}
    for frame, group in enumerate(groups):
        members.setdefault(group, []).append(frame)
    names = sorted(members)
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    parts: dict[str, list[int]] = {"test": [], "validation": []}
    for name, fraction in (("test", test), ("validation", validation)):
        while fraction > 0 and len(parts[name]) < max(1, round(fraction * len(groups))):
            if len(order) <= 1:
                raise HIENetError(
                    f"{len(members)} group(s) of {len(groups)} frames are too few to set {fraction:g} of the frames "
                    f"apart for {name}; give another --group, a smaller fraction, or leave --group out"
                )
            parts[name] += members[order.pop()]
    train = sorted(frame for name in order for frame in members[name])
    return Split(train, sorted(parts["validation"]), sorted(parts["test"]))


def divide(
    names: Sequence[str | Path],
    folder: Path,
    validation: float,
    test: float,
    group: str | None = None,
    stratify: str | None = None,
    seed: int = 0,
    keys: LabelKeys | None = None,
    progress: Callable[[int], None] = lambda frames: None,
) -> dict[str, tuple[Path, int]]:
    """Write the parts; for each its path and number of frames.

    A cache becomes caches, anything else extxyz files with the labels as `energy`, `forces` and `stress`.

    Args:
        names: files, folders or patterns; or one cache.
        folder: where they are written.
        validation, test: fractions.
        group: entry of info; frames with equal values are in one part.
        stratify: entry of info; frames with equal values are in all parts in proportion.
        seed: of the random order.
        keys: names of labels, where not to be found automatically.
        progress: called with the number of frames written.

    Raises:
        HIENetError: frames cannot be read, too few of them, no such entry, or the folder has such files already.
    """
    if group is not None and stratify is not None:
        raise HIENetError("--group keeps equal frames together, --stratify apart; give one of them")
    if validation + test >= 1.0 or validation + test == 0.0:
        raise HIENetError(
            f"--validation {validation:g} and --test {test:g} must take more than 0 and less than 1 together"
        )
    store = Store(Path(names[0])) if len(names) == 1 and is_cache(Path(names[0])) else None
    key = group or stratify
    of_frames = (
        [store.group(key, i) for i in range(len(store))]
        if store is not None
        else [frame.group(key) for frame in iterate_frames(names)]
    )
    if group is not None and "" in of_frames:
        kept = f"; the cache keeps {', '.join(store.header.group_keys)}" if store is not None else ""
        raise HIENetError(
            f"{of_frames.count('')} of {len(of_frames)} frames have no `{group}`; give another --group{kept}"
        )
    split = (split_frames if group is None else split_groups)(of_frames, validation, test, seed)
    make_folder(folder, "--output")
    parts = {name: indices for name in PARTS if (indices := getattr(split, name))}
    paths = {name: folder / (name if store is not None else f"{name}.extxyz") for name in parts}
    for path in paths.values():
        if path.exists():
            raise HIENetError(f"`{path}` exists; choose another folder with --output, or remove it first")
    if store is not None:
        done = 0
        for name, indices in parts.items():
            for n in _copy_rows(store, indices, paths[name]):
                done += n
                progress(done)
    else:
        _write_extxyz(names, parts, paths, keys, progress)
    return {name: (paths[name], len(parts[name])) for name in parts}


def _write_extxyz(
    names: Sequence[str | Path],
    parts: dict[str, list[int]],
    paths: dict[str, Path],
    keys: LabelKeys | None,
    progress: Callable[[int], None],
) -> None:
    part_of = {i: name for name, indices in parts.items() for i in indices}
    reader, frames, done = LabelReader(keys), iterate_frames(names), 0
    with ExitStack() as stack:
        files = {
            name: stack.enter_context(stack.enter_context(atomic_path(path)).open("w", encoding="utf-8"))
            for name, path in paths.items()
        }
        while chunk := list(itertools.islice(frames, _FRAMES_AT_A_TIME)):
            atoms = [labelled_atoms(*pair) for pair in zip(chunk, reader.read(chunk), strict=True)]
            for name, file in files.items():
                chosen = [one for i, one in enumerate(atoms) if part_of[done + i] == name]
                if chosen:
                    ase.io.write(file, chosen, format="extxyz")
            done += len(chunk)
            progress(done)


def _copy_rows(store: Store, indices: Sequence[int], folder: Path) -> Iterator[int]:
    """A cache of these frames of another; numbers of frames, as they are written."""
    header = replace(store.header, parts=(tuple(range(len(store.header.files))),), complete=False, fingerprint="")
    make_folder(part_folder(folder, 0), "--output")
    write_header(folder, header)
    names = {store.header.files[i][0] for i in np.unique(store.columns["file"][list(indices)]).tolist()}
    labels = tuple(file for file in store.report.files if file.file in names)
    with PartWriter(part_folder(folder, 0), header) as writer:
        for start in range(0, len(indices), _FRAMES_AT_A_TIME):
            chosen = np.array(indices[start : start + _FRAMES_AT_A_TIME])
            columns: dict[str, Any] = {name: rows[chosen] for name, rows in store.columns.items()}
            for name in ATOM_ARRAYS:
                columns[name] = np.concatenate([store.rows_of_atoms(name, i) for i in chosen.tolist()])
            groups = {key: [store.group(key, i) for i in chosen.tolist()] for key in header.group_keys}
            writer.append(columns, groups)
            writer.save()
            yield len(chosen)
        writer.state = replace(writer.state, file=len(header.files), labels=labels)
        writer.finish()
    fingerprint = hashlib.sha256(writer.state.digest.encode()).hexdigest()
    write_header(folder, replace(header, complete=True, fingerprint=fingerprint))
