"""`hienet init`: a commented configuration for given data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from ase.data import chemical_symbols
from pydantic import BaseModel

from hienet.checkpoint import Checkpoint
from hienet.config import COMPUTED_MODEL_KEYS, DataSection, ModelSection, TrainingSection, keys_of, parse_config
from hienet.console import printable
from hienet.data.cache import Store
from hienet.data.checks import check_frames
from hienet.data.dataset import elements_of
from hienet.data.labels import LabelKeys, LabelReport, read_labels
from hienet.data.reader import Frame, read_frames
from hienet.data.sources import DataSource, prepare_stores
from hienet.errors import HIENetError
from hienet.graph import graph_from_atoms
from hienet.models.factory import DEFAULT_PRESET, build_model, find_architecture
from hienet.recipes import Recipe
from hienet.species import with_elements
from hienet.tables import NO_GROUP, group_label
from hienet.train.start import parts_of

_CUTOFFS = (4.0, 5.0, 6.0)
_STEPS = 8000
_ATOMS_IN_BATCH = 48
_FRAMES_LOOKED_AT = 200
_STEPS_OF_A_LONG_RUN = 20_000
"""From here on the moving average of weights is over a thousand steps, not a hundred."""


@dataclass(frozen=True)
class DataSummary:
    """What a look at the data has found.

    Attributes:
        files: as given.
        n_frames: number of frames.
        n_atoms: smallest, mean, largest number of atoms in a frame.
        elements: number of atoms of each element.
        groups: number of frames of each `config_type`.
        labels: which labels there are.
        remarks: what is suspicious about frames and labels, one sentence each.
        neighbors: mean number of neighbours for each cutoff (Å), in a sample of the frames.
    """

    files: tuple[str, ...]
    n_frames: int
    n_atoms: tuple[int, float, int]
    elements: dict[str, int]
    groups: dict[str, int]
    labels: LabelReport
    remarks: list[str]
    keys: dict[str, str]
    neighbors: dict[float, float]

    def lines(self) -> list[str]:
        """For a person; each on one line, whatever names the files have."""
        low, mean, high = self.n_atoms
        atoms = f"{low} atoms each" if low == high else f"{low} to {high} atoms, {mean:.1f} on average"
        groups = ", ".join(f"{name} {count}" for name, count in list(self.groups.items())[:12])
        rest = f", ... {len(self.groups)} in all" if len(self.groups) > 12 else ""
        lines = [
            f"{self.n_frames} frames of {atoms}",
            "elements (atoms): " + ", ".join(f"{symbol} {count}" for symbol, count in self.elements.items()),
            *self.labels.lines(),
            *self._what_stops_training(),
            *self.remarks,
            *([f"config_type (frames): {groups}{rest}"] if self.groups else []),
            "neighbours of an atom: "
            + ", ".join(f"{n:.0f} within {cutoff:g} Å" for cutoff, n in self.neighbors.items()),
        ]
        return [printable(line) for line in lines]

    def _what_stops_training(self) -> Iterator[str]:
        for quantity in ("energy", "forces"):
            if any(file.lacks(quantity) for file in self.labels.files):
                yield (
                    f"WARNING: `hienet train` will stop for want of {quantity}, unless you name it, or set "
                    f"`data.allow_missing: [{quantity}]`"
                )


def summarize(files: Sequence[str], keys: LabelKeys | None = None) -> DataSummary:
    """Look at data; `keys` are names of labels that are not to be found automatically.

    Raises:
        HIENetError: a file cannot be read, or there are no labels.
    """
    keys = keys or LabelKeys()
    prepare_stores(files, _CUTOFFS[1], keys, None, count=False)
    source = DataSource.open(files, keys)
    if source.frames is None:
        return _summarize_stores(files, keys, source.stores)
    frames = source.frames
    labels, report = read_labels(frames, keys)
    sizes = np.array([len(frame.atoms) for frame in frames])
    elements = Counter(symbol for frame in frames for symbol in frame.atoms.get_chemical_symbols())
    groups = Counter(group_label(frame.group("config_type")) for frame in frames)
    return DataSummary(
        files=tuple(files),
        n_frames=len(frames),
        n_atoms=(int(sizes.min()), float(sizes.mean()), int(sizes.max())),
        elements=dict(sorted(elements.items())),
        groups=dict(sorted(groups.items())) if set(groups) != {NO_GROUP} else {},
        labels=report,
        remarks=check_frames(frames, labels, report),
        keys={f"{name}_key": key for name, key in vars(keys).items() if key is not None},
        neighbors=_mean_neighbors(frames, tuple(sorted(elements))),
    )


def _summarize_stores(files: Sequence[str], keys: LabelKeys, stores: Sequence[Store]) -> DataSummary:
    """From what stores have counted, and a sample of their frames."""
    sizes = np.concatenate([store.columns["n_atoms"] for store in stores])
    numbers = np.sum([store.atoms_of_elements() for store in stores], axis=0)
    elements = {chemical_symbols[i]: int(numbers[i]) for i in np.flatnonzero(numbers).tolist()}
    groups = Counter(group_label(store.group("config_type", i)) for store in stores for i in range(len(store)))
    every = max(1, len(sizes) // _FRAMES_LOOKED_AT)
    sample = [store.frame(i) for store in stores for i in range(0, len(store), every)]
    return DataSummary(
        files=tuple(files),
        n_frames=len(sizes),
        n_atoms=(int(sizes.min()), float(sizes.mean()), int(sizes.max())),
        elements=dict(sorted(elements.items())),
        groups=dict(sorted(groups.items())) if set(groups) != {NO_GROUP} else {},
        labels=LabelReport(tuple(file for store in stores for file in store.report.files)),
        remarks=["note: frames that are read when they are needed are not checked here: hienet data check"],
        keys={f"{name}_key": key for name, key in vars(keys).items() if key is not None},
        neighbors=_mean_neighbors(sample, tuple(sorted(elements))),
    )


def _mean_neighbors(frames: Sequence[Frame], elements: Sequence[str]) -> dict[float, float]:
    sample = frames[:: max(1, len(frames) // _FRAMES_LOOKED_AT)]
    n_atoms = sum(len(frame.atoms) for frame in sample)
    return {cutoff: sum(_n_neighbors(frame, elements, cutoff) for frame in sample) / n_atoms for cutoff in _CUTOFFS}


def _n_neighbors(frame: Frame, elements: Sequence[str], cutoff: float) -> int:
    try:
        return len(graph_from_atoms(frame.atoms, elements, cutoff).center)
    except HIENetError as error:
        raise HIENetError(f"{frame.source}: {error}") from error


def suggestions(
    summary: DataSummary, steps: int = _STEPS, atoms_in_batch: int = _ATOMS_IN_BATCH, least_epochs: int = 10
) -> dict[str, Any]:
    """Values of the training section that suit the size of the data."""
    batch_size = int(min(32, max(1, round(atoms_in_batch / summary.n_atoms[1]))))
    steps_per_epoch = max(1, round(0.9 * summary.n_frames / batch_size))
    return {
        "batch_size": batch_size,
        "epochs": int(np.clip(round(steps / steps_per_epoch), least_epochs, 1000)),
        "ema_decay": 0.99,
    }


def render(
    summary: DataSummary,
    output: str,
    architecture: str = "hienet",
    preset: str = DEFAULT_PRESET,
    recipe: Recipe | None = None,
    limit: Mapping[str, Any] | None = None,
) -> str:
    """The configuration as commented YAML; keys that keep their default are commented out.

    `recipe` takes the place of what suits the size of the data, and `limit` that of some of its values.
    """
    lines = [
        "# Configuration of `hienet train`, written by `hienet init`. Every key is described in docs/training.md.",
        "#",
    ]
    lines += [f"# {part}" for line in summary.lines() for part in line.splitlines()]
    lines += ["", "model:", *_section(ModelSection, {"architecture": architecture, "preset": preset})]
    lines += _architecture(architecture, preset)
    data, training = _data_and_training(summary, recipe)
    lines += ["", "data:", *_section(DataSection, data)]
    lines += ["", "training:"]
    if recipe is not None:
        lines += [f"  # {line}" for line in recipe.lines()]
    lines += _section(TrainingSection, {**training, **(limit or {})})
    lines += ["", "# folder that receives models, logs and plots", f"output: {_inline(output)}", ""]
    return "\n".join(lines)


def _data_and_training(summary: DataSummary, recipe: Recipe | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values of these sections: a recipe's, or what suits the size of the data."""
    data = {"train": _files(summary), "validation": 0.1, **summary.keys, **(recipe.data if recipe else {})}
    return data, dict(suggestions(summary) if recipe is None else recipe.training)


