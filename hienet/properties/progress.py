"""How far a calculation is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from hienet.console import printable

_SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Structures that are done, and within one the parts of its calculation."""

    def __init__(self, console: Console, n_structures: int = 1) -> None:
        """Nothing is shown before `begin` or `done`."""
        self.console, self.n_structures, self.n_done = console, n_structures, 0
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._what, self._total, self._completed, self._last = "", 0, 0, time.monotonic()
        if console.is_terminal:
            self._bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )

    def __enter__(self) -> Progress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def begin(self, what: str, total: int) -> None:
        """A part with so many steps begins; it takes the place of the one before."""
        self._what, self._total, self._completed = printable(what), total, 0
        if self._bars is not None:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task = self._bars.add_task(self._what, total=total)

    def advance(self, steps: int = 1) -> None:
        """Steps of the part are done."""
        self._completed += steps
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=self._completed)
        elif time.monotonic() - self._last > _SECONDS_BETWEEN_LINES:
            self._line(f"{self._what}: {self._completed} of {self._total}")

    def done(self, name: str, what: str) -> None:
        """A structure is done."""
        self.n_done += 1
        self._line(f"[{self.n_done}/{self.n_structures}] {printable(name)}: {printable(what)}")

    def _line(self, text: str) -> None:
        self.console.print(text)
        self.console.file.flush()
        self._last = time.monotonic()


def silent() -> Progress:
    """For calls from Python that want no progress."""
    import io

    return Progress(Console(file=io.StringIO()))
