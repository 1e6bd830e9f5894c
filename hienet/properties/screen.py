"""One calculation for many structures: progress, failures that stop nothing, results that an interruption leaves."""

from __future__ import annotations

import csv
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import ase
import ase.io
import numpy as np
from rich.console import Console

import hienet
from hienet.errors import HIENetError
from hienet.files import atomic_path, json_text, make_folder
from hienet.properties.engine import Engine
from hienet.properties.progress import Progress
from hienet.properties.structures import Failure, Structure
from hienet.tables import print_table


@dataclass(frozen=True)
class Outcome:
    """What a calculation found for one structure.

    Attributes:
        row: numbers and words, by names that hold the unit: a row of `results.csv`.
        details: lists and tables, by name, for the structure's JSON file.
        atoms: structures to write, by what is added to the name (empty for the structure itself).
        draw: writes the figure to a path; None if there is none.
        files: further text files, by what is added to the name, with the ending.
    """

    row: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict)
    atoms: dict[str, ase.Atoms] = field(default_factory=dict)
    draw: Callable[[Path], None] | None = None
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """Of the table that is printed: an entry of the rows, its heading (a line end before the unit), its format."""

    key: str
    heading: str
    form: str = ""

    def cell(self, row: Mapping[str, Any]) -> str:
        """The entry as text."""
        value = row.get(self.key)
        if value is None:
            return "-"
        if isinstance(value, bool):
            return "yes" if value else "no"
        text = format(value, self.form) if self.form and not isinstance(value, str) else str(value)
        # No minus before what is rounded to zero.
        return text.removeprefix("-") if not text.strip("-+0.") else text


@dataclass(frozen=True)
class Screening:
    """Results of all structures.

    Attributes:
        rows: of those that succeeded, `name` and `file` first.
        failures: the others.
        folder: where everything lies.
    """

    rows: list[dict[str, Any]]
    failures: list[Failure]
    folder: Path


Result = TypeVar("Result")
Calculation = Callable[[Sequence[Structure], Progress], Sequence[Outcome | HIENetError]]
"""Outcomes of some structures, in their order; an error in place of one stops nothing."""


def screen(
    command: str,
    structures: Sequence[Structure],
    unreadable: Sequence[Failure],
    calculation: Calculation,
    engine: Engine,
    settings: Mapping[str, Any],
    folder: str | Path,
    console: Console,
    at_a_time: int = 1,
) -> Screening:
    """Calculate what is not in the folder yet, and write results of all.

    Of each structure `NAME.json` holds the results, with the model, the settings and the structure that they are for;
    where all three are the same, it is taken as it is. `results.csv` and `results.json` hold a row for each.

    Args:
        command: its name, for the files.
        structures: to calculate.
        unreadable: files that hold no structure, which become failures.
        calculation: does it.
        engine: what it does it with.
        settings: what the results depend on; plain values.
        folder: for results; created.
        console: for progress.
        at_a_time: structures that are given to `calculation` together.

    Raises:
        HIENetError: the folder cannot be written to.
    """
    folder = make_folder(folder, "--output")
    keys = {s.name: _key(command, s, engine, settings) for s in structures}
    rows: dict[str, dict[str, Any]] = {}
    failures = list(unreadable)
    for failure in unreadable:
        console.print(f"{failure.name}: failed: {failure.reason}")
    for structure in structures:
        done = _read_row(folder / f"{structure.name}.json", keys[structure.name])
        if done is not None:
            rows[structure.name] = done
    if rows:
        console.print(f"{len(rows)} of {len(structures)} were done before; their results in `{folder}` are kept")
    todo = [s for s in structures if s.name not in rows]
    with Progress(console, len(todo)) as progress:
        for first in range(0, len(todo), at_a_time):
            chunk = todo[first : first + at_a_time]
            begin = time.monotonic()
            for structure, outcome in zip(chunk, _attempt(calculation, chunk, engine, progress), strict=True):
                seconds = (time.monotonic() - begin) / len(chunk)
                if isinstance(outcome, HIENetError):
                    failures.append(Failure(structure.name, structure.file, str(outcome)))
                    progress.done(structure.name, f"failed: {outcome}")
                    continue
                rows[structure.name] = _write(folder, structure, outcome, keys[structure.name], seconds)
                progress.done(structure.name, f"{seconds:.1f} s")
    ordered = [rows[s.name] for s in structures if s.name in rows]
    result = Screening(ordered, failures, folder)
    _write_tables(command, result, engine, settings)
    return result


