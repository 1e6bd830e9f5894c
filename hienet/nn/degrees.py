"""Tensors whose components are (l, m) for l = 0 .. l_max, in e3nn's order: operations degree by degree.

Tensors are split, not sliced: the gradient of a slice is a tensor of zeros of the whole's size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hienet.nn.scatter import sum_over_neighbors


def sum_components(features: Tensor, l_max: int) -> Tensor:
    """`[n, (l_max+1)^2, channels]` to `[n, l_max+1, channels]`: the sum over m for each l."""
    blocks = features.split([2 * l + 1 for l in range(l_max + 1)], 1)
    return torch.stack([block.sum(1) for block in blocks], dim=1)


def scale_degrees(features: Tensor, factors: Tensor, l_max: int) -> list[Tensor]:
    """Multiply by a factor for each l.

    Args:
        features: `[n, (l_max+1)^2, channels]`, or 1 in the place of channels.
        factors: `[n, l_max+1, channels]`.
        l_max: of both.

    Returns:
        for each l `[n, 2l+1, channels]`: blocks, because whoever sums them over neighbours joins them with others.
    """
    blocks = features.split([2 * l + 1 for l in range(l_max + 1)], 1)
    of_degree = factors.split(1, 1)
    return [blocks[l] * of_degree[l] for l in range(l_max + 1)]


def sum_components_of_edges(blocks: list[Tensor], center: Tensor, n_local: int) -> Tensor:
    """Blocks `[n_edges, components, channels]` to their sums over the neighbours of each center, side by side:
    `[n_local, all components, channels]`."""
    terms = torch.cat(blocks, dim=1)
    return sum_over_neighbors(terms.flatten(1), center, n_local).view(n_local, terms.shape[1], terms.shape[2])
