"""Networks on edges as one compiled operator: a program that a block of edges passes through while it is in the cache.

`EdgeProgram` writes the program, `EdgeNetwork` runs it. A value is a row of numbers for each edge. Instructions read
columns of the edges, of their centers and of their neighbours, work on values, and sum them over the edges of each
center or store them for the edges. The operator's backward computes the values again, but for results of large maps,
which are kept where that takes little memory. On a GPU the edges of as many atoms pass through the program together as
the operators' workspace holds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hienet.ops.library import load_operators
from hienet.ops.linear import in_panels, size_in_panels
from hienet.ops.spline import LANES

OPERATIONS = (
    "edge",
    "center",
    "neighbor",
    "add_center",
    "add_neighbor",
    "linear",
    "add_linear",
    "add",
    "multiply",
    "silu",
    "sigmoid",
    "tanh",
    "layer_norm",
    "join",
    "group_sum",
    "group_multiply",
    "sum",
    "store",
    "center_along_edge",
    "neighbor_along_edge",
    "center_dot_neighbor",
    "sum_directed",
    "sum_passed",
    "softplus",
    "silu_slope",
    "sigmoid_slope",
    "tanh_slope",
    "layer_norm_tangent",
    "add_multiply",
)
"""The operator's instructions by number (pair_hienet/ops/edge_network_kernel.h)."""

WORTH_KEEPING = 32
"""Columns that a map reads, from which on its result is kept for the backward: reading that takes less time than
computing it again."""


@dataclass(frozen=True)
class Value:
    """A row of `width` numbers for each edge; `index` is its number in the program."""

    index: int
    width: int


