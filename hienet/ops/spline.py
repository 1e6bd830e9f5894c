"""Functions of a distance as quintic splines: how the compiled operators tabulate radial networks and pair messages.

Between knots that divide [0, cutoff] evenly, a function is a polynomial of degree 5 that takes the function's value and
first two derivatives at both knots, so that the spline and its first two derivatives are continuous. Those derivatives
come from samples inside each interval: no derivative of the function needs to be programmed, and nothing is sampled
outside [0, cutoff], where a network times an envelope is smooth only once or twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

SAMPLES = 10
"""Samples in each interval; a polynomial of degree SAMPLES - 1 through them gives the derivatives at its ends."""

COEFFICIENTS = 6
"""Of each interval: powers 0 to 5 of the fraction of the interval."""

LANES = 16
"""Columns that the operators read together."""


def sample_distances(cutoff: float, n_intervals: int, n_samples: int) -> Tensor:
    """Distances `[n_intervals * n_samples]` (Å, float64) at which to sample: the Chebyshev nodes of each interval.

    `n_samples` is SAMPLES: an argument, because TorchScript knows no module's constants.
    """
    fractions = 0.5 * (1.0 - torch.cos(_angles(n_samples)))
    starts = torch.arange(n_intervals, dtype=torch.float64)
    return ((starts.unsqueeze(1) + fractions) * (cutoff / n_intervals)).flatten()


def fit_matrix(n_samples: int) -> Tensor:
    """`[6, n_samples]`: from samples to value, first and second derivative at the interval's start, then at its end.

    Derivatives are with respect to the fraction of the interval. With x = -cos(angle) in [-1, 1], the samples give the
    coefficients of Chebyshev polynomials by discrete orthogonality, and T_k(1) = 1, T_k'(1) = k^2,
    T_k''(1) = k^2 (k^2 - 1) / 3.
    """
    order = torch.arange(n_samples, dtype=torch.float64).unsqueeze(1)
    polynomials = torch.cos(order * (math.pi - _angles(n_samples)))
    to_coefficients = polynomials * (2.0 / n_samples)
    # No number is written into the tensor: TorchScript would round it to single precision.
    to_coefficients[0] = 0.5 * to_coefficients[0]
    squared = (order * order).squeeze(1)
    sign = 1.0 - 2.0 * torch.remainder(order.squeeze(1), 2.0)
    # The fraction runs over half the length of [-1, 1].
    slope, curvature = 2.0 * squared, 4.0 * squared * (squared - 1.0) / 3.0
    ends = torch.stack([sign, -sign * slope, sign * curvature, torch.ones_like(sign), slope, curvature])
    return ends @ to_coefficients


def _angles(n_samples: int) -> Tensor:
    return (torch.arange(n_samples, dtype=torch.float64) + 0.5) * (math.pi / n_samples)


def spline_coefficients(samples: Tensor, matrix: Tensor) -> Tensor:
    """Samples `[n_intervals, SAMPLES, columns]` to coefficients `[n_intervals, 6, columns]` of powers of the fraction.

    `matrix`: of `fit_matrix`. TorchScript can compile this function, so that a deployed model tabulates when it is
    loaded.
    """
    ends = torch.einsum("ds,nsc->dnc", matrix, samples)
    # One value for each knot: the mean of what the intervals on its two sides say.
    knots = torch.cat([ends[:3, :1], 0.5 * (ends[:3, 1:] + ends[3:, :-1]), ends[3:, -1:]], dim=1)
    value, slope, curvature = knots[0, :-1], knots[1, :-1], knots[2, :-1]
    # What the last three powers must add at the end of the interval.
    rise = knots[0, 1:] - value - slope - 0.5 * curvature
    rise_of_slope = knots[1, 1:] - slope - curvature
    rise_of_curvature = knots[2, 1:] - curvature
    return torch.stack(
        [
            value,
            slope,
            0.5 * curvature,
            10.0 * rise - 4.0 * rise_of_slope + 0.5 * rise_of_curvature,
            -15.0 * rise + 7.0 * rise_of_slope - rise_of_curvature,
            6.0 * rise - 3.0 * rise_of_slope + 0.5 * rise_of_curvature,
        ],
        dim=1,
    )


def in_lanes(coefficients: Tensor, lanes: int) -> Tensor:
    """`[n_intervals, 6, columns]` to the operators' layout `[ceil(columns / lanes), n_intervals, 6, lanes]`.

    Columns are filled up with zeros; `lanes` is LANES (an argument, because TorchScript knows no module's constants).
    """
    n_intervals, powers, columns = coefficients.shape
    padded = torch.nn.functional.pad(coefficients, [0, -columns % lanes])
    return padded.view(n_intervals, powers, -1, lanes).permute(2, 0, 1, 3).contiguous()


def evaluate_spline(coefficients: Tensor, distance: Tensor, cutoff: float) -> Tensor:
    """Distances `[n]` (Å) to values `[n, columns]`, differentiable: the operators' reference in plain torch.

    `coefficients`: `[n_intervals, 6, columns]`.
    """
    n_intervals = coefficients.shape[0]
    position = distance * (n_intervals / cutoff)
    interval = position.detach().to(torch.int64).clamp(0, n_intervals - 1)
    fraction = (position - interval).unsqueeze(1)
    of_interval = coefficients.index_select(0, interval)
    value = of_interval[:, 5]
    for power in range(4, -1, -1):
        value = value * fraction + of_interval[:, power]
    return value


def tabulate(
    function: Callable[[Tensor], Tensor], cutoff: float, n_intervals: int, kink: float | None = None
) -> Tensor:
    """Coefficients `[n_intervals, 6, columns]`, float64, of a function from distances `[n]` (Å) to `[n, columns]`.

    `kink`: a distance (Å) at which a derivative jumps. What lies on its two sides is fitted apart, which helps where it
    is a knot (`intervals_with_knot`).
    """
    with torch.no_grad():
        samples = function(sample_distances(cutoff, n_intervals, SAMPLES)).double().view(n_intervals, SAMPLES, -1)
    first = 0 if kink is None else round(kink * n_intervals / cutoff)
    sides = [side for side in (samples[:first], samples[first:]) if len(side)]
    return torch.cat([spline_coefficients(side, fit_matrix(SAMPLES)) for side in sides])


def intervals_with_knot(n_intervals: int, cutoff: float, kink: float) -> int:
    """The fewest intervals, `n_intervals` or more, of which one begins at `kink`; `n_intervals` where that takes more
    than twice as many."""
    for n in range(n_intervals, 2 * n_intervals + 1):
        position = kink * n / cutoff
        if abs(position - round(position)) < 1e-9 * n:
            return n
    return n_intervals
