"""The tensor-product convolution: neighbours' features times spherical harmonics, summed over neighbours."""

import math
from dataclasses import dataclass

import torch
from e3nn import o3
from torch import Tensor, nn

from hienet.nn.irreps import irrep_blocks, sorted_irreps
from hienet.nn.scatter import sum_over_neighbors


@dataclass(frozen=True)
class CouplingPath:
    """One path (irrep of the features) x (l of the spherical harmonics) -> (irrep of the message)."""

    feature: int
    """Index of the features' irrep."""
    harmonic: int
    """Index of the spherical harmonics' irrep."""
    l_feature: int
    l_harmonic: int
    l: int
    """l of the message."""
    parity: int
    """Parity of the message."""
    channels: int


def coupling_paths(
    irreps_features: o3.Irreps, irreps_harmonics: o3.Irreps, irreps_out: o3.Irreps
) -> list[CouplingPath]:
    """All paths to `irreps_out`, in the order of their weights: by feature irrep, by harmonic, by l of the message."""
    wanted = {(irrep.l, irrep.p) for _, irrep in irreps_out}
    return [
        CouplingPath(i, j, feature_irrep.l, harmonic_irrep.l, irrep.l, irrep.p, channels)
        for i, (channels, feature_irrep) in enumerate(irreps_features)
        for j, (_, harmonic_irrep) in enumerate(irreps_harmonics)
        for irrep in sorted(feature_irrep * harmonic_irrep, key=lambda irrep: irrep.l)
        if (irrep.l, irrep.p) in wanted
    ]


class _CoupledIrrep(nn.Module):
    """Messages made of one irrep of the features: [coupling(Y) x features] * path weights, summed over neighbours."""

    # TorchScript reads these annotations, and only where they are not strings: no `from __future__ import
    # annotations` here.
    coupling: Tensor
    column_path: Tensor

    def __init__(
        self, start: int, dim: int, channels: int, first_weight: int, coupling: Tensor, path_dims: list[int]
    ) -> None:
        """`coupling`: `[harmonics, columns * dim]`, where a path to l has 2l+1 columns."""
        super().__init__()
        self.start, self.dim, self.channels, self.first_weight = start, dim, channels, first_weight
        self.n_paths = len(path_dims)
        self.n_columns = sum(path_dims)
        self.register_buffer("coupling", coupling, persistent=False)
        column_path = torch.repeat_interleave(torch.arange(len(path_dims)), torch.tensor(path_dims))
        self.register_buffer("column_path", column_path, persistent=False)

    def forward(
        self, features: Tensor, harmonics: Tensor, weights: Tensor, center: Tensor, neighbor: Tensor, n_local: int
    ) -> Tensor:
        """Sums `[n_local, n_columns, channels]`."""
        n_edges = center.shape[0]
        stop = self.start + self.dim * self.channels
        sent = features[:, self.start : stop].index_select(0, neighbor).view(n_edges, self.dim, self.channels)
        coupling = (harmonics @ self.coupling).view(n_edges, self.n_columns, self.dim)
        path_weights = weights[:, self.first_weight : self.first_weight + self.n_paths * self.channels]
        path_weights = path_weights.reshape(n_edges, self.n_paths, self.channels)
        if self.dim == 1:
            # Scalars have fewer paths than columns: multiply before the weights are repeated for each column.
            messages = (path_weights * sent).index_select(1, self.column_path) * coupling
        else:
            messages = torch.bmm(coupling, sent) * path_weights.index_select(1, self.column_path)
        total = sum_over_neighbors(messages.view(n_edges, self.n_columns * self.channels), center, n_local)
        return total.view(n_local, self.n_columns, self.channels)


