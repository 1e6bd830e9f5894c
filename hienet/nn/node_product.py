"""A tensor product of two node features, channel by channel ('uuu'), and linear maps that share it."""

import math

import torch
from e3nn import o3
from torch import Tensor, nn


def natural_paths(l_max_first: int, l_max_second: int, l_max_out: int) -> list[tuple[int, int, int]]:
    """(l1, l2, l) of all couplings with l1 + l2 + l even, ordered by l, then l1: irreps of natural parity stay so."""
    return [
        (l1, l2, l)
        for l in range(l_max_out + 1)
        for l1 in range(l_max_first + 1)
        for l2 in range(l_max_second + 1)
        if abs(l1 - l2) <= l <= l1 + l2 and (l1 + l2 + l) % 2 == 0
    ]


class NodeTensorProduct(nn.Module):
    """M_l = 1/sqrt(n_paths(l)) sum over paths (l1, l2, l) of w_path,species [B_l1 x A_l2]_l.

    The products are made with real Clebsch-Gordan coefficients whose squares add up to 1 for each (l1, l2, l): e3nn's
    Wigner 3j symbols. Features are `[n, (l_max+1)^2, channels]`; each channel of a path has a weight for each species.
    """

    # TorchScript reads these annotations, and only where they are not strings.
    coupling: Tensor
    """`[columns, dim of B * dim of A]`; a path to l has 2l+1 columns."""
    column_path: Tensor
    """`[columns]` int64."""
    column_component: Tensor
    """`[columns]` int64: lm of the result."""
    normalization: Tensor
    """`[columns, 1]`."""

    def __init__(self, n_species: int, channels: int, l_max_first: int, l_max_second: int, l_max_out: int) -> None:
        super().__init__()
        self.paths = natural_paths(l_max_first, l_max_second, l_max_out)
        dim_first, dim_second = (l_max_first + 1) ** 2, (l_max_second + 1) ** 2
        self.dim_out = (l_max_out + 1) ** 2
        blocks: list[Tensor] = []
        path: list[int] = []
        component: list[int] = []
        normalization: list[float] = []
        for i, (l1, l2, l) in enumerate(self.paths):
            block = torch.zeros(2 * l + 1, dim_first, dim_second, dtype=torch.float64)
            block[:, l1 * l1 : (l1 + 1) ** 2, l2 * l2 : (l2 + 1) ** 2] = o3.wigner_3j(
                l1, l2, l, dtype=torch.float64
            ).permute(2, 0, 1)
            blocks.append(block.view(2 * l + 1, dim_first * dim_second))
            path += [i] * (2 * l + 1)
            component += range(l * l, (l + 1) ** 2)
            normalization += [1.0 / math.sqrt(sum(other[2] == l for other in self.paths))] * (2 * l + 1)
        self.register_buffer("coupling", torch.cat(blocks), persistent=False)
        self.register_buffer("column_path", torch.tensor(path), persistent=False)
        self.register_buffer("column_component", torch.tensor(component), persistent=False)
        self.register_buffer(
            "normalization", torch.tensor(normalization, dtype=torch.float64).view(-1, 1), persistent=False
        )
        self.weight = nn.Parameter(torch.randn(n_species, len(self.paths), channels, dtype=torch.float64))

    def forward(self, first: Tensor, second: Tensor, species: Tensor) -> Tensor:
        """B `[n, (l_max_first+1)^2, channels]`, A `[n, (l_max_second+1)^2, channels]` and species `[n]` int64 to
        `[n, (l_max_out+1)^2, channels]`."""
        n, channels = first.shape[0], first.shape[2]
        pairs = (first.unsqueeze(2) * second.unsqueeze(1)).view(n, first.shape[1] * second.shape[1], channels)
        coupled = torch.matmul(self.coupling, pairs)
        weights = self.weight.index_select(0, species).index_select(1, self.column_path)
        weighted = coupled * weights * self.normalization
        return weighted.new_zeros(n, self.dim_out, channels).index_add(1, self.column_component, weighted)

    @torch.jit.unused
    def keep_species(self, rows: list[int]) -> None:
        """Forget all species but these, which get the numbers 0, 1, ..."""
        self.weight = nn.Parameter(self.weight.detach()[rows])


class SpeciesChannelMix(nn.Module):
    """x W_species / sqrt(channels): one matrix for each species, which all components (l, m) share."""

    def __init__(self, n_species: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_species, channels, channels, dtype=torch.float64))

    def forward(self, features: Tensor, species: Tensor) -> Tensor:
        """`[n, components, channels]` of atoms of these species, `[n]` int64, to the same shape."""
        matrices = self.weight / math.sqrt(float(self.weight.shape[1]))
        return torch.bmm(features, matrices.index_select(0, species))

    @torch.jit.unused
    def keep_species(self, rows: list[int]) -> None:
        """Forget all species but these, which get the numbers 0, 1, ..."""
        self.weight = nn.Parameter(self.weight.detach()[rows])
