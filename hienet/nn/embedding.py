"""First features of atoms and of edges."""

from __future__ import annotations

import math

import torch
from e3nn import o3
from torch import Tensor, nn

from hienet.nn.radial import BesselBasis, PolynomialEnvelope, XPLOREnvelope


class SpeciesEmbedding(nn.Module):
    """A trainable vector for each species: a linear map of the one-hot species, divided by sqrt(n_species)."""

    def __init__(self, n_species: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_species, channels, dtype=torch.float64))
        self.dropout = nn.Dropout(dropout)

    def forward(self, species: Tensor) -> Tensor:
        """`[n_nodes]` int64 to `[n_nodes, channels]`."""
        return self.dropout((self.weight / math.sqrt(float(self.weight.shape[0]))).index_select(0, species))

    @torch.jit.unused
    def keep_species(self, rows: list[int]) -> None:
        """Forget all species but these, which get the numbers 0, 1, ...; their features stay what they are."""
        factor = math.sqrt(len(rows) / self.weight.shape[0])
        self.weight = nn.Parameter(self.weight.detach()[rows] * factor)


class SpeciesTable(nn.Module):
    """A trainable vector for each species, standard normal at the start, whatever the number of species."""

    def __init__(self, n_species: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_species, channels, dtype=torch.float64))

    def forward(self, species: Tensor) -> Tensor:
        """`[n]` int64 to `[n, channels]`."""
        return self.weight.index_select(0, species)

    @torch.jit.unused
    def keep_species(self, rows: list[int]) -> None:
        """Forget all species but these, which get the numbers 0, 1, ..."""
        self.weight = nn.Parameter(self.weight.detach()[rows])


class EdgeEmbedding(nn.Module):
    """Radial basis times envelope, envelope, and real spherical harmonics of each edge, side by side in one tensor.

    With `with_distance` the distance is one more column, the last.
    """

    def __init__(
        self, cutoff: float, n_radial: int, envelope_power: int, l_max: int, xplor_onset: float | None = None
    ) -> None:
        """The envelope is the polynomial one unless `xplor_onset` (Å) is given."""
        super().__init__()
        self.with_distance = False
        self.cutoff = cutoff
        self.envelope: PolynomialEnvelope | XPLOREnvelope
        if xplor_onset is None:
            self.envelope = PolynomialEnvelope(cutoff, envelope_power)
        else:
            self.envelope = XPLOREnvelope(cutoff, xplor_onset)
        self.n_radial = n_radial
        self.basis = BesselBasis(cutoff, n_radial)
        self.spherical_harmonics = o3.SphericalHarmonics(
            list(range(l_max + 1)), normalize=True, normalization="component"
        )

    def forward(self, edge_vectors: Tensor) -> Tensor:
        """`[n_edges, 3]` (Å) to `[n_edges, n_radial + 1 + (l_max+1)^2]`, and the distance if wanted."""
        distance = torch.linalg.vector_norm(edge_vectors, dim=1, keepdim=True)
        envelope = self.envelope(distance)
        columns = [self.basis(distance) * envelope, envelope, self.spherical_harmonics(edge_vectors)]
        if self.with_distance:
            columns.append(distance)
        return torch.cat(columns, dim=1)

    def features(self, edges: Tensor) -> Tensor:
        """What the layers read: all columns but that of the distance."""
        return edges[:, :-1] if self.with_distance else edges

    def distance(self, edges: Tensor) -> Tensor:
        """`[n_edges]` (Å); only `with_distance`."""
        return edges[:, -1]


def split_edges(edges: Tensor, n_radial: int) -> tuple[Tensor, Tensor, Tensor]:
    """What `EdgeEmbedding` put side by side.

    Returns:
        radial basis `[n_edges, n_radial]`, zero at the cutoff; envelope `[n_edges, 1]`; harmonics
        `[n_edges, (l_max+1)^2]`.
    """
    return edges[:, :n_radial], edges[:, n_radial : n_radial + 1], edges[:, n_radial + 1 :]
