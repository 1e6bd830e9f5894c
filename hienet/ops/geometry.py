"""Distance and spherical harmonics of edges as one compiled operator: the edge features of a compiled model."""

import torch
from e3nn import o3
from torch import Tensor, nn

from hienet.nn.embedding import EdgeEmbedding
from hienet.ops.library import load_operators


class EdgeGeometry(nn.Module):
    """Edge vectors to `[distance, spherical harmonics]`, which every compiled layer reads.

    The harmonics follow from Y_l = c_l (Y_(l-1) x u)_l, with u the unit vector and e3nn's Wigner 3j symbols.
    """

    # TorchScript reads these annotations, and only where they are not strings.
    terms: Tensor
    """`[n_terms, 3]` int64: target and source among the harmonics, component of u."""
    coefficients: Tensor
    """`[n_terms]`."""

    def __init__(self, plain: EdgeEmbedding) -> None:
        """For the harmonics of `plain`, in float64; convert afterwards.

        Raises:
            HIENetError: the library of operators is not compiled.
        """
        super().__init__()
        load_operators()
        l_max = max(l for _, (l, _) in plain.spherical_harmonics.irreps_out)
        self.n_harmonics = (l_max + 1) ** 2
        terms, coefficients = harmonics_recursion(l_max)
        self.register_buffer("terms", terms, persistent=False)
        self.register_buffer("coefficients", coefficients, persistent=False)

    def forward(self, edge_vectors: Tensor) -> Tensor:
        """`[n_edges, 3]` (Å), none of them zero, to `[n_edges, 1 + (l_max+1)^2]`."""
        return torch.ops.hienet.edge_geometry(edge_vectors, self.terms, self.coefficients, self.n_harmonics)

    def features(self, edges: Tensor) -> Tensor:
        """What the layers read: all columns."""
        return edges

    def distance(self, edges: Tensor) -> Tensor:
        """`[n_edges]` (Å)."""
        return edges[:, 0]


def harmonics_recursion(l_max: int) -> tuple[Tensor, Tensor]:
    """`terms` and `coefficients` (float64) of `EdgeGeometry`, for e3nn's harmonics of component normalisation."""
    unit = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.7], dtype=torch.float64), dim=0)
    terms: list[list[int]] = []
    coefficients: list[float] = []
    lower = torch.ones(1, dtype=torch.float64)
    for l in range(1, l_max + 1):
        symbol = o3.wigner_3j(l - 1, 1, l, dtype=torch.float64)
        product = torch.einsum("abm,a,b->m", symbol, lower, unit)
        # The factor that gives e3nn's sign and |Y_l|^2 = 2l + 1.
        harmonics = o3.spherical_harmonics(l, unit, normalize=True, normalization="component")
        factor = float(harmonics @ product / (product @ product))
        for a, b, m in (symbol.abs() > 1e-10).nonzero().tolist():
            terms.append([l * l + m, (l - 1) * (l - 1) + a, b])
            coefficients.append(factor * float(symbol[a, b, m]))
        lower = harmonics
    return torch.tensor(terms, dtype=torch.int64).view(-1, 3), torch.tensor(coefficients, dtype=torch.float64)
