"""What NEMP knows of an ordered pair of species: weights and frequencies of its radial functions."""

import torch
from ase.data import atomic_numbers
from torch import Tensor, nn

from hienet.nn.residual_network import BiasedResidualNetwork, ResidualNetwork


class SpeciesPairs(nn.Module):
    """Z_i, Z_j -> code -> weights and frequencies, by networks that see the atomic numbers.

    They are evaluated once for each pair that occurs, not for each edge.
    """

    # TorchScript reads this annotation, and only where it is not a string.
    numbers: Tensor
    """`[n_species]`: atomic numbers."""

    def __init__(
        self,
        elements: list[str],
        code: int,
        width: int,
        n_blocks: int,
        layers_per_block: int,
        n_weights: int,
        n_frequencies: int,
    ) -> None:
        """`code`: length of a pair's code; `width`, `n_blocks`, `layers_per_block`: of the three networks."""
        super().__init__()
        self.n_weights, self.n_frequencies, self.n_species = n_weights, n_frequencies, len(elements)
        numbers = torch.tensor([atomic_numbers[symbol] for symbol in elements], dtype=torch.float64)
        self.register_buffer("numbers", numbers, persistent=False)
        self.code = BiasedResidualNetwork(
            2, width, n_blocks, layers_per_block, code, last_bias=torch.ones(code, dtype=torch.float64)
        )
        self.frequencies = BiasedResidualNetwork(
            code,
            width,
            n_blocks,
            layers_per_block,
            n_frequencies,
            last_bias=0.01 + 12.0 * torch.rand(n_frequencies, dtype=torch.float64),
        )
        self.weights = ResidualNetwork(code, width, n_blocks, layers_per_block, n_weights)

    def of_pairs(self, center_species: Tensor, neighbor_species: Tensor) -> Tensor:
        """`[n]` int64 each to weights and frequencies, `[n, n_weights + n_frequencies]`."""
        pair = torch.stack([self.numbers[center_species], self.numbers[neighbor_species]], dim=1)
        code = self.code(pair)
        return torch.cat([self.weights(code), self.frequencies(code)], dim=1)

    def forward(self, center_species: Tensor, neighbor_species: Tensor) -> tuple[Tensor, Tensor]:
        """Species of the two atoms of each edge, `[n_edges]` int64, to weights `[n_edges, n_weights]` and frequencies
        `[n_edges, n_frequencies]`."""
        pair = center_species * self.n_species + neighbor_species
        occurs = torch.zeros(self.n_species * self.n_species, dtype=torch.bool, device=pair.device)
        occurs[pair] = True
        kinds = occurs.nonzero().squeeze(1)
        row = torch.cumsum(occurs.to(torch.int64), 0) - 1
        table = self.of_pairs(kinds // self.n_species, kinds % self.n_species)
        of_edges = table.index_select(0, row.index_select(0, pair))
        return of_edges[:, : self.n_weights], of_edges[:, self.n_weights :]
