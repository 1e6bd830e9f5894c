"""The ablation of HIENet's paper: error against throughput, with and without invariant and equivariant layers.

    ablation.py train FOLDER --mlearn DATA    # trains what is not yet trained; hours on one core
    ablation.py measure FOLDER                # steps a second of every trained model, deployed
    ablation.py report FOLDER --plot P.png    # the tables, the plot

All models of a data set are trained on the same frames, for the same number of epochs, with the same batches, schedule
and loss, and the weights of the last epoch count: nothing is selected, and nothing depends on the speed of the machine.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ase
import ase.io
import yaml
from common import (
    ROOT,
    console,
    deploy,
    evaluation,
    force_error,
    in_turns,
    load_contender,
    machine,
    set_threads,
    write_json,
)
from mlearn import read_mlearn
from rich.table import Table
from structures import structure

from hienet.calculator import load_model
from hienet.config import parse_config
from hienet.data.split import split_frames
from hienet.files import atomic_path

# What is compared


@dataclass(frozen=True)
class System:
    """A data set, and how models are trained and measured on it.

    Attributes:
        title: for people.
        cutoff: Å.
        epochs, batch_size: of every training.
        measured: structure of `structures.py` on which throughput is measured.
    """

    title: str
    cutoff: float
    epochs: int
    batch_size: int
    measured: str


SYSTEMS = {
    "sic": System("3C-SiC, 134 frames of 8 atoms", 4.0, 120, 4, "sic512"),
    "si": System("mlearn Si, 54 frames of up to 96 atoms", 5.0, 60, 1, "si512"),
}
SIC_TEST = 0.25
"""Part of the frames of molecular dynamics in demo/data that is set apart, in proportion from all temperatures and
pressures. The other frames are all for training: a single rattled one, of forces above 20 eV/Å, would outweigh all else
in the error."""
SI_EVERY = 4
"""Of mlearn's 214 training frames of silicon every fourth is taken, 54; the test frames are mlearn's own."""

_IRREPS = {"small": "32x0e+16x1e", "medium": "32x0e+16x1e+8x2e"}
SIZES: dict[str, dict[str, object]] = {
    size: {"equivariant_irreps": [irreps, irreps, "32x0e"], "l_max": irreps.count("+")}
    for size, irreps in _IRREPS.items()
}
"""Three equivariant layers of the `small` presets' widths, l up to 1 or up to 2."""
INVNET_SIZES: dict[str, dict[str, object]] = {"small": {"n_layers": 2}, "medium": {"n_layers": 3}}
ARCHITECTURES: dict[str, dict[str, object]] = {
    "invnet": {},
    "hienet": {},
    "eqvnet": {},
    "sevennet": {"species_self_connection": True},
    "inv_sevennet": {"species_self_connection": True},
}
"""SevenNet as in SevenNet-0, with self-connections for each species: without them it is EqvNet."""
ORDERS = ("invariant_first", "alternating", "invariant_last")


@dataclass(frozen=True)
class Training:
    """One model to train.

    Attributes:
        system: key of `SYSTEMS`.
        label: architecture, or `hienet` with number and order of its invariant layers.
        size: `small` or `medium`.
        seed: of weights and of the order of frames, not of the split.
        values: `model` section of the configuration, without what the data set says.
    """

    system: str
    label: str
    size: str
    seed: int
    values: Mapping[str, object] = field(compare=False)

    @property
    def model(self) -> str:
        """Name of what is compared; seeds apart."""
        return f"{self.system}-{self.label}-{self.size}"

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.model}-{self.seed}"


def trainings() -> list[Training]:
    """All of them, the most telling first."""
    row = [_architecture(system, name, "medium", 0) for system in SYSTEMS for name in ARCHITECTURES]
    row += _layers(seed=0)
    row += [_architecture("sic", name, "medium", 1) for name in ARCHITECTURES]
    row += [_architecture(system, name, "small", 0) for system in SYSTEMS for name in ARCHITECTURES]
    row += _layers(seed=1)
    row += [_architecture("sic", name, "small", 1) for name in ARCHITECTURES]
    return row


