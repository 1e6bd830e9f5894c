"""Linear maps and networks of scalars without biases: what is zero stays zero."""

from __future__ import annotations

import itertools

import torch
from torch import nn


def linear(fan_in: int, fan_out: int) -> nn.Linear:
    """A linear map in float64 without bias, uniform after Glorot and Bengio (2010) at the start."""
    layer = nn.Linear(fan_in, fan_out, bias=False, dtype=torch.float64)
    nn.init.xavier_uniform_(layer.weight)
    return layer


def scalar_network(*widths: int) -> nn.Sequential:
    """Such maps from each width to the next, with SiLU between."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.SiLU(), linear(fan_in, fan_out)]
    return nn.Sequential(*layers[1:])
