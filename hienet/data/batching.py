"""Which frames are in which step, for all epochs a function of the seed: by number, or filled up to a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hienet.data.dataset import Dataset
from hienet.errors import HIENetError

_WINDOW = 256
"""Frames among which those are sought that fill a step. Fullness hardly grows beyond, and the order stays random."""


@dataclass(frozen=True)
class Steps:
    """The steps of an epoch.

    Attributes:
        order: `[n_frames]`, indices of the frames.
        starts: `[n_steps + 1]`, where in `order` the steps begin.
    """

    order: NDArray[np.int64]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, step: int) -> list[int]:
        return self.order[self.starts[step] : self.starts[step + 1]].tolist()


@dataclass(frozen=True)
class Budget:
    """How much a step holds.

    Attributes:
        frames: number of frames, where nothing else is given.
        edges, atoms: at most so many, instead.
    """

    frames: int
    edges: int | None = None
    atoms: int | None = None

    @property
    def key(self) -> str:
        """The key of the configuration that decides."""
        return "batch_edges" if self.edges is not None else "batch_atoms" if self.atoms is not None else "batch_size"

    @property
    def limit(self) -> int:
        """How many frames, edges or atoms."""
        return self.frames if self.key == "batch_size" else int(self.edges if self.edges is not None else self.atoms)  # type: ignore[arg-type]

    def sizes(self, dataset: Dataset) -> NDArray[np.int64] | None:
        """What each frame takes of it; None where frames are counted."""
        if self.key == "batch_size":
            return None
        return dataset.summary.n_edges if self.edges is not None else dataset.summary.n_atoms

    def require_room(self, dataset: Dataset) -> None:
        """Refuse frames that fit in no step.

        Raises:
            HIENetError: with the largest of them.
        """
        sizes = self.sizes(dataset)
        if sizes is None or sizes.max() <= self.limit:
            return
        largest, unit = int(sizes.argmax()), self.key.removeprefix("batch_")
        raise HIENetError(
            f"{dataset.frames[largest].source} has {sizes[largest]} {unit}, more than the {self.limit} of "
            f"`training.{self.key}`, so that it fits in no step ({int((sizes > self.limit).sum())} frames do not); "
            f"raise `training.{self.key}` to {sizes[largest]} at least, or leave them out"
        )


def steps_of_epoch(dataset: Dataset, budget: Budget, seed: int, epoch: int) -> Steps:
    """The steps of an epoch, each frame in one: a function of data, budget, seed and epoch alone.

    With a budget, frames are taken in random order; one that has no room left waits for the next step, and the largest
    of those to come that fits takes its place.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    order = torch.randperm(len(dataset), generator=generator).numpy()
    sizes = budget.sizes(dataset)
    return _by_number(order, budget.frames) if sizes is None else _filled(order, sizes, budget.limit)


def steps_in_order(dataset: Dataset, budget: Budget) -> list[range]:
    """All frames in their order, for predictions: so many at a time, or as many as the budget has room for."""
    sizes = budget.sizes(dataset)
    if sizes is None:
        return [range(i, min(i + budget.frames, len(dataset))) for i in range(0, len(dataset), budget.frames)]
    found, start, used = [], 0, 0
    for i, size in enumerate(sizes.tolist()):
        if used and used + size > budget.limit:
            found.append(range(start, i))
            start, used = i, 0
        used += size
    return [*found, range(start, len(dataset))] if len(dataset) else []


def _by_number(order: NDArray[np.int64], size: int) -> Steps:
    return Steps(order, np.append(np.arange(0, len(order), size), len(order)))


def _filled(order: NDArray[np.int64], sizes: NDArray[np.int64], limit: int) -> Steps:
    waiting = order[:_WINDOW].tolist()
    taken_from_order = len(waiting)
    size_of, rest = sizes.tolist(), order.tolist()
    filled: list[int] = []
    starts = [0]
    while waiting:
        room = limit
        while waiting:
            # The next in line; if it does not fit, the largest in the window that does.
            if size_of[waiting[0]] <= room:
                position = 0
            else:
                fitting = [(size_of[frame], -i) for i, frame in enumerate(waiting) if size_of[frame] <= room]
                if not fitting:
                    break
                position = -max(fitting)[1]
            frame = waiting.pop(position)
            filled.append(frame)
            room -= size_of[frame]
            if taken_from_order < len(rest):
                waiting.append(rest[taken_from_order])
                taken_from_order += 1
        starts.append(len(filled))
    return Steps(np.array(filled, dtype=np.int64), np.array(starts, dtype=np.int64))


def share_out(step: Sequence[int], costs: NDArray[np.int64], n_parts: int) -> list[list[int]]:
    """The frames of a step in parts of about equal cost; parts are empty where there are more of them than frames.

    The largest frame first, each to the part that has least so far. Within a part frames keep their order.

    Args:
        step: indices of frames.
        costs: of all frames of the data set.
        n_parts: how many.
    """
    if n_parts == 1:
        return [list(step)]
    loads, owner = [0] * n_parts, {}
    for frame in sorted(step, key=lambda frame: -int(costs[frame])):
        part = min(range(n_parts), key=loads.__getitem__)
        owner[frame] = part
        loads[part] += int(costs[frame]) + 1
    return [[frame for frame in step if owner[frame] == part] for part in range(n_parts)]
