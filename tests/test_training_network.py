"""Networks on edges in training: tangents, gradients of weights, and what a second backward gives."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from test_edge_network import COLUMNS, OPERATIONS, Recorder, everything, graph, in_plain_torch, random
from torch import Tensor

from hienet.ops.training_network import NetworkPanels, TrainingNetwork, TwiceDifferentiableNetwork

pytestmark = pytest.mark.usefixtures("operators")

N_LOCAL, N_NODES = 9, 11


def trained(width: int) -> tuple[Recorder, list[Tensor]]:
    """Every instruction that programs are written with, and its weights, some of them slices of others."""
    p = everything(width)
    x, y = p.edge(1, width), p.edge(30, width)
    larger = random(2 * width + 3, width + 5, seed=9)
    mapped = p.linear(x, larger[3 : 3 + width, 2 : 2 + width], scale=0.3)
    p.add_linear(mapped, y, larger[width + 3 :, 5:].t(), scale=0.5)
    total = p.softplus(mapped)
    again = p.multiply(x, y)
    p.add_multiply(again, total, x, scale=-0.6)
    p.add_multiply(again, total, p.edge(7, 1), scale=1.4)
    p.sum(again, p.sum_width)
    p.store(p.multiply(again, again), p.edge_width)
    weights = [larger] + [m for m, _ in p.matrices if m.is_contiguous() and m._base is None] + p.vectors
    return p, [weight.requires_grad_() for weight in dict.fromkeys(weights)]


def live(p: Recorder, weights: list[Tensor]) -> None:
    """Make the slices functions of their weight."""
    larger = weights[0]
    for k, (matrix, bias, scale) in p.constants.items():
        if matrix.untyped_storage().data_ptr() == larger.untyped_storage().data_ptr():
            p.constants[k] = (larger.as_strided(matrix.shape, matrix.stride(), matrix.storage_offset()), bias, scale)


def rows() -> tuple[list[Tensor], Tensor, Tensor]:
    center, neighbor = graph(N_LOCAL, N_NODES, 6)
    sizes = (N_LOCAL, N_NODES, len(center))
    return [0.5 * random(n, COLUMNS, seed=n) for n in sizes], center, neighbor


@pytest.mark.parametrize("width", [1, 5, 16, 33])
def test_tangents_and_the_gradients_of_inputs_and_weights(width, instruction_set):
    program, weights = trained(width)
    tensors, center, neighbor = rows()
    network = TrainingNetwork(program, weights)
    live(program, weights)
    inputs = [tensor.requires_grad_() for tensor in tensors]
    directions = [random(*tensor.shape, seed=3) for tensor in tensors]

    def plain(*t: Tensor) -> tuple[Tensor, ...]:
        return in_plain_torch(program, *t, center, neighbor)

    values, tangents = torch.autograd.functional.jvp(plain, tuple(inputs), tuple(directions), create_graph=True)
    expected = [torch.cat([v, t], dim=1) for v, t in zip(values, tangents, strict=True)]
    jets = [torch.cat([x, u], dim=1).detach() for x, u in zip(inputs, directions, strict=True)]
    seeds = [random(*result.shape, seed=11) for result in expected]
    of_expected = torch.autograd.grad(expected, [*inputs, *weights], seeds, allow_unused=True)
    # A network that other weights lie in front of, as in a model.
    with torch.no_grad():
        panels = NetworkPanels([TrainingNetwork(*trained(7)), network]).now(wanted=True)
        found = network(panels[network], 2, *jets, center, neighbor)
        of_rows = found.backward(*seeds)
        of_weights = {id(weight): gradient for weight, gradient in panels.gradients()}
    of_inputs = [gradient[:, : x.shape[1]] for gradient, x in zip(of_rows, inputs, strict=True)]
    of_found = [*of_inputs, *(of_weights.get(id(weight)) for weight in weights)]
    for a, b in zip((found.sums, found.edges, *of_found), (*expected, *of_expected), strict=True):
        assert_close(a, b)


def test_a_second_backward_is_that_of_plain_torch():
    program, weights = trained(16)
    tensors, center, neighbor = rows()
    network = TwiceDifferentiableNetwork(program, weights)
    live(program, weights)
    results = []
    for function in (partial(in_plain_torch, program), network):
        inputs = [tensor.detach().requires_grad_() for tensor in tensors]
        energy = sum((1.0 + result).square().sum() for result in function(*inputs, center, neighbor))
        gradients = torch.autograd.grad(energy, inputs, create_graph=True)
        loss = energy + sum((random(*g.shape, seed=2) * g).sum() for g in gradients)
        results.append([*gradients, *torch.autograd.grad(loss, [*inputs, *weights])])
    for a, b in zip(*results, strict=True):
        assert_close(b, a)


def test_threads_change_rounding_only():
    tensors, center, neighbor = rows()
    network = TrainingNetwork(*trained(20))

    @torch.no_grad()
    def gradients() -> list[Tensor]:
        panels = NetworkPanels([network]).now(wanted=True)
        sums, stored, backward = network(panels[network], 1, *tensors, center, neighbor)
        return [*backward(2.0 * sums, 2.0 * stored), *(gradient for _, gradient in panels.gradients())]

    one = gradients()
    for n in (2, 3):
        torch.set_num_threads(n)
        try:
            several, again = gradients(), gradients()
        finally:
            torch.set_num_threads(1)
        for a, b, c in zip(one, several, again, strict=True):
            assert_close(b, a)
            assert torch.equal(b, c)


def test_every_operation_has_a_program_or_comes_of_tangents():
    program, _ = trained(5)
    both = program.instructions + program.with_tangents(COLUMNS, COLUMNS, COLUMNS).instructions
    assert {row[0] for row in both} == set(range(len(OPERATIONS)))


def test_softplus_follows_both_ends():
    p = Recorder()
    p.store(p.softplus(p.edge(0, 40)), 0)
    weight = torch.ones(1, 1, dtype=torch.float64)
    p.matrices.append((weight, 1.0))
    network = TrainingNetwork(p, [weight])
    x = torch.linspace(-60.0, 60.0, 40, dtype=torch.float64).unsqueeze(0)
    with torch.no_grad():
        found, _ = network.on_rows(NetworkPanels([network]).now(wanted=False)[network], 1, x)
    torch.testing.assert_close(found, torch.log1p(x.exp()), rtol=1e-14, atol=0)


def test_a_matrix_that_is_no_weight_is_refused():
    p = Recorder()
    p.linear(p.edge(0, 3), torch.ones(3, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="no view of a weight"):
        TrainingNetwork(p, [torch.ones(3, 2, dtype=torch.float64)])


@pytest.mark.parametrize(
    ("matrices", "message"),
    [
        ([[0, 0, 2, 1, 3, 3, 0, 0]], "does not fit its tensor"),
        ([[1, 0, 2, 1, 3, 2, 0, 0]], "does not fit its tensor"),
        ([[0, 0, 2, 1, 3, 2, 8, 0]], "does not fit its tensor or its panels"),
        ([[0, 0, 2, 1]], r"must be \[n, 8\] of int64"),
    ],
)
def test_panels_refuse_what_does_not_fit(matrices, message):
    scales, vectors = torch.ones(1, dtype=torch.float64), torch.zeros(0, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        torch.ops.hienet.network_panels([torch.ones(3, 2)], torch.tensor(matrices), scales, vectors, [48, 48, 0])


def assert_close(found: Tensor | None, expected: Tensor | None) -> None:
    """To rounding, relative to the largest number; autograd knows no gradient of what is not read."""
    if found is None or expected is None:
        other = expected if found is None else found
        assert other is None or float(other.detach().abs().max()) == 0.0
        return
    scale = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
    assert math.isfinite(scale)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * scale)