class EdgeProgram:
    """Instructions, weights and layout of a network on edges.

    A method appends the instruction that its name says, and returns the value that this writes. `add_center`,
    `add_neighbor`, `add_linear` and `add_multiply` add to a value, which must not have been read before. What does not
    fit together is a ValueError.

    Attributes:
        matrices: of the maps, `[fan-in, fan-out]`, each with a factor that belongs to it.
        vectors: biases and gains.
    """

    def __init__(self) -> None:
        self.instructions: list[list[int]] = []
        self.scales: list[float] = []
        self.values: list[list[int]] = []
        self.matrices: list[tuple[Tensor, float]] = []
        self.vectors: list[Tensor] = []
        self.size = self.sum_width = self.edge_width = self.kept_width = 0
        self.weights_size = self.transposed_size = self.vectors_size = 0
        self._read: set[int] = set()
        self._stored: set[int] = set()

    # What comes in

    def edge(self, column: int, width: int) -> Value:
        """Columns of the edges."""
        return self._append("edge", width, a=column)

    def center(self, column: int, width: int) -> Value:
        """Columns of the edges' centers."""
        return self._append("center", width, a=column)

    def neighbor(self, column: int, width: int) -> Value:
        """Columns of the edges' neighbours."""
        return self._append("neighbor", width, a=column)

    def add_center(self, value: Value, column: int) -> None:
        """Add as many columns of the centers."""
        self._add_to(value, "add_center", a=column)

    def add_neighbor(self, value: Value, column: int) -> None:
        """Add as many columns of the neighbours."""
        self._add_to(value, "add_neighbor", a=column)

    def center_along_edge(self, column: int, width: int, direction: int, dim: int, scale: float = 1.0) -> Value:
        """scale sum_m Y_m X_m: columns `direction + m` of the edge, `width` columns from `column + m width` on of its
        center, m < dim."""
        return self._append("center_along_edge", width, a=column, b=direction, c=dim, scale=scale)

    def neighbor_along_edge(self, column: int, width: int, direction: int, dim: int, scale: float = 1.0) -> Value:
        """The same of its neighbour."""
        return self._append("neighbor_along_edge", width, a=column, b=direction, c=dim, scale=scale)

    def center_dot_neighbor(self, center_column: int, neighbor_column: int, width: int, dim: int) -> Value:
        """sum_m X_m Z_m: `width` columns from `... + m width` on of center and neighbour, m < dim."""
        return self._append("center_dot_neighbor", width, a=center_column, b=neighbor_column, c=dim)

    # What happens in between

    def linear(self, value: Value, matrix: Tensor, bias: Tensor | None = None, scale: float = 1.0) -> Value:
        """scale x M + bias, with M `[width of x, fan-out]`."""
        start, transposed = self._matrix(value, matrix, scale)
        c = -1 if bias is None else self._vector(bias, matrix.shape[1])
        return self._linear(value, matrix.shape[1], start, transposed, c)

    def add_linear(self, to: Value, value: Value, matrix: Tensor, scale: float = 1.0) -> None:
        """Add scale x M."""
        start, transposed = self._matrix(value, matrix, scale)
        if matrix.shape[1] != to.width:
            raise ValueError(f"a map to {matrix.shape[1]} columns cannot be added to {to.width}")
        self._add_to(to, "add_linear", value, a=start, b=transposed, c=-1)

    def add(self, first: Value, second: Value, scale: float = 1.0) -> Value:
        """scale (x + y)."""
        self._require(first.width == second.width, "add", first, second)
        return self._append("add", first.width, first, second, scale=scale)

    def multiply(self, first: Value, second: Value, scale: float = 1.0) -> Value:
        """scale x y; y may be one number for all columns of x."""
        self._require(second.width in (1, first.width), "multiply", first, second)
        return self._append("multiply", first.width, first, second, scale=scale)

    def silu(self, value: Value, scale: float = 1.0) -> Value:
        """scale SiLU(x)."""
        return self._append("silu", value.width, value, scale=scale)

    def add_multiply(self, to: Value, first: Value, second: Value, scale: float = 1.0) -> None:
        """Add scale x y, as `multiply`."""
        self._require(first.width == to.width and second.width in (1, first.width), "add_multiply", first, second)
        self._add_to(to, "add_multiply", first, second=second, scale=scale)

    def sigmoid(self, value: Value) -> Value:
        """1 / (1 + exp(-x))."""
        return self._append("sigmoid", value.width, value)

    def tanh(self, value: Value) -> Value:
        """tanh(x), to rounding of one, not of itself."""
        return self._append("tanh", value.width, value)

    def softplus(self, value: Value) -> Value:
        """log(1 + exp(x))."""
        return self._append("softplus", value.width, value)

    def slope(self, function: str, value: Value, scale: float = 1.0) -> Value:
        """scale times the derivative of `silu`, `sigmoid`, `tanh` or `softplus` at x."""
        if function == "softplus":
            return self._append("sigmoid", value.width, value, scale=scale)
        return self._append(f"{function}_slope", value.width, value, scale=scale)

    def layer_norm(self, value: Value, norm: nn.LayerNorm) -> Value:
        """LayerNorm with the weights of `norm`."""
        gain, bias = self._vector(norm.weight, value.width), self._vector(norm.bias, value.width)
        return self._append("layer_norm", value.width, value, a=gain, b=bias, scale=norm.eps)

    def join(self, first: Value, second: Value) -> Value:
        """Side by side."""
        return self._append("join", first.width + second.width, first, second)

    def group_sum(self, value: Value, n_groups: int) -> Value:
        """The sums of contiguous groups of equal length: `n_groups` numbers."""
        if n_groups < 1 or value.width % n_groups:
            raise ValueError(f"{value.width} columns cannot be divided into {n_groups} groups")
        return self._append("group_sum", n_groups, value)

    def group_multiply(self, factors: Value, value: Value) -> Value:
        """Each such group times its factor."""
        self._require(value.width % factors.width == 0, "group_multiply", factors, value)
        return self._append("group_multiply", value.width, factors, value)

    def part(self, value: Value, column: int, width: int) -> Value:
        """Columns of a value, without an instruction."""
        start, stride, first, whole = self.values[value.index]
        if column < 0 or width < 1 or column + width > whole:
            raise ValueError(f"a value of {whole} columns has no columns {column} to {column + width}")
        self.values.append([start, stride, first + column, width])
        return Value(len(self.values) - 1, width)

    def parts(self, value: Value, width: int) -> list[Value]:
        """All its columns, `width` at a time."""
        return [self.part(value, column, width) for column in range(0, value.width, width)]

    # What goes out

    def sum(self, value: Value, column: int) -> None:
        """Sum over the edges of each center, to these columns of the sums."""
        self._output("sum", value, column, value.width)

    def store(self, value: Value, column: int) -> None:
        """Keep for each edge, in these columns of the edges that come out."""
        self._output("store", value, column, value.width)

    def sum_directed(self, value: Value, column: int, direction: int, dim: int, scale: float = 1.0) -> None:
        """Sum scale Y_m x, Y_m columns `direction + m` of the edge, to columns from `column + m width` on, m < dim."""
        self._output("sum_directed", value, column, dim * value.width, b=direction, c=dim, scale=scale)

    def sum_passed(self, value: Value, column: int, neighbor_column: int, dim: int) -> None:
        """Sum x Z_m, Z_m the neighbour's columns from `neighbor_column + m width` on, to those from `column + m width`
        on, m < dim."""
        self._output("sum_passed", value, column, dim * value.width, b=neighbor_column, c=dim)

    # What follows from it

    def with_tangents(self, centers: int, neighbors: int, edges: int) -> "EdgeProgram":
        """The program that carries, beside every value, its derivative along a direction: forward mode.

        What it reads has the columns of the original, `centers`, `neighbors` and `edges` in number, and behind them as
        many columns of tangents; so has what it gives out. Weights have no tangents, and lie where they lay.
        """
        return _with_tangents(self, centers, neighbors, edges)

    # How it is written down

    def _linear(self, value: Value, width: int, start: int, transposed: int, bias: int) -> Value:
        """`linear` of a matrix and a bias that lie there."""
        result = self._append("linear", width, value, a=start, b=transposed, c=bias)
        if value.width >= WORTH_KEEPING:
            self.instructions[-1][-1] = self.kept_width
            self.kept_width += result.width
        return result

    def _append(
        self,
        operation: str,
        width: int,
        first: Value | None = None,
        second: Value | None = None,
        a: int = 0,
        b: int = 0,
        c: int = 0,
        scale: float = 1.0,
    ) -> Value:
        stride = math.ceil(width / LANES) * LANES
        self.values.append([self.size, stride, 0, width])
        self.size += stride
        result = Value(len(self.values) - 1, width)
        self._write(operation, result, first, second, a, b, c, scale)
        return result

    def _add_to(
        self,
        value: Value,
        operation: str,
        first: Value | None = None,
        a: int = 0,
        b: int = 0,
        c: int = 0,
        second: Value | None = None,
        scale: float = 1.0,
    ) -> None:
        storage = self._storage(value)
        if storage in self._read or any(v is not None and self._storage(v) == storage for v in (first, second)):
            raise ValueError("a value that was read, or a part of one, cannot be added to")
        self._write(operation, value, first, second, a, b, c, scale)

    def _output(
        self, operation: str, value: Value, column: int, width: int, b: int = 0, c: int = 0, scale: float = 1.0
    ) -> None:
        if operation == "store":
            columns = set(range(column, column + width))
            if columns & self._stored:
                raise ValueError(f"columns {column} to {column + width} are stored twice")
            self._stored |= columns
            self.edge_width = max(self.edge_width, column + width)
        else:
            self.sum_width = max(self.sum_width, column + width)
        self._write(operation, None, value, None, column, b, c, scale)

    def _write(
        self,
        operation: str,
        result: Value | None,
        first: Value | None,
        second: Value | None,
        a: int,
        b: int,
        c: int,
        scale: float,
    ) -> None:
        row = [
            OPERATIONS.index(operation),
            *(-1 if v is None else v.index for v in (result, first, second)),
            a,
            b,
            c,
            -1,
        ]
        self._read |= {self._storage(v) for v in (first, second) if v is not None}
        self.instructions.append(row)
        self.scales.append(scale)

    def _storage(self, value: Value) -> int:
        """The same for a value and its parts."""
        return self.values[value.index][0]

    def _require(self, fits: bool, operation: str, first: Value, second: Value) -> None:
        if not fits:
            raise ValueError(f"`{operation}` cannot take values of {first.width} and {second.width} columns")

    def _matrix(self, value: Value, matrix: Tensor, scale: float) -> tuple[int, int]:
        if matrix.shape[0] != value.width:
            raise ValueError(f"a map of {matrix.shape[0]} columns cannot read a value of {value.width}")
        place = self.weights_size, self.transposed_size
        self.matrices.append((matrix, scale))
        self.weights_size += size_in_panels(*matrix.shape)
        self.transposed_size += size_in_panels(*matrix.t().shape)
        return place

    def _vector(self, vector: Tensor, width: int) -> int:
        if vector.shape != (width,):
            raise ValueError(f"a vector of shape {list(vector.shape)} does not belong to {width} columns")
        start = self.vectors_size
        self.vectors.append(vector)
        self.vectors_size += width
        return start


