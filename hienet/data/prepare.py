"""From a configuration to training, validation and test sets, and the model's configuration."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from hienet.checkpoint import Checkpoint
from hienet.config import DataSection, ModelSection
from hienet.data.checks import check_overlap
from hienet.data.dataset import Dataset, elements_of
from hienet.data.isolated import IsolatedAtoms, isolated_atoms
from hienet.data.labels import LabelKeys, LabelReport, require_any_labels, require_labels
from hienet.data.outliers import ordinary_frames
from hienet.data.reader import read_frames
from hienet.data.refit import Refit, keep_reference_energies, refit_reference_energies
from hienet.data.replay import Replay, prepare_replay
from hienet.data.sources import DataSource
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
from hienet.data.weights import describe_weights, require_weight_key
from hienet.errors import HIENetError
from hienet.models.config import ModelConfig
from hienet.species import with_elements
from hienet.torch_state import own_torch_state


@dataclass(frozen=True)
class PreparedData:
    """All that training needs to know of the data.

    Attributes:
        train, validation, test: the sets; the last two may be None.
        split: indices of the frames of the training files in each set.
        model: configuration of the model, statistics of the training set included.
        notes: what was found and computed, one line each, for the log.
        fingerprint: hash of all labels and the split, to recognise the same data again.
        start: the model that fine-tuning begins with, with the elements and reference energies of the new one; or None.
        replay: frames of what that model knows, if there are any.
    """

    train: Dataset
    validation: Dataset | None
    test: Dataset | None
    split: Split
    model: ModelConfig
    notes: list[str]
    fingerprint: str
    start: Checkpoint | None = None
    replay: Replay | None = None


@own_torch_state()
def prepare_data(
    data: DataSection,
    model: ModelSection,
    dtype: torch.dtype,
    seed: int,
    unneeded: Collection[str] = (),
    start: Checkpoint | None = None,
) -> PreparedData:
    """Read the files, split the frames, and compute the statistics of the training set.

    Args:
        data, model: these sections of the configuration.
        dtype: of edge vectors, forces and stresses.
        seed: of the split.
        unneeded: quantities without which training makes sense: those whose loss has no weight.
        start: the model that fine-tuning begins with; `model` has what is changed of it.

    Raises:
        HIENetError: anything wrong with the data, as described in the modules of this package.
    """
    files = {"train": data.train, "validation": data.validation, "test": data.test}
    keys = label_keys(data)
    sources = {
        name: DataSource.open(part, keys, data.weight_key) for name, part in files.items() if isinstance(part, tuple)
    }
    replay_frames = read_frames(data.replay) if data.replay is not None else []
    if start is None:
        elements = model.arguments.get("elements") or sources["train"].elements()
        draft = model.hyperparameters({"elements": elements})
        other = None
    else:
        symbols = set(elements_of(replay_frames)).union(*(source.elements() for source in sources.values()))
        other = with_elements(start, _elements_of_start(start, model, sorted(symbols)))
        draft = other.checkpoint.config
    given = {
        name: source.dataset(draft.elements, draft.cutoff, dtype, keys, may_lack_all=True, weight_key=data.weight_key)
        for name, source in sources.items()
    }
    if all(dataset.in_memory for dataset in given.values()):
        require_weight_key([frame for dataset in given.values() for frame in dataset.frames], data.weight_key)
    report = LabelReport(tuple(file for dataset in given.values() for file in dataset.report.files))
    require_any_labels(report)
    may_lack = {*data.allow_missing, *unneeded}
    require_labels(report, may_lack)
    usable = {name: _usable(name, dataset, data) for name, dataset in given.items()}
    split = _split(given["train"], usable["train"], data, seed)
    sets = {
        name: given[name].subset(usable[name]) if name != "train" and name in given else given["train"].subset(part)
        for name, part in vars(split).items()
    }
    train = sets["train"]
    _require_labels_of_training_set(train, may_lack)
    isolated = _isolated_atoms(data, given["train"])
    ordinary, outliers = ordinary_frames(sets, draft.elements, _known_energies(data, isolated))
    replay: Replay | None = None
    if other is None:
        config, statistics = _statistics_of_data(data, model, draft, isolated, ordinary)
    else:
        refit, warnings = _moved_reference_energies(data, other.checkpoint, ordinary)
        if replay_frames:
            replay = prepare_replay(replay_frames, data, other.checkpoint, refit, dtype, keys, seed)
        start = refit.applied_to(other.checkpoint)
        config = model.hyperparameters({**start.config.model_dump(), **_without_elements(model)})
        statistics = [other.describe(), *refit.lines(), *warnings, *(replay.notes if replay else [])]
    remarks = [remark for dataset in given.values() for remark in dataset.remarks]
    if all(dataset.in_memory for dataset in sets.values()):
        remarks += check_overlap({name: dataset.frames for name, dataset in sets.items()})
    else:
        remarks.append("note: frames that are read when they are needed are not checked here: hienet data check")
    return PreparedData(
        train=train,
        validation=sets["validation"] if len(sets["validation"]) else None,
        test=sets["test"] if len(sets["test"]) else None,
        split=split,
        model=config,
        notes=[
            *_describe_sets(sets, report),
            *(note for dataset in given.values() for note in dataset.describe_masked_atoms()),
            *describe_weights(given.values(), data.weight_key),
            *statistics,
            *describe_what_is_left(config.shift, ordinary, draft.elements),
            *outliers,
            *describe_unseen_elements(sets, draft.elements),
            *remarks,
            *_left_out(given, data),
        ],
        fingerprint=_fingerprint(given.values(), split, start, replay),
        start=start,
        replay=replay,
    )


def _statistics_of_data(
    data: DataSection, model: ModelSection, draft: ModelConfig, isolated: IsolatedAtoms, ordinary: Dataset
) -> tuple[ModelConfig, list[str]]:
    """A new model's configuration, and what to say of what it takes from the data."""
    reference = _reference_energies(data, isolated, ordinary, draft.elements)
    scale = find_scale(ordinary, reference, draft.elements)
    neighbors = mean_number_of_neighbors(ordinary, draft.cutoff)
    computed = {
        "elements": draft.elements,
        "scale": (scale.value,) * len(draft.elements),
        "shift": reference.energies,
        "avg_num_neighbors": neighbors.value,
    }
    config = model.hyperparameters(computed)
    return config, _describe_statistics(config, computed, reference, scale, neighbors)


