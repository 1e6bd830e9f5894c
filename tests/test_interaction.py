"""The compiled interaction computes what plain torch computes: convolution, splines of its weights, linear map."""

from __future__ import annotations

import pytest
import torch
from e3nn import o3

from hienet.nn.convolution import TensorProductConvolution
from hienet.nn.linear import IrrepsLinear
from hienet.ops.interaction import convolution_plan, in_padded_lanes
from hienet.ops.linear import linear_plan
from hienet.ops.spline import evaluate_spline

pytestmark = pytest.mark.usefixtures("operators")

EVEN = o3.Irreps.spherical_harmonics(3, p=1)
ODD = o3.Irreps.spherical_harmonics(3, p=-1)

IRREPS = [
    ("5x0e", EVEN, "4x0e+3x1e+2x2e+2x3e"),
    ("1x0e+1x1e+1x2e+1x3e", EVEN, "1x0e+1x1e+1x2e+1x3e"),
    ("5x0e+17x1e+33x2e+1x3e", EVEN, "1x0e+1x1e+1x2e+1x3e"),
    ("48x0e+32x1e+16x2e+40x3e", EVEN, "1x0e"),
    ("3x0e+4x0o+17x1o+2x1e+5x2e+3x3o", ODD, "1x0e+1x1o+1x1e+1x2e+1x2o+1x3o"),
    ("3x0e+2x1e+5x4e", EVEN, "1x0e+1x1e+1x3e+1x5e"),
    ("64x0e+32x1e", o3.Irreps("1x0e+1x1e"), "1x0e+1x1e"),
]

CUTOFF = 5.0


class Problem:
    """An interaction, plain and fused, and inputs for it: atoms without neighbours, ghosts, two images of one."""

    def __init__(
        self, irreps, harmonics, irreps_out, dtype=torch.float64, n_edges=60, n_local=9, n_nodes=13, n_intervals=5
    ):
        generator = torch.Generator().manual_seed(1)
        self.convolution = TensorProductConvolution(irreps, harmonics, irreps_out).to(dtype)
        self.linear = IrrepsLinear(self.convolution.irreps_out, irreps_out).requires_grad_(False).to(dtype)

        def random(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        # Centers 0 and n_local-1 receive nothing; columns that belong to nobody stand around those of the state.
        center = torch.randint(1, n_local - 1, (n_edges,), generator=generator).sort().values
        self.indices = (center, torch.randint(n_nodes, (n_edges,), generator=generator), n_local)
        self.splines = random(n_intervals, 6, self.convolution.n_weights)
        width_out = o3.Irreps(irreps_out).dim
        self.kept_start = o3.Irreps(irreps).dim + 3
        distance = torch.rand(n_edges, 1, generator=generator, dtype=torch.float64).to(dtype) * CUTOFF
        # Columns of wider tensors, as in a model.
        self.inputs = [
            random(n_nodes, self.kept_start + width_out + 2)[:, :-1],
            torch.cat([random(n_edges, 2), distance, random(n_edges, harmonics.dim)], dim=1)[:, 2:],
        ]
        self.seed = random(n_local, width_out)
        paths, terms, coefficients = convolution_plan(self.convolution)
        plan, weights, transposed = linear_plan([self.linear])
        self.arguments = {
            "table": in_padded_lanes(self.splines, self.convolution),
            "weights": weights,
            "transposed": transposed,
            "cutoff": CUTOFF,
            "paths": paths,
            "terms": terms,
            "coefficients": coefficients.to(dtype),
            "linear": plan,
            "kept_start": self.kept_start,
        }

    def to(self, device):
        """The same there, but for `plain`."""
        center, neighbor, n_local = self.indices
        self.indices = (center.to(device), neighbor.to(device), n_local)
        self.inputs = [tensor.to(device) for tensor in self.inputs]
        self.seed = self.seed.to(device)
        self.arguments = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in self.arguments.items()}
        return self

    def plain(self, state, edges):
        weights = evaluate_spline(self.splines, edges[:, 0], CUTOFF)
        messages = self.convolution(state, edges[:, 1:], weights, *self.indices)
        return self.linear(messages) + state[: self.indices[2], self.kept_start : self.kept_start + self.seed.shape[1]]

    def fused(self, state, edges):
        center, neighbor, n_local = self.indices
        arguments = {"center": center, "neighbor": neighbor, "n_local": n_local, **self.arguments}
        return torch.ops.hienet.interaction(state=state, edges=edges, **arguments)

    def results(self, function):
        """The output and its derivatives by state and edges."""
        inputs = [tensor.detach().requires_grad_() for tensor in self.inputs]
        output = function(*inputs)
        return [output.detach(), *torch.autograd.grad(output, inputs, self.seed)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("irreps", "harmonics", "irreps_out"), IRREPS)
