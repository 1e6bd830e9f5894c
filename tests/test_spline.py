"""Quintic splines of functions of a distance."""

import itertools
import math
import warnings

import pytest
import torch

from hienet.ops.spline import (
    LANES,
    SAMPLES,
    evaluate_spline,
    fit_matrix,
    in_lanes,
    sample_distances,
    spline_coefficients,
    tabulate,
)

CUTOFF = 5.0


def functions(distance: torch.Tensor) -> torch.Tensor:
    d = distance.unsqueeze(1)
    frequency = torch.tensor([0.5, 2.0, 5.0], dtype=torch.float64)
    return torch.cat([torch.sin(frequency * d + 0.3), torch.exp(-d) * d], dim=1)


def fitted(n_intervals: int) -> torch.Tensor:
    return tabulate(functions, CUTOFF, n_intervals)


def test_spline_converges_with_sixth_order() -> None:
    distance = torch.linspace(0, CUTOFF, 997, dtype=torch.float64)
    errors = [
        float((evaluate_spline(fitted(n), distance, CUTOFF) - functions(distance)).abs().max()) for n in (8, 16, 32)
    ]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(5.5 < order < 6.7 for order in orders), orders
    assert errors[-1] < 1e-5


def test_spline_has_two_continuous_derivatives() -> None:
    coefficients = fitted(8)
    knots = torch.arange(1, 8, dtype=torch.float64) * (CUTOFF / 8)
    step = 1e-9
    for order in range(3):
        sides = []
        for sign in (-1, 1):
            distance = (knots + sign * step).requires_grad_(True)
            values = evaluate_spline(coefficients, distance, CUTOFF)[:, 2]
            for _ in range(order):
                (values,) = torch.autograd.grad(values.sum(), distance, create_graph=True)
            sides.append(values.detach())
        torch.testing.assert_close(sides[0], sides[1], rtol=0, atol=1e-5)


def test_polynomials_of_degree_five_are_exact() -> None:
    powers = torch.tensor([0, 1, 2, 3, 4, 5])

    def polynomials(distance: torch.Tensor) -> torch.Tensor:
        return (distance / CUTOFF).unsqueeze(1) ** powers

    distance = torch.linspace(0, CUTOFF, 50, dtype=torch.float64)
    found = evaluate_spline(tabulate(polynomials, CUTOFF, 3), distance, CUTOFF)
    torch.testing.assert_close(found, polynomials(distance), rtol=0, atol=1e-13)


@pytest.mark.parametrize("columns", [1, 16, 17])
def test_lanes_hold_every_column_once(columns: int) -> None:
    coefficients = torch.randn(4, 6, columns, dtype=torch.float64)
    lanes = in_lanes(coefficients, LANES)
    assert lanes.shape == (math.ceil(columns / LANES), 4, 6, LANES)
    flat = lanes.permute(1, 2, 0, 3).reshape(4, 6, -1)
    assert torch.equal(flat[..., :columns], coefficients)
    assert not flat[..., columns:].any()


def test_torchscript_tabulates_in_double_precision() -> None:
    """A deployed model fits its tables itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = [torch.jit.script(function) for function in (fit_matrix, sample_distances, spline_coefficients)]
    torch.testing.assert_close(scripted[0](SAMPLES), fit_matrix(SAMPLES), rtol=0, atol=1e-15)
    distance = sample_distances(CUTOFF, 32, SAMPLES)
    torch.testing.assert_close(scripted[1](CUTOFF, 32, SAMPLES), distance, rtol=0, atol=1e-15)
    found = scripted[2](functions(distance).view(32, SAMPLES, -1), scripted[0](SAMPLES))
    torch.testing.assert_close(found, fitted(32), rtol=0, atol=1e-12)
