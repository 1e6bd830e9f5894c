"""A training run in its output folder: begin or resume, train, keep the best and the last model, report."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

import hienet
from hienet.calculator import parse_device
from hienet.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from hienet.config import COMPUTED_MODEL_KEYS, TrainConfig, save_config
from hienet.console import printable
from hienet.data.dataset import Dataset, JoinedDataset
from hienet.data.labels import QUANTITIES
from hienet.data.prepare import label_keys, prepare_data
from hienet.data.sources import prepare_stores
from hienet.data.statistics import spreads_of_labels
from hienet.data.writer import write_frames
from hienet.errors import HIENetError
from hienet.files import atomic_path, json_text, make_folder
from hienet.metrics import Comparison, Errors, compare, describe_not_finite, errors
from hienet.models.factory import build_model, describe_validation_error
from hienet.processes import ALONE, Processes, device_of_process, unused_tasks
from hienet.torch_state import number_of_threads, own_torch_state
from hienet.train.display import make_display
from hienet.train.logs import Row, RunLog, describe_row
from hienet.train.loop import NonFiniteLossError, StoppedBySignal, Trainer
from hienet.train.report import plot_learning_curves, plot_parity
from hienet.train.signals import StopRequest
from hienet.train.start import freeze, load_start, started_from
from hienet.training_summary import TrainingSummary

_SECONDS_BETWEEN_SAVES = 30.0
_FRAMES_WRITTEN = 10_000
_FRAMES_COMPARED = 20_000
_DIVERGED = 100.0
"""How many times its least value the loss at the end may be: weights that change in the course of a run, and chance, do
less."""
_MAY_CHANGE_ON_RESUME = (
    "output",
    "training.epochs",
    "training.device",
    "training.engine",
    "training.threads",
    "training.max_minutes",
    "training.accumulate",
)


class InterruptedTrainingError(Exception):
    """A signal stopped the run; the message says how to resume."""


@dataclass(frozen=True)
class TrainingResult:
    """Where a finished run left its model, and its errors on each set."""

    best: Path
    errors: dict[str, Errors]
    errors_before: dict[str, Errors]
    """Of the model that fine-tuning began with, with the new reference energies; empty for a new model."""


class Run:
    """One training run."""

    def __init__(
        self,
        config: TrainConfig,
        resume: bool,
        console: Console,
        source: str | None = None,
        processes: Processes = ALONE,
    ) -> None:
        """Read the data, and build the model or restore it.

        Args:
            config: the configuration.
            resume: go on from `last.pt` in the output folder.
            console: where progress is shown.
            source: the configuration's file, for the sentence that says how to resume.
            processes: those that train together, each with a `Run` of its own; the first prints and writes.

        Raises:
            HIENetError: anything wrong with configuration, data, device or folder.
        """
        self.folder = Path(config.output)
        self.best_path, self.last_path = self.folder / "best.pt", self.folder / "last.pt"
        self.start_path = self.folder / "start.pt"
        begun_from = config.training.start
        if begun_from is not None and resume and self.start_path.exists():
            begun_from = str(self.start_path)
        self.start = None if begun_from is None else processes.agree(lambda: load_start(begun_from))
        if self.start is not None:
            start, given = self.start, config
            config = processes.agree(lambda: started_from(given, start))
        self.config, self.console, self.source = config, console, source or "CONFIG.yaml"
        self.processes = processes
        last = processes.agree(lambda: self._last_checkpoint(resume))
        processes.first_does(lambda: make_folder(self.folder, "output"))
        processes.first_does(self._prepare_stores)
        with self._torch():
            processes.agree(lambda: self._prepare(last))
            processes.require_equal({"the data": self.data.fingerprint, "the configuration": self._settings()})
            processes.first_does(self._begin_log)
            self._begin(last)

    @contextmanager
    def _torch(self) -> Iterator[None]:
        """Within, torch is as the run wants it, whatever the caller has chosen; afterwards as the caller has it."""
        with own_torch_state(), number_of_threads(self.config.training.threads):
            yield

    def _prepare_stores(self) -> None:
        data, model = self.config.data, self.config.model
        if self.start is not None:
            cutoff = self.start.config.cutoff
        else:
            cutoff = model.hyperparameters({"elements": model.arguments.get("elements") or ("H",)}).cutoff
        for names in (data.train, data.validation, data.test):
            if isinstance(names, tuple):
                prepare_stores(
                    names, cutoff, label_keys(data), data.weight_key, lambda text: self.console.print(Text(text))
                )

    def _prepare(self, last: Checkpoint | None) -> None:
        config = self.config
        self.dtype = getattr(torch, config.training.dtype)
        self.device = parse_device(device_of_process(config.training.device))
        names = {q: (f"{q}_weight", f"final_{q}_weight") for q in QUANTITIES}
        unneeded = [q for q, parts in names.items() if not any(getattr(config.training, name) for name in parts)]
        self.data = prepare_data(config.data, config.model, self.dtype, config.training.seed, unneeded, self.start)
        if last is not None:
            # The statistics are those with which the run began, and so is the model, also if another version finds
            # others, or has changed the preset.
            self.data = replace(self.data, model=last.config)
        model = build_model(config.model.architecture, self.data.model, config.training.seed)
        if self.data.start is not None:
            model.load_state_dict(self.data.start.weights)
        model = model.to(self.dtype).to(self.device)
        self.frozen = freeze(model, config.training.freeze)
        replay = self.data.replay
        trained_on = self.data.train if replay is None else JoinedDataset(self.data.train, replay.train)
        spreads = None
        if config.training.normalize_labels:
            spreads = spreads_of_labels(self.data.train, self.data.model.shift)
        self.trainer = Trainer(model, trained_on, self.data.validation, config.training, self.processes, spreads)
        self.started = _now()
        if last is not None:
            self._restore(last)

    def _settings(self) -> str:
        return json.dumps(self.config.model_dump(mode="json"))

    def _begin_log(self) -> None:
        self.log = RunLog(self.folder, self.trainer.state.history)
        save_config(self.config, self.folder / "config.yaml")

    def _begin(self, last: Checkpoint | None) -> None:
        """Say what is trained, and leave a state to resume from."""
        if last is None:
            self.processes.first_does(self._write_inputs)
            # From the beginning, so that a folder with a model always has a state to resume from.
            self.save_last()
        self._saved_at = self.trainer.seconds
        if self.processes.is_first:
            self._announce(self.trainer.model, last)
        self._look_for_best()

    def train(self) -> TrainingResult:
        """Train to the end and write the report; the caller's modes of torch, and its random numbers, are left alone.

        Raises:
            InterruptedTrainingError: a signal arrived.
            NonFiniteLossError: the loss is not a number any more; the last good models are kept.
        """
        with self._torch():
            return self._train()

    def _train(self) -> TrainingResult:
        trainer = self.trainer
        try:
            with StopRequest() as request, make_display(self.console, self.config.training.epochs) as display:

                def on_step(loss: float) -> None:
                    display.step(
                        trainer.state.epoch + 1, trainer.state.batch, trainer.n_batches, loss, trainer.progress
                    )

                def on_epoch(row: Row, is_best: bool) -> None:
                    display.epoch(row, is_best)
                    self._keep(row, is_best)

                trainer.run(on_step, on_epoch, lambda: request.received is not None)
        except StoppedBySignal:
            self.save_last()
            received = next((name for name in self.processes.gather(request.received) if name), None)
            sentence = f"stopped by {received} in epoch {trainer.state.epoch + 1}; go on with: {self.resume_command}"
            self._log(sentence)
            raise InterruptedTrainingError(sentence) from None
        except NonFiniteLossError as error:
            kept = f"; the best model so far is in `{self.best_path}`" if self.best_path.exists() else ""
            self._log(f"{error}{kept}")
            raise NonFiniteLossError(f"{error}{kept}") from None
        if trainer.stopped_early:
            self.say(
                f"ended after epoch {trainer.state.epoch}, since the loss that is watched has not fallen since epoch "
                f"{trainer.state.least_epoch} (`early_stopping`)"
            )
        warning = divergence(trainer.state.history)
        if warning is not None:
            kept = f"; `{self.best_path}` is of epoch {trainer.state.best_epoch}"
            self.say(f"WARNING: {warning}{kept}")
        self.save_last()
        return self._report()

    @property
    def resume_command(self) -> str:
        """What to type to go on."""
        return shlex.join(["hienet", "train", self.source, "--resume", "--output", str(self.folder)])

    def say(self, text: str) -> None:
        """Print a line and log it."""
        if self.processes.is_first:
            self.console.print(Text(printable(text)), soft_wrap=True)
        self._log(text)

    def _log(self, text: str) -> None:
        if self.processes.is_first:
            self.log.say(text)

    def save_last(self) -> None:
        """Write `last.pt`; all processes must come here together."""
        resume = {
            "config": self.config.model_dump(mode="json"),
            "fingerprint": self.data.fingerprint,
            "started": self.started,
            "trainer": self.trainer.state_dict(),
        }
        self._saved_at = self.trainer.seconds
        if not self.processes.is_first:
            return
        weights = self.trainer.model.state_dict()
        save_checkpoint(
            Checkpoint(self.config.model.architecture, self.data.model, weights, self._summary({}), resume),
            self.last_path,
        )

    def _keep(self, row: Row, is_best: bool) -> None:
        """Log an epoch; write the best model, and at times the state."""
        if self.processes.is_first:
            self.log.add(row)
            self.log.say(describe_row(row, self.config.training.epochs))
            if is_best:
                self._save_best({})
        if self.trainer.seconds - self._saved_at > _SECONDS_BETWEEN_SAVES:
            self.save_last()

    def _save_best(self, found: Mapping[str, Errors]) -> None:
        checkpoint = Checkpoint(
            self.config.model.architecture, self.data.model, self.trainer.averaged_weights(), self._summary(found)
        )
        save_checkpoint(checkpoint, self.best_path)

    def _summary(self, found: Mapping[str, Errors]) -> dict[str, Any]:
        """What a model says of its training; plain values."""
        data, state, settings = self.data, self.trainer.state, self.config.training
        sets = {"train": data.train, "validation": data.validation, "test": data.test}
        rows = state.history
        summary = TrainingSummary(
            files=self.config.data.model_dump(mode="json", include={"train", "validation", "test"}),
            n_frames={name: 0 if dataset is None else len(dataset) for name, dataset in sets.items()},
            labels=data.train.label_counts(),
            elements=list(data.model.elements),
            epochs=state.epoch,
            best_epoch=state.best_epoch,
            best_validation_loss=state.best_loss if math.isfinite(state.best_loss) else None,
            validation=dict(rows[state.best_epoch - 1]) if state.best_epoch else None,
            errors={name: value.as_dict() for name, value in found.items()},
            settings=settings.model_dump(mode="json"),
            seed=settings.seed,
            started=self.started,
            finished=_now(),
            seconds=round(self.trainer.seconds, 1),
            package_version=hienet.__version__,
            torch_version=str(torch.__version__),
        )
        return summary.model_dump()

    def _last_checkpoint(self, resume: bool) -> Checkpoint | None:
        if not resume:
            if self.last_path.exists() or self.best_path.exists():
                raise HIENetError(
                    f"`{self.folder}` already contains a training run; add --resume to go on with it, "
                    "or choose another folder with --output"
                )
            return None
        if not self.last_path.exists():
            raise HIENetError(
                f"there is nothing to resume in `{self.folder}`: no `last.pt`; leave out --resume, or check --output"
            )
        checkpoint = load_checkpoint(self.last_path)
        if checkpoint.resume is None:
            raise HIENetError(
                f"`{self.last_path}` holds a model but not the state of a training run; it cannot be resumed"
            )
        # Keys that the version which began the run did not know have their defaults.
        before, now = _with_defaults(checkpoint.resume["config"], self.last_path), self.config.model_dump(mode="json")
        if self._asks_for(checkpoint):
            # In other words perhaps, as where a preset has changed since.
            before["model"] = now["model"]
        changed = _differences(before, now)
        if changed:
            may_change = ", ".join(f"`{name}`" for name in _MAY_CHANGE_ON_RESUME)
            raise HIENetError(
                f"the configuration differs from that of the run in `{self.folder}`: {'; '.join(changed)}; "
                f"restore it to resume (only {may_change} may change), or begin a new run with another --output"
            )
        return checkpoint

    def _asks_for(self, last: Checkpoint) -> bool:
        """Whether the configuration describes the model that the run was begun with."""
        section = self.config.model
        values = last.config.model_dump()
        try:
            described = section.hyperparameters({key: values[key] for key in COMPUTED_MODEL_KEYS})
        except HIENetError:
            return False
        return section.architecture == last.architecture and described == last.config

    def _restore(self, last: Checkpoint) -> None:
        assert last.resume is not None
        if last.resume["fingerprint"] != self.data.fingerprint:
            raise HIENetError(
                f"the data{', or `start.pt`,' if self.start else ''} are not those with which "
                f"the run in `{self.folder}` began; restore the files, "
                "or begin a new run with another --output"
            )
        self.trainer.model.load_state_dict(last.weights)
        self.trainer.load_state_dict(last.resume["trainer"])
        self.started = last.resume["started"]
        state, epochs = self.trainer.state, self.config.training.epochs
        begun = state.epoch + (state.batch > 0)
        if epochs < begun:
            raise HIENetError(
                f"`training.epochs` is {epochs}, but the run in `{self.folder}` has begun epoch {begun}; "
                f"give at least {begun}, or begin a new run with another --output"
            )

    def _look_for_best(self) -> None:
        """If the best model of earlier epochs was taken away, one of the epochs to come is kept."""
        state = self.trainer.state
        if state.best_epoch and not all(self.processes.gather(self.best_path.exists())):
            self.say(f"WARNING: `{self.best_path}` is gone; the best model is sought anew from here on")
            state.best_epoch, state.best_loss = 0, float("inf")

    def _write_inputs(self) -> None:
        """Which frames are in which set, and the checkpoint that fine-tuning begins with, which resuming needs."""
        if self.config.training.start is not None:
            with atomic_path(self.start_path) as temporary:
                shutil.copyfile(self.config.training.start, temporary)
        split = {"files": list(self.config.data.train), **vars(self.data.split)}
        with atomic_path(self.folder / "split.json") as temporary:
            temporary.write_text(json.dumps(split, indent=1))
        for name, dataset in (("validation", self.data.validation), ("test", self.data.test)):
            if dataset is not None and (dataset.in_memory or len(dataset) <= _FRAMES_WRITTEN):
                write_frames(dataset, self.folder / f"{name}.extxyz")
            elif dataset is not None:
                self.say(
                    f"the {len(dataset)} {name} frames are not written as extxyz; `split.json` says which they are"
                )

    def _announce(self, model: torch.nn.Module, last: Checkpoint | None) -> None:
        n_parameters = sum(parameter.numel() for parameter in model.parameters())
        state = self.trainer.state
        for note in self.data.notes:
            self.say(note)
        if self.config.training.reflect and self.data.model.symmetry == "O(3)":
            self.say("`training.reflect` teaches this model nothing: it has the symmetry by construction")
        self.say(
            f"model: {self.config.model.architecture}, {n_parameters:,} parameters, "
            f"symmetry {self.data.model.symmetry}, cutoff {self.data.model.cutoff:g} Å; "
            f"{self.trainer.n_batches} steps an epoch, {torch.get_num_threads()} threads; output in {self.folder}"
        )
        if self.start is not None:
            self.say(f"fine-tuning begins with {self.config.training.start}")
        if self.frozen:
            n_frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
            self.say(f"frozen: {n_frozen:,} parameters, of {', '.join(self.config.training.freeze)}")
        if self.trainer.spreads is not None:
            energy, forces, stress = self.trainer.spreads
            self.say(
                f"errors are divided by the spread of the labels: energy {energy:.4g} eV/atom, "
                f"forces {forces:.4g} eV/Å, stress {stress:.4g} eV/Å^3"
            )
        self.say(self.trainer.engine)
        self._announce_processes()
        if last is not None and last.resume is not None:
            where = "at its end" if self.trainer.finished else f"in epoch {state.epoch + 1}, step {state.step + 1}"
            self.say(f"resumed {where}")
            saved = 1 + len(last.resume["trainer"].get("random_of_others", []))
            if saved != self.processes.number:
                self.say(
                    f"{self.processes.number} process(es) in place of {saved}: steps consist of the same frames; sums "
                    "are rounded differently, and dropout draws other numbers"
                )
            before, now = last.resume["config"]["training"]["epochs"], self.config.training.epochs
            if before != now:
                rate = self.trainer.learning_rate
                self.say(
                    f"{now} epochs in place of {before}: the learning rate goes on at {rate:.2e}, "
                    f"where its schedule for {now} epochs has it"
                )

    def _announce_processes(self) -> None:
        number, accumulate = self.processes.number, self.config.training.accumulate
        if number * accumulate > 1:
            n_frames = len(self.data.train) / self.trainer.n_batches
            self.say(
                f"{number} process(es), {accumulate} part(s) each: the {n_frames:.3g} frames of a step are computed "
                f"{n_frames / (number * accumulate):.2g} at a time"
            )
            if n_frames < number * accumulate:
                self.say(
                    "WARNING: steps have fewer frames than there are parts, so that processes wait idly; raise "
                    f"`training.{self.trainer.budget.key}`"
                )
        idle = unused_tasks(os.environ)
        if idle:
            self.say(
                f"WARNING: the job has {idle} tasks, but only this process trains; start it with `srun hienet train "
                "...` to use all of them"
            )

    def _report(self) -> TrainingResult:
        """Errors of the best model on each set, plots, and the summary in the model's file."""

        def find_best() -> None:
            if not self.best_path.exists():
                self.say(f"WARNING: `{self.best_path}` is gone; the averaged weights of the last epoch take its place")
                self.trainer.state.best_epoch = self.trainer.state.epoch
                self._save_best({})

        self.processes.first_does(find_best)
        best = self.processes.agree(lambda: load_checkpoint(self.best_path))
        model = best.build(self.dtype).to(self.device).requires_grad_(False)
        budget = self.trainer.budget_at_a_time
        replay = None if self.data.replay is None else self.data.replay.held_out
        given = {
            "train": self.data.train,
            "validation": self.data.validation,
            "test": self.data.test,
            "replay": replay,
        }
        sets = {name: self._sample(name, dataset) for name, dataset in given.items() if dataset is not None}
        comparisons = {
            name: compare(model, dataset, budget, self.device, processes=self.processes)
            for name, dataset in sets.items()
        }
        for name, comparison in comparisons.items():
            for warning in describe_not_finite(comparison, sets[name], f"{name} frames"):
                self.say(warning)
        found = {name: errors(comparison) for name, comparison in comparisons.items()}
        before = self._errors_before(sets)
        self.processes.first_does(lambda: self._write_report(best, comparisons, found, before))
        return TrainingResult(self.best_path, found, before)

    def _sample(self, name: str, dataset: Dataset) -> Dataset:
        """The set, or of one that is larger than memory a random part, whose errors are as telling."""
        if dataset.in_memory or len(dataset) <= _FRAMES_COMPARED:
            return dataset
        chosen = np.random.default_rng(0).choice(len(dataset), _FRAMES_COMPARED, replace=False)
        self.say(
            f"errors of the {name} set are those of {_FRAMES_COMPARED} of its {len(dataset)} frames, taken at random"
        )
        return dataset.subset(np.sort(chosen).tolist())

    def _write_report(
        self,
        best: Checkpoint,
        comparisons: Mapping[str, Comparison],
        found: Mapping[str, Errors],
        before: Mapping[str, Errors],
    ) -> None:
        save_checkpoint(Checkpoint(best.architecture, best.config, best.weights, self._summary(found)), self.best_path)
        results = self._summary(found)
        if before:
            results["errors_before"] = {name: value.as_dict() for name, value in before.items()}
        with atomic_path(self.folder / "results.json") as temporary:
            temporary.write_text(json_text(results, indent=1))
        plot_learning_curves(self.trainer.state.history, self.folder / "learning_curves.png")
        plot_parity(comparisons, self.folder / "parity.png")
        self.log.say(f"finished: best epoch {self.trainer.state.best_epoch}")
        for name, value in found.items():
            self.log.say(f"errors, {name}: {json_text(value.as_dict())}")
        for name, value in before.items():
            self.log.say(f"errors before fine-tuning, {name}: {json_text(value.as_dict())}")

    def _errors_before(self, sets: Mapping[str, Dataset]) -> dict[str, Errors]:
        """Of the model that fine-tuning began with, with the reference energies of the new one."""
        if self.data.start is None:
            return {}
        old = self.data.start.build(self.dtype).to(self.device).requires_grad_(False)
        budget = self.trainer.budget_at_a_time
        return {
            name: errors(compare(old, dataset, budget, self.device, processes=self.processes))
            for name, dataset in sets.items()
        }


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _with_defaults(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The configuration in a checkpoint, with the keys that there were not yet when it was written.

    Raises:
        HIENetError: it is none.
    """
    try:
        return TrainConfig.model_validate(values).model_dump(mode="json")
    except ValidationError as error:
        raise HIENetError(f"`{path}`: {describe_validation_error(error, TrainConfig, '')}") from error


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Keys whose values differ, with both values, but for those that may change."""
    changed = []
    for key in sorted(old.keys() | new.keys()):
        name = f"{prefix}{key}"
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changed += _differences(before, after, f"{name}.")
        elif before != after and name not in _MAY_CHANGE_ON_RESUME:
            changed.append(f"`{name}` was `{before}` and is `{after}`")
    return changed


def divergence(history: Sequence[Row]) -> str | None:
    """A sentence for a training whose loss has gone far up without becoming infinite; None for all others."""
    key = "train_loss" if any(row["validation_loss"] is None for row in history) else "validation_loss"
    losses = [float(row[key]) for row in history]  # type: ignore[arg-type]
    if not losses or losses[-1] <= _DIVERGED * min(losses):
        return None
    least = losses.index(min(losses))
    return (
        f"the training has diverged: the loss of the last epoch is {losses[-1]:.3g}, that of epoch {least + 1} was "
        f"{losses[least]:.3g}; lower `training.learning_rate`, or set `training.gradient_clip`"
    )
