"""The ablation of HIENet's paper: error against throughput, with and without invariant and equivariant layers, and
with and without parity.

    ablation.py train FOLDER --mlearn DATA    # trains what is not yet trained; hours on one core
    ablation.py measure FOLDER                # steps a second of every trained model, deployed
    ablation.py report FOLDER --plot P.png    # the tables, the plot
    ablation.py train FOLDER --parity --mlearn DATA --minutes 20    # twelve trainings of twenty minutes each

All models of a data set are trained on the same frames, for the same number of epochs, with the same batches, schedule
and loss, and the weights of the last epoch count: nothing is selected, and nothing depends on the speed of the machine.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from ablation_plan import ARCHITECTURES, SI_EVERY, SYSTEMS, Training, configuration, trainings, write_data
from common import (
    console,
    deploy,
    evaluation,
    force_error,
    in_turns,
    load_contender,
    machine,
    set_threads,
    train_once,
    write_json,
)
from rich.table import Table
from structures import structure

from hienet.calculator import LoadedModel, load_model
from hienet.config import parse_config
from hienet.data.prepare import prepare_data
from hienet.files import atomic_path
from hienet.models.factory import build_model
from hienet.train.loop import Trainer

# Training


def train(arguments: argparse.Namespace) -> None:
    """Train what is chosen and not yet finished."""
    chosen = [
        one
        for one in trainings()
        if one.system in arguments.systems
        and any(fnmatch.fnmatch(one.name, pattern) for pattern in arguments.only)
        and (one.concerns_parity or not arguments.parity)
        and not (one.equal_cost and not arguments.parity)
    ]
    if arguments.minutes is not None and not arguments.parity:
        raise SystemExit("--minutes is for the trainings with and without parity; give --parity with it")
    if not chosen:
        raise SystemExit(f"no training is called like {', '.join(arguments.only)}; `--list` names them all")
    if arguments.list:
        print("\n".join(one.name for one in chosen))
        return
    data = arguments.folder / "data"
    for system in sorted({one.system for one in chosen}):
        write_data(system, data, arguments.mlearn)
    if arguments.parity:
        costs = costs_of_epochs(arguments.folder, sorted({one.system for one in chosen}))
        arguments.epochs_of = {one.name: epochs_at_equal_cost(one, costs[one.system], arguments) for one in chosen}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for name, seconds in pool.map(lambda one: train_one(one, arguments), chosen):
            print(f"{name}: " + ("finished before" if seconds is None else f"{seconds:.0f} s"), flush=True)


def train_one(training: Training, arguments: argparse.Namespace) -> tuple[str, float | None]:
    """Name and seconds of the training; None if it had been finished before.

    Raises:
        SystemExit: it failed, or what lies in the folder was trained in another way.
    """
    values = parse_config(configuration(training, arguments.folder, epochs_for(training, arguments))).model_dump(
        mode="json"
    )
    del values["output"]
    results, finished = train_once(values, arguments.folder / training.name, quiet=True)
    return training.name, None if finished else results["seconds"]


def epochs_for(training: Training, arguments: argparse.Namespace) -> int | None:
    """Those of the command line; None for the system's own."""
    return arguments.epochs_of[training.name] if arguments.parity else arguments.epochs


def epochs_at_equal_cost(training: Training, cost: Mapping[str, float], arguments: argparse.Namespace) -> int:
    """How long a model is trained that is compared with and without parity."""
    epochs = arguments.epochs or SYSTEMS[training.system].epochs
    if arguments.minutes is not None:
        epochs = max(1, int(60.0 * arguments.minutes / cost["seconds_of_epoch"]))
    return round(epochs * cost["ratio"]) if training.equal_cost else int(epochs)


def costs_of_epochs(folder: Path, systems: Sequence[str]) -> dict[str, dict[str, float]]:
    """For each system what an epoch costs: `seconds_of_epoch` of the model without parity, and the `ratio` of that to
    the model with it. Measured in turns on one thread, CPU time, and kept in the folder: epochs follow from it.

    `hienet train` needs a little more than these seconds: it also writes models and logs.
    """
    path = folder / "cost.json"
    found: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    for system in systems:
        if system not in found:
            found[system] = cost_of_epoch(system, folder)
            write_json(path, found)
        cost = found[system]
        print(
            f"{system}: an epoch without parity takes {cost['seconds_of_epoch']:.3g} s of one thread, "
            f"{cost['ratio']:.3f} times what it takes with parity",
            flush=True,
        )
    return found


