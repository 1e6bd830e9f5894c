"""The learning rate over a run: linear warm-up, then half a cosine, a line, or steps on plateaus."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from hienet.config import TrainingSection


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a function of the part of the run that is done.

    Attributes:
        peak: largest learning rate.
        final: learning rate at the end of a cosine or a line.
        warmup_fraction: part of the run in which it rises linearly from `warmup_factor * peak`.
        warmup_factor: see there.
        kind: what follows: `cosine`, `linear`, or the peak all the time (`constant`, `plateau`).
    """

    peak: float
    final: float
    warmup_fraction: float = 0.1
    warmup_factor: float = 0.2
    kind: str = "cosine"

    def __call__(self, progress: float) -> float:
        """The learning rate at `progress`, 0 at the beginning and 1 at the end of the run."""
        progress = min(max(progress, 0.0), 1.0)
        if progress < self.warmup_fraction:
            return self.peak * (self.warmup_factor + (1.0 - self.warmup_factor) * progress / self.warmup_fraction)
        if self.kind not in ("cosine", "linear"):
            return self.peak
        x = (progress - self.warmup_fraction) / (1.0 - self.warmup_fraction)
        fallen = x if self.kind == "linear" else 0.5 * (1.0 - math.cos(math.pi * x))
        return self.peak + (self.final - self.peak) * fallen

    def is_warming_up(self, progress: float) -> bool:
        """Whether the learning rate still rises."""
        return progress < self.warmup_fraction


def make_schedule(settings: TrainingSection) -> Schedule:
    """As the configuration says."""
    return Schedule(
        settings.learning_rate,
        settings.final_learning_rate,
        settings.warmup_fraction,
        settings.warmup_factor,
        settings.schedule,
    )


def make_plateau(optimizer: torch.optim.Optimizer, settings: TrainingSection) -> ReduceLROnPlateau | None:
    """Torch's schedule of that name, if the configuration wants it; a step of it follows each epoch."""
    if settings.schedule != "plateau":
        return None
    return ReduceLROnPlateau(
        optimizer,
        factor=settings.plateau_factor,
        patience=settings.plateau_patience,
        min_lr=settings.final_learning_rate,
    )


def make_optimizer(model: nn.Module, settings: TrainingSection) -> torch.optim.Optimizer:
    """Torch's optimizer of the weights that are not frozen."""
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[settings.optimizer]
    return kind(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        amsgrad=settings.amsgrad,
        fused=True,
    )
