"""From a configuration to training, validation and test sets, and the model's configuration."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from hienet.config import DataSection, ModelSection
from hienet.data.dataset import Dataset, build_dataset, elements_of
from hienet.data.labels import LabelKeys
from hienet.data.outliers import ordinary_frames
from hienet.data.reader import Frame, read_frames
from hienet.data.split import Split, split_frames
from hienet.data.statistics import (
    ReferenceEnergies,
    Statistic,
    describe_unseen_elements,
    describe_what_is_left,
    find_scale,
    fit_reference_energies,
    given_reference_energies,
    mean_number_of_neighbors,
    shifted_to_mean,
)
from hienet.data.weights import describe_weights
from hienet.errors import HIENetError
from hienet.models.staged import ModelConfig


@dataclass(frozen=True)
class PreparedData:
    """All that training needs to know of the data.

    Attributes:
        train, validation, test: the sets; the last two may be None.
        split: indices of the frames of the training files in each set.
        model: configuration of the model, statistics of the training set included.
        notes: what was found and computed, one line each, for the log.
        fingerprint: hash of all labels and the split, to recognise the same data again.
    """

    train: Dataset
    validation: Dataset | None
    test: Dataset | None
    split: Split
    model: ModelConfig
    notes: list[str]
    fingerprint: str


def prepare_data(data: DataSection, model: ModelSection, dtype: torch.dtype, seed: int) -> PreparedData:
    """Read the files, split the frames, and compute the statistics of the training set.

    Raises:
        HIENetError: anything wrong with the data, as described in the modules of this package.
    """
    frames = read_frames(data.train)
    elements = model.arguments.get("elements") or elements_of(frames)
    draft = model.hyperparameters({"elements": elements})
    given = [read_frames(part) if isinstance(part, tuple) else [] for part in (data.validation, data.test)]
    everything = [*frames, *given[0], *given[1]]
    keys = LabelKeys(data.energy_key, data.forces_key, data.stress_key, data.virial_key)
    dataset = build_dataset(everything, draft.elements, draft.cutoff, dtype, keys, data.weight_key)
    first_given = len(frames), len(frames) + len(given[0])
    labelled = dataset.labelled()
    split = _split(frames, [i for i in labelled if i < len(frames)], data, seed)
    given_validation = [i for i in labelled if first_given[0] <= i < first_given[1]]
    given_test = [i for i in labelled if i >= first_given[1]]
    for name, files, usable in (("validation", given[0], given_validation), ("test", given[1], given_test)):
        if files and not usable:
            raise HIENetError(
                f"no frame of `data.{name}` has a label; give labelled frames, or leave `data.{name}` out"
            )
    train = dataset.subset(split.train)
    validation = dataset.subset([*split.validation, *given_validation])
    test = dataset.subset([*split.test, *given_test])
    sets = {"training": train, "validation": validation, "test": test}
    sets = {name: part for name, part in sets.items() if len(part)}
    known = data.reference_energies if isinstance(data.reference_energies, dict) else None
    ordinary, outliers = ordinary_frames(sets, draft.elements, known)
    reference = _reference_energies(data, ordinary, draft.elements)
    scale = find_scale(ordinary, reference, draft.elements)
    neighbors = mean_number_of_neighbors(ordinary, draft.cutoff)
    computed = {
        "elements": draft.elements,
        "scale": (scale.value,) * len(draft.elements),
        "shift": reference.energies,
        "avg_num_neighbors": neighbors.value,
    }
    config = model.hyperparameters(computed)
    unlabelled = len(everything) - len(labelled)
    return PreparedData(
        train=train,
        validation=validation if len(validation) else None,
        test=test if len(test) else None,
        split=split,
        model=config,
        notes=[
            f"frames: {len(train)} for training, {len(validation)} for validation, {len(test)} for test",
            str(dataset.report),
            *dataset.describe_masked_atoms(),
            *describe_weights(dataset.frames, dataset.weights(), data.weight_key),
            *outliers,
            *describe_unseen_elements(sets, draft.elements),
            *_describe_statistics(config, computed, reference, scale, neighbors),
            *describe_what_is_left(config.shift, ordinary, draft.elements),
            *([f"frames without any label, left out: {unlabelled}"] if unlabelled else []),
        ],
        fingerprint=_fingerprint(dataset, split),
    )


def _split(frames: Sequence[Frame], labelled: Sequence[int], data: DataSection, seed: int) -> Split:
    """Sets of frames of the training files; those without labels are in none."""
    if not labelled:
        raise HIENetError("no frame of `data.train` has a label; give labelled frames")
    groups = [frames[i].group(data.stratify) for i in labelled]
    fractions = [part if isinstance(part, float) else 0.0 for part in (data.validation, data.test)]
    split = split_frames(groups, fractions[0], fractions[1], seed)
    return Split(*([labelled[i] for i in part] for part in (split.train, split.validation, split.test)))


def _reference_energies(data: DataSection, train: Dataset, elements: Sequence[str]) -> ReferenceEnergies:
    if isinstance(data.reference_energies, dict):
        reference = given_reference_energies(data.reference_energies, elements)
    else:
        reference = fit_reference_energies(train, elements)
    return shifted_to_mean(reference, train, elements) if data.shift_to_mean else reference


def _describe_statistics(
    config: ModelConfig,
    computed: Mapping[str, object],
    reference: ReferenceEnergies,
    scale: Statistic,
    neighbors: Statistic,
) -> list[str]:
    """What the model takes from the data, and how it was found, unless the configuration gives it."""

    def origin(key: str, note: str) -> str:
        return note if getattr(config, key) == computed[key] else f"given as `model.{key}`"

    energies = ", ".join(f"{symbol} {energy:.4f}" for symbol, energy in zip(config.elements, config.shift, strict=True))
    scales = ", ".join(f"{value:.4g}" for value in sorted(set(config.scale)))
    return [
        f"reference energies ({origin('shift', reference.note)}): {energies} eV",
        f"scale ({origin('scale', scale.note)}): {scales}",
        f"mean number of neighbours ({origin('avg_num_neighbors', neighbors.note)}): {config.avg_num_neighbors:.2f}",
    ]


def _fingerprint(dataset: Dataset, split: Split) -> str:
    digest = hashlib.sha256(repr((split.train, split.validation, split.test)).encode())
    for graph, targets in zip(dataset.graphs, dataset.targets, strict=True):
        for tensor in (graph.species, graph.edge_vectors, targets.energy, targets.forces, targets.stress):
            digest.update(tensor.numpy().tobytes())
        # A run that began when frames had no weights is recognised, too.
        if (targets.weights != 1.0).any():
            digest.update(targets.weights.numpy().tobytes())
    return digest.hexdigest()
