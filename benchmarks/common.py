"""What the benchmarks share: models with random weights, turns, peak memory, what machine it was, JSON."""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ase
import torch
import yaml
from hienet_deploy.export import export
from rich.console import Console
from structures import structure

from hienet.calculator import LoadedModel, load_model, model_of
from hienet.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from hienet.files import atomic_path
from hienet.graph import AtomicGraph, graph_from_atoms
from hienet.models.factory import build_model, make_config

Work = Callable[[], object]
ROOT = Path(__file__).resolve().parent
CONTENDERS = ("eager", "deployed", "plain")
"""`eager`: as e3nn users write it (eager.py); `deployed`: compiled; `plain`: deployed with --no-compile."""
FORCE_TOLERANCE = 1e-4
"""eV/Å, largest error of a force against the source model in float64, where forces are about 1 eV/Å."""


# Models


def random_checkpoint(
    folder: Path, preset: str, elements: Sequence[str], architecture: str = "hienet", **values: object
) -> Path:
    """A model with random weights, whose forces on rattled structures are of the size of real ones.

    Speed does not depend on the weights. Errors of forces do: an untrained network is nearly flat, so its energies are
    scaled until the forces' root mean square is 1 eV/Å on a rattled crystal of all elements.

    Args:
        folder: where to write.
        preset: of the architecture.
        elements: chemical symbols.
        architecture: its name.
        values: hyperparameters that differ from the preset.
    """
    config = make_config(architecture, preset, {"elements": tuple(elements), **values})
    checkpoint = Checkpoint(architecture, config, build_model(architecture, config, 0).state_dict())
    atoms = structure("alloy32")
    atoms.set_chemical_symbols([elements[i % len(elements)] for i in range(len(atoms))])
    forces = model_of(checkpoint).predict(atoms).forces
    assert forces is not None
    scale = 1.0 / float(forces.pow(2).sum(1).mean().sqrt())
    config = config.model_copy(update={"scale": (scale,) * len(elements)})
    path = folder / "model.pt"
    save_checkpoint(replace(checkpoint, config=config), path)
    return path


def deploy(checkpoint: Path, contenders: Iterable[str] = ("deployed",)) -> dict[str, Path]:
    """The file of each contender, beside the checkpoint."""
    files = {"eager": checkpoint}
    for name in contenders:
        if name != "eager":
            output = checkpoint.with_name(f"{name}.hienet.pt")
            files[name] = export(checkpoint, output, compiled=name == "deployed").path
    return {name: files[name] for name in contenders}


def load_contender(name: str, path: Path, device: str = "cpu") -> LoadedModel:
    """A model in float32: `path` is a checkpoint for `eager`, a deployed file otherwise."""
    if name != "eager":
        return load_model(path, device)
    from eager import EagerHIENet

    source = model_of(load_checkpoint(path))
    module = EagerHIENet.from_model(source.module).float().eval().requires_grad_(False)  # type: ignore[arg-type]
    return replace(source, module=module.to(device), dtype=torch.float32, device=torch.device(device))


def evaluation(name: str, model: LoadedModel, atoms: ase.Atoms) -> Callable[[], Any]:
    """A function that evaluates energies, forces and stress on the prebuilt graph of a structure.

    Deployed files run as in the pair style, without TorchScript's profiling; what e3nn compiles runs as e3nn's users
    have it, with.
    """
    graph = prebuilt_graph(model, atoms)

    def work() -> Any:
        with torch.jit.optimized_execution(name == "eager"):
            return model.predict_graph(graph)

    return work


def force_error(source: LoadedModel, name: str, model: LoadedModel, atoms: ase.Atoms) -> float:
    """Largest error of a force (eV/Å) against the source model in float64; without it a time says nothing.

    Raises:
        SystemExit: it is above the tolerance.
    """
    expected = evaluation("plain", source, atoms)().forces
    error = float((evaluation(name, model, atoms)().forces.cpu().double() - expected).abs().max())
    if not error < FORCE_TOLERANCE:
        raise SystemExit(
            f"forces of `{name}` differ from the source model's by {error:.1e} eV/Å, expected less than "
            f"{FORCE_TOLERANCE:g}: nothing was timed"
        )
    return error


def prebuilt_graph(model: LoadedModel, atoms: ase.Atoms) -> AtomicGraph:
    """The graph of a structure in the model's dtype."""
    return graph_from_atoms(atoms, model.elements, model.cutoff).to(model.device, model.dtype)


