"""The operators that concern one atom or one edge alone compute what the plain layers compute."""

from __future__ import annotations

import io
import math

import pytest
import torch
from e3nn import o3

from hienet.nn.embedding import EdgeEmbedding
from hienet.nn.gate import Gate
from hienet.nn.linear import IrrepsLinear
from hienet.nn.readout import EnergyReadout
from hienet.ops.gate import FusedGate
from hienet.ops.geometry import EdgeGeometry
from hienet.ops.linear import PANEL, FusedLinear, in_panels
from hienet.ops.readout import MergedReadout

pytestmark = pytest.mark.usefixtures("operators")

DTYPES = [torch.float32, torch.float64]
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}
"""Of the largest number of a result."""

CUTOFF = 5.0


@pytest.fixture
def threads():
    """Sets the number of threads until the test ends."""
    yield torch.set_num_threads
    torch.set_num_threads(1)


def random(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """The same numbers for the same shape, in either dtype."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def result(function, features: torch.Tensor, seed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The output, and the derivative of its product with `seed`, of which as many columns are taken as needed."""
    features = features.detach().requires_grad_()
    output = function(features)
    (gradient,) = torch.autograd.grad(output, features, seed[:, : output.shape[1]])
    return output.detach(), gradient


def assert_same(found, expected, tolerance: float) -> None:
    """Output and gradient, each to `tolerance` of its largest number."""
    for name, a, b in zip(["output", "gradient"], found, expected, strict=True):
        assert a.shape == b.shape, name
        scale = float(b.abs().max()) if b.numel() else 1.0
        torch.testing.assert_close(
            a.double(), b.double(), rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


class Case:
    """A plain module, the compiled one, and rows for both."""

    def __init__(self, plain, fused, width: int) -> None:
        self.plain, self.fused, self.width = plain, fused, width

    def check(self, dtype: torch.dtype, n: int) -> None:
        """Compared in float64 with the plain module, whose weights and inputs are rounded as the compiled one's are."""
        # Every third row of columns in the middle of a wider tensor, as a layer may hand them on.
        features = random(3 * n, self.width + 5, dtype=dtype)[::3, 2 : 2 + self.width]
        wide = random(max(n, 1), 5000, dtype=dtype)[:n, 3:]
        expected = result(self.plain.double(), features.double(), wide.double())
        found = result(self.fused.to(dtype), features, wide)
        assert [tensor.dtype for tensor in found] == [dtype, dtype]
        assert_same(found, expected, TOLERANCE[dtype])


def linear_case(irreps_in: str, *irreps_out: str) -> Case:
    torch.manual_seed(3)
    maps = torch.nn.ModuleList([IrrepsLinear(irreps_in, irreps) for irreps in irreps_out])

    class SideBySide(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = maps

        def forward(self, features):
            return torch.cat([linear(features) for linear in self.maps], dim=1)

    return Case(SideBySide(), FusedLinear(list(maps)), o3.Irreps(irreps_in).dim)


def gate_case(irreps_out: str) -> Case:
    gate = Gate(irreps_out)
    return Case(gate, FusedGate(gate), gate.irreps_in.dim)


def geometry_case(l_max: int) -> Case:
    embedding = EdgeEmbedding(CUTOFF, 2, 6, l_max)

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.harmonics = embedding.spherical_harmonics

        def forward(self, vectors):
            return torch.cat([torch.linalg.vector_norm(vectors, dim=1, keepdim=True), self.harmonics(vectors)], dim=1)

    return Case(Plain(), EdgeGeometry(embedding), 3)


LINEAR = [
    ("1x0e", "1x0e"),
    ("3x0e+1x1e+17x2e", "17x0e+3x1e+1x2e", "5x0e+16x1e+33x2e"),
    ("48x0e+20x1e+15x2e+31x3e", "48x0e+20x1e+15x2e+31x3e", "79x0e+20x1e+15x2e+31x3e"),
    # An irrep of the output that the input lacks, one of the input that no map reads, and both parities.
    ("3x0e+2x1e+4x1o", "2x0e+3x1o+2x2e"),
    ("5x1o+3x2e", "4x0e+2x1o", "1x0e"),
    ("17x0e", "1x0e+3x2e", "33x0e"),
]
GATES = ["5x0o+3x0e+2x1o+4x1e", "1x0e", "3x0e+1x1e", "17x0e+3x1e+17x2e+1x3e", "16x0e+32x1e+16x2e"]
CASES = {
    **{f"linear {irreps}": (linear_case, irreps) for irreps in LINEAR},
    **{f"gate {irreps}": (gate_case, [irreps]) for irreps in GATES},
    **{f"geometry {l_max}": (geometry_case, [l_max]) for l_max in range(5)},
}
SMALL = ["linear " + str(LINEAR[3]), "gate " + GATES[3], "geometry 3"]
"""One of each."""


@pytest.fixture(params=CASES)
def case(request, operators) -> Case:
    make, arguments = CASES[request.param]
    return make(*arguments)


@pytest.fixture(params=SMALL)
def small(request, operators) -> Case:
    make, arguments = CASES[request.param]
    return make(*arguments)


# --- all of them


@pytest.mark.parametrize("dtype", DTYPES)
def test_operators_are_the_plain_layers(case, dtype, instruction_set):
    # One row, fewer than a block has, and several blocks with a rest.
    for n in (1, 13, 71):
        case.check(dtype, n)


def test_no_rows(case, instruction_set):
    features = torch.zeros(0, case.width, dtype=torch.float64, requires_grad=True)
    output = case.fused(features)
    assert output.shape == case.plain(features).shape
    (gradient,) = torch.autograd.grad(output.sum(), features)
    assert gradient.shape == features.shape


def test_backward_is_the_derivative_of_forward(small):
    assert torch.autograd.gradcheck(small.fused, random(3, small.width).requires_grad_())


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_are_the_same_bits_on_any_number_of_threads(small, dtype, threads):
    """A row's sums do not depend on the rows that it is computed with."""
    features, seed = random(3000, small.width, dtype=dtype), random(3000, 200, dtype=dtype)
    fused = small.fused.to(dtype)
    results = []
    for number in (1, 1, 2, 2, 3):
        threads(number)
        results.append(result(fused, features, seed))
    for output, gradient in results[1:]:
        assert torch.equal(output, results[0][0])
        assert torch.equal(gradient, results[0][1])


def test_scripted_and_saved_modules_do_the_same(small):
    features, seed = random(40, small.width), random(40, 200)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(small.fused), file)
    file.seek(0)
    for a, b in zip(result(torch.jit.load(file), features, seed), result(small.fused, features, seed), strict=True):
        assert torch.equal(a, b)


def test_differentiating_twice_is_refused(small):
    features = random(4, small.width).requires_grad_()
    with pytest.raises(RuntimeError, match=r"can be differentiated once only; train the model"):
        torch.autograd.grad(small.fused(features).square().sum(), features, create_graph=True)


def test_half_precision_is_refused(small):
    with pytest.raises(ValueError, match=r"takes float32 or float64, got Half"):
        small.fused(torch.zeros(2, small.width, dtype=torch.float16))


# --- edge geometry


def test_the_highest_l(instruction_set):
    geometry_case(11).check(torch.float64, 9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", ["tiny", "small", "large", "huge"])
def test_geometry_of_vectors_of_any_length(dtype, size, instruction_set):
    """Neither the square of a small component nor that of a large one is a number of the dtype."""
    info = torch.finfo(dtype)
    scale = {"tiny": info.tiny * 4, "small": info.tiny**0.6, "large": info.max**0.6, "huge": info.max / 8}[size]
    directions = torch.tensor([[0.6, -0.8, 0.0], [0.0, 0.0, -1.0], [1.0, 1e-3, -2.0]], dtype=dtype)
    case = geometry_case(4)
    vectors = directions * scale
    same_directions = vectors.double() / scale
    # Gradients of harmonics grow as the inverse of the length; the seed keeps them within the dtype.
    seed = min(scale, 1.0) * random(3, 26, dtype=dtype)
    output, gradient = result(case.fused.to(dtype), vectors, seed)
    expected, _ = result(case.plain, same_directions, seed.double())
    tolerance = 100 * info.eps
    torch.testing.assert_close(output[:, 0].double() / scale, expected[:, 0], rtol=tolerance, atol=0)
    torch.testing.assert_close(output[:, 1:].double(), expected[:, 1:], rtol=0, atol=tolerance)

    def without_distance(rows):
        return case.plain(rows)[:, 1:]

    _, of_harmonics = result(without_distance, same_directions, seed[:, 1:].double() / scale)
    expected_gradient = of_harmonics + seed[:, :1].double() * torch.nn.functional.normalize(same_directions)
    size = float(expected_gradient.abs().max())
    torch.testing.assert_close(gradient.double() / size, expected_gradient / size, rtol=0, atol=tolerance)


def test_the_gradient_of_harmonics_is_perpendicular_to_the_vector():
    vectors = random(20, 3)
    seed = random(20, 26)
    seed[:, 0] = 0
    _, gradient = result(geometry_case(4).fused, vectors, seed)
    torch.testing.assert_close((gradient * vectors).sum(1), torch.zeros(20, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 2), (4, 4), (3,), (2, 2, 3)])
def test_edge_vectors_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"`edge_vectors` must be \[n_edges, 3\], got"):
        geometry_case(2).fused(torch.zeros(shape))


@pytest.mark.parametrize("term", [[1, 1, 0], [1, 2, 0], [4, 0, 0], [1, -1, 0], [1, 0, 3], [1, 0, -1]])
def test_a_plan_out_of_range_is_refused(term):
    """The kernel does not look again."""
    coefficient = torch.ones(1, dtype=torch.float64)
    assert torch.ops.hienet.edge_geometry(torch.ones(2, 3), torch.tensor([[1, 0, 0]]), coefficient, 4).shape == (2, 5)
    with pytest.raises(ValueError, match="term 0 of the harmonics is out of range"):
        torch.ops.hienet.edge_geometry(torch.ones(2, 3), torch.tensor([term]), coefficient, 4)


@pytest.mark.parametrize("n_harmonics", [0, 145])
def test_a_plan_of_a_wrong_size_is_refused(n_harmonics):
    plan = (torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0))
    with pytest.raises(ValueError, match="the plan of the harmonics has a wrong shape"):
        torch.ops.hienet.edge_geometry(torch.ones(2, 3), *plan, n_harmonics)


