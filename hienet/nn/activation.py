"""Activation functions scaled to unit second moment under a standard normal input, as e3nn defines them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def normalized_silu(x: Tensor) -> Tensor:
    """SiLU times a constant such that the second moment is 1 for standard normal `x`."""
    # 1/sqrt(E[silu(z)^2]) as e3nn's `normalize2mom` estimates it from a fixed sample; weights are trained with
    # this very number. It stands here, and not as a global, because TorchScript functions see no globals.
    return F.silu(x) * 1.6791767923989418


def normalized_tanh(x: Tensor) -> Tensor:
    """tanh, scaled likewise."""
    return torch.tanh(x) * 1.5937334472592695
