"""Frames as graphs with targets, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hienet.data.checks import check_frames
from hienet.data.labels import QUANTITIES, LabelKeys, LabelReport, Labels, read_labels
from hienet.data.reader import Frame
from hienet.derivatives import to_voigt
from hienet.errors import HIENetError
from hienet.graph import AtomicGraph, batch_graphs, graph_from_atoms
from hienet.torch_state import own_torch_state


@dataclass(frozen=True)
class Targets:
    """Labels of one frame or of a batch; NaN where a label is missing.

    Attributes:
        energy: `[n_structures]` (eV, float64).
        n_atoms: `[n_structures]` (float64).
        forces: `[n_atoms, 3]` (eV/Å).
        stress: `[n_structures, 6]` (eV/Å^3, positive = tension, xx, yy, zz, yz, xz, xy).
    """

    energy: Tensor
    n_atoms: Tensor
    forces: Tensor
    stress: Tensor

    def to(self, device: torch.device | str) -> Targets:
        """A copy on `device`."""
        return Targets(self.energy.to(device), self.n_atoms.to(device), self.forces.to(device), self.stress.to(device))


@dataclass(frozen=True)
class Dataset:
    """Labelled frames as graphs.

    A cell without volume is given an infinite one, which makes the predicted stress zero, not NaN.

    Attributes:
        frames: structures and their origin.
        graphs: one for each frame.
        targets: one for each frame.
        labels: one for each frame, from which the targets are made.
        report: which labels were found in the files, of which this may be a part.
        remarks: what is suspicious about the frames and labels of the files, one sentence each.
    """

    frames: list[Frame]
    graphs: list[AtomicGraph]
    targets: list[Targets]
    labels: list[Labels]
    report: LabelReport
    remarks: list[str]

    def __len__(self) -> int:
        return len(self.graphs)

    def subset(self, indices: Sequence[int]) -> Dataset:
        """The frames with these indices."""
        return Dataset(
            [self.frames[i] for i in indices],
            [self.graphs[i] for i in indices],
            [self.targets[i] for i in indices],
            [self.labels[i] for i in indices],
            self.report,
            self.remarks,
        )

    def label_counts(self) -> dict[str, int]:
        """For each quantity the number of frames that have it."""
        return {quantity: sum(getattr(label, quantity) is not None for label in self.labels) for quantity in QUANTITIES}

    def labelled(self) -> list[int]:
        """Indices of the frames that have a label which can be used."""
        return [
            i
            for i, target in enumerate(self.targets)
            if any(bool(part.isfinite().any()) for part in (target.energy, target.forces, target.stress))
        ]

    def energies(self) -> NDArray[np.float64]:
        """Labels `[n_frames]` (eV), NaN where missing."""
        return torch.cat([targets.energy for targets in self.targets]).numpy()

    @own_torch_state()
    def batch(self, indices: Sequence[int]) -> tuple[AtomicGraph, Targets]:
        """These frames as one graph, and their targets."""
        targets = [self.targets[i] for i in indices]
        return batch_graphs([self.graphs[i] for i in indices]), Targets(
            torch.cat([target.energy for target in targets]),
            torch.cat([target.n_atoms for target in targets]),
            torch.cat([target.forces for target in targets]),
            torch.cat([target.stress for target in targets]),
        )

    def batches(self, batch_size: int) -> Iterator[tuple[AtomicGraph, Targets]]:
        """All frames in order."""
        for start in range(0, len(self), batch_size):
            yield self.batch(range(start, min(start + batch_size, len(self))))


def elements_of(frames: Sequence[Frame]) -> tuple[str, ...]:
    """Chemical symbols in the frames, in alphabetical order."""
    return tuple(sorted({symbol for frame in frames for symbol in set(frame.atoms.get_chemical_symbols())}))


@own_torch_state()
def build_dataset(
    frames: Sequence[Frame],
    elements: Sequence[str],
    cutoff: float,
    dtype: torch.dtype = torch.float32,
    keys: LabelKeys | None = None,
    may_lack_all: bool = False,
) -> Dataset:
    """Read labels and find neighbours.

    Args:
        frames: at least one.
        elements: the model's, in species order.
        cutoff: Å.
        dtype: of edge vectors, forces and stresses.
        keys: names of labels, where not to be found automatically.
        may_lack_all: see `read_labels`.

    Raises:
        HIENetError: no frames, an unknown element, bad positions, or bad labels; the message names file and frame.
    """
    if not frames:
        raise HIENetError("the data set is empty; give at least one frame")
    labels, report = read_labels(frames, keys, may_lack_all)

    def graph(frame: Frame) -> AtomicGraph:
        try:
            found = graph_from_atoms(frame.atoms, elements, cutoff, dtype)
        except HIENetError as error:
            raise HIENetError(f"{frame.source}: {error}") from error
        return replace(found, volume=torch.where(found.volume.isnan(), torch.inf, found.volume))

    with ThreadPoolExecutor(max_workers=2) as pool:
        graphs = list(pool.map(graph, frames))
    return Dataset(
        frames=list(frames),
        graphs=graphs,
        targets=[_targets(frame, label, dtype) for frame, label in zip(frames, labels, strict=True)],
        labels=labels,
        report=report,
        remarks=check_frames(frames, labels, report),
    )


def _targets(frame: Frame, labels: Labels, dtype: torch.dtype) -> Targets:
    n_atoms = len(frame.atoms)
    nan = torch.full((n_atoms, 3), torch.nan, dtype=dtype)
    return Targets(
        energy=torch.tensor([torch.nan if labels.energy is None else labels.energy], dtype=torch.float64),
        n_atoms=torch.tensor([n_atoms], dtype=torch.float64),
        forces=nan if labels.forces is None else torch.tensor(labels.forces, dtype=dtype),
        stress=torch.full((1, 6), torch.nan, dtype=dtype)
        if labels.stress is None
        else to_voigt(torch.tensor(labels.stress, dtype=dtype)).unsqueeze(0),
    )
