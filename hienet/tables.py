"""Tables for a person. Where a terminal is too narrow for one, its rows are written out: no number is ever cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from hienet.console import printable
from hienet.metrics import Errors, MirrorChange
from hienet.quantities import ENERGY, FORCES, MEASURES, QUANTITIES
from hienet.training_summary import TrainingSummary

if TYPE_CHECKING:
    from hienet.data.overview import Overview

ALL_FRAMES = "all frames"
"""Name of the row that is about all frames; it is the last, below an empty line."""

SYMMETRY_IN_WORDS = {
    "O(3)": ": a structure and its mirror image have the same energy",
    "SO(3)": ": a structure and its mirror image may have different energies",
    "unknown": ": the file does not say it, and its architecture is not known here",
}
"""What a symmetry means for the energy."""

NO_GROUP = "(none)"
"""Name of the frames without an entry by which frames are grouped."""

_UNLIMITED = 100_000
_GAP = 1
"""Columns between a table's columns."""
_NARROWEST_NAMES = 12
"""Columns into which the names of rows are folded before the rows are written out."""

Row = Sequence[str]
"""The cells of a row, the first of which names it."""


def print_table(
    console: Console,
    headings: Sequence[str],
    rows: Sequence[Row],
    total: Row | None = None,
    styles: Sequence[str] = (),
    title: str | None = None,
) -> None:
    """A table, or where the console has no room for it, each row as a block of lines.

    Args:
        console: where it goes.
        headings: of the columns; a line end in one sets its unit below it.
        rows: cells as users or files have them; any text will do.
        total: a last row, set apart.
        styles: of the rows, as rich has them.
        title: a line above.
    """
    console.print(*renderables(console, headings, rows, total, styles, title), sep="\n", soft_wrap=False)


def renderables(
    console: Console,
    headings: Sequence[str],
    rows: Sequence[Row],
    total: Row | None = None,
    styles: Sequence[str] = (),
    title: str | None = None,
) -> list[Table | Text]:
    """What `print_table` prints."""
    above = [] if title is None else [Text(printable(title), style="bold", overflow="fold")]
    table = _table(headings, rows, total, styles)
    if _width(console, table) <= console.width:
        return [*above, table]
    names = table.columns.pop(0)
    room = console.width - _width(console, table) - _GAP
    if room >= _NARROWEST_NAMES:
        names.width, names.no_wrap, names.overflow = room, False, "fold"
        table.columns.insert(0, names)
        return [*above, table]
    blocks = [line for row in [*rows, *([total] if total is not None else [])] for line in _block(headings, row)]
    return [*above, *blocks]


def _width(console: Console, table: Table) -> int:
    """Columns that the table takes where there is room for all of it."""
    return Measurement.get(console, console.options.update(max_width=_UNLIMITED), table).maximum


