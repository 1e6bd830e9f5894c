"""What of the recipe matters: trainings that differ in one value, in equal minutes, by errors of validation frames.

    recipe.py train FOLDER --minutes 3 --mlearn DATA --systems si   # trains what is not yet trained, on one thread
    recipe.py report FOLDER                                         # table

The recipe is that of `zuo2020` with a cutoff of 5 Å. Of the training frames 15 % are set apart, the same ones for all;
test frames are not looked at. Nothing else may run on the core of a training.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ase.io
from ablation_plan import SYSTEMS, write_data
from common import TrainingFailedError, chosen, console, machine, train_once, write_json
from error_against_cost import timed_recipe
from rich.table import Table

from hienet.data.split import split_frames
from hienet.files import atomic_path

VALIDATION = 0.15
ERRORS = {
    "energy_mae_mev_per_atom": "energy, meV/atom",
    "forces_mae_mev_per_angstrom": "forces, meV/Å",
    "stress_mae_gpa": "stress, GPa",
}


@dataclass(frozen=True)
class Variant:
    """What is changed in the recipe, in its sections `model` and `training`."""

    model: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


def _irreps(*channels: int) -> dict[str, Any]:
    irreps = "+".join(f"{n}x{l}{'eo'[l % 2]}" for l, n in enumerate(channels))
    return {"equivariant_irreps": [irreps, irreps, f"{channels[0]}x0e"], "l_max": len(channels) - 1}


VARIANTS = {
    "the recipe": Variant(),
    "another seed": Variant(training={"seed": 1}),
    "learning rate 0.005": Variant(training={"learning_rate": 0.005}),
    "learning rate 0.02": Variant(training={"learning_rate": 0.02}),
    "Adam with AMSGrad": Variant(training={"optimizer": "adam", "amsgrad": True, "weight_decay": 0.0}),
    "EMA 0.99": Variant(training={"ema_decay": 0.99}),
    "no EMA": Variant(training={"ema_decay": 0.0}),
    "batches of 4": Variant(training={"batch_size": 4}),
    "Huber from 0.1": Variant(training={"huber_delta": 0.1}),
    "squared errors": Variant(training={"loss": "mse"}),
    "energies weigh 1 to the end": Variant(training={"final_energy_weight": 1.0}),
    "stress weighs 0.001": Variant(training={"stress_weight": 0.001}),
    "stress weighs 0.1": Variant(training={"stress_weight": 0.1}),
    "l up to 1": Variant(_irreps(64, 32)),
    "l up to 3": Variant(_irreps(64, 32, 16, 8)),
    "without parity": Variant({"parity": False, "equivariant_irreps": ["64x0e+32x1e+16x2e"] * 2 + ["64x0e"]}),
    "cutoff not smooth": Variant({"smooth_cutoff": False}),
    "without ZBL": Variant({"zbl": False}),
    "float64": Variant(training={"dtype": "float64"}),
}


def main() -> None:
    """Do what the command says."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = options.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train what is not yet trained")
    training.add_argument("--minutes", type=float, default=3.0, help="of a training [default: 3]")
    training.add_argument("--mlearn", type=Path, help="folder with mlearn's Si-training.json")
    training.add_argument("--only", nargs="+", default=["*"], help="variants, by patterns [default: all]")
    reporting = commands.add_parser("report", help="table of what is trained")
    reporting.add_argument("--json", type=Path, help="write results here")
    for command in (training, reporting):
        command.add_argument("folder", type=Path)
        command.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    arguments = options.parse_args()
    {"train": train, "report": report}[arguments.command](arguments)


def train(arguments: argparse.Namespace) -> None:
    """Train what is chosen and not yet finished, one after the other."""
    names = chosen(VARIANTS, arguments.only, "variant")
    for system in arguments.systems:
        (arguments.folder / system).mkdir(parents=True, exist_ok=True)
        data = split_data(system, arguments.folder / "data", arguments.mlearn)
        for name in names:
            variant = VARIANTS[name]
            values = timed_recipe(data, arguments.minutes, variant.model, {"seed": 0, **variant.training})
            try:
                results, _ = train_once(values, output_of(arguments.folder, system, name), quiet=True)
            except TrainingFailedError as error:
                print(f"{system}, {name} is left out: {error}", flush=True)
                continue
            found = results["errors"]["validation"]
            print(f"{system}, {name}: {found['forces_mae_mev_per_angstrom']:.1f} meV/Å", flush=True)


def split_data(system: str, folder: Path, mlearn: Path | None) -> dict[str, Path]:
    """Files of frames to train on and to validate, drawn in proportion from all kinds of the training frames."""
    paths = {part: folder / f"{system}-recipe-{part}.extxyz" for part in ("train", "validation")}
    if not all(path.exists() for path in paths.values()):
        frames = ase.io.read(write_data(system, folder, mlearn, every=1)["train"], ":")
        kinds = [str(frame.info.get("config_type", "")) for frame in frames]
        split = split_frames(kinds, validation=VALIDATION, test=0.0, seed=0)
        for part, indices in (("train", split.train), ("validation", split.validation)):
            with atomic_path(paths[part]) as temporary:
                ase.io.write(temporary, [frames[i] for i in indices], format="extxyz")
    return paths


def output_of(folder: Path, system: str, name: str) -> Path:
    """Folder of a training."""
    return folder / system / name.replace(" ", "_")


def report(arguments: argparse.Namespace) -> None:
    """A table of what is trained for each system, and JSON of all rows."""
    rows: list[dict[str, Any]] = []
    for system in arguments.systems:
        for name in VARIANTS:
            path = output_of(arguments.folder, system, name) / "results.json"
            if path.exists():
                results = json.loads(path.read_text())
                found = results["errors"]["validation"]
                errors = {error: found[error] for error in ERRORS}
                rows.append({"system": system, "variant": name, "epochs": results["epochs"], **errors})
    if not rows:
        raise SystemExit(f"nothing is trained in `{arguments.folder}`; train it first: recipe.py train")
    for system in arguments.systems:
        table = Table("", "epochs", *ERRORS.values(), title=f"{system}: errors of validation frames")
        for row in rows:
            if row["system"] == system:
                errors = (f"{row[error]:.3g}" for error in ERRORS)
                table.add_row(row["variant"], str(row["epochs"]), *errors)
        console().print(table)
    write_json(arguments.json, {"benchmark": "recipe", "rows": rows, "machine": machine()})


if __name__ == "__main__":
    main()