@dataclass(frozen=True)
class WithinMinutes:
    """A training that ends in time.

    Attributes:
        preset: of the model.
        training: values of that section.
        lines: for a person.
    """

    preset: str
    training: dict[str, Any]
    lines: list[str]


def within_minutes(
    minutes: float, summary: DataSummary, architecture: str, preset: str | None, recipe: Recipe | None
) -> WithinMinutes:
    """Train some steps, and choose the preset, unless it is given, and the number of epochs for a time.

    Raises:
        HIENetError: `hienet train` would not begin either.
    """
    from hienet.train.pace import choose_preset, chosen_of, measure_pace

    data, training = _data_and_training(summary, recipe)
    values = {"model": {"architecture": architecture, "preset": preset}, "data": data, "training": training}
    paces = [measure_pace(parse_config(values), preset)] if preset else choose_preset(values, minutes)
    pace = chosen_of(paces, minutes)
    # The time is what ends the run; where the machine is faster later, so many epochs more are not all of them needed.
    limit: dict[str, Any] = {"max_minutes": minutes, "epochs": math.ceil(1.5 * pace.epochs(minutes))}
    if recipe is None and pace.steps(minutes) > _STEPS_OF_A_LONG_RUN:
        limit["ema_decay"] = 0.999
    chosen = f"chosen: preset `{pace.preset}`, {minutes:g} minutes"
    return WithinMinutes(pace.preset, limit, [*(each.line(minutes) for each in paces), chosen])


