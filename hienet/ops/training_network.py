"""Networks on edges, or on atoms, whose weights change: what training steps make of an `EdgeProgram`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hienet.ops.edge_network import EdgeProgram
from hienet.ops.linear import size_in_panels
from hienet.ops.training_functions import Panels, TwiceNetwork


class PanelWeights(NamedTuple):
    """Weights of one network in one step, in the panels that the operators read.

    Attributes:
        weights, vectors, transposed: of the operators.
        of_weights, of_vectors: to which gradients are added; None where none are wanted.
    """

    weights: Tensor
    vectors: Tensor
    transposed: Tensor
    of_weights: Tensor | None
    of_vectors: Tensor | None


NetworkBackward = Callable[[Tensor | None, Tensor | None], "tuple[Tensor, Tensor, Tensor]"]
"""Gradients of sums and of edges that came out, None for one that nobody reads, to those of centers, neighbours and
edges that were read."""


class NetworkResult(NamedTuple):
    """What a network gives out: `sums` `[n_local, ...]`, `edges` `[n_edges, ...]`, and its backward, called once."""

    sums: Tensor
    edges: Tensor
    backward: NetworkBackward


class TrainingNetwork:
    """An `EdgeProgram` on jets (`hienet.ops.jet`), and on values alone, of weights that are read in every step.

    A jet of `columns` enters and leaves as `[n, order * columns]`: the values, and with order 2 their tangents behind
    them. Nothing here is known to autograd.

    Attributes:
        tensors: of whose numbers its weights are.
        matrices, scales, vectors: where they lie in these, and in the panels (`pair_hienet/ops/network_panels.cpp`).
        sizes: numbers of the panels `weights`, `transposed` and `vectors`.
    """

    def __init__(self, program: EdgeProgram, weights: Iterable[Tensor]) -> None:
        """
        Args:
            program: its matrices and vectors are views of the `weights`.
            weights: contiguous tensors that stay where they are, such as the parameters of a model.

        Raises:
            ValueError: a matrix or a vector is no view of one of the weights.
        """
        self.sum_width, self.edge_width = program.sum_width, program.edge_width
        tensors: dict[int, Tensor] = {tensor.untyped_storage().data_ptr(): tensor for tensor in weights}
        used: dict[int, int] = {}

        def base(view: Tensor) -> tuple[int, int]:
            """Which tensor it is a view of, and where it begins."""
            storage = view.untyped_storage().data_ptr()
            if storage not in tensors:
                raise ValueError("a matrix or a vector of a program is no view of a weight; make it from slices of one")
            offset = int(view.storage_offset()) - int(tensors[storage].storage_offset())
            return used.setdefault(storage, len(used)), offset

        matrices, vectors = [], []
        start = transposed = vector_start = 0
        for matrix, _ in program.matrices:
            matrices.append([*base(matrix), *matrix.stride(), *matrix.shape, start, transposed])
            rows, fan_out = matrix.shape
            start += size_in_panels(rows, fan_out)
            transposed += size_in_panels(fan_out, rows)
        for vector in program.vectors:
            vectors.append([*base(vector), *vector.stride(), *vector.shape, vector_start])
            vector_start += len(vector)
        self.tensors = [tensors[storage] for storage in used]
        self.matrices = torch.tensor(matrices, dtype=torch.int64).view(-1, 8)
        self.scales = torch.tensor([scale for _, scale in program.matrices], dtype=torch.float64)
        self.vectors = torch.tensor(vectors, dtype=torch.int64).view(-1, 5)
        self.sizes = (start, transposed, vector_start)
        self._program = program
        self._written: dict[tuple[int, ...], ProgramTensors] = {(): _tensors_of(program)}

    def written(self, order: int, columns: Sequence[int]) -> ProgramTensors:
        """The program for jets of this order that reads so many columns of values of centers, neighbours and edges."""
        key = () if order == 1 else tuple(columns)
        if key not in self._written:
            self._written[key] = _tensors_of(self._program.with_tangents(*columns))
        return self._written[key]

    def __call__(
        self,
        panels: PanelWeights,
        order: int,
        centers: Tensor,
        neighbors: Tensor,
        edges: Tensor,
        center: Tensor,
        neighbor: Tensor,
        trains: bool = True,
    ) -> NetworkResult:
        """Run the program, without gradients enabled.

        Args:
            panels: of this step.
            order: 1 for values alone, 2 with tangents.
            centers, neighbors, edges: `[n_local, ...]`, `[n_nodes, ...]` and `[n_edges, order * columns]`.
            center, neighbor: `[n_edges]` int64, sorted by center.
            trains: the backward adds the gradients of the weights to those of `panels`, if it has such.
        """
        columns = (centers.shape[1] // order, neighbors.shape[1] // order, edges.shape[1] // order)
        widths = (order * self.sum_width, order * self.edge_width)
        weights, vectors, transposed, of_weights, of_vectors = panels
        program = self.written(order, columns)
        inputs = (centers, neighbors, edges, weights, transposed, vectors, *program, center, neighbor)
        operators = torch.ops.hienet
        sums, stored, kept = operators.edge_network_forward(*inputs, *widths, True)

        def backward(of_sums: Tensor | None, of_stored: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
            # What has no columns is its own gradient.
            gradients = (
                (sums if sums.numel() == 0 else torch.zeros_like(sums)) if of_sums is None else of_sums,
                (stored if stored.numel() == 0 else torch.zeros_like(stored)) if of_stored is None else of_stored,
            )
            if not trains or of_weights is None or of_vectors is None:
                return operators.edge_network_backward(*gradients, kept, *inputs, *widths)
            *rows, found, of_constants = operators.edge_network_training_backward(*gradients, kept, *inputs, *widths)
            of_weights.add_(found)
            of_vectors.add_(of_constants)
            return rows[0], rows[1], rows[2]

        return NetworkResult(sums, stored, backward)

    def on_rows(
        self, panels: PanelWeights, order: int, rows: Tensor, trains: bool = True
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """What a program of edges alone stores, of `[n, order * columns]`, and its backward."""
        each, nothing = own_rows(rows.shape[0], rows.dtype)
        result = self(panels, order, nothing, nothing, rows, each, each, trains)
        return result.edges, lambda of_edges: result.backward(None, of_edges)[2]


class NetworkPanels:
    """The weights of several networks, which one call of the operator puts into panels."""

    def __init__(self, networks: Sequence[TrainingNetwork]) -> None:
        self.networks = networks
        place: dict[int, int] = {}
        self.tensors: list[Tensor] = []
        for tensor in (tensor for network in networks for tensor in network.tensors):
            if place.setdefault(id(tensor), len(self.tensors)) == len(self.tensors):
                self.tensors.append(tensor)
        start = transposed = vector_start = 0
        matrices, vectors = [], []
        for network in networks:
            tensor_of = torch.tensor([place[id(tensor)] for tensor in network.tensors])
            rows = network.matrices.clone()
            rows[:, 0] = tensor_of[rows[:, 0]]
            matrices.append(rows + torch.tensor([0, 0, 0, 0, 0, 0, start, transposed]))
            rows = network.vectors.clone()
            rows[:, 0] = tensor_of[rows[:, 0]]
            vectors.append(rows + torch.tensor([0, 0, 0, 0, vector_start]))
            start, transposed = start + network.sizes[0], transposed + network.sizes[1]
            vector_start += network.sizes[2]
        scales = torch.cat([network.scales for network in networks])
        self._views = (torch.cat(matrices), scales, torch.cat(vectors))
        self._sizes = (start, transposed, vector_start)

    def now(self, wanted: bool) -> PanelsOfStep:
        """The weights as they are; with `wanted` there is room for gradients."""
        weights, transposed, vectors = torch.ops.hienet.network_panels(self.tensors, *self._views, self._sizes)
        gradients = (torch.zeros_like(weights), torch.zeros_like(vectors)) if wanted else None
        each: list[Sequence[Tensor | None]] = [
            tensor.split([network.sizes[i] for network in self.networks])
            for tensor, i in ((weights, 0), (vectors, 2), (transposed, 1))
        ]
        for i in (0, 1):
            if gradients is None:
                each.append([None] * len(self.networks))
            else:
                each.append(gradients[i].split([network.sizes[2 * i] for network in self.networks]))
        panels = {id(network): PanelWeights(*row) for network, *row in zip(self.networks, *each, strict=True)}
        return PanelsOfStep(panels, self, gradients)

    def gradients(self, of_weights: Tensor, of_vectors: Tensor) -> list[Tensor]:
        """Of the `tensors`, from those of all panels."""
        found: list[Tensor] = torch.ops.hienet.network_panels_backward(
            of_weights, of_vectors, self.tensors, *self._views
        )
        return found


class PanelsOfStep:
    """The panels of one step, by network."""

    def __init__(
        self, of: dict[int, PanelWeights], source: NetworkPanels, of_all: tuple[Tensor, Tensor] | None
    ) -> None:
        """`of`: by the `id` of a network; `of_all`: gradients of all weights and vectors, of which those in `of` are
        parts."""
        self.of, self.source, self.of_all = of, source, of_all

    def __getitem__(self, network: TrainingNetwork) -> PanelWeights:
        return self.of[id(network)]

    def gradients(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Each tensor that networks read, with its gradient."""
        assert self.of_all is not None
        return zip(self.source.tensors, self.source.gradients(*self.of_all), strict=True)