def cost_of_epoch(system: str, folder: Path, rounds: int = 9) -> dict[str, float]:
    """As `costs_of_epochs`, of one system."""
    set_threads(1)
    works: dict[str, Callable[[], object]] = {}
    for label in ("hienet", "hienet-o3"):
        (training,) = [one for one in trainings() if one.name == f"{system}-{label}-medium-0"]
        config = parse_config(configuration(training, folder, None))
        data = prepare_data(config.data, config.model, torch.float32, config.training.seed)
        model = build_model("hienet", data.model, config.training.seed).float()
        works[label] = training_steps(Trainer(model, data.train, None, config.training))
    turns = in_turns(works, rounds, seconds_each=0.0, warm_up=1)
    without, with_parity = works
    measured = min(len(data.train), STEPS_MEASURED * config.training.batch_size)
    return {
        "seconds_of_epoch": statistics.median(turns.cpu_seconds[without]) * len(data.train) / measured,
        "ratio": turns.cpu_ratio(without, with_parity),
    }


STEPS_MEASURED = 20
"""Steps of training in one turn, of frames all over the data set."""


def training_steps(trainer: Trainer) -> Callable[[], object]:
    """A function that makes some steps on the same frames each time; it trains the model all the while."""
    size, n = trainer.settings.batch_size, len(trainer.train)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).tolist()

    def work() -> None:
        trainer.model.train()
        for start in range(0, min(n, STEPS_MEASURED * size), size):
            trainer._step(order[start : start + size])

    return work


def read_results(folder: Path) -> dict[str, Any]:
    """What `hienet train` says of a finished run."""
    return dict(json.loads((folder / "results.json").read_text()))


def finished(folder: Path) -> list[Training]:
    """The trainings in the folder that have come to their end.

    Raises:
        SystemExit: there are none.
    """
    found = [training for training in trainings() if (folder / training.name / "results.json").exists()]
    if not found:
        raise SystemExit(f"there is no finished training in `{folder}`; begin with: ablation.py train {folder}")
    return found


# Throughput


def measure(arguments: argparse.Namespace) -> None:
    """Deploy one model of each kind, compare its forces with its source's, measure all of a system in turns."""
    models = {training.model: training for training in reversed(finished(arguments.folder))}
    set_threads(arguments.threads)
    rows: dict[str, dict[str, Any]] = {}
    probes = {}
    for name in sorted({training.system for training in models.values()}):
        atoms = structure(f"{name}{arguments.atoms}" if arguments.atoms else SYSTEMS[name].measured)
        works = {}
        for model, training in sorted(models.items()):
            if training.system == name:
                loaded, error = deployed(arguments.folder / training.name / "best.pt", f"{name}8")
                rows[model] = {"max_force_error_ev_per_angstrom": error, "operators": loaded.info["operators"]}
                works[model] = evaluation("deployed", loaded, atoms)
        turns = in_turns(works, arguments.rounds, arguments.seconds, warm_up=1)
        probes[name] = turns.probe
        for model in works:
            rows[model]["n_atoms"] = len(atoms)
            rows[model]["steps_per_second"] = 1.0 / turns.median(model)
            rows[model]["seconds"] = turns.seconds[model]
            rows[model]["cpu_seconds"] = turns.cpu_seconds[model]
    result = {
        "benchmark": "ablation",
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "probe_gflops": probes,
        "models": rows,
        "machine": machine(),
    }
    write_json(arguments.folder / "throughput.json", result)
    for model, row in sorted(rows.items()):
        print(f"{model}: {row['steps_per_second']:.3g} steps/s")


