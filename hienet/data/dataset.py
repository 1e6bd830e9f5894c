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
from hienet.data.weights import frame_weights
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
        weights: `[n_structures, 3]` (float64), factors on the loss of energy, forces and stress.
    """

    energy: Tensor
    n_atoms: Tensor
    forces: Tensor
    stress: Tensor
    weights: Tensor

    def to(self, device: torch.device | str) -> Targets:
        """A copy on `device`."""
        return Targets(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    def labelled(self) -> dict[str, bool]:
        """Whether there is any label of each quantity."""
        return {name: bool(getattr(self, name).isfinite().any()) for name in QUANTITIES}


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
        return [i for i, target in enumerate(self.targets) if any(target.labelled().values())]

    def energies(self) -> NDArray[np.float64]:
        """Labels `[n_frames]` (eV), NaN where missing."""
        return np.array([float(targets.energy) for targets in self.targets])

    def masked_atoms(self) -> dict[int, int]:
        """By index of the frames of which only some atoms have forces: the number of atoms that have none."""
        without = [int(targets.forces.isnan().any(dim=1).sum()) for targets in self.targets]
        return {i: n for i, n in enumerate(without) if 0 < n < self.graphs[i].n_local}

    def describe_masked_atoms(self) -> list[str]:
        """For the log: how many atoms have no forces in frames with forces, and in which frame first."""
        masked = self.masked_atoms()
        if not masked:
            return []
        first = self.frames[min(masked)].source
        return [
            f"forces of {sum(masked.values())} atoms in {len(masked)} frames are NaN and do not count (first: {first})"
        ]

    def weights(self) -> NDArray[np.float64]:
        """Factors on the loss `[n_frames, 3]` of energy, forces and stress."""
        return torch.cat([targets.weights for targets in self.targets]).numpy()

    @own_torch_state()
    def batch(self, indices: Sequence[int]) -> tuple[AtomicGraph, Targets]:
        """These frames as one graph, and their targets."""
        targets = [self.targets[i] for i in indices]
        return batch_graphs([self.graphs[i] for i in indices]), Targets(
            **{name: torch.cat([getattr(target, name) for target in targets]) for name in vars(targets[0])}
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
    weight_key: str | None = None,
) -> Dataset:
    """Read labels and find neighbours.

    Args:
        frames: at least one.
        elements: the model's, in species order.
        cutoff: Å.
        dtype: of edge vectors, forces and stresses.
        keys: names of labels, where not to be found automatically.
        may_lack_all: see `read_labels`.
        weight_key: entry of the frames' info with their weight in the loss; None: all frames have weight 1.

    Raises:
        HIENetError: no frames, an unknown element, bad positions, or bad labels; the message names file and frame.
    """
    if not frames:
        raise HIENetError("the data set is empty; give at least one frame")
    labels, report = read_labels(frames, keys, may_lack_all)
    weights = frame_weights(frames, weight_key)

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
        targets=[
            _targets(frame, label, weight, dtype) for frame, label, weight in zip(frames, labels, weights, strict=True)
        ],
        labels=labels,
        report=report,
        remarks=check_frames(frames, labels, report),
    )


def _targets(frame: Frame, labels: Labels, weights: NDArray[np.float64], dtype: torch.dtype) -> Targets:
    n_atoms = len(frame.atoms)
    stress = None if labels.stress is None else to_voigt(torch.tensor(labels.stress, dtype=torch.float64))
    return Targets(
        energy=torch.tensor([torch.nan if labels.energy is None else labels.energy], dtype=torch.float64),
        n_atoms=torch.tensor([n_atoms], dtype=torch.float64),
        forces=_in_precision("forces", labels.forces, (n_atoms, 3), frame, dtype),
        stress=_in_precision("stress", stress, (1, 6), frame, dtype),
        weights=torch.tensor(weights, dtype=torch.float64).unsqueeze(0),
    )


def _in_precision(
    name: str, label: NDArray[np.float64] | Tensor | None, shape: tuple[int, int], frame: Frame, dtype: torch.dtype
) -> Tensor:
    """A label as a tensor of this shape and type, NaN where there is none."""
    if label is None:
        return torch.full(shape, torch.nan, dtype=dtype)
    exact = torch.as_tensor(label, dtype=torch.float64).reshape(shape)
    rounded = exact.to(dtype)
    if rounded.isinf().any():
        raise HIENetError(
            f"{frame.source}: a component of its {name} is {exact[rounded.isinf()][0]:.3g}, more than {dtype} holds; "
            "remove the frame, or leave the label out of it"
        )
    return rounded
