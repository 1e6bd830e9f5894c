"""Scalars and steerable features of an atom side by side: how they are normalised, and how they act on each other.

Scalars are `[n, channels]`, steerable features `[n, components, channels]`: the 2l+1 components of each l from 1 to l_max,
one l after the other. They meet through scalars only, so that no Clebsch-Gordan coefficients are needed.
"""

# No `from __future__ import annotations`: TorchScript reads the annotations of buffers where they are not strings.
import torch
from torch import Tensor, nn

from hienet.nn.scalar_network import linear, scalar_network


def component_degrees(l_max: int) -> Tensor:
    """l of each component, `[(l_max+1)^2 - 1]` int64."""
    degrees = torch.arange(1, l_max + 1)
    return torch.repeat_interleave(degrees, 2 * degrees + 1)


class SteerableLayerNorm(nn.Module):
    """x_l <- gain_l x_l / sqrt(s^2 + eps) with s^2 = mean over channels of sum_l |x_l|^2 / (2l+1), scalars being l = 0.

    One factor for all features of an atom: scalars and steerable features keep their proportion. There is no mean to
    subtract and no bias.
    """

    gain_row: Tensor
    """`[components]` int64."""
    weight: Tensor
    """`[components, 1]`: 1 / (2l+1)."""

    def __init__(self, channels: int, l_max: int) -> None:
        super().__init__()
        degrees = component_degrees(l_max)
        self.gain = nn.Parameter(torch.ones(l_max + 1, channels, dtype=torch.float64))
        self.register_buffer("gain_row", degrees, persistent=False)
        self.register_buffer("weight", 1.0 / (2.0 * degrees + 1.0).double().unsqueeze(1), persistent=False)
        self.epsilon = 1e-8

    def forward(self, scalars: Tensor, steerables: Tensor) -> tuple[Tensor, Tensor]:
        """Both, normalised."""
        square = scalars * scalars + (steerables * steerables * self.weight).sum(1)
        factor = torch.rsqrt(square.mean(1, keepdim=True) + self.epsilon)
        gain = self.gain.index_select(0, self.gain_row)
        return scalars * factor * self.gain[0], steerables * (factor.unsqueeze(2) * gain)


class SteerableCoupling(nn.Module):
    """Y = X W;  (m, g) = network([h, |Y|^2]);  h <- h + m;  X <- X + g Y.

    |Y|^2 is the sum over all components, for each channel.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.map = linear(channels, channels)
        self.network = scalar_network(2 * channels, channels, 2 * channels)

    def forward(self, scalars: Tensor, steerables: Tensor) -> tuple[Tensor, Tensor]:
        """Both, updated."""
        mapped = self.map(steerables)
        update = self.network(torch.cat([scalars, (mapped * mapped).sum(1)], dim=1))
        # Not `chunk`: TorchScript differentiates it wrongly where one part leads nowhere, as after the last block.
        change, gate = update[:, : self.channels], update[:, self.channels :]
        return scalars + change, steerables + gate.unsqueeze(1) * mapped
