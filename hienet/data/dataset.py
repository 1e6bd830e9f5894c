"""Frames as graphs with targets, and batches of them: what a data set offers, and the one that is held in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Protocol

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
class FrameSummary:
    """What statistics and the planning of batches need to know of every frame; all arrays begin with `n_frames`.

    Attributes:
        n_atoms, n_edges: int64.
        energy: labels (eV), NaN where missing.
        n_labels: `[n_frames, 3]` int64, numbers of finite labels: energies, force components, stress components.
        largest: `[n_frames, 2]`, largest absolute component of forces (eV/Å) and stress (eV/Å^3), NaN without any.
        force_squares: sum of the squares of the labelled force components (eV^2/Å^2).
        weights: `[n_frames, 3]`, factors on the loss of energy, forces and stress.
        converged: bool; false where the program says that the electronic structure did not converge.
    """

    n_atoms: NDArray[np.int64]
    n_edges: NDArray[np.int64]
    energy: NDArray[np.float64]
    n_labels: NDArray[np.int64]
    largest: NDArray[np.float64]
    force_squares: NDArray[np.float64]
    weights: NDArray[np.float64]
    converged: NDArray[np.bool_]

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> FrameSummary:
        """Of the frames with these indices."""
        chosen = np.asarray(indices, dtype=np.int64)
        return FrameSummary(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


class Dataset(Protocol):
    """Labelled frames that can be made into batches, wherever they are held.

    A cell without volume is given an infinite one, which makes the predicted stress zero, not NaN.

    Attributes:
        elements: chemical symbols, in species order.
        summary: numbers of every frame.
        report: which labels were found in the files, of which this may be a part.
        remarks: what is suspicious about the frames and labels of the files, one sentence each.
        in_memory: whether frames and graphs are held, so that a batch only needs to be put together.
    """

    elements: tuple[str, ...]
    summary: FrameSummary
    report: LabelReport
    remarks: list[str]
    in_memory: bool

    @property
    def frames(self) -> Sequence[Frame]:
        """Structures and their origin."""

    @property
    def labels(self) -> Sequence[Labels]:
        """One for each frame."""

    def subset(self, indices: Sequence[int]) -> Dataset:
        """The frames with these indices."""

    def batch(self, indices: Sequence[int]) -> tuple[AtomicGraph, Targets]:
        """These frames as one graph, and their targets.

        Raises:
            HIENetError: a frame cannot be read, or has no graph (atoms on top of each other); it is named.
        """

    def compositions(self, start: int, stop: int) -> NDArray[np.float64]:
        """Number of atoms of each element in frames `start .. stop-1`, `[stop - start, n_elements]`."""

    def add_to(self, digest: hashlib._Hash) -> None:
        """Feed what identifies structures and labels of all frames."""

    def groups(self, key: str | None) -> Sequence[str]:
        """For each frame the value of an entry of its info, empty where there is none."""
        return [frame.group(key) for frame in self.frames]

    def __len__(self) -> int:
        return len(self.summary.n_atoms)

    def label_counts(self) -> dict[str, int]:
        """For each quantity the number of frames that have it."""
        return dict(zip(QUANTITIES, (self.summary.n_labels > 0).sum(axis=0).tolist(), strict=True))

    def labelled(self) -> list[int]:
        """Indices of the frames that have a label which can be used."""
        return np.flatnonzero(self.summary.n_labels.any(axis=1)).tolist()

    def energies(self) -> NDArray[np.float64]:
        """Labels `[n_frames]` (eV), NaN where missing."""
        return self.summary.energy

    def weights(self) -> NDArray[np.float64]:
        """Factors on the loss `[n_frames, 3]` of energy, forces and stress."""
        return self.summary.weights

    def masked_atoms(self) -> dict[int, int]:
        """By index of the frames of which only some atoms have forces: the number of atoms that have none."""
        n_atoms, n_forces = self.summary.n_atoms, self.summary.n_labels[:, 1] // 3
        chosen = np.flatnonzero((n_forces > 0) & (n_forces < n_atoms))
        return {int(i): int(n_atoms[i] - n_forces[i]) for i in chosen}

    def describe_masked_atoms(self) -> list[str]:
        """For the log: how many atoms have no forces in frames with forces, and in which frame first."""
        masked = self.masked_atoms()
        if not masked:
            return []
        first = self.frames[min(masked)].source
        return [
            f"forces of {sum(masked.values())} atoms in {len(masked)} frames are NaN and do not count (first: {first})"
        ]


class MemoryDataset(Dataset):
    """Frames, graphs and targets in lists.

    Attributes:
        graphs: one for each frame.
        targets: one for each frame.
    """

    in_memory = True

    def __init__(
        self,
        elements: Sequence[str],
        frames: list[Frame],
        graphs: list[AtomicGraph],
        targets: list[Targets],
        labels: list[Labels],
        report: LabelReport,
        remarks: list[str],
        summary: FrameSummary | None = None,
    ) -> None:
        self.elements = tuple(elements)
        self._frames, self.graphs, self.targets, self._labels = frames, graphs, targets, labels
        self.report, self.remarks = report, remarks
        self.summary = _summarize(frames, graphs, targets) if summary is None else summary

    @property
    def frames(self) -> list[Frame]:
        """Structures and their origin."""
        return self._frames

    @property
    def labels(self) -> list[Labels]:
        """One for each frame, from which the targets are made."""
        return self._labels

    def subset(self, indices: Sequence[int]) -> MemoryDataset:
        """The frames with these indices."""
        return MemoryDataset(
            self.elements,
            [self.frames[i] for i in indices],
            [self.graphs[i] for i in indices],
            [self.targets[i] for i in indices],
            [self.labels[i] for i in indices],
            self.report,
            self.remarks,
            self.summary.take(indices),
        )

    def with_targets(self, targets: list[Targets], labels: list[Labels]) -> MemoryDataset:
        """The same structures with other targets and the labels that these are made from."""
        return MemoryDataset(self.elements, self.frames, self.graphs, targets, labels, self.report, self.remarks)

    @own_torch_state()
    def batch(self, indices: Sequence[int]) -> tuple[AtomicGraph, Targets]:
        """These frames as one graph, and their targets."""
        targets = [self.targets[i] for i in indices]
        return batch_graphs([self.graphs[i] for i in indices]), Targets(
            **{name: torch.cat([getattr(target, name) for target in targets]) for name in vars(targets[0])}
        )

    def compositions(self, start: int, stop: int) -> NDArray[np.float64]:
        """Number of atoms of each element in frames `start .. stop-1`, `[stop - start, n_elements]`."""
        n_elements = len(self.elements)
        counts = [np.bincount(graph.species.numpy(), minlength=n_elements) for graph in self.graphs[start:stop]]
        return np.array(counts, dtype=np.float64).reshape(len(counts), n_elements)

    def add_to(self, digest: hashlib._Hash) -> None:
        """Feed what identifies structures and labels of all frames."""
        for graph, targets in zip(self.graphs, self.targets, strict=True):
            for tensor in (graph.species, graph.edge_vectors, targets.energy, targets.forces, targets.stress):
                digest.update(tensor.numpy().tobytes())
            # A run that began when frames had no weights is recognised, too.
            if (targets.weights != 1.0).any():
                digest.update(targets.weights.numpy().tobytes())


class JoinedDataset(Dataset):
    """Frames of two data sets with the same elements, those of the first in front.

    What was found in the files is that of the first.
    """

    def __init__(self, first: Dataset, second: Dataset, chosen: Sequence[int] | None = None) -> None:
        """With `chosen`, only the frames with these indices."""
        self.first, self.second = first, second
        self.elements, self.report, self.remarks = first.elements, first.report, first.remarks
        self.in_memory = first.in_memory and second.in_memory
        self.chosen = range(len(first) + len(second)) if chosen is None else chosen
        whole = {
            field.name: np.concatenate([getattr(first.summary, field.name), getattr(second.summary, field.name)])
            for field in fields(FrameSummary)
        }
        self.summary = FrameSummary(**whole).take(self.chosen)

    def _where(self, index: int) -> tuple[Dataset, int]:
        number = self.chosen[index]
        return (self.first, number) if number < len(self.first) else (self.second, number - len(self.first))

    @property
    def frames(self) -> list[Frame]:
        """Structures and their origin."""
        return [part.frames[i] for part, i in map(self._where, range(len(self)))]

    @property
    def labels(self) -> list[Labels]:
        """One for each frame."""
        return [part.labels[i] for part, i in map(self._where, range(len(self)))]

    def subset(self, indices: Sequence[int]) -> JoinedDataset:
        """The frames with these indices."""
        return JoinedDataset(self.first, self.second, [self.chosen[i] for i in indices])

    @own_torch_state()
    def batch(self, indices: Sequence[int]) -> tuple[AtomicGraph, Targets]:
        """These frames as one graph, and their targets."""
        graphs, targets = zip(*(part.batch([i]) for part, i in map(self._where, indices)), strict=True)
        return batch_graphs(graphs), Targets(
            **{name: torch.cat([getattr(target, name) for target in targets]) for name in vars(targets[0])}
        )

    def compositions(self, start: int, stop: int) -> NDArray[np.float64]:
        """Number of atoms of each element in frames `start .. stop-1`, `[stop - start, n_elements]`."""
        rows = [part.compositions(i, i + 1) for part, i in map(self._where, range(start, stop))]
        return np.concatenate([np.zeros((0, len(self.elements))), *rows])

    def add_to(self, digest: hashlib._Hash) -> None:
        """Feed what identifies structures and labels of all frames."""
        digest.update(repr(list(self.chosen)).encode())
        self.first.add_to(digest)
        self.second.add_to(digest)


def _summarize(frames: Sequence[Frame], graphs: Sequence[AtomicGraph], targets: Sequence[Targets]) -> FrameSummary:
    n_frames = len(graphs)
    finite = [[np.isfinite(getattr(target, name).numpy()) for name in QUANTITIES] for target in targets]
    return FrameSummary(
        n_atoms=np.array([graph.n_local for graph in graphs], dtype=np.int64),
        n_edges=np.array([len(graph.center) for graph in graphs], dtype=np.int64),
        energy=np.array([float(target.energy) for target in targets], dtype=np.float64),
        n_labels=np.array([[part.sum() for part in parts] for parts in finite], dtype=np.int64).reshape(n_frames, 3),
        largest=np.array(
            [[largest(target.forces.numpy()), largest(target.stress.numpy())] for target in targets], dtype=np.float64
        ).reshape(n_frames, 2),
        force_squares=np.array([np.nansum(target.forces.double().numpy() ** 2) for target in targets]),
        weights=torch.cat([target.weights for target in targets]).numpy() if n_frames else np.zeros((0, 3)),
        converged=np.array([frame.converged for frame in frames], dtype=bool),
    )


def largest(values: NDArray[np.floating]) -> float:
    """Of the absolute values that are labels; NaN if there are none."""
    labelled = np.abs(values[np.isfinite(values)])
    return float(labelled.max()) if labelled.size else float("nan")


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
) -> MemoryDataset:
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
    return MemoryDataset(
        elements=elements,
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
        forces=in_precision("forces", labels.forces, (n_atoms, 3), frame.source, dtype),
        stress=in_precision("stress", stress, (1, 6), frame.source, dtype),
        weights=torch.tensor(weights, dtype=torch.float64).unsqueeze(0),
    )


def in_precision(
    name: str, label: NDArray[np.float64] | Tensor | None, shape: tuple[int, int], source: str, dtype: torch.dtype
) -> Tensor:
    """A label as a tensor of this shape and type, NaN where there is none.

    Raises:
        HIENetError: a component exceeds what `dtype` holds; the message begins with `source`.
    """
    if label is None:
        return torch.full(shape, torch.nan, dtype=dtype)
    exact = torch.as_tensor(label, dtype=torch.float64).reshape(shape)
    rounded = exact.to(dtype)
    if rounded.isinf().any():
        raise HIENetError(
            f"{source}: a component of its {name} is {exact[rounded.isinf()][0]:.3g}, more than {dtype} holds; "
            "remove the frame, or leave the label out of it"
        )
    return rounded
