"""Functions of the distance between two atoms: basis, envelope, and the network that makes path weights of them."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from hienet.nn.activation import normalized_silu


def polynomial_envelope(distance: Tensor, cutoff: float, power: int) -> Tensor:
    """Smooth cutoff: 1 at zero distance, 0 from the cutoff on.

    f(u) = 1 - (p+1)(p+2)/2 u^p + p(p+2) u^(p+1) - p(p+1)/2 u^(p+2) with u = distance / cutoff, and 0 for u >= 1
    (Gasteiger et al., Directional Message Passing, 2020, eq. 8). f and its first two derivatives vanish at the cutoff.

    Args:
        distance: any shape (Å).
        cutoff: Å.
        power: p; the first p-1 derivatives vanish at zero distance.
    """
    p = float(power)
    u = distance / cutoff
    u_p = u.pow(power)
    value = 1.0 - 0.5 * (p + 1.0) * (p + 2.0) * u_p + p * (p + 2.0) * u_p * u - 0.5 * p * (p + 1.0) * u_p * u * u
    return torch.where(u < 1.0, value, torch.zeros_like(value))


def polynomial_envelope_slope(distance: Tensor, cutoff: float, power: int) -> Tensor:
    """The derivative of `polynomial_envelope` (1/Å): -p(p+1)(p+2)/2 u^(p-1) (1 - u)^2 / cutoff."""
    p = float(power)
    u = distance / cutoff
    inside = (1.0 - u).clamp(min=0.0)
    return (-0.5 * p * (p + 1.0) * (p + 2.0) / cutoff) * u.pow(power - 1) * inside * inside


def xplor_envelope(distance: Tensor, cutoff: float, onset: float) -> Tensor:
    """XPLOR's smooth cutoff: 1 up to the onset, 0 from the cutoff on.

    Between, (r_c^2 - r^2)^2 (r_c^2 + 2 r^2 - 3 r_on^2) / (r_c^2 - r_on^2)^3. Its first derivative is continuous, its
    second is not, at onset and cutoff.

    Args:
        distance: any shape (Å).
        cutoff: r_c (Å).
        onset: r_on (Å).
    """
    squared = distance * distance
    reach = cutoff * cutoff - onset * onset
    outside = cutoff * cutoff - squared
    falling = outside * outside * (cutoff * cutoff + 2.0 * squared - 3.0 * onset * onset) / (reach * reach * reach)
    value = torch.where(distance < onset, torch.ones_like(falling), falling)
    return torch.where(distance < cutoff, value, torch.zeros_like(value))


def xplor_envelope_slope(distance: Tensor, cutoff: float, onset: float) -> Tensor:
    """The derivative of `xplor_envelope` (1/Å): between onset and cutoff
    -12 r (r_c^2 - r^2) (r^2 - r_on^2) / (r_c^2 - r_on^2)^3."""
    squared = distance * distance
    reach = cutoff * cutoff - onset * onset
    outside, above = (cutoff * cutoff - squared).clamp(min=0.0), (squared - onset * onset).clamp(min=0.0)
    return (-12.0 / (reach * reach * reach)) * distance * outside * above


class PolynomialEnvelope(nn.Module):
    """`polynomial_envelope` with its constants."""

    @property
    @torch.jit.unused
    def kink(self) -> float | None:
        """Distance below the cutoff (Å) at which a second derivative jumps: none."""
        return None

    def __init__(self, cutoff: float, power: int) -> None:
        super().__init__()
        self.cutoff, self.power = cutoff, power

    def forward(self, distance: Tensor) -> Tensor:
        """Distances (Å) to factors, of the same shape."""
        return polynomial_envelope(distance, self.cutoff, self.power)

    @torch.jit.unused
    def slope(self, distance: Tensor) -> Tensor:
        """Its derivative (1/Å)."""
        return polynomial_envelope_slope(distance, self.cutoff, self.power)


class XPLOREnvelope(nn.Module):
    """`xplor_envelope` with its constants."""

    @property
    @torch.jit.unused
    def kink(self) -> float | None:
        """Distance below the cutoff (Å) at which a second derivative jumps: the onset."""
        return self.onset

    def __init__(self, cutoff: float, onset: float) -> None:
        super().__init__()
        self.cutoff, self.onset = cutoff, onset

    def forward(self, distance: Tensor) -> Tensor:
        """Distances (Å) to factors, of the same shape."""
        return xplor_envelope(distance, self.cutoff, self.onset)

    @torch.jit.unused
    def slope(self, distance: Tensor) -> Tensor:
        """Its derivative (1/Å)."""
        return xplor_envelope_slope(distance, self.cutoff, self.onset)


def bessel_basis(distance: Tensor, frequencies: Tensor, cutoff: float) -> Tensor:
    """(2 / r_c) sin(c_n d) / d of distances `[n, 1]` (Å) for frequencies c `[n_functions]`: `[n, n_functions]`."""
    # sinc(x) = sin(pi x)/(pi x) is exact and differentiable at zero.
    return 2.0 / cutoff * frequencies * torch.sinc(frequencies * distance / math.pi)


def bessel_frequencies(n_functions: int, cutoff: float) -> Tensor:
    """c_n = n pi / r_c, `[n_functions]` (1/Å, float64): sin(c_n d) vanishes at the cutoff."""
    return torch.arange(1, n_functions + 1, dtype=torch.float64) * math.pi / cutoff


class BesselBasis(nn.Module):
    """b_n(d) = (2 / r_c) sin(c_n d) / d, with trainable c_n that start at n pi / r_c.

    Finite as d -> 0, where b_n = 2 c_n / r_c.
    """

    def __init__(self, cutoff: float, n_functions: int) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.frequencies = nn.Parameter(bessel_frequencies(n_functions, cutoff))

    def forward(self, distance: Tensor) -> Tensor:
        """Distances `[n_edges, 1]` (Å) to `[n_edges, n_functions]`."""
        return bessel_basis(distance, self.frequencies, self.cutoff)


class RadialNetwork(nn.Module):
    """Fully connected network without biases, SiLU between, each layer scaled by 1/sqrt(fan-in).

    The normalisation is that of e3nn's `FullyConnectedNet` with unit variances: with standard normal weights every
    layer's outputs have unit second moment.
    """

    def __init__(self, widths: list[int]) -> None:
        """`widths`: inputs, hidden layers, outputs."""
        super().__init__()
        self.weights = nn.ParameterList(
            [
                nn.Parameter(torch.randn(fan_in, fan_out, dtype=torch.float64))
                for fan_in, fan_out in itertools.pairwise(widths)
            ]
        )
        self.n_layers = len(widths) - 1

    def forward(self, features: Tensor) -> Tensor:
        """`[n_edges, inputs]` to `[n_edges, outputs]`."""
        for i, weight in enumerate(self.weights):
            features = features @ (weight / math.sqrt(float(weight.shape[0])))
            if i < self.n_layers - 1:
                features = normalized_silu(features)
        return features
