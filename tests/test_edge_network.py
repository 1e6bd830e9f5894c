"""The compiled networks on edges compute what their programs say, and its derivative."""

from __future__ import annotations

import io
import math
import sys
from random import Random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hienet.ops.edge_network import OPERATIONS, WORTH_KEEPING, EdgeNetwork, EdgeProgram, Value

pytestmark = pytest.mark.usefixtures("operators")

TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-13}
"""Of the largest number of a result."""

FOR_INFERENCE = OPERATIONS[: OPERATIONS.index("softplus")]
"""The others are those of training (test_training_network.py)."""

COLUMNS = 400
"""Of centers, neighbours and edges: more than any program reads."""


@pytest.fixture
def threads():
    """Sets the number of threads until the test ends."""
    yield torch.set_num_threads
    torch.set_num_threads(1)


def random(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def norm(width: int) -> torch.nn.LayerNorm:
    layer = torch.nn.LayerNorm(width, eps=1e-3, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.add_(0.3 * random(width))
        layer.bias.add_(random(width, seed=8))
    return layer


class Recorder(EdgeProgram):
    """A program that keeps the matrices and vectors of its instructions for `in_plain_torch`."""

    def __init__(self) -> None:
        super().__init__()
        self.constants: dict[int, tuple[Tensor | None, Tensor | None, float]] = {}

    def linear(self, value, matrix, bias=None, scale=1.0):
        self.constants[len(self.instructions)] = (matrix, bias, scale)
        return super().linear(value, matrix, bias, scale)

    def add_linear(self, to, value, matrix, scale=1.0):
        self.constants[len(self.instructions)] = (matrix, None, scale)
        super().add_linear(to, value, matrix, scale)

    def layer_norm(self, value, norm):
        self.constants[len(self.instructions)] = (norm.weight, norm.bias, 1.0)
        return super().layer_norm(value, norm)


def in_plain_torch(program: Recorder, centers, neighbors, edges, center, neighbor) -> tuple[Tensor, Tensor]:
    """What the program says, instruction by instruction."""
    of_center, of_neighbor = centers.index_select(0, center), neighbors.index_select(0, neighbor)
    roots: dict[int, Tensor] = {}
    sums = centers.new_zeros(len(centers), program.sum_width)
    stored = list(edges.new_zeros(len(edges), program.edge_width).unbind(1))

    def value(index: int) -> Tensor:
        start, _, column, width = program.values[index]
        return roots[start][:, column : column + width]

    def components(nodes: Tensor, column: int, dim: int, width: int) -> Tensor:
        return nodes[:, column : column + dim * width].view(-1, dim, width)

    def add_to_sums(total: Tensor, column: int, terms: Tensor) -> Tensor:
        padded = F.pad(terms, [column, program.sum_width - column - terms.shape[1]])
        return total.index_add(0, center, padded)

    for k, ((number, result, first, second, a, b, c, _), scale) in enumerate(
        zip(program.instructions, program.scales, strict=True)
    ):
        name = OPERATIONS[number]
        width = program.values[result if result >= 0 else first][3]
        x = value(first) if first >= 0 else None
        y = value(second) if second >= 0 else None
        matrix, vector, factor = program.constants.get(k, (None, None, 1.0))
        direction = edges[:, b : b + c].unsqueeze(2)
        z = None
        if name in ("edge", "center", "neighbor"):
            z = {"edge": edges, "center": of_center, "neighbor": of_neighbor}[name][:, a : a + width]
        elif name in ("add_center", "add_neighbor"):
            z = value(result) + (of_center if name == "add_center" else of_neighbor)[:, a : a + width]
        elif name == "linear":
            z = x @ (factor * matrix) + (0 if vector is None else vector)
        elif name == "add_linear":
            z = value(result) + x @ (factor * matrix)
        elif name == "add":
            z = scale * (x + y)
        elif name == "multiply":
            z = scale * x * y
        elif name == "add_multiply":
            z = value(result) + scale * x * y
        elif name in ("silu", "sigmoid", "tanh", "softplus"):
            functions = {"silu": F.silu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "softplus": F.softplus}
            z = scale * functions[name](x)
        elif name == "layer_norm":
            # Not torch's own, whose second derivatives are wrong.
            deviation = x - x.mean(1, keepdim=True)
            z = deviation * torch.rsqrt(deviation.square().mean(1, keepdim=True) + scale) * matrix + vector
        elif name == "join":
            z = torch.cat([x, y], dim=1)
        elif name == "group_sum":
            z = x.unflatten(1, (width, -1)).sum(2)
        elif name == "group_multiply":
            z = (x.unsqueeze(2) * y.unflatten(1, (x.shape[1], -1))).flatten(1)
        elif name in ("center_along_edge", "neighbor_along_edge"):
            nodes = of_center if name == "center_along_edge" else of_neighbor
            z = scale * (direction * components(nodes, a, c, width)).sum(1)
        elif name == "center_dot_neighbor":
            z = (components(of_center, a, c, width) * components(of_neighbor, b, c, width)).sum(1)
        elif name == "sum":
            sums = add_to_sums(sums, a, x)
        elif name == "sum_directed":
            sums = add_to_sums(sums, a, scale * (direction * x.unsqueeze(1)).flatten(1))
        elif name == "sum_passed":
            sums = add_to_sums(sums, a, (components(of_neighbor, b, c, width) * x.unsqueeze(1)).flatten(1))
        else:
            assert name == "store"
            stored[a : a + width] = x.unbind(1)
        if z is not None:
            assert program.values[result][2] == 0
            roots[program.values[result][0]] = z
    return sums, torch.stack(stored, dim=1) if stored else edges.new_zeros(len(edges), 0)


def everything(width: int) -> Recorder:
    """Every instruction; matrices large enough to be kept and small ones."""
    p = Recorder()
    hidden = p.center(3, width)
    p.add_neighbor(hidden, 5)
    p.add_center(hidden, 40)
    p.add_linear(hidden, p.edge(9, 7), random(7, width) / 3)
    wide = p.linear(p.silu(hidden, scale=1.5), random(width, 48) / math.sqrt(width), random(48))
    back = p.linear(wide, random(48, width, seed=3), scale=1 / 7)
    normal = p.layer_norm(p.multiply(p.neighbor(0, width), back, scale=0.7), norm(width))
    gate = p.multiply(p.sigmoid(normal), p.edge(8, 1))
    heads = p.group_sum(wide, 6)
    spread = p.group_multiply(p.tanh(p.part(heads, 1, 4)), p.part(wide, 3, 24))
    along = p.add(p.center_along_edge(2, width, 1, 3, scale=0.4), p.neighbor_along_edge(1, width, 4, 5), scale=-0.5)
    dot = p.center_dot_neighbor(4, 6, width, 3)
    both = p.join(p.multiply(gate, along), dot)
    p.sum(both, 2)
    p.sum(spread, 2 * width + 2)
    p.sum_directed(dot, 2 * width + 27, 4, 3, scale=1.3)
    p.sum_passed(gate, 5 * width + 27, 11, 3)
    p.store(p.multiply(back, back), 4)
    p.store(spread, width + 4)
    return p


def graph(n_local: int, n_nodes: int, degree: int) -> tuple[Tensor, Tensor]:
    """Degrees that differ, atoms without neighbours among them."""
    generator = torch.Generator().manual_seed(5)
    degrees = torch.randint(0, 2 * degree + 1, (n_local,), generator=generator)
    center = torch.arange(n_local).repeat_interleave(degrees)
    return center, torch.randint(0, n_nodes, (len(center),), generator=generator)


def inputs(dtype: torch.dtype, n_local: int, n_nodes: int, n_edges: int) -> list[Tensor]:
    rows = [random(n, COLUMNS, seed=n) for n in (n_local, n_nodes, n_edges)]
    return [tensor.to(dtype).requires_grad_() for tensor in rows]


def differentiated(function, tensors: list[Tensor]) -> list[Tensor]:
    """Results, and the gradients of their product with fixed numbers."""
    results = function(*tensors)
    seeds = [random(*result.shape, seed=11).to(result.dtype) for result in results]
    gradients = torch.autograd.grad(results, tensors, seeds, allow_unused=True)
    return [*(r.detach() for r in results), *gradients]


def assert_close(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    names = ("sums", "edges", "gradient of centers", "gradient of neighbors", "gradient of edges")
    for name, a, b in zip(names, found, expected, strict=True):
        assert (a.dtype, a.shape) == (dtype, b.shape), name
        scale = float(b.abs().max()) if b.numel() else 1.0
        error = float((a.double() - b).abs().max()) if b.numel() else 0.0
        assert error <= TOLERANCE[dtype] * scale, (name, error, scale)


def test_the_program_of_these_tests_has_every_instruction():
    assert {row[0] for row in everything(5).instructions} == set(range(len(FOR_INFERENCE)))
    kept = [row for row in everything(5).instructions if row[-1] >= 0]
    assert [OPERATIONS[row[0]] for row in kept] == ["linear"]
    assert everything(WORTH_KEEPING).kept_width == 48 + WORTH_KEEPING


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("width", [1, 5, 16, 33, 50])
def test_it_is_its_program(width, dtype, instruction_set):
    program = everything(width)
    network = EdgeNetwork(program).to(dtype)
    center, neighbor = graph(23, 31, 11)
    tensors = inputs(dtype, 23, 31, len(center))
    found = differentiated(lambda *t: network(*t, center, neighbor), tensors)
    for name in ("scales", "weights", "vectors"):
        assert getattr(network, name).dtype == dtype
    # The reference has the operator's rounded inputs and weights.
    rounded = [t.detach().double().requires_grad_() for t in tensors]
    program.constants = {
        k: (
            None if matrix is None else (scale * matrix.detach()).to(dtype).double(),
            None if vector is None else vector.detach().to(dtype).double(),
            1.0,
        )
        for k, (matrix, vector, scale) in program.constants.items()
    }
    expected = differentiated(lambda *t: in_plain_torch(program, *t, center, neighbor), rounded)
    assert_close(found, expected, dtype)


def random_program(choose: Random) -> Recorder:
    """Up to thirty instructions on values that are parts of others, read several times, added to, or never used."""
    p, values = Recorder(), []

    def column(width: int) -> int:
        return choose.randrange(COLUMNS - width)

    def added(value: Value) -> None:
        if p.instructions[-1][-1] < 0 and choose.random() < 0.3:
            choose.choice([p.add_center, p.add_neighbor])(value, column(value.width))
        values.append(value)
        while choose.random() < 0.4:
            first = choose.randrange(value.width)
            values.append(p.part(value, first, choose.randint(1, value.width - first)))

    added(p.edge(column(12), 12))
    for _ in range(choose.randint(3, 30)):
        name, width, dim = choose.choice(FOR_INFERENCE), choose.choice([1, 2, 5, 8, 16, 17]), choose.randint(1, 3)
        x = choose.choice(values[-6:] if choose.random() < 0.6 else values)
        alike = choose.choice([value for value in values if value.width == x.width])
        if name in ("edge", "center", "neighbor"):
            added(getattr(p, name)(column(width), width))
        elif name.endswith("along_edge"):
            added(getattr(p, name)(column(dim * width), width, column(dim), dim, scale=-1.3))
        elif name == "center_dot_neighbor":
            added(p.center_dot_neighbor(column(dim * width), column(dim * width), width, dim))
        elif name == "linear":
            added(p.linear(x, random(x.width, width, seed=width) / math.sqrt(x.width), random(width)))
        elif name in ("add", "multiply"):
            ones = [value for value in values if value.width == 1]
            y = choose.choice(ones) if name == "multiply" and ones and choose.random() < 0.4 else alike
            added(getattr(p, name)(x, y, scale=0.7))
        elif name in ("silu", "sigmoid", "tanh"):
            added(getattr(p, name)(x))
        elif name == "layer_norm":
            added(p.layer_norm(x, norm(x.width)))
        elif name == "join" and x.width < 20:
            added(p.join(x, alike))
        elif name == "group_sum":
            added(p.group_sum(x, choose.choice([n for n in range(1, x.width + 1) if x.width % n == 0])))
        elif name == "group_multiply":
            added(p.group_multiply(choose.choice([v for v in values if x.width % v.width == 0]), x))
        elif name == "store":
            p.store(x, p.edge_width)
        elif name == "sum_directed":
            p.sum_directed(x, choose.randrange(8), column(dim), dim, scale=0.6)
        elif name == "sum_passed":
            p.sum_passed(x, choose.randrange(8), column(dim * x.width), dim)
    p.sum(values[-1], 0)
    return p


@pytest.mark.parametrize("seed", range(60))
def test_any_program_and_its_derivative(seed, monkeypatch):
    """With and without what is kept, which changes no bit."""
    monkeypatch.setattr(sys.modules["hienet.ops.edge_network"], "WORTH_KEEPING", 3)
    program = random_program(Random(seed))
    network = EdgeNetwork(program)
    center, neighbor = graph(5, 7, 1 + seed % 30)
    tensors = [(0.7 * t.detach()).requires_grad_() for t in inputs(torch.float64, 5, 7, len(center))]
    found = differentiated(lambda *t: network(*t, center, neighbor), tensors)
    # Autograd knows no gradient of what is not read; the operator returns zeros.
    expected = differentiated(
        lambda *t: [r + 0.0 * sum(x.sum() for x in t) for r in in_plain_torch(program, *t, center, neighbor)], tensors
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    constants = [getattr(network, name) for name in ("weights", "transposed", "vectors", "program", "scales", "values")]
    rows = [t.detach() for t in tensors]
    arguments = [*rows, *constants, center, neighbor, network.sum_width, network.edge_width]
    *_, kept = torch.ops.hienet.edge_network_forward(*arguments, True)
    seeds = [random(*result.shape, seed=11) for result in found[:2]]
    for n_kept in (0, len(center) // 2):
        again = torch.ops.hienet.edge_network_backward(*seeds, kept[:n_kept], *arguments)
        assert all(torch.equal(a, b) for a, b in zip(again, found[2:], strict=True))


@pytest.mark.parametrize(("n_local", "degree"), [(0, 0), (3, 0), (1, 400)])
def test_any_number_of_edges(n_local, degree):
    program = everything(17)
    network = EdgeNetwork(program)
    center, neighbor = graph(n_local, n_local + 2, degree)
    tensors = inputs(torch.float64, n_local, n_local + 2, len(center))
    expected = differentiated(lambda *t: in_plain_torch(program, *t, center, neighbor), tensors)
    assert_close(differentiated(lambda *t: network(*t, center, neighbor), tensors), expected, torch.float64)


def test_threads_change_rounding_only(threads):
    network = EdgeNetwork(everything(20))
    center, neighbor = graph(40, 50, 9)
    tensors = inputs(torch.float64, 40, 50, len(center))
    one = differentiated(lambda *t: network(*t, center, neighbor), tensors)
    for n in (2, 3):
        threads(n)
        assert torch.ops.hienet.threads() == n
        several = differentiated(lambda *t: network(*t, center, neighbor), tensors)
        assert all(torch.equal(a, b) for a, b in zip(one[:2], several[:2], strict=True))
        assert_close(several, one, torch.float64)
        again = differentiated(lambda *t: network(*t, center, neighbor), tensors)
        assert all(torch.equal(a, b) for a, b in zip(several, again, strict=True))


@pytest.mark.parametrize("n_kept", [0, 100, None])
def test_what_is_kept_does_not_change_the_numbers(n_kept):
    """Where edges are many, the backward computes again what was not kept: the same numbers."""
    network = EdgeNetwork(everything(40))
    center, neighbor = graph(30, 30, 12)
    tensors = [t.detach() for t in inputs(torch.float64, 30, 30, len(center))]
    constants = [getattr(network, name) for name in ("weights", "transposed", "vectors", "program", "scales", "values")]
    arguments = [*tensors, *constants, center, neighbor, network.sum_width, network.edge_width]
    sums, edges, kept = torch.ops.hienet.edge_network_forward(*arguments, True)
    assert kept.shape == (len(center), 48 + 40)
    none = torch.ops.hienet.edge_network_forward(*arguments, False)
    assert none[2].shape == (0, 48 + 40)
    assert torch.equal(none[0], sums)
    assert torch.equal(none[1], edges)
    seeds = [random(*sums.shape), random(*edges.shape)]
    whole = torch.ops.hienet.edge_network_backward(*seeds, kept, *arguments)
    found = torch.ops.hienet.edge_network_backward(*seeds, kept[:n_kept], *arguments)
    assert all(torch.equal(a, b) for a, b in zip(found, whole, strict=True))
    with pytest.raises(ValueError, match=r"what was kept of the edge network has a wrong shape or dtype"):
        torch.ops.hienet.edge_network_backward(*seeds, kept[:, 1:], *arguments)


def test_the_backward_may_divide_the_edges_in_another_way(threads):
    """Where not all edges are kept, whole blocks of the backward must not read rows that were not."""
    network = EdgeNetwork(everything(40))
    center = torch.arange(4).repeat_interleave(45)
    neighbor = torch.randint(0, 4, (180,), generator=torch.Generator().manual_seed(1))
    tensors = [t.detach() for t in inputs(torch.float64, 4, 4, 180)]
    program = network.program.clone()
    # So far to the right that the memory for what is kept holds a hundred edges.
    program[int((program[:, -1] >= 0).nonzero()[0]), -1] = (1 << 29) // 8 // 100 - 48 - 8
    constants = [network.weights, network.transposed, network.vectors, program, network.scales, network.values]
    arguments = [*tensors, *constants, center, neighbor, network.sum_width, network.edge_width]
    sums, edges, kept = torch.ops.hienet.edge_network_forward(*arguments, True)
    assert len(kept) == 100
    seeds = [random(*sums.shape), random(*edges.shape)]
    expected = torch.ops.hienet.edge_network_backward(*seeds, kept[:0], *arguments)
    for n in (1, 2, 3):
        threads(n)
        found = torch.ops.hienet.edge_network_backward(*seeds, kept, *arguments)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_rows_may_be_columns_of_a_wider_tensor():
    program = everything(6)
    network = EdgeNetwork(program)
    center, neighbor = graph(9, 11, 5)
    wide = [random(3 * n, COLUMNS + 9) for n in (9, 11, len(center))]
    strided = [t[::3, 2 : 2 + COLUMNS].requires_grad_() for t in wide]
    expected = differentiated(lambda *t: in_plain_torch(program, *t, center, neighbor), strided)
    assert_close(differentiated(lambda *t: network(*t, center, neighbor), strided), expected, torch.float64)


def test_it_can_be_scripted_and_saved():
    network = EdgeNetwork(everything(6))
    center, neighbor = graph(9, 11, 5)
    tensors = inputs(torch.float64, 9, 11, len(center))
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(network), buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    expected = differentiated(lambda *t: network(*t, center, neighbor), tensors)
    found = differentiated(lambda *t: loaded(*t, center, neighbor), tensors)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_numbers_that_are_none_stay_so():
    network = EdgeNetwork(everything(6))
    center, neighbor = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 0])
    tensors = inputs(torch.float64, 3, 3, 3)
    with torch.no_grad():
        tensors[2][0, :20] = math.nan
    sums, edges = network(*tensors, center, neighbor)
    assert sums[0].isnan().any()
    assert not sums[1:].isnan().any()
    assert edges[0].isnan().any()
    assert not edges[1:].isnan().any()


# ----------------------------------------------------------------------
# what does not fit
# ----------------------------------------------------------------------


def small() -> tuple[EdgeNetwork, list[Tensor], Tensor, Tensor]:
    network = EdgeNetwork(everything(6))
    center, neighbor = graph(9, 11, 5)
    return network, inputs(torch.float64, 9, 11, len(center)), center, neighbor


@pytest.mark.parametrize("column", range(8))
@pytest.mark.parametrize("number", [-7, -1, 3, 1 << 40, 1 << 62])
def test_no_instruction_reaches_outside_its_tensors(column, number):
    """A damaged file is an error or has numbers, right or wrong, but never reads or writes elsewhere."""
    network, tensors, center, neighbor = small()
    whole = network.program.clone()
    refused = []
    for row in range(len(whole)):
        network.program.copy_(whole)
        network.program[row, column] = number
        try:
            differentiated(lambda *t: network(*t, center, neighbor), tensors)
        except ValueError as error:
            refused.append((f"instruction {row} of the edge network does not fit its tensors", str(error)))
    assert refused or number in (-1, 3)
    assert all(expected in message for expected, message in refused)


@pytest.mark.parametrize("number", [0, 1 << 40])
@pytest.mark.parametrize("operation", sorted(set(FOR_INFERENCE) - {"add", "multiply", "join", "group_multiply"}))
def test_what_an_instruction_does_not_use_is_refused(operation, number):
    """The backward follows all values that an instruction names."""
    network, tensors, center, neighbor = small()
    (row, *_) = (network.program[:, 0] == OPERATIONS.index(operation)).nonzero()[0].tolist()
    unused = next(column for column in (1, 2, 3) if network.program[row, column] == -1)
    network.program[row, unused] = number
    with pytest.raises(ValueError, match=rf"instruction {row} of the edge network does not fit its tensors"):
        network(*tensors, center, neighbor)


@pytest.mark.parametrize("column", range(4))
@pytest.mark.parametrize("number", [-16, 11, 1 << 40])
def test_no_value_lies_outside_the_scratch_memory(column, number):
    network, tensors, center, neighbor = small()
    network.values[0, column] = number
    with pytest.raises(ValueError, match=r"value 0 of the edge network has a wrong layout|does not fit its tensors"):
        network(*tensors, center, neighbor)


def test_wrong_inputs_are_explained():
    network, tensors, center, neighbor = small()
    with pytest.raises(ValueError, match=r"`edges` are double, but another tensor of the edge network is float|Double"):
        network(tensors[0].float(), tensors[1], tensors[2], center, neighbor)
    with pytest.raises(ValueError, match=r"`edges` must have one row for each edge \(\d+\), got 3"):
        network(tensors[0], tensors[1], tensors[2][:3], center, neighbor)
    with pytest.raises(ValueError, match=r"`neighbor` must be below 4, got \d+ for edge \d+"):
        network(tensors[0][:4], tensors[1][:4], tensors[2], center.clamp(max=3), neighbor)
    with pytest.raises(ValueError, match=r"instruction \d+ of the edge network does not fit its tensors"):
        network(tensors[0][:, :8], tensors[1], tensors[2], center, neighbor)


def test_it_has_no_gradient_of_weights_and_no_second_derivative():
    network, tensors, center, neighbor = small()
    sums, _ = network(*tensors, center, neighbor)
    with pytest.raises(RuntimeError, match=r"can be differentiated once only"):
        torch.autograd.grad(sums.sum(), tensors[0], create_graph=True)
    network.weights.requires_grad_()
    with pytest.raises(RuntimeError, match=r"have no gradient with respect to weights"):
        network(*tensors, center, neighbor)


def test_a_program_that_makes_no_sense_is_refused_when_it_is_written():
    program = EdgeProgram()
    value = program.edge(0, 5)
    with pytest.raises(ValueError, match=r"a map of 4 columns cannot read a value of 5"):
        program.linear(value, torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"a value of 5 columns has no columns 3 to 6"):
        program.part(value, 3, 3)
    with pytest.raises(ValueError, match=r"a map to 3 columns cannot be added to 5"):
        program.add_linear(program.edge(0, 5), value, torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"a value of 5 columns has no columns -1 to 2"):
        program.part(value, -1, 3)
    with pytest.raises(ValueError, match=r"`add` cannot take values of 5 and 4 columns"):
        program.add(value, program.part(value, 0, 4))
    with pytest.raises(ValueError, match=r"`multiply` cannot take values of 5 and 4 columns"):
        program.multiply(value, program.part(value, 0, 4))
    with pytest.raises(ValueError, match=r"`group_multiply` cannot take values of 4 and 5 columns"):
        program.group_multiply(program.part(value, 0, 4), value)
    with pytest.raises(ValueError, match=r"5 columns cannot be divided into 2 groups"):
        program.group_sum(value, 2)
    with pytest.raises(ValueError, match=r"a vector of shape \[2\] does not belong to 3 columns"):
        program.linear(value, torch.zeros(5, 3), torch.zeros(2))
    program.store(value, 2)
    with pytest.raises(ValueError, match=r"columns 6 to 11 are stored twice"):
        program.store(value, 6)


def test_what_was_read_is_not_added_to():
    program = EdgeProgram()
    value = program.edge(0, 5)
    with pytest.raises(ValueError, match=r"a value that was read, or a part of one, cannot be added to"):
        program.add_linear(value, program.part(value, 0, 4), torch.zeros(4, 5))
    program.silu(program.part(value, 0, 2))
    for whole in (value, program.part(value, 2, 3)):
        with pytest.raises(ValueError, match=r"a value that was read, or a part of one, cannot be added to"):
            program.add_center(whole, 0)