# --- linear maps


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, PANEL), (2, PANEL + 1), (0, 5)])
def test_panels_hold_every_number_once(rows, columns):
    matrix = random(rows, columns)
    panels = in_panels(matrix).view(-1, rows, PANEL) if rows else in_panels(matrix)
    assert panels.numel() == rows * math.ceil(columns / PANEL) * PANEL
    if rows:
        flat = panels.transpose(0, 1).reshape(rows, -1)
        assert torch.equal(flat[:, :columns], matrix)
        assert not flat[:, columns:].any()


def test_columns_that_no_map_reads_have_a_zero_gradient():
    case = linear_case("3x0e+2x1e", "4x0e")
    _, gradient = result(case.fused, random(5, case.width), random(5, 4))
    assert gradient[:, :3].abs().min() > 0
    assert not gradient[:, 3:].any()


def test_weights_have_no_gradient():
    fused = linear_case("3x0e", "2x0e").fused
    weights = fused.weights.clone().requires_grad_()
    with pytest.raises(RuntimeError, match=r"no gradient with respect to weights; train the model that was deployed"):
        torch.ops.hienet.irreps_linear(random(2, 3), weights, fused.transposed, fused.plan)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(2, 11), "`features` is Float, but the weights are Double"),
        (torch.zeros(2, 10).double(), r"`features` must have two dimensions and 11 columns, got \[2, 10\]"),
        (torch.zeros(11).double(), r"`features` must have two dimensions and 11 columns, got \[11\]"),
    ],
)
def test_features_that_do_not_fit_a_linear_map_are_refused(features, message):
    with pytest.raises(ValueError, match=message):
        linear_case("5x0e+2x1e", "4x0e+3x1e").fused(features)


