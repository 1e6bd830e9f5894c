"""Error against cost: what a force error costs in simulation, for sizes and architectures of HIENet, and for what other
packages train from the same frames in the same time, each by its own program.

    error_against_cost.py train FOLDER --minutes 5 --mlearn DATA    # trains what is not yet trained, on one thread
    error_against_cost.py measure FOLDER                            # microseconds an atom of every trained model
    error_against_cost.py report FOLDER --plot P.png                # tables, picture

Every training has the same frames, one thread and the same minutes, of the clock, so nothing else may run on its core.
No frame is set apart to choose by. The time of a simulation is that of energy, forces and stress of 512 atoms on one
thread: HIENet's models deployed, SevenNet and MACE in the fastest form of their packages that runs on a CPU, MACE by
Symmetrix-XL too.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import yaml
from ablation_plan import SYSTEMS, write_data
from common import ROOT, TrainingFailedError, chosen, console, deploy, machine, train_once, write_json
from peer_programs import PROGRAMS
from peers import PeerError, Worker, add_worker_options, environment, fastest, rounds
from rich.table import Table

from hienet.files import atomic_path
from hienet.models.hienet import few_elements

RECIPE = ROOT / "zuo2020" / "recipe.yaml"
"""HIENet's models are trained by it, apart from the model and the time."""


@dataclass(frozen=True)
class Contender:
    """What is trained.

    Attributes:
        program: `hienet`, or one of `peer_programs.PROGRAMS`.
        values: `model` section of our configuration; size of a peer's model.
        engines: kinds of `peer_worker.py` that evaluate it.
        training: what differs from the recipe's training, where the model needs it.
    """

    program: str
    values: Mapping[str, Any] = field(default_factory=dict)
    engines: tuple[str, ...] = ("hienet",)
    training: Mapping[str, Any] = field(default_factory=dict)


CONTENDERS = {
    "hienet 16": Contender("hienet", {"preset": "small", **few_elements(16, 8, 4)}),
    "hienet small": Contender("hienet", {"preset": "small"}),
    "hienet medium": Contender("hienet", {"preset": "medium"}),
    "hienet large": Contender("hienet", {"preset": "large"}),
    **{
        f"{name} small": Contender("hienet", {"architecture": name, "preset": "small"})
        for name in ("invnet", "sevennet", "botnet", "nemp")
    },
    # With the recipe's learning rate of 0.01 and batches of one frame it diverges.
    "geodite small": Contender(
        "hienet",
        {"architecture": "geodite", "preset": "small"},
        training={"learning_rate": 0.002, "gradient_clip": 1.0},
    ),
    "SevenNet base": Contender("sevenn", {}, ("sevenn",)),
    "MACE 64x0e": Contender("mace", {"hidden_irreps": "64x0e"}, ("mace", "symmetrix")),
    "MACE 128x0e+128x1o": Contender("mace", {"hidden_irreps": "128x0e + 128x1o"}, ("mace", "symmetrix")),
    # Nonlinear ACE; the sizes that its package calls small and medium.
    "ACE small": Contender(
        "grace",
        {
            "max_order": 3,
            "lmax": [5, 5, 4],
            "n_rad_max": [20, 15, 10],
            "embedding_size": 32,
            "fs_parameters": [[1.0, 1.0], [1.0, 0.5]],
        },
        ("grace",),
    ),
    "ACE medium": Contender(
        "grace",
        {
            "max_order": 4,
            "lmax": [5, 5, 4, 3],
            "n_rad_max": [20, 15, 10, 5],
            "embedding_size": 64,
            "fs_parameters": [[1.0, 1.0], [1.0, 0.5], [1.0, 2.0], [1.0, 0.75]],
        },
        ("grace",),
    ),
}
CUTOFF = 5.0
"""Å, of all models."""
ERRORS = ("energy_mae_mev_per_atom", "forces_mae_mev_per_angstrom")
NAMES = {"mace": "by mace-torch", "symmetrix": "by Symmetrix-XL", "sevenn": "by sevenn", "grace": "by tensorpotential"}


# Training


def train(arguments: argparse.Namespace) -> None:
    """Train what is chosen and not yet finished, one after the other."""
    names = chosen(CONTENDERS, arguments.only, "model")
    for system in arguments.systems:
        folder = arguments.folder / system
        data = write_data(system, folder, arguments.mlearn, every=1)
        for name in names:
            output = folder / name.replace(" ", "_")
            if (output / "trained.json").exists():
                print(f"{system}, {name}: finished before", flush=True)
                continue
            contender = CONTENDERS[name]
            print(f"{system}, {name}: {arguments.minutes:g} minutes", flush=True)
            try:
                work = train_hienet if contender.program == "hienet" else train_peer
                found = work(contender, data, output, arguments)
            except (PeerError, TrainingFailedError) as error:
                print(f"{system}, {name} is left out: {error}", flush=True)
                continue
            write_json(output / "trained.json", {"minutes": arguments.minutes, **found})


