"""Tensors whose components are (l, m) for l = 0 .. l_max, in e3nn's order: operations degree by degree."""

from __future__ import annotations

import torch
from torch import Tensor


def sum_components(features: Tensor, l_max: int) -> Tensor:
    """`[n, (l_max+1)^2, channels]` to `[n, l_max+1, channels]`: the sum over m for each l."""
    return torch.stack([features[:, l * l : (l + 1) * (l + 1)].sum(1) for l in range(l_max + 1)], dim=1)


def scale_degrees(features: Tensor, factors: Tensor, l_max: int) -> Tensor:
    """Multiply by a factor for each l.

    Args:
        features: `[n, (l_max+1)^2, channels]`, or 1 in the place of channels.
        factors: `[n, l_max+1, channels]`.
        l_max: of both.

    Returns:
        `[n, (l_max+1)^2, channels]`.
    """
    return torch.cat([features[:, l * l : (l + 1) * (l + 1)] * factors[:, l : l + 1] for l in range(l_max + 1)], dim=1)
