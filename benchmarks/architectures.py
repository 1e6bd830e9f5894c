"""Architectures and presets on the same structure: the deployed file's steps a second and memory; steps of training.

Every architecture at its default size, unless `--models` names others, such as the same with and without parity:

    architectures.py --models hienet:paper hienet:paper-o3 --training si32 --threads 1
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import torch
from common import (
    Turns,
    console,
    deploy,
    evaluation,
    force_error,
    in_turns,
    load_contender,
    machine,
    parser,
    peak_memory,
    prebuilt_graph,
    random_checkpoint,
    set_threads,
    write_json,
)
from rich.table import Table
from structures import structure

from hienet.calculator import load_model
from hienet.checkpoint import load_checkpoint
from hienet.config import TrainingSection
from hienet.data.dataset import Targets
from hienet.derivatives import predict, to_voigt
from hienet.graph import graph_from_atoms
from hienet.models.factory import ARCHITECTURES
from hienet.nn.equivariant import EquivariantLayer
from hienet.train.engine import choose_engine
from hienet.train.loss import LossSettings, training_loss


def main() -> None:
    """Make models with random weights, compare their forces with the source models', measure in turns."""
    options = parser(__doc__, rounds=5)
    options.add_argument("--system", default="si512", help="[default: si512]")
    options.add_argument("--threads", type=int, default=2, help="[default: 2]")
    options.add_argument("--seconds", type=float, default=1.0, help="of each architecture in a round [default: 1]")
    options.add_argument("--only", nargs="+", choices=list(ARCHITECTURES), default=list(ARCHITECTURES), help="not all")
    options.add_argument("--models", nargs="+", metavar="NAME:PRESET", help="in place of each architecture's default")
    options.add_argument("--training", metavar="SYSTEM", help="also steps of training on a structure, such as si32")
    arguments = options.parse_args()
    set_threads(arguments.threads)
    atoms = structure(arguments.system)
    elements = sorted(set(atoms.symbols))
    with tempfile.TemporaryDirectory() as name:
        rows, works, trainings = {}, {}, {}
        for architecture, preset in chosen_models(arguments):
            key = f"{architecture}:{preset}"
            folder = Path(name) / key
            folder.mkdir()
            checkpoint = random_checkpoint(folder, preset, elements, architecture=architecture)
            file = deploy(checkpoint)["deployed"]
            model = load_contender("deployed", file)
            rows[key] = {
                "architecture": architecture,
                "preset": preset,
                "symmetry": model.info["symmetry"],
                "paths": paths_of(checkpoint),
                "n_parameters": sum(weight.numel() for weight in load_checkpoint(checkpoint).weights.values()),
                "cutoff": model.cutoff,
                "neighbors": prebuilt_graph(model, atoms).center.shape[0] / len(atoms),
                "compiled": bool(model.info["operators"]),
                "peak_mb_per_atom": peak_memory("deployed", file, arguments.system, arguments.threads)
                / 1e6
                / len(atoms),
                "max_force_error_ev_per_angstrom": force_error(
                    load_model(checkpoint), "deployed", model, structure("alloy32" if len(elements) > 1 else "si8")
                ),
            }
            works[key] = evaluation("deployed", model, atoms)
            if arguments.training:
                trainings[key] = training_step(checkpoint, structure(arguments.training))
        turns = in_turns(works, arguments.rounds, arguments.seconds, warm_up=1)
        of_training = in_turns(trainings, arguments.rounds, arguments.seconds, warm_up=1) if trainings else Turns()
    first = next(iter(rows))
    for key, row in rows.items():
        row["steps_per_second"] = 1.0 / turns.median(key)
        row["ms_per_atom"] = 1e3 * turns.median(key) / len(atoms)
        row["first_over_this"] = turns.cpu_ratio(first, key)
        row["seconds"] = turns.seconds[key]
        if trainings:
            row["training_seconds"] = of_training.seconds[key]
            row["training_ms_per_step"] = 1e3 * of_training.median(key)
            row["training_first_over_this"] = of_training.cpu_ratio(first, key)
    result = {
        "benchmark": "architectures",
        "system": arguments.system,
        "n_atoms": len(atoms),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "probe_gflops": turns.probe,
        "training_system": arguments.training,
        "architectures": list(rows.values()),
        "machine": machine(),
    }
    report(result)
    write_json(arguments.json, result)


