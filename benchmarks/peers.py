"""The deployed paper model against models of other packages, on the same structures in the same run.

Each peer lives in a virtual environment of its own, which this script makes, and in a process that stays alive; the
processes take turns. A peer that cannot be installed or does not run is named with the reason, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import select
import shlex
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from common import ROOT, console, deploy, machine, multiplication_rate, parser, random_checkpoint, rotated, write_json
from rich.table import Table
from structures import structure

from hienet.ops.library import load_operators

MACE = "mace-torch==0.3.16"
SYMMETRIX = "symmetrix-xl==0.1.1"
REQUIREMENTS = {
    "sevenn": ["sevenn==0.13.0"],
    "mace": [MACE],
    "nequip": ["nequip==0.19.1"],
    "symmetrix": [MACE, SYMMETRIX],
    # What tensorpotential asks for, with TensorFlow for CPUs in the place of that for CUDA.
    "grace": ["tensorflow-cpu==2.20.0", "ase", "matscipy", "pandas<3", "pyyaml", "scikit-learn", "sympy", "tqdm"],
}
WITHOUT_DEPENDENCIES = {"grace": ["tf_keras==2.20.1", "tensorpotential==0.6.2.1"]}
"""Installed last, and nothing with them: their own dependencies are TensorFlow's builds for CUDA."""
SYMMETRIX_AVX512 = "symmetrix-xl-cpu-avx512==0.1.1"
"""Its library for processors with AVX-512."""
MODES = {
    "hienet": ["deployed"],
    "sevenn": ["torchscript", "eager"],
    "mace": ["torchscript", "eager", "compile"],
    "symmetrix": ["direct"],
    "grace": ["xla"],
}
"""Ways of running on a CPU that the package offers; the fastest that works is measured. cuEquivariance, FlashTP and
OpenEquivariance need a GPU."""
PEERS: dict[str, dict[str, Any]] = {
    "hienet": {"kind": "hienet"},
    "sevennet-l3i5": {"kind": "sevenn"},
    "mace-l1-5": {"kind": "mace", "irreps": "128x0e+128x1o", "cutoff": 5.0},
    "mace-l1-6": {"kind": "mace", "irreps": "128x0e+128x1o", "cutoff": 6.0},
    "mace-l2-5": {"kind": "mace", "irreps": "128x0e+128x1o+128x2e", "cutoff": 5.0},
    "symmetrix-l1-5": {"kind": "symmetrix", "irreps": "128x0e+128x1o", "cutoff": 5.0},
    "symmetrix-l1-6": {"kind": "symmetrix", "irreps": "128x0e+128x1o", "cutoff": 6.0},
}
"""`mace-l1-6` has the size of MACE-MP-0 medium, `mace-l2` that of large."""


class PeerError(Exception):
    """A peer that cannot be measured, and why."""