class TensorProductConvolution(nn.Module):
    """a_i = sum_j sum_paths sqrt(2 l3 + 1) w_path(d_ij) [h_j x Y(edge_ij)]_l3, channel by channel ('uvu').

    Every (irrep of h) x (l of Y) -> l3 that `irreps_out` contains is one path with its own weights and its own block
    of output channels; the blocks of one l3 stand in path order. Wigner 3j symbols are e3nn's.
    """

    def __init__(
        self, irreps_features: o3.Irreps | str, irreps_harmonics: o3.Irreps | str, irreps_out: o3.Irreps | str
    ) -> None:
        super().__init__()
        irreps_features, irreps_harmonics = o3.Irreps(irreps_features), o3.Irreps(irreps_harmonics)
        self.irreps_features, self.irreps_harmonics = irreps_features, irreps_harmonics
        self.paths = coupling_paths(irreps_features, irreps_harmonics, o3.Irreps(irreps_out))
        if not self.paths:
            raise ValueError(f"no path leads from `{irreps_features}` x `{irreps_harmonics}` to `{irreps_out}`")
        self.n_weights = sum(path.channels for path in self.paths)
        self.irreps_out = sorted_irreps(o3.Irreps([(path.channels, (path.l, path.parity)) for path in self.paths]))
        blocks = irrep_blocks(irreps_features)
        used = sorted({path.feature for path in self.paths})
        coupled: list[_CoupledIrrep] = []
        sources: dict[tuple[int, int], list[tuple[int, int]]] = {}
        first_weight = 0
        for position, i in enumerate(used):
            paths = [path for path in self.paths if path.feature == i]
            block = blocks[i]
            column = 0
            for path in paths:
                sources.setdefault((path.l, path.parity), []).append((position, column))
                column += 2 * path.l + 1
            coupled.append(
                _CoupledIrrep(
                    block.start,
                    block.dim,
                    block.channels,
                    first_weight,
                    _coupling_matrix(paths, irreps_harmonics),
                    [2 * path.l + 1 for path in paths],
                )
            )
            first_weight += len(paths) * block.channels
        self.coupled = nn.ModuleList(coupled)
        # For each output irrep: 2l+1 and the (coupled irrep, first column) of its paths, in path order.
        self.outputs = [(irrep.dim, sources[(irrep.l, irrep.p)]) for _, irrep in self.irreps_out]

    def forward(
        self, features: Tensor, harmonics: Tensor, weights: Tensor, center: Tensor, neighbor: Tensor, n_local: int
    ) -> Tensor:
        """Sum of the messages to each atom.

        Args:
            features: `[n_nodes, irreps_features.dim]`; more columns may follow and are not read.
            harmonics: `[n_edges, irreps_harmonics.dim]`.
            weights: `[n_edges, n_weights]`.
            center, neighbor: `[n_edges]` int64.
            n_local: number of receiving atoms.

        Returns:
            `[n_local, irreps_out.dim]`.
        """
        sums: list[Tensor] = []
        for coupled in self.coupled:
            sums.append(coupled(features, harmonics, weights, center, neighbor, n_local))
        outputs: list[Tensor] = []
        for dim, sources in self.outputs:
            blocks = [sums[i][:, column : column + dim] for i, column in sources]
            outputs.append(torch.cat(blocks, dim=2).flatten(1))
        return torch.cat(outputs, dim=1)


def _coupling_matrix(paths: list[CouplingPath], irreps_harmonics: o3.Irreps) -> Tensor:
    """`[harmonics, columns * (2 l_feature + 1)]`: what multiplies the features' components, linear in the harmonics."""
    slices = irreps_harmonics.slices()
    columns: list[Tensor] = []
    for path in paths:
        symbol = o3.wigner_3j(path.l_feature, path.l_harmonic, path.l, dtype=torch.float64) * math.sqrt(2 * path.l + 1)
        matrix = torch.zeros(irreps_harmonics.dim, 2 * path.l + 1, 2 * path.l_feature + 1, dtype=torch.float64)
        matrix[slices[path.harmonic]] = symbol.permute(1, 2, 0)
        columns.append(matrix)
    return torch.cat(columns, dim=1).flatten(1)
