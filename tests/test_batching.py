"""Steps hold every frame once, are full, and share their work out evenly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from labelled_frames import emt_frames, tiny_values, write_frames

from hienet.config import parse_config
from hienet.data.batching import Budget, share_out, steps_in_order, steps_of_epoch
from hienet.data.dataset import build_dataset
from hienet.data.prefetch import prefetched
from hienet.data.reader import Frame
from hienet.errors import HIENetError
from hienet.train.loop import Trainer


class Sized:
    """What the planning of steps asks of a data set."""

    def __init__(self, n_edges: np.ndarray) -> None:
        self.summary = type("Summary", (), {"n_edges": n_edges, "n_atoms": n_edges // 10})()

    def __len__(self) -> int:
        return len(self.summary.n_edges)


@pytest.fixture(scope="module")
def sized() -> Sized:
    """Sizes as different as those of the Materials Project: a median of 900 edges, and some with 8000."""
    sizes = np.random.default_rng(0).lognormal(np.log(900), 0.9, 3000).astype(np.int64)
    return Sized(np.minimum(sizes, 8000))


def test_steps_are_filled_up_to_the_budget_and_hold_every_frame_once(sized: Sized) -> None:
    epochs = [steps_of_epoch(sized, Budget(8, edges=8000), 1, epoch) for epoch in (0, 0, 1)]  # type: ignore[arg-type]
    steps = [epochs[0][i] for i in range(len(epochs[0]))]
    assert sorted(frame for step in steps for frame in step) == list(range(3000))
    loads = np.array([sized.summary.n_edges[step].sum() for step in steps])
    assert loads.max() <= 8000
    assert loads.mean() > 0.97 * 8000
    assert np.array_equal(epochs[0].order, epochs[1].order)
    assert not np.array_equal(epochs[0].order, epochs[2].order)
    # Large frames are not left to the end.
    sizes = sized.summary.n_edges[epochs[0].order]
    assert 0.9 < sizes[:1500].mean() / sizes[1500:].mean() < 1.1


def test_predictions_keep_the_order_of_frames_within_the_budget(sized: Sized) -> None:
    batches = steps_in_order(sized, Budget(8, atoms=1000))  # type: ignore[arg-type]
    assert [frame for batch in batches for frame in batch] == list(range(3000))
    assert max(sized.summary.n_atoms[list(batch)].sum() for batch in batches) <= 1000
    assert [len(batch) for batch in steps_in_order(sized, Budget(1024))] == [1024, 1024, 952]  # type: ignore[arg-type]


def test_a_step_is_shared_out_in_parts_of_about_equal_work(sized: Sized) -> None:
    costs = sized.summary.n_edges
    step = list(range(100, 160))
    parts = share_out(step, costs, 4)
    assert sorted(frame for part in parts for frame in part) == step
    loads = [costs[part].sum() for part in parts]
    assert max(loads) < 1.05 * min(loads)
    assert share_out(step, costs, 1) == [step]
    assert [len(part) for part in share_out([5, 6], costs, 3)].count(0) == 1


def test_a_frame_that_fits_in_no_step_is_refused(tmp_path: Path) -> None:
    frames = [Frame(atoms, "data.extxyz", i) for i, atoms in enumerate(emt_frames(4))]
    frames[2] = Frame(frames[2].atoms * (3, 1, 1), "data.extxyz", 2)
    frames[2].atoms.info["energy"] = 1.0
    dataset = build_dataset(frames, ("Ag", "Cu"), 3.5)
    settings = parse_config(tiny_values(tmp_path, tmp_path, batch_atoms=10)).training
    with pytest.raises(
        HIENetError,
        match=r"`data.extxyz`, frame 2 has 12 atoms, more than the 10 of `training.batch_atoms`.* \(1 frames do not\); "
        r"raise `training.batch_atoms` to 12 at least",
    ):
        Trainer(None, dataset, None, settings)  # type: ignore[arg-type]


def test_two_budgets_at_once_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HIENetError, match=r"give either `batch_edges` or `batch_atoms`, not both"):
        parse_config(tiny_values(write_frames(tmp_path / "a.extxyz"), tmp_path, batch_atoms=10, batch_edges=100))


def test_what_is_made_ahead_comes_in_order_and_not_too_early() -> None:
    asked: list[int] = []

    def jobs() -> Iterator[int]:
        for i in range(100):
            asked.append(i)
            yield i

    results = prefetched(jobs(), lambda i: i * i, threads=2, ahead=3)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(asked) <= 5 + 3
    results.close()
    assert len(asked) <= 5 + 3

    def fail(i: int) -> int:
        raise HIENetError(f"frame {i} is bad")

    with pytest.raises(HIENetError, match="frame 0 is bad"):
        list(prefetched(iter(range(3)), fail))