def _architecture(system: str, name: str, size: str, seed: int) -> Training:
    sizes = INVNET_SIZES if name == "invnet" else SIZES
    values = {"architecture": name, "preset": "small", **sizes[size], **ARCHITECTURES[name]}
    return Training(system, name, size, seed, values)


def _layers(seed: int) -> list[Training]:
    """HIENet by number and order of invariant layers, but for what is among the architectures: none of them is EqvNet,
    and one in front is HIENet."""
    base = _architecture("sic", "hienet", "medium", seed)
    return [
        Training(
            "sic", layers_label(n, order), "medium", seed, base.values | {"n_invariant_layers": n, "layer_order": order}
        )  # type: ignore[operator]
        for n in (1, 2, 3)
        for order in ORDERS
        if (n, order) != (1, "invariant_first")
    ]


def layers_label(n: int, order: str) -> str:
    """Label of a HIENet with so many invariant layers in this order."""
    return {0: "eqvnet"}.get(n) or ("hienet" if (n, order) == (1, "invariant_first") else f"hienet-{n}-{order}")


# Training


def train(arguments: argparse.Namespace) -> None:
    """Train what is chosen and not yet finished."""
    chosen = [
        one
        for one in trainings()
        if one.system in arguments.systems and any(fnmatch.fnmatch(one.name, pattern) for pattern in arguments.only)
    ]
    if not chosen:
        raise SystemExit(f"no training is called like {', '.join(arguments.only)}; `--list` names them all")
    if arguments.list:
        print("\n".join(one.name for one in chosen))
        return
    data = arguments.folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    for system in sorted({one.system for one in chosen}):
        write_data(system, data, arguments.mlearn)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for name, seconds in pool.map(lambda one: train_one(one, arguments), chosen):
            print(f"{name}: " + ("finished before" if seconds is None else f"{seconds:.0f} s"), flush=True)


def write_data(system: str, folder: Path, mlearn: Path | None) -> None:
    """Training and test frames of a system, `SYSTEM-train.extxyz` and `SYSTEM-test.extxyz`, unless they are there."""
    paths = {part: folder / f"{system}-{part}.extxyz" for part in ("train", "test")}
    if all(path.exists() for path in paths.values()):
        return
    frames = silicon_carbide_frames() if system == "sic" else silicon_frames(mlearn)
    for part, path in paths.items():
        with atomic_path(path) as temporary:
            ase.io.write(temporary, frames[part], format="extxyz")


def silicon_carbide_frames() -> dict[str, list[ase.Atoms]]:
    """Training and test frames of demo/data."""
    frames = ase.io.read(ROOT.parent / "demo" / "data" / "sic_pbe.extxyz", ":")
    kinds = [frame.info["config_type"] for frame in frames]
    dynamics = [i for i, kind in enumerate(kinds) if kind.startswith("npt")]
    chosen = split_frames([kinds[i] for i in dynamics], validation=0.0, test=SIC_TEST, seed=0).test
    test = [dynamics[i] for i in chosen]
    return {"train": [frame for i, frame in enumerate(frames) if i not in test], "test": [frames[i] for i in test]}


def silicon_frames(mlearn: Path | None) -> dict[str, list[ase.Atoms]]:
    """Every fourth of mlearn's training frames, and its test frames."""
    if mlearn is None:
        raise SystemExit(
            "silicon needs --mlearn, the folder with mlearn's Si-training.json; or leave it: --systems sic"
        )
    paths = [mlearn / f"Si-{part}.json" for part in ("training", "test")]
    for path in paths:
        if not path.exists():
            raise SystemExit(f"there is no file `{path}`; --mlearn must be the folder with mlearn's data")
    return {"train": read_mlearn(paths[0])[::SI_EVERY], "test": read_mlearn(paths[1])}


