"""Equivariant linear map with a matrix for each species."""

from __future__ import annotations

import math

import torch
from e3nn import o3
from torch import Tensor, nn

from hienet.nn.linear import columns_of_map, map_blocks


class SpeciesLinear(nn.Module):
    """y_l = x_l W_{l,species} / sqrt(fan-in * n_species), one matrix for each irrep and species, without bias.

    That is e3nn's fully connected tensor product of features and one-hot species with its default normalisation: the
    self-connection of NequIP (Batzner et al., 2022). An irrep of the output that the input lacks is zero.
    """

    def __init__(self, irreps_in: o3.Irreps | str, irreps_out: o3.Irreps | str, n_species: int) -> None:
        super().__init__()
        columns, n_weights = columns_of_map(irreps_in, irreps_out)
        self.columns: list[tuple[int, int, int, int, int]] = columns
        self.dim_in, self.dim_out = o3.Irreps(irreps_in).dim, o3.Irreps(irreps_out).dim
        self.weight = nn.Parameter(torch.randn(n_species, n_weights, dtype=torch.float64))

    def forward(self, features: Tensor, species: Tensor) -> Tensor:
        """Features `[n, irreps_in.dim]` of atoms of these species, `[n]` int64, to `[n, irreps_out.dim]`."""
        result = features.new_zeros(features.shape[0], self.dim_out)
        # Species by species: gathering a matrix for each atom would take far more memory than the features.
        kinds: list[int] = torch.unique(species).tolist()
        for kind in kinds:
            rows = (species == kind).nonzero().squeeze(1)
            result = result.index_add(0, rows, self.of_one_species(features.index_select(0, rows), kind))
        return result

    def of_one_species(self, features: Tensor, kind: int) -> Tensor:
        """The map for atoms of one species."""
        of_species = self.weight[kind] / math.sqrt(float(self.weight.shape[0]))
        return map_blocks(features, of_species, self.columns)

    @torch.jit.unused
    def keep_species(self, rows: list[int]) -> None:
        """Forget all species but these, which get the numbers 0, 1, ...; their maps stay what they are."""
        factor = math.sqrt(len(rows) / self.weight.shape[0])
        self.weight = nn.Parameter(self.weight.detach()[rows] * factor)
