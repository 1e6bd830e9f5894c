"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from hienet.evaluate import MirrorChange
from hienet.metrics import Errors

SYMMETRY_IN_WORDS = {
    "O(3)": ": a structure and its mirror image have the same energy",
    "SO(3)": ": a structure and its mirror image may have different energies",
    "unknown": ": the file does not say it, and its architecture is not known here",
}
"""What a symmetry means for the energy."""


def print_errors(console: Console, title: str, found: Mapping[str, Errors]) -> None:
    """MAE and RMSE of energy, forces (F) and stress (S), a row for each entry."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(title, no_wrap=True)
    table.add_column("frames", justify="right")
    for name in ("E MAE", "E RMSE", "F MAE", "F RMSE", "S MAE", "S RMSE"):
        unit = {"E": "meV/atom", "F": "meV/Å", "S": "GPa"}[name[0]]
        table.add_column(f"{name}\n{unit}", justify="right", no_wrap=True)
    for name, row in found.items():
        values = (
            (row.energy_mae, ".2f"),
            (row.energy_rmse, ".2f"),
            (row.forces_mae, ".1f"),
            (row.forces_rmse, ".1f"),
            (row.stress_mae, ".3f"),
            (row.stress_rmse, ".3f"),
        )
        cells = ["-" if value is None else format(value, form) for value, form in values]
        table.add_row(name or "(none)", str(row.n_frames), *cells)
    # Files and pipes get the table as wide as it is, not cut at the 80 columns that rich assumes for them.
    console.print(table, width=None if console.is_terminal else 200)


def print_forces_by_element(console: Console, found: Mapping[str, tuple[int, float | None, float | None]]) -> None:
    """MAE and RMSE of the forces on each element."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("element", "atoms", "F MAE\nmeV/Å", "F RMSE\nmeV/Å"):
        table.add_column(name, justify="left" if name == "element" else "right")
    for symbol, (count, mae, rmse) in found.items():
        table.add_row(symbol, str(count), *("-" if value is None else f"{value:.1f}" for value in (mae, rmse)))
    console.print(table)


def print_mirror_change(console: Console, found: MirrorChange | None) -> None:
    """How far predictions of frames and of their mirror images are apart; nothing for a model with O(3) symmetry."""
    if found is None:
        return
    console.print(
        "The model may give a structure and its mirror image different energies (docs/conventions.md). Mirroring these "
        f"frames changes energies by {found.energy_mean:.2f} meV/atom on average and {found.energy_max:.2f} at most, "
        f"components of forces by {found.forces_mean:.1f} meV/Å on average and {found.forces_max:.1f} at most.",
        highlight=False,
        soft_wrap=True,
    )


def print_architectures(console: Console, found: Sequence[Mapping[str, Any]]) -> None:
    """What `hienet.info.describe_architectures` found, for a person."""
    for family in found:
        console.print(f"[bold]{family['architecture']}[/bold]: {family['summary']}", highlight=False)
        table = Table(box=None, pad_edge=False, header_style="bold")
        n_elements = family["presets"][0]["n_elements"]
        parameters = f"parameters, {n_elements} elements"
        for name in ("  preset", "symmetry", parameters, "cutoff, Å", "numbers exchanged, per atom"):
            table.add_column(name, justify="right" if name in (parameters, "cutoff, Å") else "left")
        for row in family["presets"]:
            exchanged = " + ".join(str(width) for width in row["exchanged"]) or "none"
            parameters = f"{row['parameters']:,}"
            table.add_row(f"  {row['preset']}", row["symmetry"], parameters, f"{row['cutoff']:g}", exchanged)
        console.print(table, width=None if console.is_terminal else 200, highlight=False)
        console.print()


def print_description(console: Console, description: Mapping[str, Any]) -> None:
    """What `hienet.info.describe_file` found, for a person."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    shown = {"stages", "hyperparameters", "training", "notes", "verification", "reference_energies"}
    for name, value in description.items():
        if name == "elements":
            table.add_row("elements", f"{len(value)}: {' '.join(value)}")
        elif name == "cutoff":
            table.add_row("cutoff", f"{value:g} Å")
        elif name == "symmetry":
            table.add_row("symmetry", f"{value}{SYMMETRY_IN_WORDS[value]}")
        elif name == "parameters":
            table.add_row(
                "parameters",
                f"{value:,} trainable; {description['parameters_with_constants']:,} with the scales, "
                "reference energies and neighbour normalisation",
            )
        elif name not in shown and name != "parameters_with_constants" and value is not None:
            table.add_row(name.replace("_", " "), str(value))
    console.print(table)
    _print_stages(console, description["stages"])
    _print_mapping(console, "hyperparameters", _short_hyperparameters(description["hyperparameters"]))
    _print_reference(console, description["hyperparameters"])
    _print_training(console, description["training"])
    _print_rows(console, "largest errors at export, against the source model", description.get("verification") or [])
    _print_mapping(console, "notes", description.get("notes") or {})


def _print_stages(console: Console, stages: list[Mapping[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("stage", "reads columns", "of which exchanged between ranks"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage in stages:
        table.add_row(stage["name"], str(stage["width"]), str(stage["exchanged_width"]))
    console.print()
    console.print(table)


def _short_hyperparameters(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in ("elements", "cutoff", "scale", "shift")}


def _print_reference(console: Console, values: Mapping[str, Any]) -> None:
    """Scale and reference energy of each element; elements with equal values share a row."""
    rows: dict[tuple[float, float], list[str]] = {}
    for symbol, scale, shift in zip(values["elements"], values["scale"], values["shift"], strict=True):
        rows.setdefault((scale, shift), []).append(symbol)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("element", overflow="fold")
    table.add_column("scale", justify="right")
    table.add_column("reference energy (eV)", justify="right")
    for (scale, shift), symbols in rows.items():
        table.add_row(" ".join(symbols), f"{scale:.6g}", f"{shift:.6f}")
    console.print()
    console.print(table)


def _print_training(console: Console, training: Mapping[str, Any] | None) -> None:
    if training is None:
        console.print("\nnot trained, or trained elsewhere", highlight=False)
        return
    facts = {
        "frames": ", ".join(f"{name} {count}" for name, count in training["n_frames"].items()),
        "labels": ", ".join(f"{name} {count}" for name, count in training["labels"].items()),
        "files": ", ".join(training["files"]["train"]),
        "epochs": f"{training['epochs']}, best {training['best_epoch']}",
        "seed": training["seed"],
        "time": f"{training['seconds'] / 60:.1f} min, finished {training['finished']}",
    }
    _print_mapping(console, "training", facts)
    if training["errors"]:
        console.print()
        print_errors(console, "set", {name: errors_from_dict(row) for name, row in training["errors"].items()})


def errors_from_dict(row: Mapping[str, Any]) -> Errors:
    """The inverse of `Errors.as_dict`."""
    return Errors(*row.values())


def _print_mapping(console: Console, title: str, values: Mapping[str, Any]) -> None:
    if not values:
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        text = ", ".join(str(part) for part in value) if isinstance(value, list) else str(value)
        table.add_row(f"  {name.replace('_', ' ')}", text)
    console.print(f"\n[bold]{title}[/bold]")
    console.print(table, highlight=False)


def _print_rows(console: Console, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with the same keys as a table; keys are the headings."""
    if not rows:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        cells = ("-" if value is None else value for value in row.values())
        table.add_row(*(f"{value:.1e}" if isinstance(value, float) else str(value) for value in cells))
    console.print(f"\n[bold]{title}[/bold]")
    console.print(table)
