"""Optimizer steps of training: eager e3nn, plain torch and the fused steps, in turns, on the same batch.

A step is what `hienet train` does with a batch: energies, forces and stress, the loss, gradients of all weights, AdamW,
and the moving average of the weights. Dropout is off, so that all contenders compute the same.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import ROOT, console, in_turns, machine, parser, random_checkpoint, set_threads, write_json
from memory import peak_growth
from rich.table import Table
from structures import structure
from torch import Tensor, nn

from hienet.checkpoint import load_checkpoint
from hienet.data.dataset import Targets
from hienet.derivatives import EnergyFunction, predict
from hienet.graph import AtomicGraph, batch_graphs, graph_from_atoms
from hienet.models.factory import ARCHITECTURES
from hienet.models.hienet import HIENet
from hienet.ops.fused_training import fused_training, has_fused_training
from hienet.train.ema import MovingAverage
from hienet.train.loss import Loss, LossSettings, training_loss

Step = Callable[..., object]
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0}


def main() -> None:
    """Measure one preset of one architecture."""
    options = parser(__doc__, rounds=5)
    options.add_argument("--architecture", default="hienet", choices=list(ARCHITECTURES), help="[default: hienet]")
    options.add_argument("--frames", type=int, default=4, help="of a batch [default: 4]")
    options.add_argument("--atoms", type=int, default=16, help="of a frame of SiC [default: 16]")
    options.add_argument("--threads", type=int, default=2, help="[default: 2]")
    options.add_argument("--seconds", type=float, default=1.0, help="of a contender in a round [default: 1]")
    options.add_argument("--contenders", nargs="+", default=["eager", "plain", "fused"], help="[default: all]")
    options.add_argument("--memory-of", help="print the bytes by which a step of this contender grows, and end")
    arguments = options.parse_args()
    set_threads(arguments.threads)
    if arguments.memory_of:
        works, _ = steps(arguments, [arguments.memory_of])
        step = works[arguments.memory_of]
        print(json.dumps({"bytes": peak_growth(step, lambda: step(small=True))}))
        return
    names = [name for name in arguments.contenders if name != "eager" or arguments.architecture == "hienet"]
    works, error = steps(arguments, names)
    turns = in_turns(works, arguments.rounds, arguments.seconds, warm_up=1)
    n_atoms = arguments.frames * arguments.atoms
    result: dict[str, Any] = {
        "benchmark": "training",
        "architecture": arguments.architecture,
        "preset": preset_of(arguments),
        "n_atoms": n_atoms,
        "neighbors": batch(("C", "Si"), 5.0, arguments).center.shape[0] / n_atoms,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "probe_gflops": turns.probe,
        "largest_gradient_error": error,
        "seconds": turns.seconds,
        "machine": machine(),
    }
    for name in names:
        result[f"{name}_ms_per_atom"] = 1e3 * turns.median(name) / n_atoms
        result[f"{name}_mb_per_atom"] = memory(arguments, name) / 1e6 / n_atoms
    for name in names[:-1]:
        result[f"{name}_over_{names[-1]}"] = turns.ratio(name, names[-1])
    report(result, names)
    write_json(arguments.json, result)


def steps(arguments: Any, names: list[str]) -> tuple[dict[str, Step], float]:
    """A step of each contender, and the largest error of a gradient of the fused one: relative to the largest entry of
    the gradient of each weight, against plain torch in float64 (NaN if that is not among them)."""
    values = {
        key: value
        for key, value in NO_DROPOUT.items()
        if key in ARCHITECTURES[arguments.architecture].config.model_fields
    }
    with tempfile.TemporaryDirectory() as folder:
        path = random_checkpoint(Path(folder), preset_of(arguments), ("C", "Si"), arguments.architecture, **values)
        checkpoint = load_checkpoint(path)
    graph = batch(checkpoint.config.elements, checkpoint.config.cutoff, arguments)
    targets = labels(graph, arguments.frames)
    works: dict[str, Step] = {}
    error = float("nan")
    for name in names:
        model = checkpoint.build(torch.float32).train().requires_grad_(True)
        if name == "eager":
            from eager import EagerHIENet

            source = checkpoint.build(torch.float64)
            assert isinstance(source, HIENet)
            model = EagerHIENet.from_model(source).float().train()
        energy: EnergyFunction = model
        if name == "fused":
            if not has_fused_training(model):
                raise SystemExit(f"`{arguments.architecture}` has no form for fused training; expected one that has")
            energy = fused_training(model)
            error = gradient_error(checkpoint.build(torch.float64), energy, model, graph, targets)
        works[name] = step_of(energy, model, graph.to(dtype=torch.float32), targets)
    return works, error


def preset_of(arguments: Any) -> str:
    """That which is asked for, of `hienet`; of another architecture its first."""
    if arguments.architecture == "hienet":
        return str(arguments.preset)
    return next(iter(ARCHITECTURES[arguments.architecture].presets))


def batch(elements: tuple[str, ...], cutoff: float, arguments: Any) -> AtomicGraph:
    """Frames of rattled SiC, all different."""
    graphs = []
    for i in range(arguments.frames):
        atoms = structure(f"sic{arguments.atoms}")
        atoms.rattle(0.1, seed=i + 1)
        graphs.append(graph_from_atoms(atoms, elements, cutoff))
    return batch_graphs(graphs)


def labels(graph: AtomicGraph, n_frames: int) -> Targets:
    """Random ones, of the size of real ones."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    n_atoms = torch.bincount(graph.structure).double()
    weights = torch.ones(n_frames, 3, dtype=torch.float64)
    return Targets(normal(n_frames).double(), n_atoms, normal(graph.n_local, 3), 0.01 * normal(n_frames, 6), weights)


