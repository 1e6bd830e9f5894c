"""Values with their derivatives along one direction: forward-mode differentiation in plain torch.

A jet is a tensor `[n, order, width]`: with order 1 the values alone, with order 2 each row of values followed by the
row of its tangents, the derivatives along the direction. Linear maps treat both rows alike. Every function here is made
of operations that autograd differentiates, so that gradients of tangents are exact as well.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


def affine(jet: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`[n, order, in]` to `[n, order, out]`, as `torch.nn.functional.linear`: a bias has no tangent."""
    order = jet.shape[1]
    mapped = from_rows(rows(jet) @ weight.t(), order)
    if bias is None:
        return mapped
    if order == 1:
        return mapped + bias
    return mapped + constant(bias.unsqueeze(0), order)


def linear(jet: Tensor, module: nn.Linear) -> Tensor:
    """A module's map."""
    return affine(jet, module.weight, module.bias)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Elementwise; widths of 1 are broadcast."""
    if a.shape[1] == 1:
        return a * b
    a_value, a_tangent = a.unbind(1)
    b_value, b_tangent = b.unbind(1)
    return torch.stack([a_value * b_value, a_value * b_tangent + a_tangent * b_value], dim=1)


def silu(jet: Tensor) -> Tensor:
    """x sigmoid(x)."""
    if jet.shape[1] == 1:
        return F.silu(jet)
    value, tangent = jet.unbind(1)
    factor = torch.sigmoid(value)
    result = value * factor
    return torch.stack([result, (factor + result * (1.0 - factor)) * tangent], dim=1)


def normalized_silu(jet: Tensor) -> Tensor:
    """`hienet.nn.activation.normalized_silu`."""
    if jet.shape[1] == 1:
        return activation.normalized_silu(jet)
    value, tangent = jet.unbind(1)
    # silu(x) = x sigmoid(x) has the slope sigmoid(x) (1 + x (1 - sigmoid(x))).
    factor = torch.sigmoid(value)
    slope = factor * (1.0 + value * (1.0 - factor))
    return torch.stack([value * factor, slope * tangent], dim=1) * SILU_FACTOR


def normalized_tanh(jet: Tensor) -> Tensor:
    """`hienet.nn.activation.normalized_tanh`."""
    return tanh(jet) * TANH_FACTOR


def sigmoid(jet: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    if jet.shape[1] == 1:
        return torch.sigmoid(jet)
    value, tangent = jet.unbind(1)
    result = torch.sigmoid(value)
    return torch.stack([result, result * (1.0 - result) * tangent], dim=1)


def tanh(jet: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    if jet.shape[1] == 1:
        return torch.tanh(jet)
    value, tangent = jet.unbind(1)
    result = torch.tanh(value)
    return torch.stack([result, (1.0 - result * result) * tangent], dim=1)


def softplus(jet: Tensor) -> Tensor:
    """log(1 + exp(x))."""
    if jet.shape[1] == 1:
        return F.softplus(jet)
    value, tangent = jet.unbind(1)
    return torch.stack([F.softplus(value), torch.sigmoid(value) * tangent], dim=1)


def layer_norm(jet: Tensor, module: nn.LayerNorm) -> Tensor:
    """A module's normalisation over the last dimension.

    torch's own has a forward derivative whose gradient is wrong: it takes mean and variance for constants.
    """
    if jet.shape[1] == 1:
        return module(jet)
    value, tangent = jet.unbind(1)
    centered = value - value.mean(dim=1, keepdim=True)
    inverse = torch.rsqrt((centered * centered).mean(dim=1, keepdim=True) + module.eps)
    normalized = centered * inverse
    moved = tangent - tangent.mean(dim=1, keepdim=True)
    moved = inverse * (moved - normalized * (normalized * moved).mean(dim=1, keepdim=True))
    return torch.stack([normalized * module.weight + module.bias, moved * module.weight], dim=1)


def dropout(jet: Tensor, module: nn.Dropout) -> Tensor:
    """A module's dropout: values and tangents are dropped together."""
    if not module.training or module.p == 0.0:
        return jet
    mask = F.dropout(torch.ones_like(jet[:, 0]), module.p)
    return jet * mask.unsqueeze(1)
