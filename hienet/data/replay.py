"""Frames of what a model knows, which are trained on beside new ones so that it does not forget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import ase
import torch
from ase.calculators.singlepoint import SinglePointCalculator

from hienet.checkpoint import Checkpoint
from hienet.config import DataSection
from hienet.data.dataset import Dataset, MemoryDataset, build_dataset
from hienet.data.labels import LabelKeys
from hienet.data.reader import Frame
from hienet.data.refit import Refit, predictions, require_same_kind
from hienet.data.split import split_frames
from hienet.data.weights import PART_KEYS
from hienet.errors import HIENetError

_LEAST_TO_SPLIT = 5
_HELD_OUT = 0.1


@dataclass(frozen=True)
class Replay:
    """Replay frames with labels of the new kind of energy.

    Attributes:
        train: those that are trained on, with their weights.
        held_out: those that measure what is forgotten; of very few frames the same ones.
        source: the frames before their energies were moved, or labels were made: to recognise the same data again.
        notes: for the log.
    """

    train: Dataset
    held_out: Dataset
    source: Dataset
    notes: list[str]


def prepare_replay(
    frames: Sequence[Frame],
    data: DataSection,
    start: Checkpoint,
    refit: Refit,
    dtype: torch.dtype,
    keys: LabelKeys,
    seed: int,
) -> Replay:
    """Labels, weights, and a part set apart.

    Args:
        frames: of `data.replay`.
        data: that section of the configuration.
        start: the model before training, with the elements of the new one and its old reference energies.
        refit: how these change.
        dtype: as `build_dataset`.
        keys: names of labels in the file.
        seed: of what is set apart.

    Raises:
        HIENetError: frames without labels, or with labels of another kind of energy than the model's.
    """
    elements, cutoff = start.config.elements, start.config.cutoff
    if data.replay_labels == "model":
        bare = [_labelled(frame, {}, data.weight_key) for frame in frames]
        source = build_dataset(bare, elements, cutoff, dtype, may_lack_all=True, weight_key=data.weight_key)
        frames = [
            _labelled(frame, {name: value.numpy() for name, value in labels.items()}, data.weight_key)
            for frame, labels in zip(bare, predictions(refit.applied_to(start), source, derivatives=True), strict=True)
        ]
        dataset = build_dataset(frames, elements, cutoff, dtype, weight_key=data.weight_key)
        note = "labels by the checkpoint's model"
    else:
        source = build_dataset(frames, elements, cutoff, dtype, keys, may_lack_all=True, weight_key=data.weight_key)
        _require_labels(source)
        require_same_kind(start, source)
        dataset = refit.moved(source)
        note = "labels of the file, energies moved as the reference energies are"
    dataset = _weighted(dataset, data.replay_weight)
    held_out: list[int] = []
    if len(dataset) >= _LEAST_TO_SPLIT:
        fraction = data.validation if isinstance(data.validation, float) and data.validation > 0 else _HELD_OUT
        held_out = split_frames([frame.group(data.stratify) for frame in frames], fraction, 0.0, seed).validation
    trained = [i for i in range(len(dataset)) if i not in set(held_out)]
    apart = f"{len(held_out)} of them set apart" if held_out else "too few to set any apart"
    return Replay(
        train=dataset.subset(trained),
        held_out=dataset.subset(held_out or trained),
        source=source,
        notes=[f"replay: {len(dataset)} frames, {apart}, weight {data.replay_weight:g}; {note}", *source.remarks],
    )


def _labelled(frame: Frame, labels: dict[str, object], weight_key: str | None) -> Frame:
    """The structure with these labels and no others."""
    source = frame.atoms
    atoms = ase.Atoms(source.numbers, positions=source.positions, cell=source.cell, pbc=source.pbc)
    kept = (weight_key, *PART_KEYS, "config_type")
    atoms.info = {name: value for name, value in source.info.items() if name in kept}
    if labels:
        periodic = bool(atoms.pbc.all()) and atoms.cell.rank == 3
        results = {name: value for name, value in labels.items() if periodic or name != "stress"}
        results["energy"] = float(results["energy"])  # type: ignore[arg-type]
        atoms.calc = SinglePointCalculator(atoms, **results)
    return replace(frame, atoms=atoms)


def _weighted(dataset: MemoryDataset, factor: float) -> MemoryDataset:
    targets = [replace(target, weights=factor * target.weights) for target in dataset.targets]
    return dataset.with_targets(targets, dataset.labels)


def _require_labels(dataset: Dataset) -> None:
    labelled = set(dataset.labelled())
    without = [i for i in range(len(dataset)) if i not in labelled]
    if without:
        raise HIENetError(
            f"{len(without)} of {len(dataset)} frames of `data.replay` have no label (first: "
            f"{dataset.frames[without[0]].source}); give labelled ones, or set `data.replay_labels: model` to have "
            "them labelled by the checkpoint"
        )