def configuration(training: Training, folder: Path, epochs: int | None) -> dict[str, Any]:
    """What `hienet train` is given."""
    system = SYSTEMS[training.system]
    return {
        "model": {**training.values, "cutoff": system.cutoff},
        "data": {
            "train": str(folder / "data" / f"{training.system}-train.extxyz"),
            "validation": 0.0,
            "test": [str(folder / "data" / f"{training.system}-test.extxyz")],
        },
        "training": {
            "epochs": epochs or system.epochs,
            "batch_size": system.batch_size,
            "ema_decay": 0.99,
            "select": "last",
            "seed": training.seed,
            "threads": 1,
        },
        "output": str(folder / training.name),
    }


def train_one(training: Training, arguments: argparse.Namespace) -> tuple[str, float | None]:
    """Name and seconds of the training; None if it had been finished before.

    Raises:
        SystemExit: it failed, or what lies in the folder was trained in another way.
    """
    output = arguments.folder / training.name
    config = output.with_suffix(".yaml")
    text = yaml.safe_dump(
        parse_config(configuration(training, arguments.folder, arguments.epochs)).model_dump(mode="json")
    )
    if config.exists() and config.read_text() != text:
        raise SystemExit(f"`{config}` says something else than this command would; take another folder, or remove it")
    if (output / "results.json").exists():
        return training.name, None
    with atomic_path(config) as temporary:
        temporary.write_text(text)
    command = [sys.executable, "-m", "hienet", "train", str(config)]
    command += ["--resume"] if (output / "last.pt").exists() else []
    process = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if process.returncode != 0:
        raise SystemExit(f"the training `{training.name}` failed:\n{(process.stdout + process.stderr).strip()[-2000:]}")
    return training.name, read_results(output)["seconds"]


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
    set_threads(arguments.threads)
    models = {training.model: training for training in reversed(finished(arguments.folder))}
    rows: dict[str, dict[str, object]] = {}
    probes = {}
    for name, system in SYSTEMS.items():
        works = {}
        atoms = structure(f"{name}{arguments.atoms}" if arguments.atoms else system.measured)
        with tempfile.TemporaryDirectory() as temporary:
            for model, training in sorted(models.items()):
                if training.system != name:
                    continue
                checkpoint = Path(temporary) / f"{model}.pt"
                checkpoint.symlink_to((arguments.folder / training.name / "best.pt").resolve())
                loaded = load_contender("deployed", deploy(checkpoint)["deployed"])
                error = force_error(load_model(checkpoint), "deployed", loaded, structure(f"{name}8"))
                rows[model] = {"max_force_error_ev_per_angstrom": error, "operators": loaded.info["operators"]}
                works[model] = evaluation("deployed", loaded, atoms)
            if not works:
                continue
            turns = in_turns(works, arguments.rounds, arguments.seconds, warm_up=1)
        probes[name] = turns.probe
        for model in works:
            seconds = turns.seconds[model]
            rows[model] |= {
                "steps_per_second": 1.0 / statistics.median(seconds),
                "seconds": seconds,
                "n_atoms": len(atoms),
            }
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
                "training_seconds": [],
                "steps_per_second": measured.get(training.model, {}).get("steps_per_second"),
            },
        )
        row["seeds"].append(training.seed)
        row["training_seconds"].append(results["seconds"])
        for part in ("test", "train"):
            for key in ERRORS:
                row[part][key].append(results["errors"][part][key])
    return list(rows.values())


def print_table(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """A row for each model: means over seeds, and half of the distance between the largest and the smallest."""
    if not rows:
        return
    table = Table("model", "size", "seeds", "steps/s", *ERRORS.values(), "training's force MAE", title=title)
    for row in rows:
        speed = row["steps_per_second"]
        table.add_row(
            row["label"],
            row["size"],
            str(len(row["seeds"])),
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
            command.add_argument("--mlearn", type=Path, help="folder with mlearn's data")
            command.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS), help="not all")
            command.add_argument(
                "--only", nargs="+", default=["*"], help="names of trainings, such as 'sic-*-medium-0'"
            )
            command.add_argument("--epochs", type=int, help="in place of the systems' own")
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