def test_the_fused_interaction_is_the_plain_one(irreps, harmonics, irreps_out, dtype, instruction_set):
    problem = Problem(irreps, harmonics, irreps_out, dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 3e-5
    names = ["output", "state", "edges"]
    for name, found, expected in zip(
        names, problem.results(problem.fused), problem.results(problem.plain), strict=True
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(
            found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()), msg=lambda m, n=name: n + m
        )


@pytest.mark.parametrize(
    ("irreps", "harmonics", "irreps_out"),
    [("3x0e+2x1e+1x2e+2x3e", EVEN, "1x0e+1x1e+1x2e+1x3e"), ("2x0e+3x1o+1x4e", ODD, "1x0e+1x1o+1x1e+1x4e")],
)
def test_the_backward_is_the_derivative_of_the_forward(irreps, harmonics, irreps_out):
    problem = Problem(irreps, harmonics, irreps_out, n_edges=7, n_local=4, n_nodes=5)
    inputs = [tensor.clone().requires_grad_() for tensor in problem.inputs]
    assert torch.autograd.gradcheck(problem.fused, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_terms_stand_in_any_order_and_a_path_may_have_none(dtype, instruction_set):
    problem = Problem(*IRREPS[1], dtype)
    paths, terms = problem.arguments["paths"].clone(), problem.arguments["terms"].clone()
    coefficients = problem.arguments["coefficients"].clone()
    silent = int(paths[:, 1].argmax())
    coefficients[paths[silent, 7] : paths[silent, 8]] = 0.0
    problem.arguments["coefficients"] = coefficients.clone()
    expected = problem.results(problem.fused)
    for start, stop in paths[:, 7:9].tolist():
        order = start + torch.randperm(stop - start, generator=torch.Generator().manual_seed(start))
        terms[start:stop], coefficients[start:stop] = terms[order], coefficients[order]
    paths[silent, 8] = paths[silent, 7]
    problem.arguments |= {"paths": paths, "terms": terms, "coefficients": coefficients}
    tolerance = 1e-12 if dtype == torch.float64 else 3e-5
    for found, of_sorted in zip(problem.results(problem.fused), expected, strict=True):
        largest = float(of_sorted.abs().max())
        torch.testing.assert_close(found, of_sorted, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("n_edges", [0, 1])
def test_hardly_any_edges(n_edges, instruction_set):
    problem = Problem(*IRREPS[1], n_edges=n_edges)
    for found, expected in zip(problem.results(problem.fused), problem.results(problem.plain), strict=True):
        torch.testing.assert_close(found, expected)


def test_no_atoms_at_all():
    problem = Problem(*IRREPS[1], n_edges=0)
    problem.indices = (*problem.indices[:2], 0)
    state, edges = problem.inputs
    assert problem.fused(state[:0], edges).shape == (0, problem.seed.shape[1])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_results_are_the_same_bits_every_time(threads):
    """Also: many blocks of centers, and a center with more edges than are taken at a time."""
    problem = Problem(*IRREPS[2], torch.float32, n_edges=3000, n_local=90, n_nodes=100)
    center = problem.indices[0].clone()
    center[500:1200] = center[500]
    problem.indices = (center.sort().values, *problem.indices[1:])
    expected = problem.results(problem.plain)
    torch.set_num_threads(threads)
    try:
        first, second = problem.results(problem.fused), problem.results(problem.fused)
    finally:
        torch.set_num_threads(1)
    for a, b, c in zip(first, second, expected, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-4, atol=2e-5 * float(c.abs().max()))


def test_distances_at_the_ends_of_the_table():
    """Zero, the cutoff itself, and what rounding may put just beyond it."""
    problem = Problem(*IRREPS[1], n_edges=3)
    problem.inputs[1] = problem.inputs[1].clone()
    problem.inputs[1][:, 0] = torch.tensor([0.0, CUTOFF, CUTOFF * (1 + 1e-7)])
    for found, expected in zip(problem.results(problem.fused), problem.results(problem.plain), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("distance", [float("nan"), float("inf"), 1e30, -1.0])
def test_a_distance_outside_the_table_reads_nothing_else(distance):
    problem = Problem(*IRREPS[1], torch.float32, n_edges=3)
    problem.inputs[1] = problem.inputs[1].clone()
    problem.inputs[1][1, 0] = distance
    output, *gradients = problem.results(problem.fused)
    untouched = [i for i in range(9) if i != problem.indices[0][1]]
    assert output[untouched].isfinite().all()
    if not torch.tensor(distance).isfinite():
        assert not output.isfinite().all()
        assert not gradients[1][1].isfinite().all()


def test_differentiating_twice_is_refused():
    problem = Problem(*IRREPS[0])
    inputs = [tensor.detach().requires_grad_() for tensor in problem.inputs]
    with pytest.raises(RuntimeError, match=r"can be differentiated once only; train the model"):
        torch.autograd.grad(problem.fused(*inputs).sum(), inputs[1], create_graph=True)


def test_weights_have_no_gradient():
    problem = Problem(*IRREPS[0])
    problem.arguments["table"].requires_grad_()
    with pytest.raises(RuntimeError, match=r"no gradient with respect to weights; train the model"):
        problem.fused(*problem.inputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"center": torch.tensor([1, 0])}, r"`center` must be sorted and below `n_local` .4., got 0 for edge 1"),
        ({"center": torch.tensor([0, 4])}, r"`center` must be sorted and below `n_local` .4., got 4"),
        ({"neighbor": torch.tensor([0, 5])}, r"`neighbor` must be below 5, got 5 for edge 1"),
        ({"neighbor": torch.tensor([-1, 0])}, r"`neighbor` must be below 5, got -1"),
        ({"n_local": 6}, r"`n_local` is 6, but there are 5 nodes"),
        ({"edges": torch.zeros(3, 17)}, r"must have one row for each edge .2., got 3"),
        ({"edges": torch.zeros(2, 17, dtype=torch.float64)}, r"`state` is Float, but `edges` Double"),
        ({"edges": torch.zeros(2, 16)}, r"path 3 of the interaction does not fit its tensors"),
        ({"table": torch.zeros(3, 5, 6, 16)}, r"path 3 of the interaction does not fit its tensors"),
        ({"table": torch.zeros(4, 5, 5, 16)}, r"`table` must be .blocks, intervals, 6, 16."),
        ({"kept_start": 4}, r"the atoms' own part, 37 columns from 4 on, does not fit"),
        ({"cutoff": 0.0}, r"`cutoff` must be positive"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(changes, message):
    """The kernels do not look again."""
    inputs = {
        "state": torch.zeros(5, 46),
        "edges": torch.zeros(2, 17),
        "center": torch.tensor([0, 3]),
        "neighbor": torch.tensor([4, 0]),
        "n_local": 4,
        **Problem(*IRREPS[0], torch.float32).arguments,
    }
    assert torch.ops.hienet.interaction(**inputs).shape == (4, 37)
    with pytest.raises(ValueError, match=message):
        torch.ops.hienet.interaction(**{**inputs, **changes})


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match=r"this processor has no instruction set `abacus`"):
        torch.ops.hienet.use_instruction_set("abacus")