STRENGTHS: dict[str, dict[str, Any]] = {
    "gentle": {"learning_rate": 3e-4, "final_learning_rate": 1e-6},
    "standard": {"learning_rate": 3e-3, "final_learning_rate": 5e-6},
    "strong": {"learning_rate": 1e-2, "final_learning_rate": 5e-6},
}
"""How far the weights may move. docs/training.md, "Fine-tuning", has errors for several learning rates."""

_FINE_TUNING_STEPS = 3000
_ATOMS_IN_FINE_TUNING_BATCH = 24


@dataclass(frozen=True)
class FineTuning:
    """What `hienet finetune` was asked for.

    Attributes:
        path: of the checkpoint.
        checkpoint: what it holds.
        strength: one of `STRENGTHS`.
        keep_elements: keep all elements of the checkpoint.
        replay: files with old frames.
        replay_labels: `file` or `model`.
    """

    path: str
    checkpoint: Checkpoint
    strength: str
    keep_elements: bool
    replay: tuple[str, ...]
    replay_labels: str

    def __post_init__(self) -> None:
        if self.strength not in STRENGTHS:
            raise HIENetError(f"unknown --strength `{self.strength}`; expected one of: {', '.join(STRENGTHS)}")
        if self.replay_labels not in ("file", "model"):
            raise HIENetError(f"unknown --replay-labels `{self.replay_labels}`; expected file or model")

    def elements(self, summary: DataSummary) -> tuple[str, ...]:
        """Of the fine-tuned model."""
        known = self.checkpoint.config.elements
        present = set(summary.elements)
        if self.replay:
            present |= set(elements_of(read_frames(self.replay)))
        if self.keep_elements:
            return (*known, *sorted(present - set(known)))
        return tuple(sorted(present))

    def lines(self, summary: DataSummary) -> list[str]:
        """For a person: what becomes of the model."""
        other = with_elements(self.checkpoint, self.elements(summary))
        return [f"model: {self.checkpoint.architecture} of {printable(self.path)}; {other.describe()}"]

    def values(self, summary: DataSummary) -> dict[str, Any]:
        """Of the training section."""
        reflect = {"reflect": True} if self.checkpoint.config.symmetry == "SO(3)" else {}
        return {
            "from": self.path,
            "freeze": [],
            **suggestions(summary, _FINE_TUNING_STEPS, _ATOMS_IN_FINE_TUNING_BATCH, least_epochs=5),
            **STRENGTHS[self.strength],
            **reflect,
        }


