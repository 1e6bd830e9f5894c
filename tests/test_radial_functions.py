"""Basis and envelope of training steps, in closed form, against autograd."""

from __future__ import annotations

import pytest
import torch

from hienet.nn.embedding import EdgeEmbedding
from hienet.ops.radial_functions import RadialFunctions

CUTOFF = 5.0


@pytest.fixture(params=[(6, None), (3, None), (6, 3.5)], ids=["power 6", "power 3", "xplor"])
def embedding(request) -> EdgeEmbedding:
    """With frequencies that have been trained, and every kind of envelope."""
    power, onset = request.param
    result = EdgeEmbedding(CUTOFF, 8, power, 2, onset).double()
    with torch.no_grad():
        result.basis.frequencies += 0.1 * torch.randn(8, generator=torch.Generator().manual_seed(0)).double()
    return result


def features(embedding: EdgeEmbedding, distance: torch.Tensor) -> torch.Tensor:
    """In plain torch."""
    envelope = embedding.envelope(distance)
    return torch.cat([embedding.basis(distance) * envelope, envelope], dim=1)


def distances() -> torch.Tensor:
    """Below and above the onset, at the cutoff and beyond it."""
    generator = torch.Generator().manual_seed(1)
    inside = 0.3 + 4.6 * torch.rand(40, 1, dtype=torch.float64, generator=generator)
    return torch.cat([inside, torch.tensor([[3.49], [3.51], [CUTOFF], [5.2]], dtype=torch.float64)])


def test_values_and_slopes_and_the_way_back_are_those_of_autograd(embedding):
    distance = distances().requires_grad_()
    expected = features(embedding, distance)
    slopes = [torch.autograd.grad(column.sum(), distance, create_graph=True)[0] for column in expected.unbind(1)]
    expected_slopes = torch.cat(slopes, dim=1)
    of_values, of_slopes = torch.randn(2, len(distance), 8, generator=torch.Generator().manual_seed(2)).double()
    total = (of_values * expected[:, :-1]).sum() + (of_slopes * expected_slopes[:, :-1]).sum()
    (of_frequencies,) = torch.autograd.grad(total, embedding.basis.frequencies)

    with torch.no_grad():
        found = RadialFunctions(embedding, distance.detach())
        torch.testing.assert_close(found.values, expected, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(found.slopes, expected_slopes, rtol=1e-11, atol=1e-12)
        back = found.of_frequencies(of_values, of_slopes)
    torch.testing.assert_close(back, of_frequencies, rtol=1e-11, atol=1e-12)


def test_values_reach_zero_distance_where_tables_begin(embedding):
    distance = torch.linspace(0.0, CUTOFF, 30, dtype=torch.float64).unsqueeze(1)
    expected = features(embedding, distance)
    of_values = torch.randn(30, 8, generator=torch.Generator().manual_seed(3)).double()
    (of_frequencies,) = torch.autograd.grad((of_values * expected[:, :-1]).sum(), embedding.basis.frequencies)
    with torch.no_grad():
        found = RadialFunctions(embedding, distance, embedding.envelope(distance))
        torch.testing.assert_close(found.values, expected, rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(found.of_frequencies(of_values), of_frequencies, rtol=1e-12, atol=1e-13)
