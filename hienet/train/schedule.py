"""The learning rate over a run: linear warm-up, then half a cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a function of the part of the run that is done.

    Attributes:
        peak: largest learning rate.
        final: learning rate at the end.
        warmup_fraction: part of the run in which it rises linearly from `warmup_factor * peak`.
        warmup_factor: see there.
    """

    peak: float
    final: float
    warmup_fraction: float = 0.1
    warmup_factor: float = 0.2

    def __call__(self, progress: float) -> float:
        """The learning rate at `progress`, 0 at the beginning and 1 at the end of the run."""
        progress = min(max(progress, 0.0), 1.0)
        if progress < self.warmup_fraction:
            return self.peak * (self.warmup_factor + (1.0 - self.warmup_factor) * progress / self.warmup_fraction)
        x = (progress - self.warmup_fraction) / (1.0 - self.warmup_fraction)
        return self.final + 0.5 * (self.peak - self.final) * (1.0 + math.cos(math.pi * x))
