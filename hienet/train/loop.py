"""The training loop, and its state from which it goes on exactly where it stopped."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hienet.config import TrainingSection
from hienet.data.batching import Budget, Steps, share_out, steps_of_epoch
from hienet.data.dataset import Dataset, Targets
from hienet.data.mirror import mirrored
from hienet.data.prefetch import prefetched
from hienet.derivatives import predict
from hienet.errors import HIENetError
from hienet.graph import AtomicGraph
from hienet.memory import memory_explained
from hienet.metrics import Errors, compare, errors
from hienet.processes import ALONE, Processes
from hienet.torch_state import own_torch_state
from hienet.train.ema import MovingAverage
from hienet.train.engine import choose_engine
from hienet.train.logs import COLUMNS, Row
from hienet.train.loss import (
    LossSettings,
    loss_of_comparison,
    loss_settings,
    require_counting_labels,
    training_loss,
)
from hienet.train.schedule import make_optimizer, make_plateau, make_schedule

_FRAMES_NAMED = 8
_NON_FINITE_REMEDY = (
    "lower `training.learning_rate`, set `training.gradient_clip`, or look for frames with atoms that nearly touch or "
    "extreme labels"
)
_MEMORY_REMEDY = (
    "go on with --resume and a larger `training.accumulate`, or where there is more memory; or begin a new run with a "
    "smaller `training.batch_size`"
)


_SEED_OF_NEXT = 7_368_787
"""Between the seeds of two processes."""

RandomState = tuple[Tensor, Tensor | None]
"""Of torch's random numbers on the CPU, and on the GPU of the training if it has one."""


class StoppedBySignal(Exception):  # noqa: N818 - not an error
    """A signal ended the loop between two steps; the state is complete."""


class NonFiniteLossError(HIENetError):
    """The loss, of training or of validation, became NaN or infinite."""


