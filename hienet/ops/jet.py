"""Values with their derivatives along one direction: forward-mode differentiation in plain torch.

A jet is a tensor `[n, order, width]`: with order 1 the values alone, with order 2 each row of values followed by the
row of its tangents, the derivatives along the direction. Linear maps treat both rows alike. Every function here is made
of operations that autograd differentiates, so that gradients of tangents are exact as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hienet.nn import activation

SILU_FACTOR = float(activation.normalized_silu(torch.tensor(100.0, dtype=torch.float64)) / 100.0)
TANH_FACTOR = float(activation.normalized_tanh(torch.tensor(100.0, dtype=torch.float64)))


def constant(values: Tensor, order: int) -> Tensor:
    """`[n, width]` that does not depend on the direction, as a jet."""
    if order == 1:
        return values.unsqueeze(1)
    return torch.stack([values, torch.zeros_like(values)], dim=1)


def rows(jet: Tensor) -> Tensor:
    """`[n * order, width]`: what linear maps take."""
    return jet.flatten(0, 1)


def from_rows(tensor: Tensor, order: int) -> Tensor:
    """The reverse of `rows`."""
    return tensor.view(-1, order, tensor.shape[1])


def normalized_tanh(jet: Tensor) -> Tensor:
    """`hienet.nn.activation.normalized_tanh`."""
    return tanh(jet) * TANH_FACTOR


def tanh(jet: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    if jet.shape[1] == 1:
        return torch.tanh(jet)
    value, tangent = jet.unbind(1)
    result = torch.tanh(value)
    return torch.stack([result, (1.0 - result * result) * tangent], dim=1)
