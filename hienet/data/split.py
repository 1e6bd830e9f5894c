"""Setting frames apart for validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hienet.errors import HIENetError


@dataclass(frozen=True)
class Split:
    """Sorted indices of frames."""

    train: list[int]
    validation: list[int]
    test: list[int]


def split_frames(groups: Sequence[str], validation: float, test: float, seed: int) -> Split:
    """Draw fractions of the frames for validation and test, from every group in proportion.

    Frames are put in random order within their group and the groups one after the other; from that row, frames are
    taken at equal distances.

    Args:
        groups: `[n_frames]`, the group of each frame; all the same for a split at random.
        validation, test: fractions; a positive one takes at least one frame.
        seed: of the random order.

    Raises:
        HIENetError: too few frames to leave one for training.
    """
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(groups))
    row = sorted(shuffled.tolist(), key=lambda frame: groups[frame])
    parts = []
    for name, fraction in (("test", test), ("validation", validation)):
        count = max(1, round(fraction * len(groups))) if fraction > 0 else 0
        if count >= len(row):
            raise HIENetError(
                f"{len(groups)} frame(s) are too few to set {fraction:g} of them apart for `data.{name}`; "
                "give more frames, or a file"
            )
        # A random start keeps small groups from being left out or taken always.
        positions = np.floor((np.arange(count) + generator.random()) * len(row) / max(count, 1)).astype(int)
        parts.append(sorted(row[position] for position in positions))
        taken = set(positions.tolist())
        row = [frame for position, frame in enumerate(row) if position not in taken]
    return Split(sorted(row), parts[1], parts[0])
