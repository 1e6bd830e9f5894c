"""Networks on edges as GPUs run them, on the emulated kernels: what test_edge_network.py does not ask of a CPU."""

from __future__ import annotations

import os

import pytest
import torch
from test_edge_network import differentiated, everything, graph, inputs, random

from hienet.ops.edge_network import EdgeNetwork

pytestmark = [
    pytest.mark.usefixtures("operators"),
    pytest.mark.skipif("HIENET_TEST_EMULATED_CUDA" not in os.environ, reason="run by tests/test_cuda_kernels.py"),
]


class Problem:
    """Every instruction, on a graph with atoms that have no neighbours."""

    def __init__(
        self, dtype: torch.dtype = torch.float64, n_local: int = 12, n_nodes: int = 15, degree: int = 7
    ) -> None:
        self.network = EdgeNetwork(everything(20)).to(dtype)
        self.center, self.neighbor = graph(n_local, n_nodes, degree)
        self.inputs = inputs(dtype, n_local, n_nodes, len(self.center))

    def results(self) -> list[torch.Tensor]:
        """Sums, edges, and the gradients of the three inputs."""
        return differentiated(lambda *t: self.network(*t, self.center, self.neighbor), self.inputs)


@pytest.fixture
def workspace():
    """Sets the bytes of a chunk."""
    yield torch.ops.hienet.set_cuda_workspace
    torch.ops.hienet.set_cuda_workspace(2 << 30)


@pytest.fixture
def reversed_order():
    """Threads run from the last to the first."""
    yield torch.ops.hienet_emulation.set_reversed
    torch.ops.hienet_emulation.set_reversed(False)


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_small_workspace_changes_rounding_only(size, workspace):
    problem = Problem()
    before = torch.ops.hienet_emulation.launches()
    expected = problem.results()
    n_launches = torch.ops.hienet_emulation.launches() - before
    workspace(size)
    found = problem.results()
    assert torch.ops.hienet_emulation.launches() - before > 3 * n_launches
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_thread_depends_on_the_order_of_others(dtype, reversed_order):
    problem = Problem(dtype)
    expected = problem.results()
    reversed_order(True)
    assert all(torch.equal(a, b) for a, b in zip(problem.results(), expected, strict=True))


@pytest.mark.parametrize("part", [0, 1, 50])
def test_kept_chunks_and_others_are_alike(part, workspace):
    """Chunks of centers whose edges are all kept, or in part, or not at all."""
    problem = Problem()
    workspace(100_000)
    tensors = [t.detach() for t in problem.inputs]
    names = ("weights", "transposed", "vectors", "program", "scales", "values")
    constants = [getattr(problem.network, name) for name in names]
    arguments = [*tensors, *constants, problem.center, problem.neighbor]
    arguments += [problem.network.sum_width, problem.network.edge_width]
    sums, edges, kept = torch.ops.hienet.edge_network_forward(*arguments, True)
    seeds = [random(*sums.shape), random(*edges.shape)]
    whole = torch.ops.hienet.edge_network_backward(*seeds, kept, *arguments)
    found = torch.ops.hienet.edge_network_backward(*seeds, kept[:part], *arguments)
    assert all(torch.equal(a, b) for a, b in zip(found, whole, strict=True))


@pytest.mark.parametrize("name", ["weights", "vectors", "program", "scales"])
def test_changed_constants_are_noticed(name):
    """What is made once of a tensor is made again when the tensor has changed in place."""
    problem = Problem()
    before = problem.results()
    constant = getattr(problem.network, name)
    whole = constant.clone()
    if name == "program":
        constant[0, 4] += 1  # another column of the centers
    else:
        constant.mul_(1.5)
    assert not torch.equal(problem.results()[0], before[0])
    constant.copy_(whole)
    assert all(torch.equal(a, b) for a, b in zip(problem.results(), before, strict=True))


def test_weights_are_let_go():
    """What is made of a model's weights goes with them."""
    references = []
    for _ in range(3):
        problem = Problem()
        problem.results()
        constants = [getattr(problem.network, name) for name in ("weights", "vectors", "program", "scales", "values")]
        references += [torch.multiprocessing.reductions.StorageWeakRef(t.untyped_storage()) for t in constants]
        del problem, constants
    assert all(reference.expired() for reference in references)