def _with_tangents(plain: EdgeProgram, centers: int, neighbors: int, edges: int) -> EdgeProgram:
    """`EdgeProgram.with_tangents`, instruction by instruction."""
    p = EdgeProgram()
    p.matrices, p.vectors = plain.matrices, plain.vectors
    p.weights_size, p.transposed_size, p.vectors_size = plain.weights_size, plain.transposed_size, plain.vectors_size
    whole: dict[int, tuple[Value, Value]] = {}
    """Value and tangent, by where the value begins in the original."""

    def both(index: int) -> tuple[Value, Value]:
        start, _, column, width = plain.values[index]
        value, tangent = whole[start]
        if width == value.width:
            return value, tangent
        return p.part(value, column, width), p.part(tangent, column, width)

    for (number, result, first, second, a, b, c, _), scale in zip(plain.instructions, plain.scales, strict=True):
        name = OPERATIONS[number]
        width = plain.values[result if result >= 0 else first][3]
        x, dx = both(first) if first >= 0 else (Value(-1, 0), Value(-1, 0))
        y, dy = both(second) if second >= 0 else (Value(-1, 0), Value(-1, 0))
        z: tuple[Value, Value] | None = None
        match name:
            case "edge" | "center" | "neighbor":
                columns = {"edge": edges, "center": centers, "neighbor": neighbors}[name]
                read = getattr(p, name)
                z = read(a, width), read(columns + a, width)
            case "add_center" | "add_neighbor":
                to, dto = both(result)
                columns = centers if name == "add_center" else neighbors
                getattr(p, name)(to, a)
                getattr(p, name)(dto, columns + a)
            case "linear":
                z = p._linear(x, width, a, b, c), p._linear(dx, width, a, b, -1)
            case "add_linear":
                to, dto = both(result)
                p._add_to(to, name, x, a, b, -1)
                p._add_to(dto, name, dx, a, b, -1)
            case "add":
                z = p.add(x, y, scale), p.add(dx, dy, scale)
            case "multiply":
                z = p.multiply(x, y, scale), p.multiply(dx, y, scale)
                p.add_multiply(z[1], x, dy, scale)
            case "add_multiply":
                to, dto = both(result)
                p.add_multiply(to, x, y, scale)
                p.add_multiply(dto, dx, y, scale)
                p.add_multiply(dto, x, dy, scale)
            case "silu" | "sigmoid" | "tanh" | "softplus":
                z = p._append(name, width, x, scale=scale), p.multiply(p.slope(name, x, scale), dx)
            case "layer_norm":
                z = (
                    p._append(name, width, x, a=a, b=b, scale=scale),
                    p._append("layer_norm_tangent", width, x, dx, a=a, scale=scale),
                )
            case "join":
                z = p.join(x, y), p.join(dx, dy)
            case "group_sum":
                z = p.group_sum(x, width), p.group_sum(dx, width)
            case "group_multiply":
                z = p.group_multiply(x, y), p.add(p.group_multiply(dx, y), p.group_multiply(x, dy))
            case "center_along_edge" | "neighbor_along_edge":
                columns = centers if name == "center_along_edge" else neighbors
                along = getattr(p, name)
                z = (
                    along(a, width, b, c, scale),
                    p.add(along(columns + a, width, b, c, scale), along(a, width, edges + b, c, scale)),
                )
            case "center_dot_neighbor":
                z = (
                    p.center_dot_neighbor(a, b, width, c),
                    p.add(
                        p.center_dot_neighbor(centers + a, b, width, c),
                        p.center_dot_neighbor(a, neighbors + b, width, c),
                    ),
                )
            case "sum":
                p.sum(x, a)
                p.sum(dx, plain.sum_width + a)
            case "store":
                p.store(x, a)
                p.store(dx, plain.edge_width + a)
            case "sum_directed":
                p.sum_directed(x, a, b, c, scale)
                p.sum_directed(dx, plain.sum_width + a, b, c, scale)
                p.sum_directed(x, plain.sum_width + a, edges + b, c, scale)
            case "sum_passed":
                p.sum_passed(x, a, b, c)
                p.sum_passed(dx, plain.sum_width + a, b, c)
                p.sum_passed(x, plain.sum_width + a, neighbors + b, c)
            case _:
                raise ValueError(f"a program with `{name}` has no tangents")
        if z is not None:
            whole[plain.values[result][0]] = z
    p.sum_width, p.edge_width = 2 * plain.sum_width, 2 * plain.edge_width
    return p


