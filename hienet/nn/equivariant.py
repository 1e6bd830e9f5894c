"""Equivariant message passing: one interaction layer of the NequIP family."""

import torch
from e3nn import o3
from torch import Tensor, nn

from hienet.nn.convolution import TensorProductConvolution
from hienet.nn.embedding import split_edges
from hienet.nn.gate import Gate
from hienet.nn.linear import IrrepsLinear
from hienet.nn.radial import RadialNetwork
from hienet.nn.species_linear import SpeciesLinear


class EquivariantLayer(nn.Module):
    """x_i <- Gate(Linear_out[(1/N) sum_j TP(Linear_in(x_j), Y_ij; w(d_ij))] + Linear_skip(x_i)).

    N is the mean number of neighbours. The radial network has no biases and the radial basis vanishes at the cutoff, so
    messages do. The linear maps have no biases, so an isolated atom keeps Gate(Linear_skip(x)).
    """

    # What is not compiled for the other value does not fit the other kind of `linear_skip`.
    __constants__ = ("by_species",)

    def __init__(
        self,
        irreps_in: o3.Irreps | str,
        irreps_out: o3.Irreps | str,
        irreps_harmonics: o3.Irreps | str,
        n_radial: int,
        radial_hidden: list[int],
        avg_num_neighbors: float,
        n_species: int | None = None,
    ) -> None:
        """With `n_species`, Linear_skip has a matrix for each species, as in NequIP."""
        super().__init__()
        self.n_radial = n_radial
        self.gate = Gate(irreps_out)
        self.linear_in = IrrepsLinear(irreps_in, irreps_in)
        self.by_species = n_species is not None
        self.linear_skip: IrrepsLinear | SpeciesLinear
        if n_species is None:
            self.linear_skip = IrrepsLinear(irreps_in, self.gate.irreps_in)
        else:
            self.linear_skip = SpeciesLinear(irreps_in, self.gate.irreps_in, n_species)
        self.convolution = TensorProductConvolution(irreps_in, irreps_harmonics, irreps_out)
        self.radial_network = RadialNetwork([n_radial, *radial_hidden, self.convolution.n_weights])
        self.linear_out = IrrepsLinear(self.convolution.irreps_out, self.gate.irreps_in)
        self.avg_num_neighbors = avg_num_neighbors
        self.sent_width = o3.Irreps(irreps_in).dim
        self.kept_width = self.gate.irreps_in.dim

    @property
    def state_width(self) -> int:
        """Columns of the state that the layer reads."""
        return self.sent_width + self.kept_width

    @property
    def exchanged_width(self) -> int:
        """Leading columns that it reads of neighbours."""
        return self.sent_width

    def prepare(self, features: Tensor, species: Tensor) -> Tensor:
        """Features `[n, irreps_in.dim]` to the state: what neighbours read, then the atom's own part of the update.

        `species`: `[n]` int64.
        """
        kept = self.linear_skip(features, species) if self.by_species else self.linear_skip(features)
        return torch.cat([self.linear_in(features), kept], dim=1)

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
            state: `[n_nodes, state_width]`.
            edges: what `EdgeEmbedding` returns.
            species: not used by this layer.
            center, neighbor: `[n_edges]` int64.
            n_local: number of owned atoms.

        Returns:
            `[n_local, irreps_out.dim]`.
        """
        radial, _, harmonics = split_edges(edges, self.n_radial)
        weights = self.radial_network(radial)
        messages = self.convolution(state, harmonics, weights, center, neighbor, n_local) / self.avg_num_neighbors
        return self.gate(self.linear_out(messages) + state[:n_local, self.sent_width :])
