"""Trainings by the programs of other packages, for error_against_cost.py: as each package's own documentation has it,
for as many epochs as fit into a time."""

from __future__ import annotations

import math
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import yaml
from peers import PeerError

TRIAL_FRAMES = 16
"""An epoch's time is measured on so many frames, spread over all of them, and is proportional to their atoms."""
TRIAL_EPOCHS = (1, 4)


def spread(frames: Sequence[ase.Atoms], number: int) -> list[ase.Atoms]:
    """About so many of the frames, or all if there are fewer, at equal steps."""
    return list(frames[:: max(1, len(frames) // number)])


Run = Callable[[Sequence[ase.Atoms], Path, int], float]
"""Seconds of a training on frames, in a folder, for a number of epochs."""


class Program(ABC):
    """A package's training on the command line."""

    @abstractmethod
    def command(
        self, python: Path, folder: Path, cutoff: float, epochs: int, seed: int, size: Mapping[str, Any]
    ) -> list[str]:
        """A training of `train.extxyz` in the folder, with the labels `REF_energy`, `REF_forces`, `REF_stress`."""

    @abstractmethod
    def model(self, folder: Path) -> Path:
        """The file that it has written there."""

    def reference_energies(self, folder: Path) -> dict[str, float]:
        """Of elements (eV), which are to be added to what the model predicts."""
        return {}

    def write(self, frames: Sequence[ase.Atoms], path: Path) -> None:
        """The frames with labels as the program reads them."""
        with_labels = []
        for frame in frames:
            atoms = ase.Atoms(frame.symbols, frame.positions, cell=frame.cell, pbc=frame.pbc)
            atoms.info["REF_energy"] = frame.get_potential_energy()
            atoms.info["REF_stress"] = frame.get_stress(voigt=False).flatten()
            atoms.arrays["REF_forces"] = frame.get_forces()
            with_labels.append(atoms)
        ase.io.write(path, with_labels, format="extxyz")

    def train(
        self,
        python: Path,
        frames: Sequence[ase.Atoms],
        folder: Path,
        cutoff: float,
        minutes: float,
        seed: int,
        size: Mapping[str, Any],
        environment: Mapping[str, str],
    ) -> tuple[Path, int]:
        """File of the model, and the number of epochs that took so many minutes.

        Raises:
            PeerError: the program failed.
        """

        def run(part: Sequence[ase.Atoms], where: Path, epochs: int) -> float:
            where.mkdir(parents=True, exist_ok=True)
            self.write(part, where / "train.extxyz")
            begin = time.perf_counter()
            process = subprocess.run(
                self.command(python, where, cutoff, epochs, seed, size),
                cwd=where,
                env=dict(environment),
                capture_output=True,
                text=True,
            )
            if process.returncode != 0:
                lines = (process.stdout + process.stderr).strip().splitlines()
                raise PeerError(f"its program failed: {lines[-1] if lines else process.returncode}")
            return time.perf_counter() - begin

        before, of_epoch = self.pace(run, frames)
        epochs = max(1, math.floor((60.0 * minutes - before) / of_epoch))
        run(frames, folder, epochs)
        return self.model(folder), epochs

    def pace(self, run: Run, frames: Sequence[ase.Atoms]) -> tuple[float, float]:
        """Seconds that a training takes apart from its epochs, and those of an epoch of the frames, by trials."""
        few = spread(frames, TRIAL_FRAMES)
        seconds = []
        for epochs in TRIAL_EPOCHS:
            with tempfile.TemporaryDirectory() as trial:
                seconds.append(run(few, Path(trial), epochs))
        of_few = (seconds[1] - seconds[0]) / (TRIAL_EPOCHS[1] - TRIAL_EPOCHS[0])
        return seconds[0] - of_few, of_few * sum(map(len, frames)) / sum(map(len, few))


class Mace(Program):
    """`mace_run_train` with the options of its README's example: Adam with AMSGrad, a moving average of the weights, a
    last fifth with more weight on energies; batches of 4 frames. Its validation frames are a few of the training's, so
    that it, too, learns from all."""

    def command(
        self, python: Path, folder: Path, cutoff: float, epochs: int, seed: int, size: Mapping[str, Any]
    ) -> list[str]:
        """As in the base."""
        frames: list[ase.Atoms] = ase.io.read(folder / "train.extxyz", ":")  # type: ignore[assignment]
        ase.io.write(folder / "valid.extxyz", spread(frames, 8), format="extxyz")
        options = {
            "name": "mace",
            "train_file": "train.extxyz",
            "valid_file": "valid.extxyz",
            "energy_key": "REF_energy",
            "forces_key": "REF_forces",
            "stress_key": "REF_stress",
            "E0s": "average",
            "r_max": cutoff,
            "batch_size": 4,
            "max_num_epochs": epochs,
            "start_swa": max(1, round(0.8 * epochs)),
            "ema_decay": 0.99,
            "eval_interval": max(1, epochs // 10),
            "default_dtype": "float32",
            "device": "cpu",
            "seed": seed,
            **size,
        }
        program = str(python.parent / "mace_run_train")
        return [program, *(f"--{key}={value}" for key, value in options.items()), "--swa", "--ema", "--amsgrad"]

    def model(self, folder: Path) -> Path:
        """Of the second stage, if there was one."""
        found = sorted(folder.glob("mace_stagetwo.model")) or sorted(folder.glob("mace.model"))
        if not found:
            raise PeerError(f"it wrote no model into `{folder}`")
        return found[0]


class SevenNet(Program):
    """`sevenn train` with its preset `base`, in which the learning rate falls to an eighth in 200 epochs; here in as
    many as there are."""

    def command(
        self, python: Path, folder: Path, cutoff: float, epochs: int, seed: int, size: Mapping[str, Any]
    ) -> list[str]:
        """As in the base."""
        program = str(python.parent / "sevenn")
        preset = subprocess.run([program, "preset", "base"], capture_output=True, text=True, cwd=folder)
        if preset.returncode != 0:
            raise PeerError(f"`sevenn preset base` failed: {preset.stderr.strip()[-300:]}")
        values = yaml.safe_load(preset.stdout)
        rate = values["train"]["scheduler_param"]["gamma"] ** values["train"]["epoch"]
        values["model"] |= {"cutoff": cutoff, **size}
        values["train"] |= {"epoch": epochs, "random_seed": seed, "per_epoch": epochs}
        values["train"]["scheduler_param"]["gamma"] = rate ** (1.0 / epochs)
        values["data"] |= {"load_trainset_path": ["train.extxyz"]}
        values["data"]["data_format_args"] |= {
            "energy_key": "REF_energy",
            "force_key": "REF_forces",
            "stress_key": "REF_stress",
        }
        for key in ("load_validset_path", "load_testset_path"):
            del values["data"][key]
        (folder / "input.yaml").write_text(yaml.safe_dump(values))
        return [program, "train", "input.yaml", "-s"]

    def model(self, folder: Path) -> Path:
        """Of the last epoch."""
        found = sorted(folder.glob("checkpoint_*.pth"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise PeerError(f"it wrote no checkpoint into `{folder}`")
        return found[-1]


class Grace(Program):
    """`gracemaker` with what its dialog proposes for Adam: weights, Huber's loss, a moving average of the weights,
    mixed precision; but batches of 4 frames, as MACE has.

    For GRACE/FS the dialog recommends BFGS, whose iterations take ten seconds each on one core; in minutes Adam comes
    much further. `size` holds the arguments of the preset FS. Its test frames are a few of the training's, so that it,
    too, learns from all.
    """

    def write(self, frames: Sequence[ase.Atoms], path: Path) -> None:
        """With the labels as ASE writes them."""
        ase.io.write(path, frames, format="extxyz")

    def command(
        self, python: Path, folder: Path, cutoff: float, epochs: int, seed: int, size: Mapping[str, Any]
    ) -> list[str]:
        """As in the base."""
        frames: list[ase.Atoms] = ase.io.read(folder / "train.extxyz", ":")  # type: ignore[assignment]
        self.write(spread(frames, 8), folder / "test.extxyz")
        elements = sorted({symbol for frame in frames for symbol in frame.symbols})
        numbers = np.array([[frame.symbols.count(symbol) for symbol in elements] for frame in frames], dtype=float)
        energies = np.array([frame.get_potential_energy() for frame in frames])
        references = dict(zip(elements, np.linalg.lstsq(numbers, energies)[0].tolist(), strict=True))
        huber = {"type": "huber", "delta": 0.01}
        rate = 0.008
        values = {
            "seed": seed,
            "cutoff": cutoff,
            "data": {"filename": "train.extxyz", "test_filename": "test.extxyz", "reference_energy": references},
            "potential": {"preset": "FS", "param_dtype": "float32", "scale": True, "kwargs": dict(size)},
            "fit": {
                "loss": {
                    "energy": {"weight": 16, **huber},
                    "forces": {"weight": 32, **huber},
                    "stress": {"weight": 128.0, **huber},
                },
                "maxiter": epochs,
                "optimizer": "Adam",
                "opt_params": {
                    "learning_rate": rate,
                    "use_ema": True,
                    "ema_momentum": 0.99,
                    "weight_decay": None,
                    "clipnorm": 1.0,
                },
                "scheduler": "cosine_decay",
                "scheduler_params": {"minimum_learning_rate": rate / 12},
                "batch_size": 4,
                "test_batch_size": 16,
                "train_max_n_buckets": "auto",
                "test_max_n_buckets": "auto",
                "eval_init_stats": False,
                "progressbar": False,
            },
        }
        (folder / "input.yaml").write_text(yaml.safe_dump(values))
        return [str(python.parent / "gracemaker"), "input.yaml"]

    def pace(self, run: Run, frames: Sequence[ase.Atoms]) -> tuple[float, float]:
        """By the times in its log: compiling takes much longer than an epoch of few frames, and never equally long."""
        with tempfile.TemporaryDirectory() as trial:
            total = run(frames, Path(trial), TRIAL_EPOCHS[1])
            (log,) = Path(trial).glob("seed/*/log.txt")
            lines = [line for line in log.read_text().splitlines() if " Iteration #" in line]
        first, last = (datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f") for line in (lines[0], lines[-1]))
        of_epoch = (last - first).total_seconds() / (len(lines) - 1)
        return total - len(lines) * of_epoch, of_epoch

    def model(self, folder: Path) -> Path:
        """Of the epoch with the lowest loss of the test frames."""
        found = sorted(folder.glob("seed/*/final_model"))
        if not found:
            raise PeerError(f"it wrote no model into `{folder}`")
        return found[-1]

    def reference_energies(self, folder: Path) -> dict[str, float]:
        """Those of the input."""
        found: dict[str, float] = yaml.safe_load((folder / "input.yaml").read_text())["data"]["reference_energy"]
        return found


PROGRAMS: dict[str, Program] = {"mace": Mace(), "sevenn": SevenNet(), "grace": Grace()}
