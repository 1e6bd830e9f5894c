"""What LAMMPS prints and writes, as arrays: columns of its log, frames of its trajectory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import ase
import ase.io
import numpy as np

from hienet.errors import HIENetError
from hienet.properties.engine import Array

_LOOP = re.compile(r"Loop time of (\S+) on (\d+) procs for (\d+) steps with (\d+) atoms")


def read_columns(text: str) -> dict[str, Array]:
    """The columns of the last run in a log, by LAMMPS' names, such as `Temp`.

    Raises:
        HIENetError: there is no complete run.
    """
    lines = text.splitlines()
    heads = [i for i, line in enumerate(lines) if line.split()[:1] == ["Step"]]
    if not heads or not _LOOP.search(text):
        raise HIENetError("LAMMPS' output holds no complete run; look at the last lines of its log")
    names = lines[heads[-1]].split()
    rows = []
    for line in lines[heads[-1] + 1 :]:
        words = line.split()
        if line.startswith("Loop time"):
            break
        try:
            if len(words) == len(names):
                rows.append([float(word) for word in words])
        except ValueError:
            # A warning in between.
            continue
    return dict(zip(names, np.array(rows).T, strict=True))


def speed_of(text: str) -> dict[str, float]:
    """Of the last run: `seconds`, `ranks`, `steps`, `atoms`, and `microseconds_per_atom_step`."""
    found = _LOOP.findall(text)[-1]
    seconds, ranks, steps, atoms = (float(word) for word in found)
    return {
        "seconds": seconds,
        "ranks": ranks,
        "steps": steps,
        "atoms": atoms,
        "microseconds_per_atom_step": 1e6 * seconds / max(1.0, steps * atoms),
    }


def read_trajectory(path: Path) -> list[ase.Atoms]:
    """Frames with unwrapped positions; info `step` and the periodicity are those of the dump.

    Raises:
        HIENetError: it cannot be read.
    """
    try:
        frames = ase.io.read(path, index=":", format="lammps-dump-text")
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise HIENetError(f"`{path}` cannot be read as LAMMPS' trajectory: {error}") from error
    return list(frames)


def block_error(values: Array, n_blocks: int = 5) -> float:
    """Standard error of the mean of correlated values, from the means of blocks."""
    if len(values) < 2 * n_blocks:
        return float("nan")
    means = np.array([block.mean() for block in np.array_split(values, n_blocks)])
    return float(means.std(ddof=1) / np.sqrt(n_blocks))


def mean_and_error(columns: Mapping[str, Array], name: str) -> tuple[float, float]:
    """Of a column."""
    return float(columns[name].mean()), block_error(columns[name])
