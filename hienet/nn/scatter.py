"""Sums over edges."""

from __future__ import annotations

from torch import Tensor


def sum_over_neighbors(messages: Tensor, center: Tensor, n_local: int) -> Tensor:
    """`[n_edges, width]` to `[n_local, width]`: the sum of the messages that each center receives."""
    return messages.new_zeros(n_local, messages.shape[1]).index_add(0, center, messages)