# Of two maps from 3x0e+2x1e to 2x0e+1x1e: first column, fan-in, 2l+1, first output, fan-out, first weights.
PLAN = [[0, 3, 1, 0, 2, 0, 0], [3, 2, 3, 2, 1, 48, 32], [0, 3, 1, 5, 2, 80, 48], [3, 2, 3, 7, 1, 128, 80]]


@pytest.mark.parametrize(
    ("block", "column", "value", "message"),
    [
        (0, 0, -1, "block 0 of a linear map does not fit its weights"),
        (0, 1, 4, "block 1 of a linear map reads columns that block 0 reads in another shape"),
        (1, 2, 0, "block 1 of a linear map does not fit its weights"),
        (1, 3, 3, "block 1 of a linear map does not fit its weights"),
        (2, 4, 0, "block 2 of a linear map does not fit its weights"),
        (3, 5, 129, "block 3 of a linear map does not fit its weights"),
        (3, 6, 81, "block 3 of a linear map does not fit its weights"),
        (3, 0, 4, "block 3 of a linear map reads columns that block 1 reads in another shape"),
        (3, 0, 2, "block 3 of a linear map reads columns that block 0 reads in another shape"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(block, column, value, message):
    """The kernels do not look again."""
    fused = linear_case("3x0e+2x1e", "2x0e+1x1e", "2x0e+1x1e").fused
    assert fused.plan.tolist() == PLAN
    plan = fused.plan.clone()
    plan[block, column] = value
    with pytest.raises(ValueError, match=message):
        torch.ops.hienet.irreps_linear(random(2, 9), fused.weights, fused.transposed, plan)


# --- gate


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_exponential_of_the_gate_is_good_to_the_last_places(dtype, instruction_set):
    """SiLU of one scalar; the error is counted relative to each number, not to the largest."""
    case = gate_case("1x0e")
    x = torch.linspace(-80, 80, 20011, dtype=torch.float64).to(dtype).unsqueeze(1)
    found = result(case.fused, x, torch.ones_like(x))
    expected = result(case.plain, x.double(), torch.ones_like(x).double())
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found[0].double(), expected[0], rtol=4 * eps, atol=0)
    # The slope has a zero at -1.278, where the terms of its sum cancel.
    torch.testing.assert_close(found[1].double(), expected[1], rtol=8 * eps, atol=8 * eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gate_of_numbers_of_any_size(dtype, instruction_set):
    x = torch.tensor([-1e4, -800.0, -100.0, -0.0, 0.0, 100.0, 800.0, 1e30], dtype=dtype).unsqueeze(1)
    case = gate_case("1x0e")
    found = result(case.fused, x, torch.ones_like(x))
    expected = result(case.plain, x, torch.ones_like(x))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-30)
    nan = result(case.fused, torch.full((1, 1), torch.nan, dtype=dtype), torch.ones(1, 1, dtype=dtype))
    assert all(tensor.isnan().all() for tensor in nan)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(2, 8), "the gate takes 9 columns, got 8"),
        (torch.zeros(2, 10), "the gate takes 9 columns, got 10"),
        (torch.zeros(9), "features or plan have a wrong shape"),
    ],
)
def test_features_that_do_not_fit_a_gate_are_refused(features, message):
    with pytest.raises(ValueError, match=message):
        gate_case("1x0e+2x1e").fused(features)


