"""Weights of frames in the loss, from their `info`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hienet.data.reader import Frame
from hienet.errors import HIENetError

if TYPE_CHECKING:
    from hienet.data.dataset import Dataset

DEFAULT_KEY = "config_weight"
PART_KEYS = ("config_energy_weight", "config_forces_weight", "config_stress_weight")
"""Further factors, on the loss of one quantity; names as MACE has them."""

_SIMILAR_KEYS = ("weight", "data_weight", "frame_weight", "sample_weight", "weights")


def frame_weights(frames: Sequence[Frame], key: str | None) -> NDArray[np.float64]:
    """Factors on the loss `[n_frames, 3]` of energy, forces and stress; 1 where a frame has none.

    Args:
        frames: of any files.
        key: entry of their info; None: 1 for all.

    Raises:
        HIENetError: a weight that is not a number of at least 0.
    """
    weights = np.ones((len(frames), 3))
    if key is None:
        return weights
    for i, frame in enumerate(frames):
        weights[i] *= _number(frame, key)
        for part, name in enumerate(PART_KEYS):
            weights[i, part] *= _number(frame, name)
    return weights


def require_weight_key(frames: Sequence[Frame], key: str | None) -> None:
    """Refuse a key other than the default that no frame has.

    Raises:
        HIENetError: with the entries that the frames have.
    """
    if key in (None, DEFAULT_KEY) or any(key in frame.atoms.info for frame in frames):
        return
    seen = ", ".join(f"`{name}`" for name in sorted({str(name) for frame in frames for name in frame.atoms.info}))
    raise HIENetError(
        f"`data.weight_key` is `{key}`, which no frame of `{frames[0].file}` has; entries seen: {seen or 'none'}"
    )


def _number(frame: Frame, key: str) -> float:
    value = frame.atoms.info.get(key, 1.0)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0.0 <= number < float("inf"):
        raise HIENetError(
            f"{frame.source}: its weight `{key}` is `{value}`; give a number of at least 0, "
            "or set `data.weight_key` to null, so that weights are not read"
        )
    return number


def describe_weights(datasets: Iterable[Dataset], key: str | None) -> list[str]:
    """For the log: which weights there are, and entries that look like weights but are not read."""
    datasets = list(datasets)
    weights = np.concatenate([dataset.weights() for dataset in datasets])
    frames = [frame for dataset in datasets if dataset.in_memory for frame in dataset.frames]
    notes = []
    if (weights != 1.0).any():
        n_weighted, n_without = int((weights != 1.0).any(axis=1).sum()), int((weights == 0.0).all(axis=1).sum())
        ignored = f"; {n_without} of weight 0 count neither in the loss nor in the statistics" if n_without else ""
        notes.append(
            f"weights of frames (`{key}`): {weights.min():g} to {weights.max():g}, "
            f"other than 1 in {n_weighted} of {len(weights)}{ignored}"
        )
    for name in _SIMILAR_KEYS:
        count = sum(name in frame.atoms.info for frame in frames)
        if count and name != key:
            notes.append(
                f"WARNING: {count} frames have `{name}`, which is not read as their weight in the loss; "
                f"set `data.weight_key: {name}` if that is meant"
            )
    return notes
