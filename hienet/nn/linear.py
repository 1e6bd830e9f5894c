"""Equivariant linear map: channels of the same irrep are mixed, nothing else."""

from __future__ import annotations

import math

import torch
from e3nn import o3
from torch import Tensor, nn

from hienet.nn.irreps import irrep_blocks


def columns_of_map(
    irreps_in: o3.Irreps | str, irreps_out: o3.Irreps | str
) -> tuple[list[tuple[int, int, int, int, int]], int]:
    """(first column, fan-in, 2l+1, fan-out, first weight) of each output irrep, and the number of weights."""
    blocks_in = {(block.l, block.parity): block for block in irrep_blocks(irreps_in)}
    columns: list[tuple[int, int, int, int, int]] = []
    n_weights = 0
    for block in irrep_blocks(irreps_out):
        source = blocks_in.get((block.l, block.parity))
        fan_in = 0 if source is None else source.channels
        start = 0 if source is None else source.start
        columns.append((start, fan_in, block.dim, block.channels, n_weights))
        n_weights += fan_in * block.channels
    return columns, n_weights


def map_blocks(features: Tensor, weight: Tensor, columns: list[tuple[int, int, int, int, int]]) -> Tensor:
    """Each irrep of `[n, irreps_in.dim]` times its matrix over the square root of its fan-in: `[n, irreps_out.dim]`.

    `weight` `[n_weights]` and `columns` are those of `columns_of_map`.
    """
    outputs: list[Tensor] = []
    n = features.shape[0]
    for start, fan_in, dim, fan_out, first in columns:
        if fan_in == 0:
            outputs.append(features.new_zeros(n, dim * fan_out))
            continue
        matrix = weight[first : first + fan_in * fan_out].view(fan_in, fan_out) / math.sqrt(float(fan_in))
        block = features[:, start : start + dim * fan_in].reshape(n * dim, fan_in)
        outputs.append((block @ matrix).view(n, dim * fan_out))
    return torch.cat(outputs, dim=1)


class IrrepsLinear(nn.Module):
    """y_l = x_l W_l / sqrt(fan-in), one matrix for each irrep, without bias.

    With standard normal weights the outputs keep unit variance (e3nn's `Linear` with its default normalisation). The
    weights of all irreps lie in one vector, `[fan-in, fan-out]` row-major each, in the order of `irreps_out`; an irrep
    of the output that the input lacks is zero.
    """

    def __init__(self, irreps_in: o3.Irreps | str, irreps_out: o3.Irreps | str) -> None:
        super().__init__()
        columns, n_weights = columns_of_map(irreps_in, irreps_out)
        self.columns: list[tuple[int, int, int, int, int]] = columns
        self.weight = nn.Parameter(torch.randn(n_weights, dtype=torch.float64))

    def forward(self, features: Tensor) -> Tensor:
        """`[n, irreps_in.dim]` to `[n, irreps_out.dim]`."""
        return map_blocks(features, self.weight, self.columns)
