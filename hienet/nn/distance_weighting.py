"""A weight that takes what is learnt out of the energy where atoms overlap."""

# No `from __future__ import annotations`: TorchScript reads the annotations of buffers where they are not strings.
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from ase.data import atomic_numbers, covalent_radii
from torch import Tensor, nn

P, Q = (1.0 + 2.0 * math.log1p(math.exp(0.5 * raw)) for raw in (-15.2013, 3.2139))
"""Exponents 1.0010 and 4.5794 of Geodite's weighting (arXiv 2601.15492), as its authors have them: 1 + softplus."""


class DistanceWeighting(nn.Module):
    """w(d) = a t^q / (1 + t^(q-p) + a t^q) with t = d / (R_i + R_j): one minus Agnesi's function of the distance.

    R are covalent radii (Cordero et al., 2008). The weight grows as a t^q from overlapping atoms on, where another term
    must repel (`hienet.nn.zbl`), and approaches one slowly: 0.115 at t = 1, 0.57 at t = 5. Its slope is steepest at
    t = 1 by the choice a = 2 (2pq - p - q) / (p^2 + p + q^2 + q).
    """

    radii: Tensor
    """`[n_species]` (Å)."""
    exponents: Tensor
    """`[2]`: p and q are 1 + softplus of these, with beta = 1/2, and so larger than one."""

    def __init__(self, elements: Sequence[str], p: float = P, q: float = Q, trainable: bool = False) -> None:
        """For pairs of these elements, in species order; p and q are weights of the model if `trainable`."""
        super().__init__()
        radii = [float(covalent_radii[atomic_numbers[symbol]]) for symbol in elements]
        self.register_buffer("radii", torch.tensor(radii, dtype=torch.float64), persistent=False)
        raw = [2.0 * math.log(math.expm1(0.5 * (value - 1.0))) for value in (p, q)]
        exponents = torch.tensor(raw, dtype=torch.float64)
        if trainable:
            self.exponents = nn.Parameter(exponents)
        else:
            self.register_buffer("exponents", exponents, persistent=False)

    def forward(self, distance: Tensor, center: Tensor, neighbor: Tensor) -> Tensor:
        """Distances `[n_edges, 1]` (Å) between atoms of these species, `[n_edges]` int64, to weights `[n_edges, 1]`."""
        radii = self.radii.index_select(0, center) + self.radii.index_select(0, neighbor)
        t = distance / radii.unsqueeze(1)
        exponents = 1.0 + F.softplus(self.exponents, beta=0.5)
        p, q = exponents[0], exponents[1]
        a = 2.0 * (2.0 * p * q - p - q) / (p * p + p + q * q + q)
        rising = a * t.pow(q)
        return rising / (1.0 + t.pow(q - p) + rising)
