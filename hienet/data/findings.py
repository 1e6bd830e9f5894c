"""`hienet data check`: what is wrong, or most likely wrong, with one or several sets of frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hienet.data.checks import check_frames, check_overlap
from hienet.data.labels import LabelKeys
from hienet.data.outliers import describe_outliers, find_limits
from hienet.data.sources import DataSource, prepare_stores

_ONLY_A_REMARK = "note: energies are free energies"


@dataclass(frozen=True)
class Findings:
    """What `hienet data check` says.

    Attributes:
        n_frames: of each set.
        lines: one sentence each.
    """

    n_frames: dict[str, int]
    lines: list[str]

    @property
    def anything(self) -> bool:
        """Whether there is more than remarks."""
        return any(not line.startswith(_ONLY_A_REMARK) for line in self.lines)


def check_sets(
    sets: Mapping[str, Sequence[str | Path]],
    cutoff: float,
    keys: LabelKeys | None = None,
    weight_key: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Findings:
    """Check each set by itself, and whether any frame is in two of them.

    Args:
        sets: files by name, in the order `train`, `validation`, `test`.
        cutoff: within which atoms may be too many (Å).
        keys: names of labels, where not to be found automatically.
        weight_key: entry of the frames' info with their weight.
        say: for what takes long.

    Raises:
        HIENetError: frames or labels cannot be read, or a cache does not have its fingerprint.
    """
    keys = keys or LabelKeys()
    lines, frames, counts = [], {}, {}
    limits = None
    for name, files in sets.items():
        prepare_stores(files, cutoff, keys, weight_key, say, count=False)
        source = DataSource.open(files, keys, weight_key)
        for store in source.stores:
            store.verify()
        edge_cutoff = source.stores[0].header.cutoff if source.stores else cutoff
        dataset = source.dataset(source.elements(), edge_cutoff, torch.float64, keys, weight_key=weight_key)
        lines += [line for line in dataset.report.lines() if line.startswith("WARNING")]
        lines += (
            dataset.remarks
            if dataset.in_memory
            else check_frames(dataset.frames, dataset.labels, dataset.report)  # not said by a data set on demand
        )
        if limits is None or limits.elements != dataset.elements:
            limits = find_limits(dataset, dataset.elements)
        outliers = limits.outliers(dataset)
        if outliers:
            lines.append(describe_outliers(outliers, len(dataset), name))
        lines += [f"WARNING: {line}" for line in dataset.describe_masked_atoms()]
        frames[name], counts[name] = dataset.frames, len(dataset)
    if len(frames) > 1:
        lines += check_overlap(frames)
    return Findings(counts, lines)
