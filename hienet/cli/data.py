"""`hienet data`: sets of frames, before anything is trained on them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hienet.cli.options import EnergyKey, ForcesKey, StressKey, VirialKey
from hienet.console import make_console, printable, say

if TYPE_CHECKING:
    from hienet.data.labels import LabelKeys

_FRAMES_LOOKED_AT = 100

app = typer.Typer(
    name="data",
    help="Look at labelled frames, check and split them, and convert them for training on more than fits in memory.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Files = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders or patterns with `*`: extxyz, anything ASE reads, MPtrj and mlearn JSON, folders of "
        "DeePMD, LMDB databases of ASE (.aselmdb), caches.",
        show_default=False,
    ),
]
WeightKey = Annotated[str, typer.Option(help="Entry of the frames' info with their weight in the loss.")]
Cutoff = Annotated[float, typer.Option(min=0.1, help="Å; within which neighbours are counted.")]


@app.command()
def convert(
    files: Files,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the cache.", show_default=False)],
    cutoff: Cutoff = 5.0,
    processes: Annotated[int, typer.Option(min=1, help="Processes that convert files side by side.")] = 1,
    group: Annotated[
        list[str] | None,
        typer.Option(help="Entry of the frames' info to keep, besides config_type, mp_id and material_id; repeatable."),
    ] = None,
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    stress_key: StressKey = None,
    virial_key: VirialKey = None,
    weight_key: WeightKey = "config_weight",
) -> None:
    """Write a cache, which `data.train` then names: frames are read from it when they are needed.

    Stopped, the same command goes on where it was. Give the cutoff of the model: edges are then counted only once.
    """
    from hienet.data.cache import Store
    from hienet.data.convert import DEFAULT_GROUPS
    from hienet.data.convert import convert as converted
    from hienet.data.labels import LabelKeys, require_any_labels
    from hienet.data.reader import find_files
    from hienet.data.stored import bytes_of

    paths = find_files(files)
    keys = LabelKeys(energy_key, forces_key, stress_key, virial_key)
    groups = tuple(dict.fromkeys((*DEFAULT_GROUPS, *(group or ()))))
    _look_at_labels(paths[0], keys)
    with _progress("frames") as show:
        header = converted(
            paths,
            output,
            cutoff,
            keys,
            weight_key,
            groups,
            min(processes, len(paths)),
            progress=lambda frames, done: show(frames, f"{done} of {len(paths)} file(s) done"),
        )
    store = Store(output)
    for line in store.report.lines():
        say(line)
    require_any_labels(store.report)
    n_edges = int(store.columns["n_edges"].sum())
    say(
        f"wrote {output}: {len(store):,} frames, {int(store.first_atom[-1]):,} atoms, {n_edges:,} edges within "
        f"{header.cutoff:g} Å, {bytes_of(store) / 1e6:,.1f} MB"
    )
    say(f"use it as any file: `data.train: {output}` in the configuration, or hienet data check {output}")


def _look_at_labels(path: Path, keys: LabelKeys) -> None:
    """Warn before a conversion of hours where the first frames have no labels."""
    from hienet.data.labels import LabelReader, require_any_labels
    from hienet.data.reader import iterate_file
    from hienet.errors import HIENetError

    reader = LabelReader(keys)
    reader.read(list(itertools.islice(iterate_file(path), _FRAMES_LOOKED_AT)))
    try:
        require_any_labels(reader.report)
    except HIENetError as error:
        say(f"WARNING: in the first {_FRAMES_LOOKED_AT} frames {error}")


@app.command()
def stats(
    files: Files,
    cutoff: Cutoff = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    stress_key: StressKey = None,
    virial_key: VirialKey = None,
) -> None:
    """Count and measure frames in one pass: elements, reference energies, ranges of labels, neighbours."""
    from hienet.data.labels import LabelKeys
    from hienet.data.overview import look_over
    from hienet.data.reader import iterate_frames
    from hienet.files import json_text
    from hienet.tables import print_overview

    keys = LabelKeys(energy_key, forces_key, stress_key, virial_key)
    with _progress("frames") as show:
        overview = look_over(iterate_frames(files), cutoff, keys, lambda frames: show(frames, ""))
    if as_json:
        print(json.dumps(json.loads(json_text(overview.as_dict())), indent=1, ensure_ascii=False))
        return
    for line in overview.report.lines():
        say(line)
    print_overview(make_console(), overview)


@app.command()
def split(
    files: Files,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the parts.", show_default=False)],
    validation: Annotated[float, typer.Option(min=0.0, max=1.0, help="Fraction of the frames.")] = 0.1,
    test: Annotated[float, typer.Option(min=0.0, max=1.0, help="Fraction of the frames.")] = 0.0,
    group: Annotated[
        str | None,
        typer.Option(
            help="Entry of the frames' info, such as mp_id: frames with equal values are in the same part.",
            show_default=False,
        ),
    ] = None,
    stratify: Annotated[
        str | None,
        typer.Option(
            help="Entry of the frames' info, such as config_type: equal frames are in all parts in proportion.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random order.")] = 0,
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    stress_key: StressKey = None,
    virial_key: VirialKey = None,
) -> None:
    """Divide frames into training, validation and test sets: a cache into caches, other files into extxyz."""
    from hienet.data.divide import divide
    from hienet.data.labels import LabelKeys

    keys = LabelKeys(energy_key, forces_key, stress_key, virial_key)
    with _progress("frames") as show:
        written = divide(
            files, output, validation, test, group, stratify, seed, keys, lambda frames: show(frames, "written")
        )
    for name, (path, n_frames) in written.items():
        say(f"{name}: {n_frames} frames in {path}")


@app.command()
def check(
    files: Files,
    validation: Annotated[
        list[str] | None, typer.Option(help="Files with validation frames; repeatable.", show_default=False)
    ] = None,
    test: Annotated[
        list[str] | None, typer.Option(help="Files with test frames; repeatable.", show_default=False)
    ] = None,
    cutoff: Cutoff = 5.0,
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    stress_key: StressKey = None,
    virial_key: VirialKey = None,
    weight_key: WeightKey = "config_weight",
) -> None:
    """Look for mistakes: repeated and unconverged frames, outliers, wrong units and signs, frames in two sets.

    The exit status is 0 if nothing was found, 2 if something was, 1 if the files cannot be read.
    """
    from hienet.data.findings import check_sets
    from hienet.data.labels import LabelKeys

    sets = {"train": files, "validation": validation or [], "test": test or []}
    keys = LabelKeys(energy_key, forces_key, stress_key, virial_key)
    findings = check_sets({name: part for name, part in sets.items() if part}, cutoff, keys, weight_key, say)
    for line in findings.lines:
        say(line)
    counts = ", ".join(
        f"{number:,} frames" + (f" of the {name} set" if len(findings.n_frames) > 1 else "")
        for name, number in findings.n_frames.items()
    )
    if findings.anything:
        say(f"checked {counts}: look at the lines above")
        raise typer.Exit(2)
    say(f"checked {counts}: nothing found")


@contextmanager
def _progress(unit: str) -> Iterator[Callable[[int, str], None]]:
    """On a terminal, a line on standard error that shows how many are done and how fast; nothing elsewhere."""
    import sys

    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = make_console(sys.stderr)
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(f"0 {unit}")

        def show(number: int, text: str) -> None:
            seconds = max(bar.tasks[0].elapsed or 0.0, 1e-3)
            bar.update(task, description=printable(f"{number:,} {unit}, {number / seconds:,.0f}/s  {text}"))

        yield show
