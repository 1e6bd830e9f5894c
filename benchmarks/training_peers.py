"""Training steps of ours and of other packages, each by its own program, in turns on the same frames.

Each peer lives in an environment and a process of its own, as in peers.py, and makes the step that its own training
makes (peer_training.py). Ours are the fused steps of training.py.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from common import ROOT, multiplication_rate, parser, rotated, set_threads, write_json
from peers import PeerError, Worker, environment, outcome, print_with_failures
from rich.table import Table
from training import Step, steps

ELEMENTS = ["C", "Si"]
OURS = {
    "hienet-small": ("hienet", "small"),
    "hienet-paper": ("hienet", "paper"),
    "sevennet-l3i5": ("sevennet", "l3i5"),
}
"""Architecture and preset."""
PEERS: dict[str, dict[str, Any]] = {
    "sevenn-l3i5": {"kind": "sevenn"},
    "mace-l1-5": {"kind": "mace", "irreps": "128x0e+128x1o", "cutoff": 5.0},
    "nequip-l2-5": {
        "kind": "nequip",
        "cutoff": 5.0,
        "model": {"num_layers": 4, "l_max": 2, "num_features": 64},
    },
}
"""The sizes of SevenNet-l3i5, of MACE-MP-0 medium with a shorter cutoff, and of a usual NequIP."""


def main() -> None:
    """Install, measure and report."""
    options = parser(__doc__, rounds=3)
    options.add_argument("--ours", nargs="+", default=list(OURS), choices=list(OURS), help="[default: all]")
    options.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS), help="[default: all]")
    options.add_argument("--frames", type=int, default=4, help="of a batch [default: 4]")
    options.add_argument("--atoms", type=int, default=16, help="of a frame of SiC [default: 16]")
    options.add_argument("--threads", type=int, default=2, help="[default: 2]")
    options.add_argument("--seconds", type=float, default=0.0, help="of each in a round, at least a step [default: 0]")
    options.add_argument("--timeout", type=float, default=900.0, help="seconds for one answer [default: 900]")
    options.add_argument(
        "--environments", type=Path, default=ROOT.parent / "build" / "peers", help="folder [default: build/peers]"
    )
    options.add_argument("--pip-args", default="", help='for example "--index-url ..." of a CPU build of torch')
    arguments = options.parse_args()
    set_threads(arguments.threads)
    works = {name: our_step(name, arguments) for name in arguments.ours}
    failures: dict[str, str] = {}
    workers: dict[str, Worker] = {}
    try:
        for name in arguments.peers:
            try:
                workers[name] = worker_of(PEERS[name], arguments)
            except PeerError as error:
                failures[name] = str(error)
                print(f"{name} is left out: {error}")
        answers = in_turns(works, workers, arguments)
    finally:
        for worker in workers.values():
            worker.close()
    result = {
        "benchmark": "training_peers",
        "n_atoms": arguments.frames * arguments.atoms,
        **outcome(rows_of(answers, arguments), PEERS, workers, failures, arguments),
    }
    report(result)
    write_json(arguments.json, result)


def our_step(name: str, arguments: argparse.Namespace) -> Step:
    """A fused step, made once."""
    architecture, preset = OURS[name]
    values = {**vars(arguments), "architecture": architecture, "preset": preset}
    works, _ = steps(argparse.Namespace(**values), ["fused"])
    works["fused"]()
    return works["fused"]


def worker_of(peer: dict[str, Any], arguments: argparse.Namespace) -> Worker:
    """The process of a peer, which has made one step.

    Raises:
        PeerError: it could not be installed, or does not run.
    """
    python = environment(peer["kind"], arguments)
    values = {
        **peer,
        "task": "training",
        "threads": arguments.threads,
        "frames": arguments.frames,
        "elements": ELEMENTS,
    }
    worker = Worker(python, values, arguments.timeout)
    worker.ask("prepare", system=f"sic{arguments.atoms}")
    return worker


def in_turns(
    works: dict[str, Step], workers: dict[str, Worker], arguments: argparse.Namespace
) -> dict[str, list[dict[str, float]]]:
    """Seconds of a step, of the clock and of the processor, round by round; the order rotates."""
    names = [*works, *workers]
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for i in range(arguments.rounds):
        print(f"round {i + 1}: {multiplication_rate(512, 0.02):.0f} GFLOP/s")
        for name in rotated(names, i):
            if name in workers:
                answers[name].append(workers[name].ask("measure", seconds=arguments.seconds))
            else:
                answers[name].append(measured(works[name], arguments.seconds))
    return answers


def measured(step: Step, seconds: float) -> dict[str, float]:
    """As the answer of a worker."""
    count, begin, cpu_begin = 0, time.perf_counter(), time.process_time()
    while count == 0 or time.perf_counter() - begin < seconds:
        step()
        count += 1
    return {
        "seconds": (time.perf_counter() - begin) / count,
        "cpu_seconds": (time.process_time() - cpu_begin) / count,
    }


def rows_of(answers: dict[str, list[dict[str, float]]], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each, with what it takes over what each of ours takes, as the median over rounds."""
    n_atoms = arguments.frames * arguments.atoms
    rows = []
    for name, found in answers.items():
        row: dict[str, Any] = {
            "model": name,
            "ms_per_atom": 1e3 * statistics.median(answer["seconds"] for answer in found) / n_atoms,
            "cpu_ms_per_atom": 1e3 * statistics.median(answer["cpu_seconds"] for answer in found) / n_atoms,
            "seconds": [answer["seconds"] for answer in found],
        }
        for ours in arguments.ours:
            for key in ("seconds", "cpu_seconds"):
                ratios = [a[key] / b[key] for a, b in zip(found, answers[ours], strict=True)]
                row[f"{key}_over_{ours}"] = statistics.median(ratios)
        rows.append(row)
    return rows


def report(result: dict[str, Any]) -> None:
    """A table and what failed."""
    ours = [row["model"] for row in result["rows"] if row["model"] in OURS]
    table = Table(
        *("model", "ms/atom", "processor, ms/atom", *(f"times {name} (processor)" for name in ours)),
        title=f"a training step: {result['n_atoms']} atoms, float32, {result['threads']} thread(s)",
    )
    for row in result["rows"]:
        table.add_row(
            row["model"],
            f"{row['ms_per_atom']:.3g}",
            f"{row['cpu_ms_per_atom']:.3g}",
            *(f"{row[f'seconds_over_{name}']:.3g} ({row[f'cpu_seconds_over_{name}']:.3g})" for name in ours),
        )
    print_with_failures(table, result["failures"])


if __name__ == "__main__":
    main()
