"""Attention between an atom and its neighbours that passes scalars and steerable features (Geodite, GotenNet)."""

# No `from __future__ import annotations`: TorchScript reads the annotations of buffers where they are not strings.
import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hienet.nn.scalar_network import linear, scalar_network
from hienet.nn.scatter import sum_over_neighbors
from hienet.nn.steerable import component_degrees


class NeighborDensity(nn.Module):
    """1 / (1 + rho_i) with rho_i = sum_j tanh(SiLU(v . phi_ij)^2): divides sums over neighbours by their number.

    The number is smooth and learnt, and the quotient goes to the plain sum as the last neighbour leaves: a division by
    the number itself would not let go of it.
    """

    def __init__(self, n_radial: int, divisor: float = 1.0) -> None:
        """`divisor`: of the radial features phi."""
        super().__init__()
        self.divisor = divisor
        self.direction = linear(n_radial, 1)

    def forward(self, radial: Tensor, center: Tensor, n_local: int) -> Tensor:
        """Radial features `[n_edges, n_radial]` to factors `[n_local, 1]`."""
        share = F.silu(self.direction(radial) / self.divisor)
        return 1.0 / (1.0 + sum_over_neighbors(torch.tanh(share * share), center, n_local))


class GeometricAttention(nn.Module):
    """Messages o_ij = alpha_ij (x) v_j + (t_ij W) x_j, split into (o_s, o_d, o_t), summed over neighbours:

        dh_i = sum_j o_s,    dX_i = sum_j [o_d Y(edge_ij) + o_t X_j]

    alpha of a head is SiLU(sum over its channels of q_i k_j SiLU(t_ij W')) / sqrt(channels), without softmax: it
    vanishes with the edge features t, and sums over neighbours need no second pass. q, k are linear maps of the scalars
    h; v, x networks. A head weighs a contiguous block of the 3 * channels numbers of v, before they are split in three.
    """

    def __init__(self, channels: int, n_heads: int, dropout: float, first: bool) -> None:
        """`first`: the neighbours' steerable features are all zero, so that o_t is not computed."""
        super().__init__()
        self.channels, self.first = channels, first
        self.n_parts = 2 if first else 3
        self.block = 3 * channels // n_heads
        self.heads_used = -(-self.n_parts * channels // self.block)
        self.query, self.key = linear(channels, channels), linear(channels, channels)
        self.filtered = scalar_network(channels, channels, 3 * channels)
        self.attended = scalar_network(channels, channels, 3 * channels)
        self.edge_key = linear(channels, channels)
        self.edge_filter = linear(channels, 3 * channels)
        self.n_heads = n_heads
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        scalars: Tensor,
        steerables: Tensor,
        edge_features: Tensor,
        harmonics: Tensor,
        center: Tensor,
        neighbor: Tensor,
        n_local: int,
    ) -> tuple[Tensor, Tensor]:
        """What each atom receives.

        Args:
            scalars: h, `[n_nodes, channels]`.
            steerables: X, `[n_nodes, components, channels]`; not read where `first`.
            edge_features: t, `[n_edges, channels]`.
            harmonics: Y, `[n_edges, components]`.
            center, neighbor: `[n_edges]` int64.
            n_local: number of receiving atoms.

        Returns:
            dh `[n_local, channels]` and dX `[n_local, components, channels]`.
        """
        n_edges, width = center.shape[0], self.n_parts * self.channels
        of_heads = self.heads_used * self.block
        match = self.query(scalars[:n_local]).index_select(0, center) * self.key(scalars).index_select(0, neighbor)
        match = match * F.silu(self.edge_key(edge_features))
        per_head = match.view(n_edges, self.n_heads, self.channels // self.n_heads).sum(2)
        alpha = self.dropout(F.silu(per_head) / math.sqrt(float(self.channels)))[:, : self.heads_used]
        attended = self.attended(scalars)[:, :of_heads].index_select(0, neighbor)
        messages = (alpha.unsqueeze(2) * attended.view(n_edges, self.heads_used, self.block)).view(n_edges, of_heads)
        filtered = self.filtered(scalars)[:, :width].index_select(0, neighbor)
        if self.first:
            messages = messages[:, :width]
        filters = F.linear(edge_features, self.edge_filter.weight[:width])
        parts = torch.addcmul(messages, filters, filtered).split(self.channels, dim=1)
        # Outer products as matrix products, whose gradients are matrix products and no sums of products.
        directions, directed = harmonics.unsqueeze(2), parts[1].unsqueeze(1)
        if self.first:
            steered = torch.bmm(directions, directed)
        else:
            passed = parts[2].unsqueeze(1) * steerables.index_select(0, neighbor)
            steered = torch.baddbmm(passed, directions, directed)
        received = sum_over_neighbors(steered.flatten(1), center, n_local)
        return (
            sum_over_neighbors(parts[0], center, n_local),
            received.view(n_local, harmonics.shape[1], self.channels),
        )


EdgeUpdateNetwork = Literal["linear", "mlp"]
EdgeGate = Literal["identity", "linear", "tanh"]


class EdgeUpdate(nn.Module):
    """t_ij <- t_ij + network(t_ij) gate(w_ij) with w_ij = sum_l (P_l Q_l,i) . (P_l K_l,j), channel by channel.

    Q_l = X_l W and K_l = X_l W_l'. P_l = 1 - Y_l Y_l^T removes what points along the edge (Y_l has norm one, and
    changes at most its sign with the direction), so that a term is Q_l,i . K_l,j - (Y_l . Q_l,i) (Y_l . K_l,j).
    """

    is_of_degree: Tensor
    """`[l_max, components]`: one where the component is of that l."""

    def __init__(self, channels: int, l_max: int, network: EdgeUpdateNetwork, gate: EdgeGate, rejection: bool) -> None:
        """An update of edge features.

        Args:
            channels: of all features.
            l_max: of the steerable features.
            network: one linear map with SiLU after it, or two with SiLU between.
            gate: w itself, a linear map of it, or tanh of that.
            rejection: apply P_l; otherwise it is one.
        """
        super().__init__()
        self.rejection, self.gate_kind = rejection, gate
        self.degrees = [(l * l - 1, 2 * l + 1) for l in range(1, l_max + 1)]
        """First component and 2l+1 of each l."""
        self.query = linear(channels, channels)
        self.keys = nn.ModuleList([linear(channels, channels) for _ in self.degrees])
        if network == "mlp":
            self.network = scalar_network(channels, channels, channels)
        else:
            self.network = nn.Sequential(linear(channels, channels), nn.SiLU())
        self.gate: nn.Module = nn.Identity() if gate == "identity" else linear(channels, channels)
        degrees = component_degrees(l_max)
        is_of_degree = (degrees.unsqueeze(0) == torch.arange(1, l_max + 1).unsqueeze(1)).double()
        self.register_buffer("is_of_degree", is_of_degree, persistent=False)

    def forward(
        self,
        edge_features: Tensor,
        steerables: Tensor,
        harmonics: Tensor,
        center: Tensor,
        neighbor: Tensor,
        n_local: int,
    ) -> Tensor:
        """t `[n_edges, channels]`, X `[n_nodes, components, channels]`, Y `[n_edges, components]` to the new t."""
        queries = self.query(steerables[:n_local]).index_select(0, center)
        keys = self.keys_of(steerables).index_select(0, neighbor)
        products = (queries * keys).sum(1)
        if self.rejection:
            directions = harmonics.unsqueeze(1) * self.is_of_degree
            products = products - (torch.bmm(directions, queries) * torch.bmm(directions, keys)).sum(1)
        gate = self.gate(products)
        if self.gate_kind == "tanh":
            gate = torch.tanh(gate)
        return edge_features + self.network(edge_features) * gate

    def keys_of(self, steerables: Tensor) -> Tensor:
        """K `[n, components, channels]` of steerable features of the same shape."""
        parts: list[Tensor] = []
        for i, key in enumerate(self.keys):
            start, dim = self.degrees[i]
            parts.append(key(steerables[:, start : start + dim]))
        return torch.cat(parts, dim=1)
