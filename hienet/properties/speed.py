"""`hienet speed`: how fast a model is on this machine, and how many atoms fit."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch
from matplotlib.figure import Figure

from hienet.calculator import LoadedModel
from hienet.errors import HIENetError
from hienet.figure import BLUE, ORANGE, as_text, own_style, save_figure, tidy
from hienet.graph import graph_from_atoms
from hienet.memory import OutOfMemoryError
from hienet.properties.engine import Array
from hienet.properties.progress import Progress, silent
from hienet.properties.screen import Column
from hienet.properties.supercells import repeated

SIZES = (64, 128, 256, 512, 1024, 2048)
_SECONDS = 1.0
"""Over which an evaluation is repeated."""
_LEAST_REPEATS = 3


@dataclass(frozen=True)
class Size:
    """One number of atoms.

    Attributes:
        n_atoms: of the structure.
        n_edges: directed pairs within the cutoff.
        seconds: for energy, forces and stress, neighbours included; the median of some evaluations.
        memory: most bytes that the process, or on a GPU torch, had in use so far.
    """

    n_atoms: int
    n_edges: int
    seconds: float
    memory: int


@dataclass(frozen=True)
class Speed:
    """Sizes in growing order.

    Attributes:
        sizes: what was measured.
        threads: of torch.
        machine: in words.
        total_memory: bytes that are free here for more.
        exhausted: the first number of atoms for which memory did not suffice; None if none was tried.
    """

    sizes: list[Size]
    threads: int
    machine: str
    total_memory: int
    exhausted: int | None

    @property
    def bytes_per_atom(self) -> float | None:
        """Slope of the peak memory; None where it did not grow."""
        if len(self.sizes) < 2:
            return None
        last = self.sizes[-2:]
        slope = (last[1].memory - last[0].memory) / (last[1].n_atoms - last[0].n_atoms)
        return slope if slope > 0 else None

    @property
    def atoms_that_fit(self) -> int | None:
        """An estimate from the memory for each atom of the largest sizes; None where that cannot be told."""
        slope = self.bytes_per_atom
        if slope is None:
            return None
        # Two digits: it is no more than an estimate.
        return int(float(f"{self.sizes[-1].n_atoms + self.total_memory / slope:.1e}"))

    def rows(self) -> list[dict[str, Any]]:
        """For tables."""
        return [
            {
                "n_atoms": size.n_atoms,
                "edges_per_atom": size.n_edges / size.n_atoms,
                "seconds": size.seconds,
                "microseconds_per_atom": 1e6 * size.seconds / size.n_atoms,
                "nanoseconds_per_day_at_1_fs": 86400.0 / size.seconds * 1e-6,
                "peak_memory_mb": size.memory / 1e6,
            }
            for size in self.sizes
        ]


COLUMNS = (
    Column("n_atoms", "atoms", "d"),
    Column("edges_per_atom", "neighbours", ".0f"),
    Column("seconds", "time\ns", ".3g"),
    Column("microseconds_per_atom", "time / atom\nµs", ".0f"),
    Column("nanoseconds_per_day_at_1_fs", "at steps of 1 fs\nns/day", ".2g"),
    Column("peak_memory_mb", "peak memory\nMB", ".0f"),
)


def speed(
    atoms: ase.Atoms,
    model: LoadedModel,
    sizes: Sequence[int] = SIZES,
    progress: Progress | None = None,
) -> Speed:
    """Time of energy, forces and stress, neighbours included, for supercells of a structure.

    Atoms are displaced at random by 0.05 Å, as in dynamics.

    Args:
        atoms: a periodic structure.
        model: what is measured, on its device.
        sizes: numbers of atoms that are aimed at, in growing order; the search ends where memory does.
        progress: told of each size.

    Raises:
        HIENetError: no cell, an unknown element, or no memory for the smallest size.
    """
    progress = progress or silent()
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        raise HIENetError("the structure has no cell that could be repeated: it is not periodic in three directions")
    if not sizes or min(sizes) < 1:
        raise HIENetError(f"sizes are positive numbers of atoms, got {', '.join(map(str, sizes))}")
    progress.begin("sizes", len(sizes))
    found: dict[int, Size] = {}
    exhausted = None
    for size in sorted(sizes):
        cell = repeated(atoms, size)
        cell.rattle(0.05, seed=0)
        if len(cell) not in found:
            try:
                found[len(cell)] = _measure(cell, model)
            except OutOfMemoryError:
                exhausted = len(cell)
                break
        progress.advance()
    if not found:
        raise HIENetError(f"there is not enough memory for {exhausted} atoms; give smaller --sizes")
    return Speed(list(found.values()), torch.get_num_threads(), _machine(model), _free_memory(model), exhausted)


def _measure(cell: ase.Atoms, model: LoadedModel) -> Size:
    n_edges = len(graph_from_atoms(cell, model.elements, model.cutoff).center)
    _evaluate(cell, model)
    times: list[float] = []
    while len(times) < _LEAST_REPEATS or (sum(times) < _SECONDS and len(times) < 50):
        begin = time.perf_counter()
        _evaluate(cell, model)
        times.append(time.perf_counter() - begin)
    return Size(len(cell), n_edges, statistics.median(times), _used_memory(model))


def _evaluate(cell: ase.Atoms, model: LoadedModel) -> None:
    forces = model.predict(cell).forces
    assert forces is not None
    # Waits for a GPU.
    forces.cpu()


def _used_memory(model: LoadedModel) -> int:
    if model.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(model.device))
    # Kilobytes on Linux, the only system on which this package runs.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _free_memory(model: LoadedModel) -> int:
    if model.device.type == "cuda":
        return int(torch.cuda.mem_get_info(model.device)[0])
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _machine(model: LoadedModel) -> str:
    if model.device.type == "cuda":
        return torch.cuda.get_device_name(model.device)
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@own_style()
def draw(path: Path, found: Speed, title: str) -> None:
    """Time for each atom, and memory, against the number of atoms."""
    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    atoms: Array = np.array([size.n_atoms for size in found.sizes], dtype=float)
    left.plot(atoms, [1e6 * s.seconds / s.n_atoms for s in found.sizes], "o-", color=BLUE, linewidth=1.3, markersize=4)
    left.set_ylabel("time for each atom (µs)")
    left.set_ylim(bottom=0.0)
    right.plot(atoms, [s.memory / 1e6 for s in found.sizes], "o-", color=ORANGE, linewidth=1.3, markersize=4)
    right.set_ylabel("peak memory (MB)")
    right.set_ylim(bottom=0.0)
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.set_xticks(atoms, [f"{n:.0f}" for n in atoms], rotation=45 if len(atoms) > 6 else 0)
        axis.minorticks_off()
        axis.set_xlabel("atoms")
        tidy(axis)
    figure.suptitle(as_text(title), fontsize=10.5)
    save_figure(figure, path)