def loss_of(energy: EnergyFunction, graph: AtomicGraph, targets: Targets) -> Loss:
    """Of a batch, with the default weights."""
    return training_loss(predict(energy, graph, training=True), targets, LossSettings())


def step_of(energy: EnergyFunction, model: nn.Module, graph: AtomicGraph, targets: Targets) -> Step:
    """A function that makes one optimizer step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    average = MovingAverage(model, 0.99)
    # The optimizer's state does not belong to a step; a small batch makes it.
    keep = graph.center < 2
    tiny = (
        replace(graph, center=graph.center[keep], neighbor=graph.neighbor[keep], edge_vectors=graph.edge_vectors[keep]),
        targets,
    )

    def step(small: bool = False) -> object:
        optimizer.zero_grad(set_to_none=True)
        loss_of(energy, *(tiny if small else (graph, targets))).total.backward()
        optimizer.step()
        average.update(model)
        return None

    return step


def gradient_error(
    reference: nn.Module, energy: EnergyFunction, model: nn.Module, graph: AtomicGraph, targets: Targets
) -> float:
    """Largest error of an entry of a gradient, relative to the largest entry of that weight's gradient."""
    reference = copy.deepcopy(reference).train().requires_grad_(True)
    exact = replace(targets, forces=targets.forces.double(), stress=targets.stress.double())
    loss_of(reference, graph, exact).total.backward()
    loss_of(energy, graph.to(dtype=torch.float32), targets).total.backward()
    worst = 0.0
    for expected, found in zip(reference.parameters(), model.parameters(), strict=True):
        if expected.grad is None or found.grad is None:
            continue
        scale = float(expected.grad.abs().max())
        if scale > 0.0:
            worst = max(worst, float((found.grad.double() - expected.grad).abs().max()) / scale)
    model.zero_grad(set_to_none=True)
    return worst


def memory(arguments: Any, name: str) -> float:
    """Bytes by which a step raises the resident set, weights and optimizer excluded, in a process of its own."""
    command = [sys.executable, str(ROOT / "training.py"), "--memory-of", name]
    for option in ("architecture", "preset", "frames", "atoms", "threads"):
        command += [f"--{option}", str(getattr(arguments, option))]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode != 0:
        raise SystemExit(f"the memory of `{name}` was not measured:\n{process.stderr.strip()[-2000:]}")
    return float(json.loads(process.stdout)["bytes"])


def report(result: dict[str, Any], names: list[str]) -> None:
    """A row for each contender."""
    table = Table(
        *("contender", "ms/atom", "steps/s", "MB/atom", "times as fast as it"),
        title=f"a training step of {result['architecture']} ({result['preset']}): {result['n_atoms']} atoms, "
        f"{result['neighbors']:.0f} neighbours, float32, {result['threads']} thread(s); "
        f"largest error of a gradient {result['largest_gradient_error']:.1e}",
    )
    for name in names:
        time = result[f"{name}_ms_per_atom"]
        ratio = result.get(f"{name}_over_{names[-1]}")
        table.add_row(
            name,
            f"{time:.3g}",
            f"{1e3 / time / result['n_atoms']:.3g}",
            f"{result[f'{name}_mb_per_atom']:.2f}",
            "" if ratio is None else f"{ratio:.1f}",
        )
    console().print(table)


if __name__ == "__main__":
    main()
