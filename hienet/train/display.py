"""What a person sees during training: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from hienet.quantities import QUANTITIES
from hienet.tables import renderables
from hienet.train.logs import Row, describe_row

_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_BETWEEN_STEPS = 60.0


class Display(Protocol):
    """Receives steps and epochs."""

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def step(self, epoch: int, batch: int, n_batches: int, loss: float, progress: float) -> None:
        """A step is done; `progress` is the part of the whole run."""

    def epoch(self, row: Row, is_best: bool) -> None:
        """An epoch is done."""


def make_display(console: Console, epochs: int) -> Display:
    """The display that suits the console."""
    return LiveDisplay(console, epochs) if console.is_terminal else LineDisplay(console, epochs)


class LineDisplay:
    """A line for an epoch, but not more often than every few seconds; in long epochs also a line a minute."""

    def __init__(self, console: Console, epochs: int) -> None:
        self.console, self.epochs = console, epochs
        self.last = -float("inf")
        self.held_back: str | None = None

    def __enter__(self) -> LineDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.held_back is not None:
            self._print(self.held_back)

    def step(self, epoch: int, batch: int, n_batches: int, loss: float, progress: float) -> None:
        """Say something if nothing was said for a minute."""
        if time.monotonic() - self.last > _SECONDS_BETWEEN_STEPS and batch > 1:
            self._print(f"epoch {epoch}/{self.epochs}  batch {batch}/{n_batches}  loss {loss:.3e}")

    def epoch(self, row: Row, is_best: bool) -> None:
        """Print the epoch, or keep it for the end."""
        line = describe_row(row, self.epochs) + ("  best" if is_best else "")
        if time.monotonic() - self.last > _SECONDS_BETWEEN_LINES:
            self._print(line)
        else:
            self.held_back = line

    def _print(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)
        self.console.file.flush()
        self.last = time.monotonic()
        self.held_back = None


class LiveDisplay:
    """A table of the latest epochs above bars for the epoch and for the run."""

    def __init__(self, console: Console, epochs: int, n_rows: int = 10) -> None:
        self.epochs = epochs
        self.rows: deque[tuple[Row, bool]] = deque(maxlen=n_rows)
        self.started = time.monotonic()
        self.started_at: float | None = None
        self.bars = Progress(
            TextColumn("{task.description:<7}"),
            BarColumn(bar_width=40),
            TextColumn("{task.fields[text]}"),
            console=console,
        )
        self.of_epoch = self.bars.add_task("epoch", total=1.0, text="")
        self.of_run = self.bars.add_task("run", total=1.0, text="")
        self.live = Live(console=console, refresh_per_second=4)
        self.console = console

    def __enter__(self) -> LiveDisplay:
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.update(self._table())
        self.live.stop()

    def step(self, epoch: int, batch: int, n_batches: int, loss: float, progress: float) -> None:
        """Move the bars."""
        if self.started_at is None:
            self.started_at = progress
        self.bars.update(self.of_epoch, completed=batch / n_batches, text=f"{epoch}/{self.epochs}  loss {loss:.3e}")
        self.bars.update(self.of_run, completed=progress, text=self._time_left(progress))
        self.live.update(Group(self._table(), self.bars))

    def epoch(self, row: Row, is_best: bool) -> None:
        """Add a row to the table."""
        self.rows.append((row, is_best))
        self.live.update(Group(self._table(), self.bars))

    def _time_left(self, progress: float) -> str:
        done = progress - (self.started_at or 0.0)
        if done <= 0:
            return ""
        seconds = (time.monotonic() - self.started) / done * (1.0 - progress)
        minutes, seconds = divmod(int(seconds), 60)
        return f"{100 * progress:.0f} %, {minutes} min {seconds:02d} s left"

    def _table(self) -> Group:
        """The latest epochs; where the terminal is too narrow for a table, a few lines for the latest one."""
        headings = ("epoch", "lr", "loss", "val. loss", *(f"{q.short}\n{q.unit}" for q in QUANTITIES))
        rows = [[_cell(row[key], form) for key, form in _COLUMNS] for row, _ in self.rows]
        styles = ["bold green" if is_best else "" for _, is_best in self.rows]
        note = "validation errors are those of the averaged weights"
        parts = renderables(self.console, headings, rows, styles=styles)
        if len(parts) > 1:
            parts = renderables(self.console, headings, rows[-1:])
        return Group(Text(note, style="dim"), *parts)


_COLUMNS = (
    ("epoch", "d"),
    ("learning_rate", ".2e"),
    ("train_loss", ".3e"),
    ("validation_loss", ".3e"),
    *((quantity.key("mae"), quantity.form) for quantity in QUANTITIES),
)
"""What is shown of an epoch, and in which format."""


def _cell(value: float | int | None, form: str) -> str:
    return "-" if value is None else format(value, form)
