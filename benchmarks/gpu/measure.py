"""A step on a GPU: microseconds an atom, latency, memory, launches, against eager e3nn, and fraction of the floor.

The paper's configuration with random weights on rattled silicon, float32; a step is energy, forces and stress on a
prebuilt graph, and is over when they are there. The most important comes first; the JSON file is written after every
part. `--device cpu` runs all of it on small systems.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from common import (
    CONTENDERS,
    FORCE_TOLERANCE,
    Turns,
    console,
    deploy,
    in_turns,
    load_contender,
    machine,
    parser,
    prebuilt_graph,
    random_checkpoint,
    set_threads,
    write_json,
)
from device import describe_device, peak_memory, peaks, release_memory, synchronize, waited_for
from floor import floor_seconds, work_of_step
from peers import PeerError, Worker
from rich.table import Table
from structures import structure
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from hienet.calculator import LoadedModel, load_model, parse_device
from hienet.checkpoint import load_checkpoint
from hienet.derivatives import Prediction, predict
from hienet.errors import HIENetError
from hienet.memory import is_out_of_memory
from hienet.ops.compile import compile_model

SIZES = {"cuda": [1000, 10_000, 100_000, 500_000, 1_000_000], "cpu": [64, 216]}
COMPARED = {"cuda": 10_000, "cpu": 64}
LATENCY_ATOMS = 64
CAPACITY = 500_000
"""Atoms that one H200 must hold."""
ENERGY_TOLERANCE = 1e-5
"""Of the mean energy of an atom, or of 1 eV if that is more, against the source model in float64 on the CPU."""
STRESS_TOLERANCE = 1e-5
"""eV/Å^3."""
LAUNCHES = ("LaunchKernel", "GraphLaunch", "cudaMemcpy", "cudaMemset")
"""In names of calls of CUDA with which the CPU starts work on a GPU."""
ACCELERATORS = ("eager", "cueq", "flash", "oeq")


class Measurement:
    """Models on the device, the result as far as it is, and the time that is left."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.device = arguments, parse_device(arguments.device)
        self.begin = time.monotonic()
        self.files = models_in(folder, arguments.preset)
        self.source = load_model(self.files["eager"])
        self.models: dict[str, LoadedModel] = {}
        self.graphs: dict[tuple[str, int], Any] = {}
        self.result: dict[str, Any] = {
            "benchmark": "gpu",
            "preset": arguments.preset,
            "device": describe_device(self.device),
            "machine": machine(),
            "not_measured": {},
        }

    @property
    def ours(self) -> str:
        """The deployed file if it runs on the device, else that without compiled operators."""
        return "deployed" if "deployed" in self.models else "plain"

    def part(self, name: str, measure: Callable[[], object]) -> None:
        """Add a part to the result, or why it is missing, and write the file."""
        elapsed = time.monotonic() - self.begin
        if elapsed > self.arguments.budget:
            self.miss(name, f"the budget of {self.arguments.budget:g} s was used up")
        else:
            print(f"[{elapsed:6.0f} s] {name}", flush=True)
            with self.memory_noted(name):
                self.result[name] = measure()
        self.result["seconds"] = time.monotonic() - self.begin
        write_json(self.arguments.json, self.result)

    @contextlib.contextmanager
    def memory_noted(self, name: str) -> Iterator[None]:
        """Where memory is exhausted within, that is noted; what was held is released."""
        try:
            yield
        except (RuntimeError, MemoryError, HIENetError) as error:
            if not is_out_of_memory(error):
                raise
            self.miss(name, f"out of memory: {str(error).splitlines()[0][:200]}")
        finally:
            self.graphs.clear()
            release_memory(self.device)

    def miss(self, name: str, reason: str) -> None:
        """Note that something was not measured."""
        self.result["not_measured"][name] = reason
        print(f"not measured: {name}: {reason}", flush=True)

    def step(self, name: str, n_atoms: int) -> Callable[[], Prediction]:
        """A step of a model, without waiting for the device."""
        model = self.models[name]
        key = (name, n_atoms)
        if key not in self.graphs:
            graph = prebuilt_graph(model, structure(f"si{n_atoms}"))
            model.load_elements(torch.tensor([0]))
            self.graphs[key] = graph
        graph = self.graphs[key]

        def work() -> Prediction:
            # What e3nn compiles runs as its users have it, with TorchScript's profiling (common.evaluation).
            with torch.jit.optimized_execution(name == "eager"):
                return predict(model.module, graph)

        return work

    def waited_step(self, name: str, n_atoms: int) -> Callable[[], object]:
        """A step, over when its results are there."""
        return waited_for(self.step(name, n_atoms), self.device)

    # Parts

    def load(self) -> dict[str, dict[str, float]]:
        """Seconds until each model has made its first steps. A model that does not run here, or gives other energies,
        forces or stresses, is noted, and left out of all that follows."""
        # The first use of a GPU costs seconds that belong to no model.
        begin = time.perf_counter()
        torch.ones(1, device=self.device).sum().item()
        found: dict[str, dict[str, float]] = {"device": {"first_use_s": time.perf_counter() - begin}}
        for name in ("deployed", "plain", "eager"):
            begin = time.perf_counter()
            try:
                self.models[name] = load_contender(name, self.files[name], str(self.device))
            except HIENetError as error:
                self.miss(name, str(error))
                continue
            loaded = time.perf_counter()
            work = self.waited_step(name, LATENCY_ATOMS)
            prepared = time.perf_counter()
            steps = []
            for _ in range(6):
                start = time.perf_counter()
                work()
                steps.append(time.perf_counter() - start)
            errors = self.errors(name)
            found[name] = {
                "load_s": loaded - begin,
                "graph_and_tables_s": prepared - loaded,
                "first_step_s": steps[0],
                "second_step_s": steps[1],
                "later_step_s": statistics.median(steps[3:]),
                **errors,
            }
            wrong = [key for key, limit in GATE.items() if not errors[key] < limit]
            if wrong:
                del self.models[name]
                self.miss(name, "its results are wrong: " + ", ".join(f"{key} is {errors[key]:.1e}" for key in wrong))
        if "plain" not in self.models:
            raise SystemExit("not even the plain model runs and agrees with its source here: nothing was timed")
        return found

    def errors(self, name: str) -> dict[str, float]:
        """Errors of energy, forces and stress of 64 atoms against the source model in float64 on the CPU: the largest,
        of the energy relative to it."""
        graph = prebuilt_graph(self.source, structure(f"si{LATENCY_ATOMS}"))
        expected, found = self.source.predict_graph(graph), self.step(name, LATENCY_ATOMS)()
        result = {}
        of_energy = max(float(LATENCY_ATOMS), float(expected.energy.abs()))
        for key, attribute, unit in zip(GATE, ("energy", "forces", "stress"), (of_energy, 1.0, 1.0), strict=True):
            difference = getattr(found, attribute).detach().cpu().double() - getattr(expected, attribute)
            result[key] = float(difference.abs().max()) / unit
        return result

    def contenders(self) -> dict[str, Any]:
        """All models in turns, at the size of the comparison, or at half of it and so on where one does not fit."""
        n_atoms = self.arguments.compared
        while True:
            try:
                works = {name: self.waited_step(name, n_atoms) for name in self.models}
                turns = in_turns(works, self.arguments.rounds, self.arguments.seconds, warm_up=3)
                break
            except RuntimeError as error:
                if not is_out_of_memory(error) or n_atoms <= LATENCY_ATOMS:
                    raise
            self.graphs.clear()
            release_memory(self.device)
            self.miss(f"contenders, {n_atoms} atoms", "out of memory")
            n_atoms = max(LATENCY_ATOMS, n_atoms // 16 * 8)
        return {"n_atoms": n_atoms, **compared(turns, n_atoms, self.ours)}

    def latency(self) -> dict[str, Any]:
        """All models in turns at 64 atoms, where a GPU waits for the CPU."""
        works = {name: self.waited_step(name, LATENCY_ATOMS) for name in self.models}
        turns = in_turns(works, self.arguments.rounds, self.arguments.seconds, warm_up=5)
        return {"n_atoms": LATENCY_ATOMS, **compared(turns, LATENCY_ATOMS, self.ours)}

    def sizes(self) -> list[dict[str, float]]:
        """A row for each size, smallest first, until one does not fit."""
        rows: list[dict[str, float]] = []
        self.result["sizes"] = rows
        for n_atoms in self.arguments.sizes:
            elapsed = time.monotonic() - self.begin
            if rows and elapsed > self.arguments.budget:
                self.miss(f"{n_atoms} atoms", f"the budget of {self.arguments.budget:g} s was used up")
                break
            print(f"[{elapsed:6.0f} s]   {n_atoms} atoms", flush=True)
            count = len(rows)
            with self.memory_noted(f"{n_atoms} atoms"):
                rows.append(self.size(n_atoms))
            write_json(self.arguments.json, self.result)
            if len(rows) == count:
                break
        return rows

    def size(self, n_atoms: int) -> dict[str, float]:
        """Time and memory of a step, and how near it is to the floor."""
        name = self.ours
        small = self.waited_step(name, 8)
        work = self.waited_step(name, n_atoms)
        graph = self.graphs[name, n_atoms]
        memory = peak_memory(work, small, self.device)
        turns = in_turns({name: work}, self.arguments.rounds, self.arguments.seconds, warm_up=2)
        neighbors = graph.center.shape[0] / n_atoms
        seconds = turns.median(name) / n_atoms
        return {
            "n_atoms": n_atoms,
            "neighbors": neighbors,
            "us_per_atom": 1e6 * seconds,
            "ns_per_edge": 1e9 * seconds / neighbors,
            "ms_per_step": 1e3 * seconds * n_atoms,
            "kb_per_atom": 1e-3 * memory / n_atoms,
            "quartiles_us_per_atom": [1e6 * value / n_atoms for value in quartiles(turns.seconds[name])],
            **self.floors(neighbors, seconds),
        }

    def floors(self, neighbors: float, seconds: float) -> dict[str, float]:
        """The least time of an atom with these neighbours, and the part of the measured one that it is."""
        parts = work_of_step(self.compiled, neighbors)
        cached, uncached = (floor_seconds(parts, *self.peaks, cached=cached) for cached in (True, False))
        return {
            "mflop_per_atom": 1e-6 * sum(part.flop for part in parts),
            "floor_us_per_atom": 1e6 * cached,
            "floor_us_per_atom_without_cache": 1e6 * uncached,
            "fraction_of_floor": cached / seconds,
        }

    @cached_property
    def compiled(self) -> torch.nn.Module:
        """The compiled model on the CPU, whose tensors say what work there is."""
        module = load_checkpoint(self.files["eager"]).build().requires_grad_(False)
        compile_model(module, n_intervals=64)
        return module

    @property
    def peaks(self) -> tuple[float, float]:
        """TFLOP/s and TB/s of the device."""
        if "peaks" not in self.result:
            tflops, terabytes = peaks(self.device, self.arguments.peak_tflops, self.arguments.peak_bandwidth)
            self.result["peaks"] = {"tflops": tflops, "tb_per_s": terabytes}
        return self.result["peaks"]["tflops"], self.result["peaks"]["tb_per_s"]

    def launches(self) -> dict[str, dict[str, float]]:
        """What the profiler counts in a step of 64 atoms, for each model."""
        return {name: counted(self.waited_step(name, LATENCY_ATOMS), self.device) for name in self.models}

    def tf32(self) -> dict[str, dict[str, float]]:
        """Time and errors with matrix products in float32, and in TensorFloat-32 where the device has it."""
        name, n_atoms = self.ours, self.arguments.compared
        before = torch.get_float32_matmul_precision()
        found: dict[str, dict[str, float]] = {}
        try:
            for key, precision in (("float32", "highest"), ("tf32", "high")):
                torch.set_float32_matmul_precision(precision)
                work = self.waited_step(name, n_atoms)
                turns = in_turns({name: work}, self.arguments.rounds, self.arguments.seconds, warm_up=2)
                found[key] = {"us_per_atom": 1e6 * turns.median(name) / n_atoms, **self.errors(name)}
        finally:
            torch.set_float32_matmul_precision(before)
        return found

    def sevenn(self) -> dict[str, dict[str, float]]:
        """SevenNet-l3i5 in its package, in each way that works, in processes of their own, in turns with our model."""
        n_atoms, found, workers = self.arguments.compared, {}, {}
        options = {"kind": "sevenn", "threads": torch.get_num_threads(), "device": str(self.device)}
        modes = ACCELERATORS if self.device.type == "cuda" else ACCELERATORS[:1]
        try:
            for mode in modes:
                try:
                    worker = Worker(self.arguments.sevenn, {**options, "mode": mode}, self.arguments.timeout)
                    worker.ask("prepare", system=f"si{n_atoms}")
                    workers[mode] = worker
                except PeerError as error:
                    self.miss(f"sevenn, mode {mode}", str(error))
            seconds: dict[str, list[float]] = {name: [] for name in [*workers, "ours"]}
            ours = self.waited_step(self.ours, n_atoms)
            for _ in range(self.arguments.rounds):
                turns = in_turns({"ours": ours}, 1, self.arguments.seconds, warm_up=1)
                seconds["ours"] += turns.seconds["ours"]
                for mode, worker in workers.items():
                    seconds[mode].append(worker.ask("measure", seconds=self.arguments.seconds)["seconds"])
        finally:
            for worker in workers.values():
                worker.close()
        for name, values in seconds.items():
            ratios = [a / b for a, b in zip(values, seconds["ours"], strict=True)]
            found[name] = {
                "us_per_atom": 1e6 * statistics.median(values) / n_atoms,
                "over_ours": statistics.median(ratios),
            }
        return found


GATE = {
    "relative_energy_error": ENERGY_TOLERANCE,
    "force_error_ev_per_angstrom": FORCE_TOLERANCE,
    "stress_error_ev_per_cubic_angstrom": STRESS_TOLERANCE,
}
"""What a model must reach before it is timed."""


def models_in(folder: Path, preset: str) -> dict[str, Path]:
    """The files of the contenders, which are written where they are missing."""
    files = {"eager": folder / "model.pt", **{name: folder / f"{name}.hienet.pt" for name in CONTENDERS[1:]}}
    if not all(path.is_file() for path in files.values()):
        folder.mkdir(parents=True, exist_ok=True)
        files = deploy(random_checkpoint(folder, preset, ["Si"]), CONTENDERS)
    return files


def quartiles(values: list[float]) -> list[float]:
    """First and third; of one value, that."""
    if len(values) == 1:
        return values * 2
    return [statistics.quantiles(values, n=4, method="inclusive")[i] for i in (0, 2)]


def compared(turns: Turns, n_atoms: int, ours: str) -> dict[str, Any]:
    """Time of a step of each model, and how many times that of `ours`."""
    return {
        "ours": ours,
        "models": {
            name: {
                "ms_per_step": 1e3 * turns.median(name),
                "us_per_atom": 1e6 * turns.median(name) / n_atoms,
                "over_ours": turns.ratio(name, ours),
                "over_ours_quartiles": quartiles(turns.ratios(name, ours)),
            }
            for name in turns.seconds
        },
        "seconds": turns.seconds,
    }


def counted(work: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Kernels, launches and operators of one step, and the time in kernels."""
    for _ in range(3):
        work()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        work()
        synchronize(device)
    events: list[FunctionEvent] = list(profiler.events() or [])
    kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    return {
        "kernels": len(kernels),
        "launches": sum(any(part in event.name for part in LAUNCHES) for event in events),
        "operators": sum(event.name.startswith(("aten::", "hienet::")) for event in events),
        "ms_in_kernels": 1e-3 * sum(event.device_time_total for event in kernels),
    }


def targets(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What must be reached on a GPU, what was, and whether that is enough; None where it was not measured.

    The cost of an atom is that of 100,000 atoms, or of 10,000 where those were not measured.
    """
    contenders, rows = result.get("contenders", {}), {row["n_atoms"]: row for row in result.get("sizes", [])}
    timed = contenders.get("models", {})
    eager = timed["eager"]["over_ours"] if contenders.get("n_atoms") == COMPARED["cuda"] and "eager" in timed else None
    latency = result.get("latency", {})
    ours = latency.get("ours")
    best = rows.get(100_000) or rows.get(COMPARED["cuda"])
    found = [
        ("times as fast as eager e3nn, 10,000 atoms", "at least", 10.0, eager),
        ("µs/atom/step at 28 neighbours", "at most", 5.0, best and best["us_per_atom"]),
        ("ms/step, 64 atoms", "at most", 2.0, ours and latency["models"][ours]["ms_per_step"]),
        ("atoms on the device", "at least", float(CAPACITY), max(rows, default=None)),
    ]
    return [
        {"what": what, "bound": bound, "wanted": wanted, "found": value, "passed": within(value, bound, wanted)}
        for what, bound, wanted, value in found
    ]


def within(value: float | None, bound: str, wanted: float) -> bool | None:
    """Whether a figure is `at least` or `at most` what is wanted; None if it was not measured."""
    if value is None:
        return None
    return value >= wanted if bound == "at least" else value <= wanted


def report(result: dict[str, Any]) -> None:
    """Tables, what was not measured, and on a GPU the targets."""
    title = f"preset {result['preset']}, float32, {result['device'].get('name', 'CPU')}"
    for key in ("latency", "contenders"):
        if key in result:
            table = Table("model", "ms/step", "µs/atom", "times ours", title=f"{title}, {result[key]['n_atoms']} atoms")
            for name, row in result[key]["models"].items():
                table.add_row(name, *(f"{row[column]:.4g}" for column in ("ms_per_step", "us_per_atom", "over_ours")))
            console().print(table)
    columns = ("n_atoms", "neighbors", "us_per_atom", "ns_per_edge", "ms_per_step", "kb_per_atom")
    columns += ("floor_us_per_atom", "fraction_of_floor")
    table = Table(*columns, title=title)
    for row in result.get("sizes", []):
        table.add_row(*(f"{row[column]:.4g}" if column != "n_atoms" else f"{row[column]:,}" for column in columns))
    console().print(table)
    for key in ("load", "launches", "tf32", "sevenn"):
        for name, row in result.get(key, {}).items():
            print(f"{key}, {name}: " + ", ".join(f"{column} {value:.4g}" for column, value in row.items()))
    for name, reason in result["not_measured"].items():
        print(f"not measured: {name}: {reason}")
    for line in result["targets"]:
        found = "not measured" if line["found"] is None else f"{line['found']:.4g}"
        verdict = {True: "pass", False: "FAIL", None: "----"}[line["passed"]]
        print(f"{verdict}  {line['what']}: {found}, wanted {line['bound']} {line['wanted']:g}")


def main() -> None:
    """Measure and report."""
    options = parser(__doc__, rounds=5)
    options.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu [default: cuda]")
    options.add_argument("--sizes", type=int, nargs="+", help=f"atoms, multiples of 8 [default: {SIZES}]")
    options.add_argument("--compared", type=int, help=f"atoms of the comparisons [default: {COMPARED}]")
    options.add_argument("--seconds", type=float, default=1.0, help="of each model in a round [default: 1]")
    options.add_argument(
        "--budget", type=float, default=1500.0, help="seconds, after which no part begins [default: 1500]"
    )
    options.add_argument("--models", type=Path, help="folder of the models; they are made there if they are missing")
    options.add_argument("--prepare", action="store_true", help="make the models in --models, and nothing else")
    options.add_argument("--sevenn", type=Path, help="the Python of an environment with sevenn, to be measured beside")
    options.add_argument("--timeout", type=float, default=600.0, help="seconds for one answer of sevenn [default: 600]")
    options.add_argument("--peak-tflops", type=float, help="of the device in float32 [default: H200's; CPU: measured]")
    options.add_argument("--peak-bandwidth", type=float, help="of its memory, TB/s [default: likewise]")
    arguments = options.parse_args()
    if arguments.prepare:
        if arguments.models is None:
            raise SystemExit("--prepare needs --models, the folder in which the models are to be made")
        models_in(arguments.models, arguments.preset)
        return
    kind = parse_device(arguments.device).type
    arguments.sizes = sorted(arguments.sizes or SIZES[kind])
    arguments.compared = arguments.compared or COMPARED[kind]
    set_threads(torch.get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        measurement = Measurement(arguments, arguments.models or Path(folder))
        measurement.part("load", measurement.load)
        measurement.part("contenders", measurement.contenders)
        measurement.part("latency", measurement.latency)
        measurement.part("sizes", measurement.sizes)
        measurement.part("launches", measurement.launches)
        measurement.part("tf32", measurement.tf32)
        if arguments.sevenn is not None:
            measurement.part("sevenn", measurement.sevenn)
    # Figures of a CPU say nothing about what a GPU must reach.
    measurement.result["targets"] = targets(measurement.result) if kind == "cuda" else []
    report(measurement.result)
    write_json(arguments.json, measurement.result)


if __name__ == "__main__":
    try:
        main()
    except HIENetError as error:
        raise SystemExit(f"error: {error}") from None
