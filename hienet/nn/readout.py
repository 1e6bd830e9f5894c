"""From scalar features to energies."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hienet.nn.linear import IrrepsLinear


class EnergyReadout(nn.Module):
    """e_i = scale[species] * Linear(Linear(x_i)) + shift[species], in eV and float64.

    Scale and shift are statistics of the training set, not weights. They are kept as Python floats because reference energies
    of thousands of eV lose meV in float32, to which tensors of a model are converted.
    """

    def __init__(self, channels: int, hidden: int, scale: list[float], shift: list[float], dropout: float) -> None:
        super().__init__()
        self.hidden = IrrepsLinear(f"{channels}x0e", f"{hidden}x0e")
        self.energy = IrrepsLinear(f"{hidden}x0e", "1x0e")
        self.dropout = nn.Dropout(dropout)
        self.scale = scale
        self.shift = shift

    def forward(self, features: Tensor, species: Tensor) -> Tensor:
        """Features `[n_local, channels]` and species `[n_local]` to energies `[n_local]` (eV, float64)."""
        output = self.energy(self.dropout(self.hidden(features))).squeeze(1).to(torch.float64)
        scale = torch.tensor(self.scale, dtype=torch.float64, device=species.device).index_select(0, species)
        shift = torch.tensor(self.shift, dtype=torch.float64, device=species.device).index_select(0, species)
        return scale * output + shift
