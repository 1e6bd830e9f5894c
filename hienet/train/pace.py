"""How fast a configuration trains on this machine, and the largest preset for which a given time is enough."""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from hienet.config import COMPUTED_MODEL_KEYS, TrainConfig, parse_config
from hienet.data.prepare import PreparedData, prepare_data
from hienet.models.factory import build_model, find_architecture
from hienet.torch_state import number_of_threads
from hienet.train.loop import StoppedBySignal, Trainer

SIZES = ("small", "medium", "large")
"""Presets from which one is chosen by the time that there is."""
STEPS_OF_A_TRAINING = 8000
"""Below some such number of steps a smaller model, which makes more of them in the same time, has the lower errors:
docs/training.md, "Which size"."""
_STEPS_MEASURED = 9
_SECONDS_MEASURED = 10.0


@dataclass(frozen=True)
class Pace:
    """How fast a configuration trains.

    Attributes:
        preset: of the model.
        seconds_of_step: median of some steps on this machine.
        steps_of_epoch: how many there are.
        threads: of torch.
    """

    preset: str
    seconds_of_step: float
    steps_of_epoch: int
    threads: int

    def steps(self, minutes: float) -> int:
        """That a time is enough for."""
        return max(1, int(60.0 * minutes / self.seconds_of_step))

    def epochs(self, minutes: float) -> int:
        """That a time is enough for, at least one."""
        return max(1, math.ceil(self.steps(minutes) / self.steps_of_epoch))

    def line(self, minutes: float) -> str:
        """For a person."""
        return (
            f"preset `{self.preset}`: a step takes {1000.0 * self.seconds_of_step:.3g} ms here on {self.threads} "
            f"thread(s), so that {minutes:g} minutes make some {self.steps(minutes):,} steps, {self.epochs(minutes):,} "
            "epochs"
        )


def measure_pace(config: TrainConfig, preset: str, data: PreparedData | None = None) -> Pace:
    """Make some steps of training as the configuration says, and forget the model.

    Args:
        config: its model has the preset.
        preset: its name.
        data: of this configuration; read if not given.

    Raises:
        HIENetError: anything wrong with configuration or data.
    """
    with number_of_threads(config.training.threads):
        dtype = getattr(torch, config.training.dtype)
        data = data or _data_of(config)
        model = build_model(config.model.architecture, data.model, config.training.seed)
        trainer = Trainer(model.to(dtype), data.train, None, config.training)
        ends = [time.perf_counter()]

        def enough() -> bool:
            return len(ends) > _STEPS_MEASURED or ends[-1] - ends[0] > _SECONDS_MEASURED

        with contextlib.suppress(StoppedBySignal):
            trainer.run(on_step=lambda loss: ends.append(time.perf_counter()), should_stop=enough)
        # The first step prepares what the others find ready.
        seconds = [after - before for before, after in itertools.pairwise(ends)]
        return Pace(preset, statistics.median(seconds[1:] or seconds), trainer.n_batches, torch.get_num_threads())


def _data_of(config: TrainConfig) -> PreparedData:
    return prepare_data(config.data, config.model, getattr(torch, config.training.dtype), config.training.seed)


def choose_preset(values: Mapping[str, Any], minutes: float) -> list[Pace]:
    """The pace of the presets of `SIZES` that the architecture has, up to the first for which the time is too short.

    The last for which it is enough, or the first of all, is to be chosen: `chosen_of`.

    Args:
        values: a configuration, whose `model.preset` is replaced.
        minutes: of training.
    """
    known = find_architecture(values["model"]["architecture"]).presets
    found: list[Pace] = []
    data: PreparedData | None = None
    for preset in (name for name in SIZES if name in known):
        config = parse_config({**values, "model": {**values["model"], "preset": preset}})
        if data is not None:
            # Of what is made of the data, the preset decides the cutoff alone.
            statistics = {name: getattr(data.model, name) for name in ("elements", *COMPUTED_MODEL_KEYS)}
            model = config.model.hyperparameters(statistics)
            data = replace(data, model=model) if model.cutoff == data.model.cutoff else None
        data = data or _data_of(config)
        found.append(measure_pace(config, preset, data))
        if found[-1].steps(minutes) < STEPS_OF_A_TRAINING:
            break
    return found


def chosen_of(paces: list[Pace], minutes: float) -> Pace:
    """The largest for which the time is enough, or the smallest."""
    enough = [pace for pace in paces if pace.steps(minutes) >= STEPS_OF_A_TRAINING]
    return enough[-1] if enough else paces[0]
