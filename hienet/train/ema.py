"""Exponential moving average of weights, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """average <- d average + (1 - d) weight after every step, with d = min(decay, (1 + n) / (10 + n)) after n steps.

    The smaller d of the first steps lets the average forget the initial weights. Parameters are paired by name, never
    by position.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.n_updates = 0
        self.averages = {name: p.detach().clone() for name, p in model.named_parameters()}
        self._paired: tuple[nn.Module, list[Tensor]] | None = None

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the model's present weights into the average."""
        decay = min(self.decay, (1.0 + self.n_updates) / (10.0 + self.n_updates))
        self.n_updates += 1
        # To find them in the modules takes longer than to average a small model's.
        if self._paired is None or self._paired[0] is not model:
            weights = dict(model.named_parameters())
            self._paired = (model, [weights[name] for name in self.averages])
        torch._foreach_lerp_(list(self.averages.values()), self._paired[1], 1.0 - decay)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Within this context the model has the averaged weights; afterwards its own again."""
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        self._copy(self.averages, model)
        try:
            yield
        finally:
            self._copy(own, model)

    @torch.no_grad()
    def _copy(self, weights: Mapping[str, Tensor], model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])

    def state_dict(self) -> dict[str, object]:
        """Plain values and tensors, for `load_state_dict`."""
        return {"n_updates": self.n_updates, "averages": {name: tensor.cpu() for name, tensor in self.averages.items()}}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: the names are not those of the model.
        """
        averages = state["averages"]
        assert isinstance(averages, dict)
        if averages.keys() != self.averages.keys():
            raise ValueError(f"averages of other weights: {sorted(averages.keys() ^ self.averages.keys())}")
        for name, tensor in averages.items():
            self.averages[name].copy_(tensor)
        assert isinstance(state["n_updates"], int)
        self.n_updates = state["n_updates"]