@dataclass
class Worker:
    """A process that evaluates one model (peer_worker.py)."""

    python: Path
    options: dict[str, Any]
    timeout: float
    description: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115
        command = [str(self.python), str(ROOT / "peer_worker.py"), json.dumps(self.options)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, bufsize=1
        )
        self.description = self._answer()

    def ask(self, do: str, **values: object) -> dict[str, Any]:
        """The answer to one request.

        Raises:
            PeerError: the worker failed or took too long; it is ended.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **values}) + "\n")
        except BrokenPipeError:
            raise PeerError(self._reason()) from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], self.timeout)[0]:
            self.close()
            raise PeerError(f"no answer within {self.timeout:g} s")
        line = self.process.stdout.readline()
        if not line:
            raise PeerError(self._reason())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _reason(self) -> str:
        self.close()
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors.read().splitlines() if line.strip()]
        return lines[-1] if lines else f"ended with status {self.process.returncode}"

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def add_worker_options(options: argparse.ArgumentParser) -> None:
    """What is measured, and how models in processes of their own are installed and waited for."""
    options.add_argument("--systems", nargs="+", default=["si64", "alloy108"], help="[default: si64 alloy108]")
    options.add_argument("--threads", type=int, default=2, help="[default: 2]")
    options.add_argument("--seconds", type=float, default=2.0, help="of each model in a round [default: 2]")
    options.add_argument("--timeout", type=float, default=900.0, help="seconds for one answer [default: 900]")
    options.add_argument(
        "--environments", type=Path, default=ROOT.parent / "build" / "peers", help="folder [default: build/peers]"
    )
    options.add_argument("--pip-args", default="", help='for example "--index-url ..." of a CPU build of torch')


def main() -> None:
    """Install, measure and report."""
    options = parser(__doc__)
    options.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS), help="[default: all]")
    options.add_argument("--no-memory", action="store_true", help="leave out the peaks of memory")
    add_worker_options(options)
    arguments = options.parse_args()
    elements = sorted({symbol for name in arguments.systems for symbol in structure(name).symbols})
    failures: dict[str, str] = {}
    workers: dict[str, Worker] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = deploy(random_checkpoint(Path(folder), arguments.preset, elements))["deployed"]
        try:
            for name in arguments.peers:
                values = {**PEERS[name], "threads": arguments.threads, "elements": elements, "file": str(file)}
                try:
                    python = environment(values["kind"], arguments)
                    workers[name] = fastest(python, values, arguments, name, failures)
                except PeerError as error:
                    failures[name] = str(error)
                    print(f"{name} is left out: {error}")
            rows = [row for system in arguments.systems for row in rounds(workers, system, arguments)]
            for worker in workers.values():
                worker.close()
            for row in [] if arguments.no_memory else rows:
                measure_memory(row, workers[row["model"]], failures)
        finally:
            for worker in workers.values():
                worker.close()
    result = {
        "benchmark": "peers",
        "preset": arguments.preset,
        **outcome(rows, PEERS, workers, failures, arguments),
    }
    report(result)
    write_json(arguments.json, result)


def outcome(
    rows: list[dict[str, Any]],
    peers: Mapping[str, Mapping[str, Any]],
    workers: Mapping[str, Worker],
    failures: dict[str, str],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """What every comparison with peers writes down."""
    return {
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "rows": rows,
        "models": {name: {**peers[name], **worker.description} for name, worker in workers.items()},
        "failures": failures,
        "machine": machine(),
    }


def environment(kind: str, arguments: argparse.Namespace) -> Path:
    """The Python of a peer, installed unless it is there; this one's own for HIENet.

    torch comes first, in the version that is running here, so that no other build of it is fetched with the peer.

    Raises:
        PeerError: pip failed.
    """
    if kind == "hienet":
        return Path(sys.executable)
    folder = arguments.environments / kind
    python = Path(folder / "bin" / "python")
    marker = folder / ".installed"
    if not marker.exists():
        print(f"installing {' '.join(REQUIREMENTS[kind])} in {folder}")
        venv.create(folder, with_pip=True)
        constraints = folder / "constraints.txt"
        public = {name: version(name).partition("+")[0] for name in ("torch", "numpy", "ase")}
        constraints.write_text("".join(f"{name}=={number}\n" for name, number in public.items()))
        requirements = list(REQUIREMENTS[kind])
        if kind == "symmetrix" and "avx512" in instruction_sets():
            requirements.append(SYMMETRIX_AVX512)
        steps = [["torch", "numpy", "setuptools", "wheel"], requirements]
        if kind in WITHOUT_DEPENDENCIES:
            steps.append(["--no-deps", *WITHOUT_DEPENDENCIES[kind]])
        for packages in steps:
            command = [str(python), "-m", "pip", "install", "--quiet", *shlex.split(arguments.pip_args)]
            pip = subprocess.run([*command, "-c", str(constraints), *packages], capture_output=True, text=True)
            if pip.returncode != 0:
                lines = [line for line in pip.stderr.splitlines() if line.startswith("ERROR")]
                raise PeerError(f"pip could not install {' '.join(packages)}: {' '.join(lines) or pip.stderr[-500:]}")
        marker.touch()
    return python


def instruction_sets() -> list[str]:
    """Those of this processor for which there are kernels here."""
    load_operators()
    found: list[str] = torch.ops.hienet.instruction_sets()
    return found


def fastest(
    python: Path, values: dict[str, Any], arguments: argparse.Namespace, name: str, failures: dict[str, str]
) -> Worker:
    """The worker in the fastest of its modes; those that fail are noted.

    Raises:
        PeerError: none works.
    """
    best: tuple[float, Worker] | None = None
    for mode in MODES[values["kind"]]:
        try:
            worker = Worker(python, {**values, "mode": mode}, arguments.timeout)
            worker.ask("prepare", system=arguments.systems[0])
            seconds = min(worker.ask("measure", seconds=0.5)["seconds"] for _ in range(3))
        except PeerError as error:
            failures[f"{name}, mode {mode}"] = str(error)
            print(f"{name} does not run in mode {mode}: {error}")
            continue
        print(f"{name}, mode {mode}: {seconds:.3g} s an evaluation of {arguments.systems[0]}")
        slower = worker
        if best is None or seconds < best[0]:
            slower, best = (best[1] if best else None), (seconds, worker)  # type: ignore[assignment]
        if slower is not None:
            slower.close()
    if best is None:
        raise PeerError("none of its modes runs")
    return best[1]


def rounds(workers: dict[str, Worker], system: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each model, which take turns in an order that rotates."""
    names = list(workers)
    edges = {name: workers[name].ask("prepare", system=system)["n_edges"] for name in names}
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    probe = []
    for i in range(arguments.rounds):
        probe.append(multiplication_rate(512, 0.02))
        for name in rotated(names, i):
            answers[name].append(workers[name].ask("measure", seconds=arguments.seconds))
    rows = []
    for name in names:
        seconds = [answer["seconds"] for answer in answers[name]]
        row: dict[str, Any] = {
            "model": name,
            "system": system,
            "mode": workers[name].options["mode"],
            "n_atoms": len(structure(system)),
            "n_edges": edges[name],
            "ms_per_atom": 1e3 * statistics.median(seconds) / len(structure(system)),
            "us_per_edge": 1e6 * statistics.median(seconds) / edges[name],
            "cpu_ms_per_atom": 1e3
            * statistics.median(answer["cpu_seconds"] for answer in answers[name])
            / len(structure(system)),
            "seconds": seconds,
            "probe_gflops": probe,
        }
        if "hienet" in workers:
            ours = [answer["seconds"] for answer in answers["hienet"]]
            row["over_hienet_per_atom"] = statistics.median(a / b for a, b in zip(seconds, ours, strict=True))
            row["over_hienet_per_edge"] = row["over_hienet_per_atom"] * edges["hienet"] / edges[name]
        rows.append(row)
    return rows