def _elements_of_start(start: Checkpoint, model: ModelSection, present: Sequence[str]) -> tuple[str, ...]:
    """The elements of a model to be fine-tuned: those that are asked for, or the checkpoint's and new ones.

    Raises:
        HIENetError: one is asked for of which neither the data nor the checkpoint know.
    """
    known = start.config.elements
    asked = model.arguments.get("elements")
    if not asked:
        return (*known, *(symbol for symbol in present if symbol not in known))
    # As a configuration of the architecture, in which symbols are checked.
    elements = model.hyperparameters(
        {**start.config.model_dump(), "elements": asked, "scale": (), "shift": ()}
    ).elements
    strange = [symbol for symbol in elements if symbol not in known and symbol not in present]
    if strange:
        raise HIENetError(
            f"`model.elements` names {', '.join(strange)}, which neither the data nor the checkpoint have; the "
            f"data have {', '.join(present)}: remove it, or give frames with it"
        )
    return elements


def _without_elements(model: ModelSection) -> dict[str, object]:
    return {name: value for name, value in model.arguments.items() if name != "elements"}


def _moved_reference_energies(data: DataSection, start: Checkpoint, ordinary: Dataset) -> tuple[Refit, list[str]]:
    """As the configuration says."""
    if isinstance(data.reference_energies, dict):
        known = dict(zip(start.config.elements, start.config.shift, strict=True))
        given = given_reference_energies({**known, **data.reference_energies}, start.config.elements)
        return Refit(start.config.elements, start.config.shift, given.energies, given.note), []
    if data.reference_energies == "keep":
        return keep_reference_energies(start, ordinary), []
    return refit_reference_energies(start, ordinary)


def _usable(name: str, dataset: Dataset, data: DataSection) -> list[int]:
    """Indices of the frames that have labels, converged ones unless the others are wanted."""
    converged = dataset.summary.converged
    usable = [i for i in dataset.labelled() if converged[i] or data.keep_unconverged]
    if not usable:
        without = not converged.all() and bool(dataset.labelled())
        raise HIENetError(
            f"no frame of `data.{name}` is converged; set `data.keep_unconverged: true` to use them all the same"
            if without
            else f"no frame of `data.{name}` has a label; give labelled frames"
            + ("" if name == "train" else f", or leave `data.{name}` out")
        )
    return usable