def _table(headings: Sequence[str], rows: Sequence[Row], total: Row | None, styles: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, heading in enumerate(headings):
        # A column of words begins on the left, one of numbers ends on the right.
        left = i == 0 or any(_is_words(row[i]) for row in rows)
        table.add_column(Text(heading), justify="left" if left else "right", no_wrap=True)
    for i, row in enumerate(rows):
        table.add_row(*(Text(printable(cell)) for cell in row), style=styles[i] if styles else None)
    if total is not None:
        table.add_row()
        table.add_row(*(Text(printable(cell)) for cell in total))
    return table


def _is_words(cell: str) -> bool:
    return cell != "-" and not any(character.isdigit() for character in cell)


def _block(headings: Sequence[str], row: Row) -> list[Text]:
    lines = [Text(printable(row[0]), style="bold", overflow="fold")]
    for heading, cell in zip(headings[1:], row[1:], strict=True):
        name, _, unit = heading.partition("\n")
        lines.append(Text(f"  {name.strip()}: {printable(cell)}{f' {unit}' if unit else ''}", overflow="fold"))
    return lines


def print_facts(console: Console, facts: Mapping[str, object], title: str | None = None, indent: str = "") -> None:
    """Names and what there is to say of them, a line or more for each."""
    if not facts:
        return
    if title is not None:
        console.print(Text(f"\n{title}", style="bold"))
    names = {name: indent + printable(name).replace("_", " ") for name in facts}
    width = max(len(name) for name in names.values())
    # Where there is no room beside the names, the rest of a line goes below.
    beside = console.width - width - 2 >= width
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        text = printable(", ".join(str(part) for part in value) if isinstance(value, (list, tuple)) else value)
        if beside:
            table.add_row(Text(names[name]), Text(text))
        else:
            console.print(Text(f"{names[name]}: {text}"), overflow="fold", soft_wrap=False)
    if beside:
        console.print(table)


def group_label(name: str) -> str:
    """How a group of frames is called in a table; one that is named like another row stands in quotation marks."""
    if not name:
        return NO_GROUP
    return f'"{name}"' if name in (NO_GROUP, ALL_FRAMES) else name


def print_errors(
    console: Console, title: str, found: Sequence[tuple[str, Errors]], total: Errors | None = None
) -> None:
    """MAE and RMSE of energy, forces (F) and stress (S), a row for each entry, and a last one for all frames."""
    headings = [f"{q.symbol} {measure.upper()}\n{q.unit}" for q in QUANTITIES for measure in MEASURES]
    print_table(
        console,
        [title, "frames", *headings],
        [_error_cells(group_label(name), row) for name, row in found],
        None if total is None else _error_cells(ALL_FRAMES, total),
    )


def print_determination(console: Console, title: str, found: Sequence[tuple[str, Errors]], total: Errors) -> None:
    """Coefficients of determination R² of energy, forces (F) and stress (S), a row for each entry and one for all."""
    print_table(
        console,
        [title, "frames", "E R²", "F R²", "S R²"],
        [_determination_cells(group_label(name), row) for name, row in found],
        _determination_cells(ALL_FRAMES, total),
    )


def _determination_cells(name: str, row: Errors) -> Row:
    values = (row.energy_r2, row.forces_r2, row.stress_r2)
    return name, str(row.n_frames), *("-" if value is None else f"{value:.5f}" for value in values)


def print_overview(console: Console, overview: Overview) -> None:
    """What `hienet data stats` has found: elements with their reference energies, and the ranges of numbers."""
    references, rank, left = overview.reference_energies()
    print_table(
        console,
        ["element", "atoms", "frames", "reference energy\neV"],
        [
            (
                symbol,
                f"{overview.atoms[symbol]:,}",
                f"{overview.frames[symbol]:,}",
                f"{references[symbol]:.4f}" if symbol in references else "-",
            )
            for symbol in sorted(overview.atoms)
        ],
    )
    if references:
        of_rank = "" if rank == len(references) else f"; the compositions determine only {rank} of {len(references)}"
        console.print(Text(f"reference energies by least squares leave {left:.3g} eV/atom (RMS){of_rank}"))
    if overview.force_rms is not None:
        console.print(Text(f"RMS of force components: {overview.force_rms:.4g} eV/Å"))
    rows = [
        (
            name,
            *(f"{value:.4g}" for value in (found.low, found.total / found.n, found.high)),
            found.lowest,
            found.highest,
        )
        for name, found in overview.ranges.items()
    ]
    title = f"{overview.n_frames:,} frames, {sum(overview.atoms.values()):,} atoms, {overview.n_edges:,} edges"
    print_table(console, [title, "least", "mean", "greatest"], [row[:4] for row in rows])
    for name, *_, lowest, highest in rows:
        if lowest != highest:
            console.print(Text(printable(f"{name}: least in {lowest}, greatest in {highest}")), soft_wrap=True)


def _error_cells(name: str, row: Errors) -> Row:
    return name, str(row.n_frames), *(q.cell(row.of(q, measure)) for q in QUANTITIES for measure in MEASURES)


def print_forces_by_element(console: Console, found: Mapping[str, tuple[int, float | None, float | None]]) -> None:
    """MAE and RMSE of the forces on each element."""
    print_table(
        console,
        ("element", "atoms", *(f"{FORCES.symbol} {measure.upper()}\n{FORCES.unit}" for measure in MEASURES)),
        [(symbol, str(count), FORCES.cell(mae), FORCES.cell(rmse)) for symbol, (count, mae, rmse) in found.items()],
    )


def print_mirror_change(console: Console, found: MirrorChange | None) -> None:
    """How far predictions of frames and of their mirror images are apart; nothing for a model with O(3) symmetry."""
    if found is None:
        return
    sentence = (
        "The model may give a structure and its mirror image different energies (docs/conventions.md). Mirroring these "
        f"frames changes energies by {ENERGY.cell(found.energy_mean)} {ENERGY.unit} on average and "
        f"{ENERGY.cell(found.energy_max)} at most, components of forces by {FORCES.cell(found.forces_mean)} "
        f"{FORCES.unit} on average and {FORCES.cell(found.forces_max)} at most."
    )
    console.print(Text(sentence), soft_wrap=True)


def print_architectures(console: Console, found: Sequence[Mapping[str, Any]]) -> None:
    """What `hienet.info.describe_architectures` found, for a person."""
    for family in found:
        heading = Text(family["architecture"], style="bold").append(f": {family['summary']}", style="not bold")
        console.print(heading, soft_wrap=False)
        n_elements = family["presets"][0]["n_elements"]
        print_table(
            console,
            ("  preset", "symmetry", f"parameters, {n_elements} elements", "cutoff, Å", "numbers exchanged, per atom"),
            [
                (
                    f"  {row['preset']}",
                    row["symmetry"],
                    f"{row['parameters']:,}",
                    f"{row['cutoff']:g}",
                    " + ".join(str(width) for width in row["exchanged"]) or "none",
                )
                for row in family["presets"]
            ],
        )
        console.print()


def print_description(console: Console, description: Mapping[str, Any]) -> None:
    """What `hienet.info.describe_file` found, for a person."""
    elsewhere = {"stages", "hyperparameters", "training", "notes", "verification", "reference_energies"}
    facts: dict[str, object] = {}
    for name, value in description.items():
        if name == "elements":
            facts[name] = f"{len(value)}: {' '.join(value)}"
        elif name == "cutoff":
            facts[name] = f"{value:g} Å"
        elif name == "symmetry":
            facts[name] = f"{value}{SYMMETRY_IN_WORDS[value]}"
        elif name == "parameters":
            facts[name] = (
                f"{value:,} trainable; {description['parameters_with_constants']:,} with the scales, "
                "reference energies and neighbour normalisation"
            )
        elif name not in elsewhere and name != "parameters_with_constants" and value is not None:
            facts[name] = value
    print_facts(console, facts)
    _print_stages(console, description["stages"])
    hyperparameters = description["hyperparameters"]
    if hyperparameters is not None:
        constants = ("elements", "cutoff", "scale", "shift")
        print_facts(
            console, {k: v for k, v in hyperparameters.items() if k not in constants}, "hyperparameters", indent="  "
        )
        _print_reference(console, hyperparameters)
    _print_training(console, description["training"])
    _print_rows(console, "largest errors at export, against the source model", description.get("verification") or [])
    print_facts(console, description.get("notes") or {}, "notes", indent="  ")


def _print_stages(console: Console, stages: Sequence[Mapping[str, Any]]) -> None:
    edges = any("edge_width" in stage for stage in stages)
    console.print()
    print_table(
        console,
        ("stage", "reads columns", "of which exchanged between ranks", *(["columns of edges"] if edges else [])),
        [
            (
                stage["name"],
                str(stage["width"]),
                str(stage["exchanged_width"]),
                *([str(stage["edge_width"])] if edges else []),
            )
            for stage in stages
        ],
    )


def _print_reference(console: Console, values: Mapping[str, Any]) -> None:
    """Scale and reference energy of each element; elements with equal values share a row."""
    rows: dict[tuple[float, float], list[str]] = {}
    for symbol, scale, shift in zip(values["elements"], values["scale"], values["shift"], strict=True):
        rows.setdefault((scale, shift), []).append(symbol)
    console.print()
    print_table(
        console,
        ("element", "scale", "reference energy (eV)"),
        [(" ".join(symbols), f"{scale:.6g}", f"{shift:.6f}") for (scale, shift), symbols in rows.items()],
    )


def _print_training(console: Console, training: Mapping[str, Any] | None) -> None:
    if training is None:
        console.print("\nnot trained, or trained elsewhere")
        return
    facts, found = _training_facts(TrainingSummary.read(training))
    print_facts(console, facts, "training", indent="  ")
    if found:
        console.print()
        print_errors(console, "set", found)


def _training_facts(training: TrainingSummary) -> tuple[dict[str, object], list[tuple[str, Errors]]]:
    """What there is of it."""
    best = "" if training.best_epoch is None else f", best {training.best_epoch}"
    finished = "" if training.finished is None else f", finished {training.finished}"
    facts: dict[str, object] = {
        "frames": ", ".join(f"{name} {count}" for name, count in training.n_frames.items()),
        "labels": ", ".join(f"{name} {count}" for name, count in training.labels.items()),
        "files": ", ".join(str(file) for file in training.files.get("train") or []),
        "epochs": "" if training.epochs is None else f"{training.epochs}{best}",
        "seed": "" if training.seed is None else training.seed,
        "time": "" if training.seconds is None else f"{training.seconds / 60:.1f} min{finished}",
    }
    errors = [(name, Errors.from_dict(row)) for name, row in training.errors.items()]
    return {name: value for name, value in facts.items() if value != ""}, errors


def _print_rows(console: Console, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with the same keys as a table; keys are the headings."""
    if not rows:
        return
    console.print()
    print_table(
        console,
        [name.replace("_", " ") for name in rows[0]],
        [
            ["-" if value is None else f"{value:.1e}" if isinstance(value, float) else str(value) for value in each]
            for each in (row.values() for row in rows)
        ],
        title=title,
    )