def measure_memory(row: dict[str, Any], worker: Worker, failures: dict[str, str]) -> None:
    """Add the peak of an evaluation, in a fresh process in the same mode."""
    try:
        fresh = Worker(worker.python, worker.options, worker.timeout)
        row["mb_per_atom"] = fresh.ask("memory", system=row["system"])["bytes"] / 1e6 / row["n_atoms"]
        fresh.close()
    except PeerError as error:
        failures[f"{row['model']}, memory on {row['system']}"] = str(error)


def report(result: dict[str, Any]) -> None:
    """A table and what failed."""
    columns = ("system", "model", "mode", "parameters", "cutoff/Å", "edges/atom", "ms/atom", "µs/edge")
    table = Table(
        *columns,
        "times HIENet, atom",
        "edge",
        "peak MB/atom",
        title=f"energy, forces and stress, float32, {result['threads']} thread(s)",
    )
    for row in result["rows"]:
        model = result["models"][row["model"]]
        table.add_row(
            row["system"],
            row["model"],
            row["mode"],
            f"{model['n_parameters']:,}",
            f"{model['cutoff']:g}",
            f"{row['n_edges'] / row['n_atoms']:.1f}",
            f"{row['ms_per_atom']:.3g}",
            f"{row['us_per_edge']:.3g}",
            *(
                f"{row[key]:.3g}" if key in row else ""
                for key in ("over_hienet_per_atom", "over_hienet_per_edge", "mb_per_atom")
            ),
        )
    print_with_failures(table, result["failures"])


def print_with_failures(table: Table, failures: Mapping[str, str]) -> None:
    """A table, and below it what failed."""
    console().print(table)
    for name, reason in failures.items():
        print(f"not measured: {name}: {reason}")


if __name__ == "__main__":
    main()