def deployed(source: Path, system: str) -> tuple[LoadedModel, float]:
    """The compiled model in float32, and the largest error of its forces on a structure (eV/Å)."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "model.pt"
        checkpoint.symlink_to(source.resolve())
        model = load_contender("deployed", deploy(checkpoint)["deployed"])
    return model, force_error(load_model(source), "deployed", model, structure(system))


# Report


def report(arguments: argparse.Namespace) -> None:
    """Tables, JSON and plot of what has been trained and measured."""
    rows = summary(arguments.folder)
    for system in SYSTEMS:
        print_table([row for row in rows if row["system"] == system], SYSTEMS[system].title)
    write_json(arguments.json, {"benchmark": "ablation", "models": rows})
    if arguments.plot is not None:
        draw(rows, arguments.plot)


ERRORS = {
    "energy_mae_mev_per_atom": "energy MAE, meV/atom",
    "forces_mae_mev_per_angstrom": "force MAE, meV/Å",
    "forces_rmse_mev_per_angstrom": "force RMSE, meV/Å",
    "stress_mae_gpa": "stress MAE, GPa",
}


def summary(folder: Path) -> list[dict[str, Any]]:
    """For every model its errors, each a list with one for each seed, and its throughput, None if not measured."""
    path = folder / "throughput.json"
    measured = json.loads(path.read_text())["models"] if path.exists() else {}
    rows: dict[str, dict[str, Any]] = {}
    for training in finished(folder):
        results = read_results(folder / training.name)
        row = rows.setdefault(
            training.model,
            {
                "system": training.system,
                "label": training.label,
                "size": training.size,
                "model": dict(training.values),
                "seeds": [],
                "test": {key: [] for key in ERRORS},
                "train": {key: [] for key in ERRORS},
                "epochs": [],
                "training_seconds": [],
                "steps_per_second": measured.get(training.model, {}).get("steps_per_second"),
            },
        )
        row["seeds"].append(training.seed)
        row["epochs"].append(results["epochs"])
        row["training_seconds"].append(results["seconds"])
        for part in ("test", "train"):
            for key in ERRORS:
                row[part][key].append(results["errors"][part][key])
    return list(rows.values())


def print_table(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """A row for each model: means over seeds, and half of the distance between the largest and the smallest."""
    if not rows:
        return
    table = Table("model", "size", "seeds", "epochs", "steps/s", *ERRORS.values(), "training's force MAE", title=title)
    for row in rows:
        speed = row["steps_per_second"]
        table.add_row(
            row["label"],
            row["size"],
            str(len(row["seeds"])),
            " ".join(str(value) for value in sorted(set(row["epochs"]))),
            "" if speed is None else f"{speed:.3g}",
            *(_with_spread(row["test"][key]) for key in ERRORS),
            _with_spread(row["train"]["forces_mae_mev_per_angstrom"]),
        )
    console().print(table)


def _with_spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.3g}"
    return mean if len(values) == 1 else f"{mean} ± {0.5 * (max(values) - min(values)):.2g}"


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Force error against throughput, a panel for each system: a line joins the sizes of an architecture, a bar the
    seeds of a model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import ScalarFormatter

    key = "forces_mae_mev_per_angstrom"
    rows = [row for row in rows if row["label"] in ARCHITECTURES and row["steps_per_second"] is not None]
    systems = [name for name in SYSTEMS if any(row["system"] == name for row in rows)]
    if not systems:
        raise SystemExit("no architecture has been trained and measured, so that there is nothing to draw")
    width = 0.8 + 4.2 * len(systems)
    figure, axes = pyplot.subplots(1, len(systems), figsize=(width, 3.8), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], systems, strict=True):
        for i, label in enumerate(ARCHITECTURES):
            found = [row for row in rows if (row["system"], row["label"]) == (name, label)]
            found.sort(key=lambda row: row["steps_per_second"])
            means = [statistics.mean(row["test"][key]) for row in found]
            below = [mean - min(row["test"][key]) for mean, row in zip(means, found, strict=True)]
            above = [max(row["test"][key]) - mean for mean, row in zip(means, found, strict=True)]
            speeds = [row["steps_per_second"] for row in found]
            axis.errorbar(
                speeds, means, [below, above], marker="os^Dv"[i], markersize=6, capsize=3, linewidth=1, label=label
            )
        axis.set(title=SYSTEMS[name].title, xlabel="steps/s, 512 atoms, 1 thread", xscale="log", yscale="log")
        for one in (axis.xaxis, axis.yaxis):
            one.set_major_formatter(ScalarFormatter())
            one.set_minor_formatter(ScalarFormatter())
        axis.grid(alpha=0.3, which="both")
    axes[0, 0].set_ylabel("force MAE of test frames, meV/Å")
    axes[0, 0].legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
    pyplot.close(figure)


def main() -> None:
    """One of the three commands."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for function in (train, measure, report):
        lines = (function.__doc__ or "").splitlines()
        command = commands.add_parser(function.__name__, help=lines[0], description=lines[0])
        command.set_defaults(function=function)
        command.add_argument("folder", type=Path, metavar="FOLDER", help="of trainings")
        if function is train:
            command.add_argument(
                "--mlearn",
                type=Path,
                help=f"folder of Si-training.json, of which every {SI_EVERY}th frame is used, and Si-test.json",
            )
            command.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS), help="not all")
            command.add_argument(
                "--only", nargs="+", default=["*"], help="names of trainings, such as 'sic-*-medium-0'"
            )
            command.add_argument("--epochs", type=int, help="in place of the systems' own")
            command.add_argument(
                "--parity",
                action="store_true",
                help="only the trainings of HIENet with and without parity: of the same number of epochs, and with "
                "parity also of as many as cost what those without do",
            )
            command.add_argument(
                "--minutes",
                type=float,
                help="with --parity, in place of epochs: about so long a training without parity takes on one thread",
            )
            command.add_argument("--jobs", type=int, default=1, help="trainings at a time [default: 1]")
            command.add_argument("--list", action="store_true", help="name the trainings, and do nothing")
        elif function is measure:
            command.add_argument("--rounds", type=int, default=7, help="[default: 7]")
            command.add_argument("--seconds", type=float, default=0.5, help="of a model in a round [default: 0.5]")
            command.add_argument("--threads", type=int, default=1, help="[default: 1]")
            command.add_argument("--atoms", type=int, help="in place of 512")
        else:
            command.add_argument("--json", type=Path, help="file to write")
            command.add_argument("--plot", type=Path, help="PNG to draw")
    arguments = parser.parse_args()
    arguments.function(arguments)


if __name__ == "__main__":
    main()
