"""Equivariant linear maps as one compiled operator; `hienet.nn.linear` is the same in plain torch."""

import math

import torch
from torch import Tensor, nn

from hienet.nn.linear import IrrepsLinear
from hienet.ops.library import load_operators

PANEL = 16
"""Columns of a matrix that the operators read together."""


class FusedLinear(nn.Module):
    """Several `IrrepsLinear` of the same features, their outputs side by side; for inference.

    Buffers, for the operator: `plan` `[n_blocks, 7]` int64, one row for each irrep of each output: the first column of
    the features, fan-in (0 where the input lacks the irrep), 2l+1, first column of the output, fan-out, where its
    matrix begins in `weights`, and where the transposed one begins in `transposed`. A matrix `[fan-in, fan-out]` lies
    in panels: `[ceil(fan-out / PANEL), fan-in, PANEL]`.
    """

    # TorchScript reads these annotations, and only where they are not strings.
    plan: Tensor
    weights: Tensor
    transposed: Tensor

    def __init__(self, maps: list[IrrepsLinear]) -> None:
        """The maps must have the same `irreps_in`.

        Raises:
            HIENetError: the library of operators is not compiled.
        """
        super().__init__()
        load_operators()
        plan, weights, transposed = linear_plan(maps)
        self.register_buffer("plan", plan, persistent=False)
        self.register_buffer("weights", weights, persistent=False)
        self.register_buffer("transposed", transposed, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """`[n, irreps_in.dim]` to `[n, sum of irreps_out.dim]`."""
        return torch.ops.hienet.irreps_linear(features, self.weights, self.transposed, self.plan)


def linear_plan(maps: list[IrrepsLinear]) -> tuple[Tensor, Tensor, Tensor]:
    """`plan`, `weights` and `transposed` of `FusedLinear`; the weights contain 1/sqrt(fan-in)."""
    rows: list[list[int]] = []
    weights: list[Tensor] = []
    transposed: list[Tensor] = []
    first_output = weight_start = transposed_start = 0
    for linear in maps:
        weight = linear.weight.detach()
        for start, fan_in, dim, fan_out, first in linear.columns:
            rows.append([start, fan_in, dim, first_output, fan_out, weight_start, transposed_start])
            matrix = weight[first : first + fan_in * fan_out].view(fan_in, fan_out) / math.sqrt(max(fan_in, 1))
            weights.append(in_panels(matrix))
            transposed.append(in_panels(matrix.t()))
            first_output += dim * fan_out
            weight_start += weights[-1].numel()
            transposed_start += transposed[-1].numel()
    return torch.tensor(rows), torch.cat(weights), torch.cat(transposed)


def in_panels(matrix: Tensor) -> Tensor:
    """`[rows, columns]` to a vector that holds `[ceil(columns / PANEL), rows, PANEL]`, filled up with zeros."""
    padded = nn.functional.pad(matrix, [0, -matrix.shape[1] % PANEL])
    return padded.reshape(matrix.shape[0], padded.shape[1] // PANEL, PANEL).transpose(0, 1).flatten()


def size_in_panels(rows: int, columns: int) -> int:
    """Numbers that `in_panels` returns."""
    return math.ceil(columns / PANEL) * PANEL * rows