def _require_labels_of_training_set(train: Dataset, may_lack: Collection[str]) -> None:
    """The files have labels, but it may be that none is among the frames that were drawn for training."""
    counts = train.label_counts()
    for quantity in ("energy", "forces"):
        if counts[quantity] == 0 and quantity not in may_lack and (train.summary.n_atoms > 1).any():
            raise HIENetError(
                f"no frame of the training set has {'an energy' if quantity == 'energy' else 'forces'}: the few that "
                "have went to validation or test; give more of them, or validation and test sets as files, or set "
                f"`data.allow_missing: [{quantity}]`"
            )


def _left_out(given: Mapping[str, Dataset], data: DataSection) -> list[str]:
    """How many frames are in none of the sets, and why."""
    unlabelled = sum(len(dataset) - len(dataset.labelled()) for dataset in given.values())
    notes = [f"frames without any label, left out: {unlabelled}"] if unlabelled else []
    unconverged = sum(int((~dataset.summary.converged).sum()) for dataset in given.values())
    if unconverged:
        notes.append(
            f"frames without electronic convergence, used all the same (`keep_unconverged`): {unconverged}"
            if data.keep_unconverged
            else f"frames without electronic convergence, left out (`data.keep_unconverged: true` uses them): "
            f"{unconverged}"
        )
    return notes


def label_keys(data: DataSection) -> LabelKeys:
    """Names of labels that the configuration gives."""
    return LabelKeys(data.energy_key, data.forces_key, data.stress_key, data.virial_key)


def _split(dataset: Dataset, usable: Sequence[int], data: DataSection, seed: int) -> Split:
    """Sets of frames of the training files; those that cannot be used are in none."""
    of_frames = dataset.groups(data.stratify)
    groups = [of_frames[i] for i in usable]
    fractions = [part if isinstance(part, float) else 0.0 for part in (data.validation, data.test)]
    split = split_frames(groups, fractions[0], fractions[1], seed)
    return Split(*([usable[i] for i in part] for part in (split.train, split.validation, split.test)))


def _isolated_atoms(data: DataSection, files: Dataset) -> IsolatedAtoms:
    """Those whose energies the configuration wants as reference energies; in any part of the training files."""
    if data.reference_energies != "auto":
        return IsolatedAtoms({}, "")
    single = np.flatnonzero(files.summary.n_atoms == 1).tolist()
    return isolated_atoms([files.frames[i] for i in single], [files.labels[i] for i in single])


def _known_energies(data: DataSection, isolated: IsolatedAtoms) -> Mapping[str, float]:
    return data.reference_energies if isinstance(data.reference_energies, dict) else isolated.energies


def _reference_energies(
    data: DataSection, isolated: IsolatedAtoms, ordinary: Dataset, elements: Sequence[str]
) -> ReferenceEnergies:
    """As the configuration says."""
    if isinstance(data.reference_energies, dict):
        reference = given_reference_energies(data.reference_energies, elements)
    else:
        reference = fit_reference_energies(ordinary, elements, isolated.energies)
        if isolated.energies:
            reference = replace(reference, note=f"{reference.note}; isolated atoms: {isolated.note}")
    return shifted_to_mean(reference, ordinary, elements) if data.shift_to_mean else reference


def _describe_sets(sets: Mapping[str, Dataset], report: LabelReport) -> list[str]:
    frames = ", ".join(
        f"{len(sets[name])} for {word}"
        for name, word in (("train", "training"), ("validation", "validation"), ("test", "test"))
    )
    return [f"frames: {frames}", *report.lines()]


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


def _fingerprint(datasets: Iterable[Dataset], split: Split, start: Checkpoint | None, replay: Replay | None) -> str:
    digest = hashlib.sha256(repr((split.train, split.validation, split.test)).encode())
    if start is not None:
        for name, tensor in sorted(start.weights.items()):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    for dataset in (*datasets, *([replay.source] if replay is not None else [])):
        dataset.add_to(digest)
    return digest.hexdigest()
