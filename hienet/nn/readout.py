"""From scalar features to energies."""

import torch
from torch import Tensor, nn

from hienet.nn.linear import IrrepsLinear


class EnergyReadout(nn.Module):
    """e_i = scale[species] * Linear(Linear(x_i)) + shift[species], in eV and float64.

    Scale and shift are statistics of the training set, not weights.
    """

    # TorchScript reads these annotations, and only where they are not strings.
    scale: Tensor
    shift: Tensor

    def __init__(self, channels: int, hidden: int, scale: list[float], shift: list[float], dropout: float) -> None:
        super().__init__()
        self.hidden = IrrepsLinear(f"{channels}x0e", f"{hidden}x0e")
        self.energy = IrrepsLinear(f"{hidden}x0e", "1x0e")
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("scale", as_float32_pairs(scale), persistent=False)
        self.register_buffer("shift", as_float32_pairs(shift), persistent=False)

    def forward(self, features: Tensor, species: Tensor) -> Tensor:
        """Features `[n_local, channels]` and species `[n_local]` to energies `[n_local]` (eV, float64)."""
        output = self.energy(self.dropout(self.hidden(features))).squeeze(1)
        return scaled_and_shifted(output, self.scale, self.shift, species)


def scaled_and_shifted(output: Tensor, scale: Tensor, shift: Tensor, species: Tensor) -> Tensor:
    """scale[species] * output + shift[species], `[n]` float64; `scale` and `shift` are pairs, `[2, n_species]`."""
    of_scale = scale.to(torch.float64).sum(0).index_select(0, species)
    of_shift = shift.to(torch.float64).sum(0).index_select(0, species)
    return of_scale * output.to(torch.float64) + of_shift


def as_float32_pairs(values: list[float]) -> Tensor:
    """Numbers as sums of two that float32 holds, `[2, n]`.

    Reference energies of thousands of eV lose meV in float32, to which a model's tensors are converted; two float32
    numbers keep 48 bits.
    """
    exact = torch.tensor(values, dtype=torch.float64)
    high = exact.to(torch.float32).to(torch.float64)
    return torch.stack([high, exact - high])
