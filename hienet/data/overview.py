"""`hienet data stats`: one pass over frames, of which only sums and extremes are kept."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from hienet.data.composition import least_squares
from hienet.data.labels import QUANTITIES, LabelKeys, LabelReader, LabelReport, Labels
from hienet.data.reader import Frame
from hienet.errors import HIENetError
from hienet.neighbors import neighbor_list
from hienet.units import EV_PER_CUBIC_ANGSTROM_IN_GPA

_FRAMES_AT_A_TIME = 1000


@dataclass
class Range:
    """Least, mean and greatest of what was added, and where the extremes are."""

    n: int = 0
    total: float = 0.0
    low: float = float("inf")
    high: float = float("-inf")
    lowest: str = ""
    highest: str = ""

    def add(self, value: float, source: str) -> None:
        """One more value; NaN does not count."""
        if np.isnan(value):
            return
        self.n += 1
        self.total += value
        if value < self.low:
            self.low, self.lowest = value, source
        if value > self.high:
            self.high, self.highest = value, source

    def as_dict(self) -> dict[str, Any]:
        """Plain values; empty if nothing was added."""
        if not self.n:
            return {}
        ends = {"min_frame": self.lowest, "max_frame": self.highest}
        return {"min": self.low, "mean": self.total / self.n, "max": self.high, **ends}


@dataclass
class Overview:
    """What `hienet data stats` says.

    Attributes:
        cutoff: within which neighbours are counted (Å).
        n_frames, n_edges: how many.
        atoms: numbers of atoms and of frames of each element.
        n_labels: numbers of frames with each quantity.
        ranges: by name: of frames (`n_atoms`, `energy_per_atom`, `largest_force`, ...).
        report: which labels were found.
    """

    cutoff: float
    n_frames: int = 0
    n_edges: int = 0
    atoms: Counter[str] = field(default_factory=Counter)
    frames: Counter[str] = field(default_factory=Counter)
    n_labels: Counter[str] = field(default_factory=Counter)
    ranges: dict[str, Range] = field(default_factory=dict)
    report: LabelReport = field(default_factory=lambda: LabelReport(()))
    _force_squares: float = 0.0
    _n_components: int = 0
    _equations: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, len(chemical_symbols) + 1)))

    def add(self, frames: Sequence[Frame], labels: Sequence[Labels]) -> None:
        """The next frames.

        Raises:
            HIENetError: atoms on top of each other.
        """
        counts = np.array([np.bincount(frame.atoms.numbers, minlength=len(chemical_symbols)) for frame in frames])
        for i in np.flatnonzero(counts.any(axis=0)).tolist():
            self.atoms[chemical_symbols[i]] += int(counts[:, i].sum())
            self.frames[chemical_symbols[i]] += int((counts[:, i] > 0).sum())
        for frame, label in zip(frames, labels, strict=True):
            self._add(frame, label)
        energies = np.array([np.nan if label.energy is None else label.energy for label in labels])
        rows = (
            np.column_stack([counts, energies])[np.isfinite(energies)] / counts.sum(axis=1)[np.isfinite(energies), None]
        )
        # The triangular factor has the solutions of all equations so far.
        self._equations = np.asarray(np.linalg.qr(np.vstack([self._equations, rows]), mode="r"))

    def _add(self, frame: Frame, label: Labels) -> None:
        atoms, n = frame.atoms, len(frame.atoms)
        self.n_frames += 1
        for quantity in QUANTITIES:
            self.n_labels[quantity] += getattr(label, quantity) is not None
        try:
            edges = len(neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, self.cutoff)[0])
        except HIENetError as error:
            raise HIENetError(f"{frame.source}: {error}") from error
        self.n_edges += edges
        values = {"atoms in a frame": float(n), f"neighbours within {self.cutoff:g} Å": edges / n}
        if atoms.pbc.all():
            values["volume (Å³/atom)"] = atoms.cell.volume / n
        if label.energy is not None:
            values["energy (eV/atom)"] = label.energy / n
        if label.forces is not None:
            forces = label.forces[np.isfinite(label.forces)]
            self._force_squares += float((forces**2).sum())
            self._n_components += forces.size
            values["largest force component (eV/Å)"] = float(np.abs(forces).max())
        if label.stress is not None:
            values["pressure (GPa)"] = -float(np.trace(label.stress)) / 3 * EV_PER_CUBIC_ANGSTROM_IN_GPA
        for name, value in values.items():
            self.ranges.setdefault(name, Range()).add(value, frame.source)

    def reference_energies(self) -> tuple[dict[str, float], int, float]:
        """Energy of an atom of each element by least squares (eV), the rank, and the RMS of what is left (eV/atom)."""
        seen = [chemical_symbols.index(symbol) for symbol in sorted(self.atoms)]
        n_energies = self.n_labels["energy"]
        if not n_energies:
            return {}, 0, float("nan")
        equations, right = self._equations[:, seen], self._equations[:, -1]
        energies, rank = least_squares(equations, right)
        left = float(np.sqrt(((right - equations @ energies) ** 2).sum() / n_energies))
        return {chemical_symbols[i]: float(value) for i, value in zip(seen, energies, strict=True)}, rank, left

    @property
    def force_rms(self) -> float | None:
        """Root mean square of the components of forces (eV/Å); None if there are none."""
        return float(np.sqrt(self._force_squares / self._n_components)) if self._n_components else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        references, rank, left = self.reference_energies()
        return {
            "n_frames": self.n_frames,
            "n_atoms": sum(self.atoms.values()),
            "n_edges": self.n_edges,
            "cutoff": self.cutoff,
            "elements": {
                symbol: {
                    "atoms": self.atoms[symbol],
                    "frames": self.frames[symbol],
                    "energy_ev": references.get(symbol),
                }
                for symbol in sorted(self.atoms)
            },
            "reference_energies_rank": rank,
            "energy_left_rms_ev_per_atom": left,
            "force_rms_ev_per_angstrom": self.force_rms,
            "labels": dict(self.n_labels),
            "ranges": {name: values.as_dict() for name, values in self.ranges.items()},
        }


def look_over(
    frames: Iterable[Frame],
    cutoff: float,
    keys: LabelKeys | None = None,
    progress: Callable[[int], None] = lambda frames: None,
) -> Overview:
    """One pass over frames.

    Raises:
        HIENetError: a frame or label cannot be read.
    """
    overview, reader, iterator = Overview(cutoff), LabelReader(keys), iter(frames)
    while chunk := list(itertools.islice(iterator, _FRAMES_AT_A_TIME)):
        overview.add(chunk, reader.read(chunk))
        progress(overview.n_frames)
    overview.report = reader.report
    return overview