def of_known_elements(
    structures: Sequence[Structure],
    engine: Engine,
    calculation: Callable[[Sequence[Structure]], Sequence[Result | HIENetError]],
) -> list[Result | HIENetError]:
    """Results in the order of the structures, in place of one whose elements the model does not know the error.

    `calculation` is given the others together, if there are any.
    """
    found: dict[int, Result | HIENetError] = {}
    for i, structure in enumerate(structures):
        try:
            engine.require_elements(structure.atoms)
        except HIENetError as error:
            found[i] = error
    known = [i for i in range(len(structures)) if i not in found]
    if known:
        found.update(zip(known, calculation([structures[i] for i in known]), strict=True))
    return [found[i] for i in range(len(structures))]


def _attempt(
    calculation: Calculation, chunk: Sequence[Structure], engine: Engine, progress: Progress
) -> Sequence[Outcome | HIENetError]:
    """The outcomes; where one structure spoils those of all that are calculated with it, each alone."""

    def together(known: Sequence[Structure]) -> Sequence[Outcome | HIENetError]:
        try:
            return calculation(known, progress)
        except HIENetError as error:
            return [error] if len(known) == 1 else [_alone(calculation, each, progress) for each in known]

    return of_known_elements(chunk, engine, together)


def _alone(calculation: Calculation, structure: Structure, progress: Progress) -> Outcome | HIENetError:
    try:
        return calculation([structure], progress)[0]
    except HIENetError as error:
        return error


def _key(command: str, structure: Structure, engine: Engine, settings: Mapping[str, Any]) -> str:
    atoms = structure.atoms
    text = json.dumps([command, engine.identity, settings], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode())
    for array in (atoms.numbers, atoms.positions.round(10), atoms.cell.array.round(10), atoms.pbc):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _read_row(path: Path, key: str) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return dict(values["row"]) if values["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(folder: Path, structure: Structure, outcome: Outcome, key: str, seconds: float) -> dict[str, Any]:
    """All files of a structure; the one that says that it is done comes last."""
    for suffix, atoms in outcome.atoms.items():
        with atomic_path(folder / f"{structure.name}{suffix}.extxyz") as temporary:
            ase.io.write(temporary, atoms, format="extxyz")
    for suffix, text in outcome.files.items():
        with atomic_path(folder / f"{structure.name}{suffix}") as temporary:
            temporary.write_text(text, encoding="utf-8")
    if outcome.draw is not None:
        outcome.draw(folder / f"{structure.name}.png")
    row = {"name": structure.name, "file": structure.file, **_plain(outcome.row), "seconds": round(seconds, 2)}
    with atomic_path(folder / f"{structure.name}.json") as temporary:
        temporary.write_text(json_text({"key": key, "row": row, **_plain(outcome.details)}, indent=1), encoding="utf-8")
    return row


def _plain(value: Any) -> Any:
    """Numpy's arrays and numbers as JSON knows them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value


def _write_tables(command: str, result: Screening, engine: Engine, settings: Mapping[str, Any]) -> None:
    failures = [{"name": f.name, "file": f.file, "error": f.reason} for f in result.failures]
    write_csv(result.folder / "results.csv", [*result.rows, *failures])
    contents = {
        "command": f"hienet {command}",
        "version": hienet.__version__,
        "model": engine.identity,
        "settings": _plain(settings),
        "results": result.rows,
        "failures": failures,
    }
    write_json(result.folder / "results.json", contents)


def write_json(path: Path, contents: Mapping[str, Any]) -> None:
    """Plain values and arrays of numpy as JSON."""
    with atomic_path(path) as temporary:
        temporary.write_text(json_text(_plain(contents), indent=1) + "\n", encoding="utf-8")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with the columns of all of them, in the order in which they appear; what a row lacks is empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _csv_cell(value) for key, value in row.items()})


def _csv_cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.10g}" if np.isfinite(value) else ""
    if isinstance(value, (list, tuple)):
        return " ".join(str(_csv_cell(entry)) for entry in value)
    return "" if value is None else value


def print_screening(console: Console, result: Screening, columns: Sequence[Column]) -> None:
    """A table of what was found, the failures, and where the files are."""
    if result.rows:
        headings = ["structure", *(column.heading for column in columns)]
        print_table(console, headings, [[row["name"], *(c.cell(row) for c in columns)] for row in result.rows])
    for failure in result.failures:
        console.print(f"failed: {failure.name} (`{failure.file}`): {failure.reason}")
    console.print(
        f"results: {result.folder / 'results.csv'}, {result.folder / 'results.json'}, and files of each structure"
    )