def render_fine_tuning(summary: DataSummary, output: str, wanted: FineTuning) -> str:
    """The configuration of a fine-tuning run as commented YAML."""
    known, elements = wanted.checkpoint.config.elements, wanted.elements(summary)
    dropped = [symbol for symbol in known if symbol not in elements]
    parts = ", ".join(parts_of(build_model(wanted.checkpoint.architecture, wanted.checkpoint.config, seed=0)))
    lines = [
        "# Configuration of `hienet train` for fine-tuning, written by `hienet finetune`. Every key is described in",
        "# docs/training.md.",
        "#",
    ]
    lines += [f"# {part}" for line in (*summary.lines(), *wanted.lines(summary)) for part in line.splitlines()]
    lines += ["", "model:", f"  # the architecture ({wanted.checkpoint.architecture}) is that of the checkpoint"]
    if dropped:
        lines.append(
            f"  # {len(dropped)} elements of the checkpoint are dropped: without frames of them, training spoils what "
            "the model knows of them"
        )
    lines.append(f"  elements: {_inline(list(elements))}")
    replay: dict[str, Any] = {
        "replay": list(wanted.replay),
        "replay_labels": wanted.replay_labels,
        "replay_weight": 1.0,
    }
    chosen = {"train": _files(summary), "validation": 0.1, **summary.keys, **(replay if wanted.replay else {})}
    lines += ["", "data:", *_section(DataSection, chosen)]
    lines += ["", "training:", f"  # parts that `freeze` may name: {parts}"]
    lines += _section(TrainingSection, wanted.values(summary), first=("from", "freeze"))
    lines += ["", "# folder that receives models, logs and plots", f"output: {_inline(output)}", ""]
    return "\n".join(lines)


def _files(summary: DataSummary) -> Any:
    return summary.files[0] if len(summary.files) == 1 else list(summary.files)


def _section(section: type[BaseModel], chosen: Mapping[str, Any], first: Sequence[str] = ()) -> Iterator[str]:
    keys = keys_of(section)
    for name in (*first, *(key for key in keys if key not in first)):
        info = keys[name]
        value = chosen.get(name, info.default)
        yield from _entry(name, value, info.description or "", active=name in chosen)


def _architecture(architecture: str, preset: str) -> Iterator[str]:
    """The arguments of an architecture's constructor with the values of the preset."""
    family = find_architecture(architecture)
    yield ""
    yield f"  # arguments of {architecture}; the values are those of the preset `{preset}`"
    for name, info in family.config.model_fields.items():
        value = family.presets[preset].get(name, info.default)
        description = info.description or ""
        if name in COMPUTED_MODEL_KEYS:
            yield from _entry(
                name, None, f"{description}; computed from the training frames unless given here", active=False
            )
        else:
            yield from _entry(name, value, description, active=name == "cutoff")


def _entry(name: str, value: Any, description: str, active: bool) -> Iterator[str]:
    yield f"  # {description}"
    yield f"  {'' if active else '# '}{name}: {_inline(value)}"


def _inline(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n...\n").strip()