def chosen_models(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Architecture and preset of each.

    Raises:
        SystemExit: there is no such.
    """
    if arguments.models is None:
        defaults = {name: next(iter(ARCHITECTURES[name].presets)) for name in arguments.only}
        return list({**defaults, **({"hienet": arguments.preset} if "hienet" in defaults else {})}.items())
    chosen = []
    for name in arguments.models:
        architecture, _, preset = name.partition(":")
        if architecture not in ARCHITECTURES or preset not in ARCHITECTURES[architecture].presets:
            raise SystemExit(f"there is no model `{name}`; expected NAME:PRESET as `hienet models` lists them")
        chosen.append((architecture, preset))
    return chosen


def paths_of(checkpoint: Path) -> list[int]:
    """How many paths the tensor products of its equivariant layers have, layer by layer."""
    layers = [part for part in load_checkpoint(checkpoint).build().modules() if isinstance(part, EquivariantLayer)]
    return [len(layer.convolution.paths) for layer in layers]


def training_step(checkpoint: Path, atoms: ase.Atoms) -> Callable[[], object]:
    """A function that makes a step of training on one structure, in float32: loss of energy, forces and stress, its
    derivatives, AdamW. The weights hardly change, so that all steps are alike."""
    model = load_checkpoint(checkpoint).build(torch.float32).train()
    elements = load_checkpoint(checkpoint).config.elements
    graph = graph_from_atoms(atoms, elements, load_checkpoint(checkpoint).config.cutoff, torch.float32)
    found = predict(model, graph)
    assert found.forces is not None
    assert found.stress is not None
    n_atoms = torch.tensor([float(len(atoms))], dtype=torch.float64)
    weights = torch.ones(1, 3, dtype=torch.float64)
    targets = Targets(found.energy + n_atoms, n_atoms, found.forces + 0.1, to_voigt(found.stress) + 0.01, weights)
    energy, _ = choose_engine(model, TrainingSection())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9, fused=True)

    def work() -> None:
        optimizer.zero_grad(set_to_none=True)
        training_loss(predict(energy, graph, training=True), targets, LossSettings()).total.backward()
        optimizer.step()

    return work


def report(result: dict[str, Any]) -> None:
    """A row for each model; `times the first` is how much faster it is, in time of the processor, as the median over
    rounds: other programs on the machine disturb that least."""
    trained = result["training_system"] is not None
    table = Table(
        *(
            "model",
            "symmetry",
            "paths",
            "parameters",
            "cutoff, Å",
            "neighbours",
            "steps/s",
            "ms/atom",
            "MB/atom",
            "compiled",
            "times the first",
            *(("training, ms/step", "times the first") if trained else ()),
        ),
        title=f"energy, forces and stress of {result['n_atoms']} atoms, float32, {result['threads']} thread(s)",
    )
    for row in result["architectures"]:
        table.add_row(
            f"{row['architecture']}, {row['preset']}",
            row["symmetry"],
            " ".join(map(str, row["paths"])),
            f"{row['n_parameters']:,}",
            f"{row['cutoff']:g}",
            f"{row['neighbors']:.0f}",
            f"{row['steps_per_second']:.3g}",
            f"{row['ms_per_atom']:.3g}",
            f"{row['peak_mb_per_atom']:.2f}",
            "yes" if row["compiled"] else "no",
            f"{row['first_over_this']:.2f}",
            *((f"{row['training_ms_per_step']:.3g}", f"{row['training_first_over_this']:.2f}") if trained else ()),
        )
    console().print(table)


if __name__ == "__main__":
    main()