@dataclass
class LoopState:
    """Where the loop is. All of it is saved and restored.

    Attributes:
        epoch: number of complete epochs.
        batch: number of complete batches of the present epoch.
        step: number of steps since the beginning.
        seconds: wall time of training since the beginning.
        loss_sums: of the present epoch: total, energy, forces, stress, each times the number of frames; that number.
        best_loss: validation loss of the weights that are kept (without validation frames: training loss).
        best_epoch: their epoch.
        least_loss, least_epoch: the same of all epochs, whichever weights are kept.
        plateau_rate: learning rate that plateaus have left; None before the first epoch without warm-up.
        history: one row for each epoch.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    loss_sums: list[float] = field(default_factory=lambda: [0.0] * 5)
    best_loss: float = float("inf")
    best_epoch: int = 0
    least_loss: float = float("inf")
    least_epoch: int = 0
    plateau_rate: float | None = None
    history: list[Row] = field(default_factory=list)


class Trainer:
    """Model, optimizer, averaged weights and data, and the loop over them.

    Several processes do the same steps with the same weights, each with a share of the frames of every step.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Dataset,
        validation: Dataset | None,
        settings: TrainingSection,
        processes: Processes = ALONE,
        spreads: tuple[float, float, float] | None = None,
    ) -> None:
        """`model` is on the device and in the precision of training. The caller's random numbers are left alone.

        `spreads` are those of the labels (eV/atom, eV/Å, eV/Å^3), by which `normalize_labels` divides.

        Raises:
            HIENetError: no label of a set counts in the loss, or a frame exceeds the budget of a step.
        """
        self.processes = processes
        self.model, self.train, self.validation, self.settings = model, train, validation, settings
        self.budget = Budget(settings.batch_size, settings.batch_edges, settings.batch_atoms)
        for dataset in (train, validation):
            if dataset is not None:
                self.budget.require_room(dataset)
        self.energy, self.engine = choose_engine(model, settings)
        self.device = next(model.parameters()).device
        self.optimizer = make_optimizer(model, settings)
        self.plateau = make_plateau(self.optimizer, settings)
        self.average = MovingAverage(model, settings.ema_decay)
        self.schedule = make_schedule(settings)
        self.spreads = spreads
        # Epochs with other weights could not be compared.
        self.validation_settings = loss_settings(settings, spreads, remaining=0.0)
        self.state = LoopState()
        self._steps: tuple[int, Steps] | None = None
        self._clock, self._common_seconds = 0.0, 0.0
        require_counting_labels(train, "training", loss_settings(settings, spreads, remaining=1.0))
        if validation is not None:
            require_counting_labels(validation, "validation", self.validation_settings)
        with self._caller_undisturbed():
            # Each process draws other numbers for dropout.
            torch.manual_seed((settings.seed + _SEED_OF_NEXT * processes.rank) % 2**63)
            self._random = self._random_state()

    @property
    def steps(self) -> Steps:
        """Those of the present epoch."""
        epoch = self.state.epoch
        if self._steps is None or self._steps[0] != epoch:
            self._steps = epoch, steps_of_epoch(self.train, self.budget, self.settings.seed, epoch)
        return self._steps[1]

    @property
    def n_batches(self) -> int:
        """Number of steps of the present epoch; where they are filled up to a budget, epochs differ a little."""
        return len(self.steps)

    @property
    def progress(self) -> float:
        """The part of the run that is done: of the steps, or of the time if that is limited and nearer its end."""
        of_steps = (self.state.epoch + (self.state.batch / self.n_batches if self.state.batch else 0.0)) / (
            self.settings.epochs
        )
        if self.settings.max_minutes is None:
            return of_steps
        return min(1.0, max(of_steps, self.seconds / (60.0 * self.settings.max_minutes)))

    @property
    def seconds(self) -> float:
        """Wall time of training, earlier sessions included; of several processes, what they have last agreed on."""
        return self._common_seconds if self._clock and self.processes.number > 1 else self._own_seconds

    @property
    def _own_seconds(self) -> float:
        return self.state.seconds + (time.monotonic() - self._clock if self._clock else 0.0)

    @property
    def finished(self) -> bool:
        """Whether the last epoch, or the time, is over; at least one epoch is always begun and ended."""
        state = self.state
        over = state.epoch >= self.settings.epochs or self.progress >= 1.0 or self.stopped_early
        return state.batch == 0 and state.epoch > 0 and over

    @property
    def stopped_early(self) -> bool:
        """Whether the validation loss has not fallen for as many epochs as `early_stopping` says."""
        patience = self.settings.early_stopping
        return patience is not None and self.state.epoch - self.state.least_epoch >= patience

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        rate, on_plateau = self.schedule(self.progress), self.state.plateau_rate
        return rate if on_plateau is None else min(rate, on_plateau)

    @property
    def loss_settings(self) -> LossSettings:
        """Of the next step: weights that change along the run do so as the learning rate does."""
        peak, final = self.settings.learning_rate, self.settings.final_learning_rate
        warming_up = peak == final or self.schedule.is_warming_up(self.progress)
        remaining = 1.0 if warming_up else (self.learning_rate - final) / (peak - final)
        return loss_settings(self.settings, self.spreads, remaining)

    def run(
        self,
        on_step: Callable[[float], None] = lambda loss: None,
        on_epoch: Callable[[Row, bool], None] = lambda row, is_best: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train to the end.

        Args:
            on_step: called with the loss after each step.
            on_epoch: called after each epoch with its row, and whether it is the best so far.
            should_stop: asked after each step.

        Raises:
            StoppedBySignal: `should_stop` said so.
            NonFiniteLossError: the loss, of training or of validation, is not a number any more.
            OutOfMemoryError: a batch is too large.
        """
        with self._caller_undisturbed():
            self._set_random_state(self._random)
            self._common_seconds = self.state.seconds
            self._clock = time.monotonic()
            try:
                while not self.finished:
                    self._run_epoch(on_step, should_stop)
                    on_epoch(*self._end_epoch())
            finally:
                self.state.seconds, self._clock = self.seconds, 0.0
                self._random = self._random_state()

    @contextmanager
    def _caller_undisturbed(self) -> Iterator[None]:
        """Torch with modes and random numbers of its own."""
        callers = self._random_state()
        with own_torch_state():
            try:
                yield
            finally:
                self._set_random_state(callers)

    def _random_state(self) -> RandomState:
        there = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return torch.get_rng_state(), there

    def _set_random_state(self, state: RandomState) -> None:
        torch.set_rng_state(state[0])
        if self.device.type == "cuda" and state[1] is not None:
            torch.cuda.set_rng_state(state[1], self.device)

    def _run_epoch(self, on_step: Callable[[float], None], should_stop: Callable[[], bool]) -> None:
        steps, reflected = self.steps, self._reflected(self.state.epoch)
        first, n_parts = self.state.batch, self.settings.accumulate
        jobs = (part for step in range(first, len(steps)) for part in self._own_parts(steps[step]))
        threads = 0 if self.train.in_memory else 2
        self.model.train()
        with closing(prefetched(jobs, self._make_batch, threads)) as batches:
            while self.state.batch < len(steps) and (self.progress < 1.0 or self.state.batch == 0):
                loss = self._step(steps[self.state.batch], itertools.islice(batches, n_parts), reflected)
                self.state.batch += 1
                self.state.step += 1
                stop, self._common_seconds = self._agree(should_stop)
                on_step(loss)
                if stop or (self.processes.number == 1 and should_stop()):
                    raise StoppedBySignal

    def _agree(self, should_stop: Callable[[], bool]) -> tuple[bool, float]:
        """Whether any process is to stop, and the time of all; one process alone is asked later."""
        if self.processes.number == 1:
            return False, 0.0
        stop, seconds = self.processes.largest(float(should_stop()), self._own_seconds)
        return stop > 0, seconds

    def _own_parts(self, step: list[int]) -> list[list[int]]:
        """The share of this process in the frames of a step, in so many parts as `accumulate` says."""
        n_parts = self.processes.number * self.settings.accumulate
        parts = share_out(step, self.train.summary.n_edges, n_parts)
        return parts[self.processes.rank :: self.processes.number]

    def _make_batch(self, frames: list[int]) -> tuple[list[int], AtomicGraph, Targets] | None:
        return (frames, *self.train.batch(frames)) if frames else None

    def _reflected(self, epoch: int) -> Tensor | None:
        """Of which frames an epoch takes the mirror image, `[n_frames]` bool: a function of seed and epoch alone."""
        if not self.settings.reflect:
            return None
        generator = torch.Generator().manual_seed((self.settings.seed * 1_000_003 + 7919 * epoch + 1) % 2**63)
        return torch.rand(len(self.train), generator=generator) < 0.5

    def _step(
        self,
        frames: list[int],
        batches: Iterable[tuple[list[int], AtomicGraph, Targets] | None] | None = None,
        reflected: Tensor | None = None,
    ) -> float:
        """One step on these frames, of which `batches`, if made already, is this process's share; the loss of all."""
        batches = map(self._make_batch, self._own_parts(frames)) if batches is None else batches
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        n_labels, settings = self._n_labels(frames), self.loss_settings
        values = torch.zeros(4, dtype=torch.float64)
        for batch in batches:
            if batch is not None:
                own, graph, targets = batch
                if reflected is not None:
                    graph, targets = mirrored(graph, targets, reflected[own])
                with memory_explained(f"batches of {len(own)} frames, {graph.describe_size()}", _MEMORY_REMEDY):
                    values += self._add_gradients(graph.to(self.device), targets.to(self.device), settings, n_labels)
        values = self.processes.total(values)
        value = float(values[0])
        if not math.isfinite(value):
            raise NonFiniteLossError(
                f"the loss became {value} in epoch {self.state.epoch + 1}, step {self.state.step + 1}, with the frames "
                f"{_sources(self.train, frames)}; {_NON_FINITE_REMEDY}"
            )
        self.processes.add_gradients(self.model.parameters())
        if self.settings.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip)
        self.optimizer.step()
        self.average.update(self.model)
        n = len(frames)
        for i, part in enumerate((*values.tolist(), 1.0)):
            self.state.loss_sums[i] += n * part
        return value

    def _n_labels(self, frames: list[int]) -> list[int] | None:
        """Numbers of labels of a step; None where it is computed in one part, whose own labels they are."""
        if self.processes.number * self.settings.accumulate == 1:
            return None
        return self.train.summary.n_labels[frames].sum(axis=0).tolist()

    def _add_gradients(
        self, graph: AtomicGraph, targets: Targets, settings: LossSettings, n_labels: list[int] | None
    ) -> Tensor:
        """Backwards through the loss of a part of a step; the loss and its three parts, `[4]`."""
        loss = training_loss(predict(self.energy, graph, training=True), targets, settings, n_labels)
        # All at once: a GPU is waited for once a part.
        values = torch.stack([part.detach().double() for part in (loss.total, loss.energy, loss.forces, loss.stress)])
        values = values.cpu()
        if math.isfinite(values[0]):
            loss.total.backward()
        return values

    def _end_epoch(self) -> tuple[Row, bool]:
        state = self.state
        sums, n_frames = state.loss_sums[:4], state.loss_sums[4]
        validation_loss, found = self._validate()
        row: Row = {
            "epoch": state.epoch + 1,
            "step": state.step,
            "seconds": round(self.seconds, 3),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "train_loss": sums[0] / n_frames,
            "train_loss_energy": sums[1] / n_frames,
            "train_loss_forces": sums[2] / n_frames,
            "train_loss_stress": sums[3] / n_frames,
            "validation_loss": validation_loss,
            **{key: None if found is None else value for key, value in _error_columns(found).items()},
        }
        metric = sums[0] / n_frames if validation_loss is None else validation_loss
        if metric < state.least_loss:
            state.least_loss, state.least_epoch = metric, state.epoch + 1
        if self.plateau is not None and not self.schedule.is_warming_up(self.progress):
            self.plateau.step(metric)
            state.plateau_rate = self.optimizer.param_groups[0]["lr"]
        is_best = metric < state.best_loss or self.settings.select == "last"
        if is_best:
            state.best_loss, state.best_epoch = metric, state.epoch + 1
        state.epoch, state.batch, state.loss_sums = state.epoch + 1, 0, [0.0] * 5
        state.history.append(row)
        return row, is_best

    def _validate(self) -> tuple[float | None, Errors | None]:
        """Loss and errors of the averaged weights on the validation set; None without one."""
        if self.validation is None:
            return None, None
        with self.average.applied_to(self.model):
            self.model.eval()
            comparison = compare(
                self.energy, self.validation, self.budget_at_a_time, self.device, _MEMORY_REMEDY, self.processes
            )
        self.model.train()
        loss = loss_of_comparison(comparison, self.validation.weights(), self.validation_settings)
        wrong = comparison.not_finite()
        if wrong or not math.isfinite(loss):
            where = f", with the frames {_sources(self.validation, wrong)}" if wrong else ""
            raise NonFiniteLossError(
                f"the validation loss became {loss} in epoch {self.state.epoch + 1}{where}, and cannot choose the best "
                f"model; {_NON_FINITE_REMEDY}"
            )
        return loss, errors(comparison)

    @property
    def budget_at_a_time(self) -> Budget:
        """What one process computes at a time, for predictions: its share of a step, in as many parts."""
        n_parts = self.processes.number * self.settings.accumulate
        budget = self.budget
        if n_parts == 1:
            return budget
        if budget.key == "batch_size":
            return Budget(max(1, budget.frames // n_parts))
        return Budget(
            budget.frames, *(None if n is None else max(1, n // n_parts) for n in (budget.edges, budget.atoms))
        )

    def averaged_weights(self) -> dict[str, Tensor]:
        """The model's state with averaged weights in place of its own."""
        return {**self.model.state_dict(), **self.average.averages}

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs, besides the model's own weights; plain values and tensors on the CPU.

        All processes must ask for it together.
        """
        # While the loop runs, its random numbers are torch's.
        random = self._random_state() if self._clock else self._random
        everywhere = self.processes.gather(random)
        random = everywhere[0]
        return {
            "loop": {**vars(self.state), "seconds": self.seconds},
            "optimizer": _on_cpu(self.optimizer.state_dict()),
            "average": self.average.state_dict(),
            "plateau": None if self.plateau is None else self.plateau.state_dict(),
            "random": random[0],
            "random_device": random[1],
            "random_of_others": [list(state) for state in everywhere[1:]],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; the model's weights are loaded by the caller.

        Where it was saved by another number of processes, each begins random numbers of its own.
        """
        self.state = LoopState(**state["loop"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"])
        if self.plateau is not None:
            self.plateau.load_state_dict(state["plateau"])
        saved = [(state["random"], state["random_device"]), *state.get("random_of_others", [])]
        if len(saved) != self.processes.number:
            with self._caller_undisturbed():
                torch.manual_seed((self.settings.seed + _SEED_OF_NEXT * self.processes.rank + self.state.step) % 2**63)
                self._random = self._random_state()
            return
        here, there = saved[self.processes.rank]
        # A run that went on elsewhere has no random numbers of this GPU: those of the seed stay.
        self._random = here, self._random[1] if there is None else there


def _sources(dataset: Dataset, indices: Sequence[int]) -> str:
    """Some of the frames, by file and number."""
    named = ", ".join(dataset.frames[i].source for i in indices[:_FRAMES_NAMED])
    return named + (f" and {len(indices) - _FRAMES_NAMED} more" if len(indices) > _FRAMES_NAMED else "")


def _on_cpu(value: Any) -> Any:
    """Dictionaries and lists of values, their tensors on the CPU, so that a machine without a GPU can read them."""
    if isinstance(value, dict):
        return {key: _on_cpu(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_on_cpu(entry) for entry in value]
    return value.cpu() if isinstance(value, Tensor) else value


def _error_columns(found: Errors | None) -> dict[str, float | int | None]:
    none = Errors(0, 0, *(None,) * 6)
    return {name: value for name, value in (found or none).as_dict().items() if name in COLUMNS}
