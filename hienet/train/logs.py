"""The log of a run: one row an epoch as CSV and JSON lines, everything that is said as plain text."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

from hienet.console import printable
from hienet.errors import HIENetError
from hienet.files import atomic_path, json_text
from hienet.quantities import MEASURES, QUANTITIES

Row = dict[str, float | int | None]
"""One epoch; the keys are `COLUMNS`."""

COLUMNS = (
    "epoch",
    "step",
    "seconds",
    "learning_rate",
    "train_loss",
    *(f"train_loss_{quantity.name}" for quantity in QUANTITIES),
    "validation_loss",
    *(quantity.key(measure) for quantity in QUANTITIES for measure in MEASURES),
)
"""Errors are those of the averaged weights on the validation set; `seconds` is the time of training so far."""


class RunLog:
    """`log.csv`, `log.jsonl` and `train.log` in a folder."""

    def __init__(self, folder: Path, history: Sequence[Row]) -> None:
        """`history`: rows of earlier epochs; the tables are written anew with them, the text is continued."""
        self.csv_path = folder / "log.csv"
        self.json_path = folder / "log.jsonl"
        self.text_path = folder / "train.log"
        with atomic_path(self.csv_path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(history)
        with atomic_path(self.json_path) as temporary:
            temporary.write_text("".join(json_text(row) + "\n" for row in history))

    def add(self, row: Row) -> None:
        """Append an epoch to both tables."""
        text = io.StringIO(newline="")
        csv.DictWriter(text, COLUMNS).writerow(row)
        _append(self.csv_path, text.getvalue())
        _append(self.json_path, json_text(row) + "\n")

    def say(self, text: str) -> None:
        """Append a line with the time."""
        now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
        _append(self.text_path, f"{now}  {printable(text)}\n")


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(text)
    except OSError as error:
        raise HIENetError(
            f"cannot write `{path}`: {error.strerror}; free some space, then go on with --resume"
        ) from error


def describe_row(row: Mapping[str, float | int | None], epochs: int) -> str:
    """An epoch in one line."""
    parts = [f"epoch {row['epoch']}/{epochs}", f"lr {row['learning_rate']:.2e}", f"loss {row['train_loss']:.3e}"]
    for name, key, unit, form in (
        ("validation", "validation_loss", "", ".3e"),
        *((quantity.short, quantity.key("mae"), f" {quantity.unit}", quantity.form) for quantity in QUANTITIES),
    ):
        value = row[key]
        if value is not None:
            parts.append(f"{name} {value:{form}}{unit}")
    return "  ".join([*parts, f"{row['seconds']:.0f} s"])
