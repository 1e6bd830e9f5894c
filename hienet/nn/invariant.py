"""Invariant message passing: a graph transformer on scalar features and distances."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hienet.nn.embedding import split_edges
from hienet.nn.scatter import sum_over_neighbors


class PairNetwork(nn.Module):
    """MLP[center, neighbour, edge] = W_2 SiLU(W_1 [center, neighbour, edge] + b_1) + b_2.

    W_1 acts on each part on its own before they meet, so that its node halves cost one product an atom, not one an
    edge.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.first = _linear(3 * channels, channels)
        self.second = _linear(channels, channels)

    def forward(self, nodes: Tensor, edges: Tensor, center: Tensor, neighbor: Tensor, n_local: int) -> Tensor:
        """`nodes` `[n_nodes, channels]`, `edges` `[n_edges, channels]` to `[n_edges, channels]`."""
        c = self.channels
        weight = self.first.weight
        of_center = nodes[:n_local] @ weight[:, :c].t()
        of_neighbor = nodes @ weight[:, c : 2 * c].t()
        of_edge = F.linear(edges, weight[:, 2 * c :], self.first.bias)
        hidden = of_edge + of_center.index_select(0, center) + of_neighbor.index_select(0, neighbor)
        return self.second(F.silu(hidden))


def attended(messages: Tensor, attention: Tensor, gain: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """m sigmoid(LayerNorm(a)): messages `[..., channels]` with an attention of the same shape, a number a channel."""
    return messages * torch.sigmoid(F.layer_norm(attention, [messages.shape[-1]], gain, bias, epsilon))


class InvariantLayer(nn.Module):
    """Graph-transformer layer of width C (HIENet paper, invariant message passing).

    q, k, v = linear maps of the features; e_ij = linear map of the radial basis;
    m_ij = MLP_m[v_i, v_j, e_ij] * sigmoid(LayerNorm(q_i * MLP_k[k_i, k_j, e_ij] / sqrt(C)));
    o_i = W_c (sum_j m_ij) + b_c; y_i = (1 - update_i) x_i + update_i softplus(LayerNorm(o_i));
    x_i <- (1 - update_i) reset_i x_i + update_i y_i, with sigmoid gates reset and update of x_i.

    With `smooth_cutoff` the message is multiplied by the envelope f(d/r_c). Without it, as in the authors' code, the
    biases give a neighbour a finite message at the cutoff and the energy jumps when it crosses.
    """

    def __init__(
        self, channels: int, n_radial: int, dropout: float, attention_dropout: float, smooth_cutoff: bool
    ) -> None:
        super().__init__()
        self.channels = channels
        self.n_radial = n_radial
        self.smooth_cutoff = smooth_cutoff
        self.query = _linear(channels, channels)
        self.key = _linear(channels, channels)
        self.value = _linear(channels, channels)
        self.edge = _linear(n_radial, channels)
        self.key_network = PairNetwork(channels)
        self.message_network = PairNetwork(channels)
        self.attention_norm = nn.LayerNorm(channels, dtype=torch.float64)
        self.output = _linear(channels, channels)
        self.output_norm = nn.LayerNorm(channels, dtype=torch.float64)
        self.reset = _linear(channels, channels)
        self.update = _linear(channels, channels)
        self.edge_dropout = nn.Dropout(dropout)
        self.attention_dropout = nn.Dropout(attention_dropout)

    @property
    def state_width(self) -> int:
        """Columns of the state that the layer reads."""
        return self.channels

    @property
    def exchanged_width(self) -> int:
        """Leading columns that it reads of neighbours."""
        return self.channels

    def prepare(self, features: Tensor, species: Tensor) -> Tensor:
        """Features `[n, channels]` to the state that `forward` reads: here the features themselves."""
        return features

    def load_elements(self, species: Tensor) -> int:
        """Bytes of the tables built for these species: a plain layer has none."""
        return 0

    def forward(
        self,
        state: Tensor,
        edges: Tensor,
        species: Tensor,
        center: Tensor,
        neighbor: Tensor,
        n_local: int,
    ) -> Tensor:
        """New features of the owned atoms.

        Args:
            state: `[n_nodes, channels]`.
            edges: what `EdgeEmbedding` returns.
            species: not used by this layer.
            center, neighbor: `[n_edges]` int64.
            n_local: number of owned atoms.

        Returns:
            `[n_local, channels]`.
        """
        x = state[:n_local]
        radial, envelope, _ = split_edges(edges, self.n_radial)
        edge = self.edge_dropout(self.edge(radial))
        key = self.key_network(self.key(state), edge, center, neighbor, n_local)
        attention = self.query(x).index_select(0, center) * key / math.sqrt(float(self.channels))
        message = attended(
            self.message_network(self.value(state), edge, center, neighbor, n_local),
            self.attention_dropout(attention),
            self.attention_norm.weight,
            self.attention_norm.bias,
            self.attention_norm.eps,
        )
        if self.smooth_cutoff:
            message = message * envelope
        return self.updated(x, sum_over_neighbors(message, center, n_local))

    def updated(self, x: Tensor, received: Tensor) -> Tensor:
        """New features of atoms with features `x`, of the sums of the messages to them: all `[n_local, channels]`."""
        reset = torch.sigmoid(self.reset(x))
        update = torch.sigmoid(self.update(x))
        candidate = (1.0 - update) * x + update * F.softplus(self.output_norm(self.output(received)))
        return (1.0 - update) * reset * x + update * candidate


def _linear(fan_in: int, fan_out: int) -> nn.Linear:
    return nn.Linear(fan_in, fan_out, dtype=torch.float64)