def set_threads(threads: int) -> None:
    """Threads of torch; and numbers too small to be normal become zero, as near the cutoff they else cost much time."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


class TrainingFailedError(SystemExit):
    """`hienet train` ended with an error; uncaught, it ends the benchmark with that."""


def train_once(values: Mapping[str, Any], output: Path, quiet: bool = False) -> tuple[dict[str, Any], bool]:
    """Train by `hienet train` into a folder, or go on with what was interrupted there.

    Args:
        values: configuration, without `output`; it is kept beside the folder, `output.yaml`.
        output: folder.
        quiet: show what the program prints only if it fails.

    Returns:
        What it says of the finished run, and whether that had been finished before.

    Raises:
        TrainingFailedError: it failed.
        SystemExit: what lies in the folder was trained in another way.
    """
    config = output.with_name(f"{output.name}.yaml")
    text = yaml.safe_dump({**values, "output": str(output)})
    if config.exists() and config.read_text() != text:
        raise SystemExit(f"`{config}` says something else than this command would; take another folder, or remove it")
    results = output / "results.json"
    finished = results.exists()
    if not finished:
        with atomic_path(config) as temporary:
            temporary.write_text(text)
        command = [sys.executable, "-m", "hienet", "train", str(config)]
        command += ["--resume"] if (output / "last.pt").exists() else []
        environment = {**os.environ, "OMP_NUM_THREADS": str(values["training"]["threads"])}
        process = subprocess.run(command, capture_output=quiet, text=True, env=environment)
        if process.returncode != 0:
            said = f":\n{(process.stdout + process.stderr).strip()[-2000:]}" if quiet else ""
            raise TrainingFailedError(f"the training `{output.name}` failed{said}")
    return dict(json.loads(results.read_text())), finished


def chosen(names: Iterable[str], patterns: Sequence[str], kind: str) -> list[str]:
    """The names that match one of the patterns of `--only`.

    Args:
        names: all there are.
        patterns: as a shell has them.
        kind: what a name is one of, for the message.

    Raises:
        SystemExit: none of them does.
    """
    names = list(names)
    found = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    if not found:
        raise SystemExit(f"no {kind} is called like {', '.join(patterns)}; there are: {', '.join(names)}")
    return found


# Turns


@dataclass
class Turns:
    """What contenders needed when they took turns.

    Attributes:
        seconds: of one evaluation, for each contender, round by round.
        cpu_seconds: of the process in one evaluation, likewise.
        probe: billions of operations a second of a matrix product before each round: falls when others use the machine.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    cpu_seconds: dict[str, list[float]] = field(default_factory=dict)
    probe: list[float] = field(default_factory=list)

    def median(self, name: str) -> float:
        """Seconds of an evaluation."""
        return statistics.median(self.seconds[name])

    def ratios(self, slow: str, fast: str) -> list[float]:
        """How many times as long, round by round."""
        return [a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True)]

    def cpu_ratio(self, slow: str, fast: str) -> float:
        """The same of the time of the processor, all threads together."""
        return statistics.median(a / b for a, b in zip(self.cpu_seconds[slow], self.cpu_seconds[fast], strict=True))

    def ratio(self, slow: str, fast: str) -> float:
        """How many times as long, as the median over rounds."""
        return statistics.median(self.ratios(slow, fast))


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """In another order in each turn, so that nobody is always the first."""
    start = turn % len(names)
    return [*names[start:], *names[:start]]


def in_turns(contenders: Mapping[str, Work], rounds: int, seconds_each: float = 0.5, warm_up: int = 2) -> Turns:
    """Measure contenders in interleaved rounds, the order rotated from one to the next.

    Args:
        contenders: what to measure.
        rounds: number of rounds.
        seconds_each: a contender repeats its work within its turn until this time is over, and the mean counts.
        warm_up: evaluations of each before the first round.
    """
    turns = Turns({name: [] for name in contenders}, {name: [] for name in contenders})
    for work in contenders.values():
        for _ in range(warm_up):
            work()
    for i in range(rounds):
        turns.probe.append(multiplication_rate(512, 0.02))
        for name in rotated(list(contenders), i):
            count, begin, cpu_begin = 0, time.perf_counter(), time.process_time()
            while count == 0 or time.perf_counter() - begin < seconds_each:
                contenders[name]()
                count += 1
            turns.seconds[name].append((time.perf_counter() - begin) / count)
            turns.cpu_seconds[name].append((time.process_time() - cpu_begin) / count)
    return turns


def multiplication_rate(size: int = 1024, seconds: float = 0.3) -> float:
    """Billions of float32 operations a second in products of square matrices, with the present number of threads."""
    a, b = torch.randn(2, size, size)
    out = torch.empty(size, size)
    torch.mm(a, b, out=out)
    return 2e-9 * size**3 / _best_time(lambda: torch.mm(a, b, out=out), seconds)


def triad_bandwidth(seconds: float = 0.5) -> float:
    """Billions of bytes a second of a = b + s c in float32: two streams read, one written."""
    n = 1 << 25
    a, b, c = torch.zeros(3, n).unbind()
    return 12e-9 * n / _best_time(lambda: torch.add(b, c, alpha=3.0, out=a), seconds)


def _best_time(work: Work, seconds: float) -> float:
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
    return best


# Memory


def peak_memory(name: str, path: Path, system: str, threads: int) -> float:
    """Bytes by which one evaluation raises the resident set, in a process of its own (memory.py says how)."""
    command = [sys.executable, str(ROOT / "peak_memory.py"), name, str(path), system, str(threads)]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode != 0:
        raise SystemExit(f"the memory of `{name}` on `{system}` was not measured:\n{process.stderr.strip()[-2000:]}")
    return float(json.loads(process.stdout)["bytes"])


# Reports


def parser(description: str | None, rounds: int = 7) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    result = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    result.add_argument("--preset", default="paper", help="of the architecture hienet [default: paper]")
    result.add_argument("--rounds", type=int, default=rounds, help=f"[default: {rounds}]")
    result.add_argument("--json", type=Path, help="file to write")
    return result


def machine() -> dict[str, object]:
    """Where and with what it was measured."""
    packages = ("hienet", "torch", "e3nn", "numpy", "ase")
    return {
        "cpu": cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "commit": _commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "load": os.getloadavg()[0],
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def cpu_name() -> str:
    """As Linux calls it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    """Of this checkout; with `+` where files are changed; empty outside git."""
    found = [
        subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True).stdout.strip()
        for arguments in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
    ]
    return found[0] + ("+" if found[1] else "")


def console() -> Console:
    """Wide enough for the tables, also where there is no terminal."""
    terminal = Console()
    return terminal if terminal.width >= 140 else Console(width=140)


def write_json(path: Path | None, result: Mapping[str, object]) -> None:
    """The whole file or none of it; nothing without a path."""
    if path is not None:
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n")