class EdgeNetwork(nn.Module):
    """A finished `EdgeProgram` of weights in float64, to be converted; for inference.

    Buffers, for the operator: `program` `[n_instructions, 8]` int64, the number of the operation (`OPERATIONS`), the
    values that it writes and reads, or -1, its three numbers, and where its result is kept, or -1; `scales`
    `[n_instructions]`; `values` `[n_values, 4]` int64, where a value lies in the scratch memory; `weights` and
    `transposed`, all matrices in panels (hienet.ops.linear); `vectors`, biases and gains.
    """

    # TorchScript reads these annotations, and only where they are not strings.
    program: Tensor
    scales: Tensor
    values: Tensor
    weights: Tensor
    transposed: Tensor
    vectors: Tensor

    def __init__(self, program: EdgeProgram) -> None:
        """
        Raises:
            HIENetError: the library of operators is not compiled.
        """
        super().__init__()
        load_operators()
        self.sum_width, self.edge_width = program.sum_width, program.edge_width
        for name, value in {
            "program": torch.tensor(program.instructions, dtype=torch.int64),
            "scales": torch.tensor(program.scales, dtype=torch.float64),
            "values": torch.tensor(program.values, dtype=torch.int64),
            "weights": _joined([in_panels(matrix.detach() * scale) for matrix, scale in program.matrices]),
            "transposed": _joined([in_panels(matrix.detach().t() * scale) for matrix, scale in program.matrices]),
            "vectors": _joined([vector.detach() for vector in program.vectors]),
        }.items():
            self.register_buffer(name, value, persistent=False)

    def forward(
        self,
        center_features: Tensor,
        neighbor_features: Tensor,
        edge_features: Tensor,
        center: Tensor,
        neighbor: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Run the program.

        Args:
            center_features: `[n_local, columns]`, what it reads of centers.
            neighbor_features: `[n_nodes, columns]`, what it reads of neighbours.
            edge_features: `[n_edges, columns]`.
            center, neighbor: `[n_edges]` int64, sorted by center.

        Returns:
            sums `[n_local, sum_width]` and edges `[n_edges, edge_width]`.
        """
        return torch.ops.hienet.edge_network(
            center_features,
            neighbor_features,
            edge_features,
            self.weights,
            self.transposed,
            self.vectors,
            self.program,
            self.scales,
            self.values,
            center,
            neighbor,
            self.sum_width,
            self.edge_width,
        )


NetworkMaker = Callable[[EdgeProgram], nn.Module]
"""What makes the module that runs a program: `EdgeNetwork`, or another with the same `forward`."""


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([torch.zeros(0, dtype=torch.float64), *parts])