class TwiceDifferentiableNetwork(nn.Module):
    """In the place of an `EdgeNetwork` in a model that is trained: forces are made by a backward, and the loss on them
    is differentiated by another."""

    def __init__(self, program: EdgeProgram, weights: Iterable[Tensor]) -> None:
        """As `TrainingNetwork`."""
        super().__init__()
        self.network = TrainingNetwork(program, weights)

    def forward(
        self, centers: Tensor, neighbors: Tensor, edges: Tensor, center: Tensor, neighbor: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `EdgeNetwork.forward`."""
        network, rows = self.network, (centers, neighbors, edges)
        columns = [tensor.shape[1] for tensor in rows]
        programs = network.written(1, columns), network.written(2, columns)
        widths = (network.sum_width, network.edge_width)
        views = (network.matrices, network.scales, network.vectors)
        panels = Panels.apply(views, network.sizes, *network.tensors)
        return TwiceNetwork.apply(*rows, *panels, programs, center, neighbor, widths)


ProgramTensors = tuple[Tensor, Tensor, Tensor]
"""`program`, `scales` and `values`, as the operators read them."""


def _tensors_of(program: EdgeProgram) -> ProgramTensors:
    return (
        torch.tensor(program.instructions, dtype=torch.int64),
        torch.tensor(program.scales, dtype=torch.float64),
        torch.tensor(program.values, dtype=torch.int64),
    )


@functools.lru_cache(maxsize=64)
def own_rows(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of networks on rows: each is its own center and neighbour, `[n]`, which have no columns, `[n, 0]`."""
    return torch.arange(n), torch.empty(n, 0, dtype=dtype)