def train_hienet(
    contender: Contender, data: Mapping[str, Path], output: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    """By `hienet train`, which keeps to the minutes itself.

    Raises:
        TrainingFailedError: it failed.
        SystemExit: what lies in the folder was trained in another way.
    """
    recipe = timed_recipe(data, arguments.minutes, contender.values, {"seed": arguments.seed, **contender.training})
    results, _ = train_once(recipe, output, quiet=True)
    test = results["errors"]["test"]
    return {"model": str(output / "best.pt"), "epochs": results["epochs"], **{name: test[name] for name in ERRORS}}


def timed_recipe(
    data: Mapping[str, Path], minutes: float, model: Mapping[str, Any], training: Mapping[str, Any]
) -> dict[str, Any]:
    """The recipe, as `hienet train` is given it: on one thread, ended by the time; with what a model changes in it."""
    recipe: dict[str, Any] = yaml.safe_load(RECIPE.read_text())
    recipe["model"] |= {"cutoff": CUTOFF, **model}
    recipe["data"] |= {part: str(path) for part, path in data.items()}
    # The time is to end the run, not the epochs.
    recipe["training"] |= {"epochs": 100_000, "max_minutes": minutes, "threads": 1, **training}
    return recipe


def train_peer(
    contender: Contender, data: Mapping[str, Path], output: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    """By the program of its package, for as many epochs as fit.

    Raises:
        PeerError: it cannot be installed, or failed.
    """
    program = PROGRAMS[contender.program]
    python = environment(contender.program, arguments)
    frames: list[ase.Atoms] = ase.io.read(data["train"], ":")  # type: ignore[assignment]
    model, epochs = program.train(
        python, frames, output, CUTOFF, arguments.minutes, arguments.seed, contender.values, one_thread()
    )
    worker = Worker(python, options_of(contender.program, model) | {"mode": "eager"}, arguments.timeout)
    try:
        found = worker.ask("predict", frames=str(data["test"]), references=program.reference_energies(output))
    finally:
        worker.close()
    return {"model": str(model), "epochs": epochs, **errors(found, data["test"])}


def errors(found: Mapping[str, Any], path: Path) -> dict[str, float]:
    """Mean absolute errors of predictions on the frames of a file."""
    frames: list[ase.Atoms] = ase.io.read(path, ":")  # type: ignore[assignment]
    energies = [
        abs(energy - atoms.get_potential_energy()) / len(atoms)
        for energy, atoms in zip(found["energies"], frames, strict=True)
    ]
    forces = [np.array(f) - atoms.get_forces() for f, atoms in zip(found["forces"], frames, strict=True)]
    means = (float(np.mean(energies)), float(np.mean(np.abs(np.concatenate(forces)))))
    return dict(zip(ERRORS, (1e3 * mean for mean in means), strict=True))


def options_of(engine: str, model: Path) -> dict[str, Any]:
    """What `peer_worker.py` is told of a trained model, apart from its mode."""
    return {"kind": engine, "model": str(model), "cutoff": CUTOFF, "threads": 1}


def one_thread() -> dict[str, str]:
    """The environment of a training."""
    libraries = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    tensorflow = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    return {**os.environ, **dict.fromkeys((*libraries, *tensorflow), "1")}


# Cost


def measure(arguments: argparse.Namespace) -> None:
    """Microseconds an atom of all trained models of a system, in turns, each in a process of its own."""
    for system in list(arguments.systems):
        workers: dict[str, Worker] = {}
        failures: dict[str, str] = {}
        structure = f"{system}{arguments.atoms}" if arguments.atoms else SYSTEMS[system].measured
        trained, of_label = finished(arguments.folder / system), dict[str, str]()
        # `fastest` chooses by it.
        arguments.systems = [structure]
        try:
            for name, found in trained.items():
                contender = CONTENDERS[name]
                for engine in contender.engines:
                    label = " ".join([name, *([NAMES[engine]] if engine in NAMES else [])])
                    of_label[label] = name
                    values = options_of(engine, Path(found["model"]))
                    if engine == "hienet":
                        values["file"] = str(deploy(Path(found["model"]))["deployed"])
                    values["elements"] = {"sic": ["C", "Si"], "si": ["Si"]}[system]
                    try:
                        python = environment(engine, arguments)
                        workers[label] = fastest(python, values, arguments, label, failures)
                    except PeerError as error:
                        failures[label] = str(error)
                        print(f"{label} is left out: {error}")
            rows = rounds(workers, structure, arguments)
        finally:
            for worker in workers.values():
                worker.close()
        for row in rows:
            row["trained"] = of_label[row["model"]]
            row["n_parameters"] = workers[row["model"]].description["n_parameters"]
        result = {"benchmark": "error_against_cost", "system": system, "rows": rows, "failures": failures}
        write_json(arguments.folder / system / "cost.json", {**result, "machine": machine()})


def finished(folder: Path) -> dict[str, dict[str, Any]]:
    """What the trainings in the folder came to.

    Raises:
        SystemExit: there are none.
    """
    paths = {name: folder / name.replace(" ", "_") / "trained.json" for name in CONTENDERS}
    found = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    if not found:
        raise SystemExit(f"there is no finished training in `{folder}`; begin with: error_against_cost.py train")
    return found


# Report


def report(arguments: argparse.Namespace) -> None:
    """Tables, JSON and picture of what has been trained and measured."""
    rows = [row for system in arguments.systems for row in summary(arguments.folder / system, system)]
    if not rows:
        raise SystemExit(f"nothing has been measured in `{arguments.folder}`; begin with: error_against_cost.py train")
    for system in arguments.systems:
        table = Table("model", "parameters", "epochs", "energy, meV/atom", "forces, meV/Å", "µs/atom", title=system)
        for row in rows:
            if row["system"] == system:
                table.add_row(
                    row["model"],
                    f"{row['n_parameters']:,}",
                    str(row["epochs"]),
                    f"{row['energy_mae_mev_per_atom']:.3g}",
                    f"{row['forces_mae_mev_per_angstrom']:.3g}",
                    f"{row['us_per_atom']:.3g}",
                )
        console().print(table)
    write_json(arguments.json, {"benchmark": "error_against_cost", "rows": rows, "machine": machine()})
    if arguments.plot is not None:
        draw(rows, arguments.plot)


def summary(folder: Path, system: str) -> list[dict[str, Any]]:
    """Errors and cost of every model of a system that has both."""
    if not (folder / "cost.json").exists():
        return []
    trained, rows = finished(folder), []
    for row in json.loads((folder / "cost.json").read_text())["rows"]:
        found = trained[row["trained"]]
        rows.append(
            {
                "system": system,
                "model": row["model"],
                "mode": row["mode"],
                "n_parameters": row["n_parameters"],
                "us_per_atom": 1e3 * row["ms_per_atom"],
                **{key: value for key, value in found.items() if key != "model"},
            }
        )
    return rows


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Force error against cost, a panel for each system, a line through HIENet's sizes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    systems = list(dict.fromkeys(row["system"] for row in rows))
    figure, axes = pyplot.subplots(
        1, len(systems), figsize=(3.4 + 4.4 * len(systems), 4.6), layout="constrained", squeeze=False
    )
    for axis, system in zip(axes[0], systems, strict=True):
        of_system = [row for row in rows if row["system"] == system]
        sizes = sorted((row for row in of_system if row["model"].startswith("hienet ")), key=_cost)
        others = [row for row in of_system if row not in sizes]
        axis.plot([_cost(row) for row in sizes], [_error(row) for row in sizes], "o-", color="C0", label="HIENet")
        # Above on the left, below on the right, and above on the right: the smallest sizes cost almost the same.
        for i, row in enumerate(sizes):
            place, side = (((-5, 5), "right"), ((5, -11), "left"), ((5, 5), "left"))[min(i, 2)]
            label = row["model"].split(" ", 1)[1]
            axis.annotate(label, (_cost(row), _error(row)), place, ha=side, textcoords="offset points", fontsize=8)
        for i, row in enumerate(others):
            ours = row["mode"] == "deployed"
            axis.plot([_cost(row)], [_error(row)], "s" if ours else "^", color=f"C{1 + i % 9}", label=row["model"])
        axis.set(title=SYSTEMS[system].title.split(",")[0], xlabel="µs/atom, 512 atoms, 1 thread")
        axis.set(xscale="log", yscale="log")
        axis.margins(x=0.07)
        for one in (axis.xaxis, axis.yaxis):
            one.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            one.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            one.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    handles = {
        label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False, fontsize=8)
    axes[0, 0].set_ylabel("force MAE of test frames, meV/Å")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
    pyplot.close(figure)


def _cost(row: Mapping[str, Any]) -> float:
    return float(row["us_per_atom"])


def _error(row: Mapping[str, Any]) -> float:
    return float(row["forces_mae_mev_per_angstrom"])


def main() -> None:
    """One of the three commands."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0].replace("\n", " "))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for function in (train, measure, report):
        line = (function.__doc__ or "").splitlines()[0]
        command = commands.add_parser(function.__name__, help=line, description=line)
        command.set_defaults(function=function)
        command.add_argument("folder", type=Path, metavar="FOLDER", help="of trainings")
        if function is report:
            command.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS), help="not all")
            command.add_argument("--json", type=Path, help="file to write")
            command.add_argument("--plot", type=Path, help="PNG to draw")
            continue
        add_worker_options(command)
        command.set_defaults(systems=list(SYSTEMS), threads=1)
        if function is train:
            command.add_argument("--minutes", type=float, default=5.0, help="of each training [default: 5]")
            command.add_argument("--seed", type=int, default=0, help="[default: 0]")
            command.add_argument("--only", nargs="+", default=["*"], help="names of models, such as 'hienet *'")
            command.add_argument("--mlearn", type=Path, help="folder of Si-training.json and Si-test.json")
        else:
            command.add_argument("--rounds", type=int, default=5, help="[default: 5]")
            command.add_argument("--atoms", type=int, help="in place of 512")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.systems if name not in SYSTEMS]
    if unknown:
        raise SystemExit(f"there is no system `{unknown[0]}`; there are: {', '.join(SYSTEMS)}")
    arguments.folder = arguments.folder.resolve()
    arguments.function(arguments)


if __name__ == "__main__":
    main()
