"""Networks on edges, or on atoms, whose weights change: what training steps make of an `EdgeProgram`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from hienet.ops.edge_network import EdgeProgram
from hienet.ops.linear import size_in_panels
from hienet.ops.training_functions import Network, Panels, TwiceNetwork

PanelTensors = tuple[Tensor, Tensor, Tensor]
"""Of the weights of one network in one step: `weights`, `vectors`, `transposed`."""


class TrainingNetwork:
    """An `EdgeProgram` on jets (`hienet.ops.jet`), and on values alone, of weights that are read at every call.

    A jet of `columns` enters and leaves as `[n, order * columns]`: the values, and with order 2 their tangents behind
    them.
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
        self._views = (
            torch.tensor(matrices, dtype=torch.int64).view(-1, 8),
            torch.tensor([scale for _, scale in program.matrices], dtype=torch.float64),
            torch.tensor(vectors, dtype=torch.int64).view(-1, 5),
        )
        self._sizes = (start, transposed, vector_start)
        self._program = program
        self._written: dict[tuple[int, ...], ProgramTensors] = {(): _tensors_of(program)}

    def written(self, order: int, columns: Sequence[int]) -> ProgramTensors:
        """The program for jets of this order that reads so many columns of values of centers, neighbours and edges."""
        key = () if order == 1 else tuple(columns)
        if key not in self._written:
            self._written[key] = _tensors_of(self._program.with_tangents(*columns))
        return self._written[key]

    def panels(self) -> PanelTensors:
        """The weights as they are now; functions of the model's parameters where gradients are enabled."""
        return Panels.apply(self._views, self._sizes, *self.tensors)

    def __call__(
        self,
        panels: PanelTensors,
        order: int,
        centers: Tensor,
        neighbors: Tensor,
        edges: Tensor,
        center: Tensor,
        neighbor: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Run the program.

        Args:
            panels: of this step.
            order: 1 for values alone, 2 with tangents.
            centers, neighbors, edges: `[n_local, ...]`, `[n_nodes, ...]` and `[n_edges, order * columns]`.
            center, neighbor: `[n_edges]` int64, sorted by center.

        Returns:
            sums `[n_local, order * sum_width]` and edges `[n_edges, order * edge_width]`.
        """
        widths = (order * self.sum_width, order * self.edge_width)
        rows = (centers, neighbors, edges)
        columns = [tensor.shape[1] // order for tensor in rows]
        return Network.apply(*rows, *panels, self.written(order, columns), center, neighbor, widths)

    def on_rows(self, panels: PanelTensors, order: int, rows: Tensor) -> Tensor:
        """What a program of edges alone stores, of `[n, order * columns]`."""
        each = torch.arange(len(rows))
        nothing = rows.new_zeros(len(rows), 0)
        return self(panels, order, nothing, nothing, rows, each, each)[1]


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
        return TwiceNetwork.apply(*rows, *network.panels(), programs, center, neighbor, widths)


ProgramTensors = tuple[Tensor, Tensor, Tensor]
"""`program`, `scales` and `values`, as the operators read them."""


def _tensors_of(program: EdgeProgram) -> ProgramTensors:
    return (
        torch.tensor(program.instructions, dtype=torch.int64),
        torch.tensor(program.scales, dtype=torch.float64),
        torch.tensor(program.values, dtype=torch.int64),
    )