@pytest.mark.parametrize("blocks", [[[0, 2]], [[3, 0]], [[3, 2, 1]]])
def test_a_gate_whose_plan_is_wrong_is_refused(blocks):
    with pytest.raises(ValueError, match="features or plan have a wrong shape"):
        torch.ops.hienet.gate(torch.zeros(2, 9), torch.tensor(blocks), 1, 1.0)


# --- readout


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_merged_readout_is_the_plain_one(dtype):
    plain = EnergyReadout(17, 5, [0.7, 1.3], [-1234.5678901, 0.25], 0.1).eval()
    merged = MergedReadout(plain).to(dtype)
    species = torch.tensor([0, 1, 1, 0, 1])
    features = random(5, 20, dtype=dtype)[:, 1:18]

    def energies(module, rows):
        return module(rows, species).unsqueeze(1)

    seed = torch.ones(5, 1, dtype=torch.float64)
    found = result(lambda rows: energies(merged, rows), features, seed)
    expected = result(lambda rows: energies(plain, rows), features.double(), seed)
    assert found[0].dtype == torch.float64
    assert_same(found, expected, 1e-12 if dtype == torch.float64 else 1e-6)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(merged), file)
    file.seek(0)
    assert torch.equal(torch.jit.load(file)(features, species), merged(features, species))
    assert merged(features[:0], species[:0]).shape == (0,)


def test_the_merged_readout_keeps_large_reference_energies():
    """A shift of thousands of eV survives the conversion of the model to float32."""
    merged = MergedReadout(EnergyReadout(3, 2, [1.0], [-12345.678901234], 0.0).eval()).float()
    energy = merged(torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64))
    assert float(energy) == pytest.approx(-12345.678901234, abs=1e-8)
