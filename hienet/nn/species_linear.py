"""Equivariant linear map with a matrix for each species."""

from __future__ import annotations

import math

import torch
from e3nn import o3
from torch import Tensor, nn

from hienet.nn.irreps import irrep_blocks


class SpeciesLinear(nn.Module):
    """y_l = x_l W_{l,species} / sqrt(fan-in * n_species), one matrix for each irrep and species, without bias.

    That is e3nn's fully connected tensor product of features and one-hot species with its default normalisation: the
    self-connection of NequIP (Batzner et al., 2022). An irrep of the output that the input lacks is zero.
    """

    def __init__(self, irreps_in: o3.Irreps | str, irreps_out: o3.Irreps | str, n_species: int) -> None:
        super().__init__()
        blocks_in = {(block.l, block.parity): block for block in irrep_blocks(irreps_in)}
        self.columns: list[tuple[int, int, int, int, int]] = []
        """(first column, fan-in, 2l+1, fan-out, first weight) of each output irrep."""
        n_weights = 0
        for block in irrep_blocks(irreps_out):
            source = blocks_in.get((block.l, block.parity))
            fan_in = 0 if source is None else source.channels
            start = 0 if source is None else source.start
            self.columns.append((start, fan_in, block.dim, block.channels, n_weights))
            n_weights += fan_in * block.channels
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
        n = features.shape[0]
        of_species = self.weight[kind] / math.sqrt(float(self.weight.shape[0]))
        outputs: list[Tensor] = []
        for start, fan_in, dim, fan_out, first in self.columns:
            if fan_in == 0:
                outputs.append(features.new_zeros(n, dim * fan_out))
                continue
            weight = of_species[first : first + fan_in * fan_out].view(fan_in, fan_out) / math.sqrt(float(fan_in))
            block = features[:, start : start + dim * fan_in].reshape(n * dim, fan_in)
            outputs.append((block @ weight).view(n, dim * fan_out))
        return torch.cat(outputs, dim=1)

    @torch.jit.unused
    def keep_species(self, rows: list[int]) -> None:
        """Forget all species but these, which get the numbers 0, 1, ...; their maps stay what they are."""
        factor = math.sqrt(len(rows) / self.weight.shape[0])
        self.weight = nn.Parameter(self.weight.detach()[rows] * factor)
