"""`hienet init`: a commented configuration for given data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel

from hienet.config import COMPUTED_MODEL_KEYS, DataSection, ModelSection, TrainingSection
from hienet.console import printable
from hienet.data.checks import check_frames
from hienet.data.labels import LabelKeys, LabelReport, read_labels
from hienet.data.reader import Frame, read_frames
from hienet.errors import HIENetError
from hienet.graph import graph_from_atoms
from hienet.models.factory import DEFAULT_PRESET, find_architecture
from hienet.tables import NO_GROUP, group_label

_CUTOFFS = (4.0, 5.0, 6.0)
_STEPS = 8000
_ATOMS_IN_BATCH = 48
_FRAMES_LOOKED_AT = 200


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
    frames = read_frames(files)
    keys = keys or LabelKeys()
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


def _mean_neighbors(frames: Sequence[Frame], elements: Sequence[str]) -> dict[float, float]:
    sample = frames[:: max(1, len(frames) // _FRAMES_LOOKED_AT)]
    n_atoms = sum(len(frame.atoms) for frame in sample)
    return {cutoff: sum(_n_neighbors(frame, elements, cutoff) for frame in sample) / n_atoms for cutoff in _CUTOFFS}


def _n_neighbors(frame: Frame, elements: Sequence[str], cutoff: float) -> int:
    try:
        return len(graph_from_atoms(frame.atoms, elements, cutoff).center)
    except HIENetError as error:
        raise HIENetError(f"{frame.source}: {error}") from error


def suggestions(summary: DataSummary) -> dict[str, Any]:
    """Values of the training section that suit the size of the data."""
    batch_size = int(min(32, max(1, round(_ATOMS_IN_BATCH / summary.n_atoms[1]))))
    steps_per_epoch = max(1, round(0.9 * summary.n_frames / batch_size))
    return {
        "batch_size": batch_size,
        "epochs": int(np.clip(round(_STEPS / steps_per_epoch), 10, 1000)),
        "ema_decay": 0.99,
    }


def render(summary: DataSummary, output: str, architecture: str = "hienet", preset: str = DEFAULT_PRESET) -> str:
    """The configuration as commented YAML; keys that keep their default are commented out."""
    files: Any = summary.files[0] if len(summary.files) == 1 else list(summary.files)
    lines = [
        "# Configuration of `hienet train`, written by `hienet init`. Every key is described in docs/training.md.",
        "#",
    ]
    lines += [f"# {part}" for line in summary.lines() for part in line.splitlines()]
    lines += ["", "model:", *_section(ModelSection, {"architecture": architecture, "preset": preset})]
    lines += _architecture(architecture, preset)
    lines += ["", "data:", *_section(DataSection, {"train": files, "validation": 0.1, **summary.keys})]
    lines += ["", "training:", *_section(TrainingSection, suggestions(summary))]
    lines += ["", "# folder that receives models, logs and plots", f"output: {_inline(output)}", ""]
    return "\n".join(lines)


def _section(section: type[BaseModel], chosen: Mapping[str, Any]) -> Iterator[str]:
    for name, info in section.model_fields.items():
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
