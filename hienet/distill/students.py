"""Students: small models, trained on what there is by now, each from another seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ase
from rich.console import Console

from hienet.config import parse_config
from hienet.distill import frames as frame_files
from hienet.distill.plan import Plan
from hienet.train.run import Run

DEPLOYED = "student.hienet.pt"
"""Name of a student that is ready; there is none before."""

_ATOMS_AT_A_TIME = 48
"""Atoms in a step of training, about."""


def train(frames: Sequence[ase.Atoms], folder: Path, plan: Plan, minutes: float, seed: int) -> Path:
    """Train a student in a folder, or go on where it was interrupted; returns the deployed file.

    Args:
        frames: with labels.
        folder: for data, model, logs and plots.
        plan: of the distillation.
        minutes: of training.
        seed: of weights and order.

    Raises:
        HIENetError: the training fails.
        InterruptedTrainingError: a signal stopped it.
    """
    from hienet_deploy.export import export

    deployed = folder / DEPLOYED
    if deployed.exists():
        return deployed
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "frames.extxyz"
    if not data.exists():
        frame_files.write(frames, data)
    mean_size = sum(map(len, frames)) / len(frames)
    config = parse_config(
        {
            "model": {"architecture": plan.architecture, "preset": plan.preset, "cutoff": plan.cutoff},
            "data": {"train": str(data), "validation": 0.1},
            "training": {
                "epochs": 100_000,
                "max_minutes": minutes,
                "batch_size": max(1, min(8, round(_ATOMS_AT_A_TIME / mean_size))),
                "ema_decay": 0.99,
                "forces_weight": 1.0,
                "stress_weight": 0.01,
                "seed": seed,
            },
            "output": str(folder / "training"),
        },
        "the configuration of a student",
    )
    training = folder / "training"
    if not (training / "results.json").exists():
        with (folder / "training.txt").open("a", encoding="utf-8") as log:
            Run(config, (training / "last.pt").exists(), Console(file=log, width=200)).train()
    export(training / "best.pt", deployed)
    return deployed
