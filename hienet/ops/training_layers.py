"""The layers of a `LayeredModel` on jets, in compiled operators: what a training step is made of.

Each class holds a plain layer and computes the same: on jets of order 1 the features, on jets of order 2 features with
tangents. What is made of the weights once in a step, tables and panels, `prepare` returns, and `forward` takes. Beside
its result a function returns its backward, which takes the gradient of that result and is called once: on jets of order
1 it leads to the edges, on jets of order 2 to the weights. Nothing here is known to autograd, whose bookkeeping takes
longer than the operators of a small model.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hienet.nn.embedding import EdgeEmbedding, SpeciesEmbedding
from hienet.nn.equivariant import EquivariantLayer, ScalarConstants
from hienet.nn.gate import Gate
from hienet.nn.invariant import InvariantLayer
from hienet.nn.layer_readout import LayerWithReadout
from hienet.nn.linear import IrrepsLinear
from hienet.nn.radial import RadialNetwork
from hienet.nn.readout import EnergyReadout
from hienet.nn.scalar_layer import LayerOnScalars
from hienet.nn.species_linear import SpeciesLinear
from hienet.ops import jet
from hienet.ops.basis_table import ROWS, BasisTable
from hienet.ops.edge_network import EdgeProgram, Value
from hienet.ops.fused_invariant import atom_program, message_program, update_program
from hienet.ops.gate import FusedGate
from hienet.ops.interaction import convolution_plan
from hienet.ops.radial_functions import RadialFunctions
from hienet.ops.spline import LANES
from hienet.ops.training_network import PanelsOfStep, TrainingNetwork, own_rows

Backward = Callable[[Tensor], Tensor]
"""The gradient of a result to that of the features it is made of."""


@dataclass(frozen=True)
class StepEdges:
    """The edges of a batch in one step.

    Attributes:
        species: `[n_nodes]` int64.
        center, neighbor: `[n_edges]` int64.
        geometry: `[n_edges, 1 + harmonics]`: distance (Å) and spherical harmonics.
        table: where functions of the distance are sampled; None: at the edges themselves.
        radial: basis and envelope at the edges.
        sampled: at the distances of the table, or `radial`.
        first_row, factors: what edges read of tables (`BasisTable.locate`).
        pairs: `[n_pairs, 2]` int64, the ordered pairs of species (center, neighbour) among the edges.
        first_row_of_pair: `[n_edges]` int64, of tables that stand one behind the other, one for each of these pairs.
    """

    species: Tensor
    center: Tensor
    neighbor: Tensor
    geometry: Tensor
    table: BasisTable | None
    radial: RadialFunctions
    sampled: RadialFunctions
    first_row: Tensor
    factors: Tensor
    pairs: Tensor
    first_row_of_pair: Tensor

    @property
    def n_nodes(self) -> int:
        """Atoms of the batch."""
        return self.species.shape[0]


class WeightGradients:
    """Gradients of weights, which add up."""

    def __init__(self) -> None:
        self._of: dict[int, Tensor] = {}

    def add(self, weight: Tensor, gradient: Tensor) -> None:
        """Of the same shape."""
        present = self._of.get(id(weight))
        self._of[id(weight)] = gradient if present is None else present + gradient

    def of(self, weight: Tensor) -> Tensor | None:
        """What was added for it; None if nothing depends on it."""
        return self._of.get(id(weight))


class Walk:
    """One pass through the layers and back: of values, to the edges, or of values with tangents, to the weights.

    Attributes:
        tangents: of the geometry, `[n_edges, 1 + harmonics]`; None in a pass of values.
        of_geometry: to which a pass of values adds gradients, as `edges.geometry`.
        gradients: to which one with tangents adds those of weights.
        masks: what dropout multiplies with: drawn where they are missing, so that both passes have the same.
    """

    def __init__(
        self,
        edges: StepEdges,
        masks: dict[tuple[int, int], Tensor],
        tangents: Tensor | None = None,
        gradients: WeightGradients | None = None,
    ) -> None:
        self.edges, self.tangents, self.masks = edges, tangents, masks
        self.order = 1 if tangents is None else 2
        self.gradients = WeightGradients() if gradients is None else gradients
        self.of_geometry = torch.zeros_like(edges.geometry) if tangents is None else edges.geometry[:0]
        self._radial: Tensor | None = None
        self._of_radial: Tensor | None = None

    @property
    def trains(self) -> bool:
        """Whether the way back leads to the weights."""
        return self.order == 2

    def mask(self, dropout: nn.Dropout, rows: int, columns: int, like: Tensor) -> Tensor:
        """What this dropout multiplies `[rows, columns]` with."""
        key = (id(dropout), columns)
        if key not in self.masks:
            self.masks[key] = dropout(like.new_ones(rows, columns))
        return self.masks[key]

    def radial(self) -> Tensor:
        """The radial basis times the envelope, and behind it the envelope, `[n_edges, order, n_radial + 1]`."""
        if self._radial is None:
            of_edges = self.edges.radial
            if self.tangents is None:
                self._radial = of_edges.values.unsqueeze(1)
            else:
                self._radial = torch.stack([of_edges.values, of_edges.slopes * self.tangents[:, :1]], dim=1)
        return self._radial

    def add_of_radial(self, gradient: Tensor) -> None:
        """A gradient with respect to `radial`."""
        self._of_radial = gradient if self._of_radial is None else self._of_radial + gradient

    def finish(self) -> None:
        """Hand on what was added with respect to `radial`, when all layers have been walked back."""
        if self._of_radial is None:
            return
        of_edges, gradient = self.edges.radial, self._of_radial
        if self.tangents is None:
            self.of_geometry[:, 0] += (gradient[:, 0] * of_edges.slopes).sum(1)
        else:
            of_slopes = gradient[:, 1, :-1] * self.tangents[:, :1]
            self.gradients.add(of_edges.frequencies, of_edges.of_frequencies(gradient[:, 0, :-1], of_slopes))


def differentiated(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], weights: Sequence[Tensor] = ()
) -> tuple[Tensor, Callable[[Tensor], Sequence[Tensor | None]]]:
    """A piece in plain torch: its result, and what makes of the gradient of this those of inputs and weights."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    with torch.enable_grad():
        result = function(*leaves)

    def backward(gradient: Tensor) -> Sequence[Tensor | None]:
        wanted = [*leaves, *weights]
        return torch.autograd.grad(result, wanted, gradient, allow_unused=True) if wanted else ()

    return result.detach(), backward


class Samples:
    """Where tables sample functions of the distance: at the distances of a `BasisTable`, or at the edges, with slopes.

    Attributes:
        radial: basis times envelope, `[n, order, n_radial]`; order 1 for a table, 2 for edges.
    """

    def __init__(self, edges: StepEdges) -> None:
        """For these edges."""
        self._sampled = edges.sampled
        self._of_radial: Tensor | None = None
        parts = [edges.sampled.values] if edges.table is not None else [edges.sampled.values, edges.sampled.slopes]
        self.radial = torch.stack([part[:, :-1] for part in parts], dim=1)

    def add(self, of_radial: Tensor) -> None:
        """A gradient with respect to `radial`."""
        self._of_radial = of_radial if self._of_radial is None else self._of_radial + of_radial

    def finish(self, gradients: WeightGradients) -> None:
        """Hand on what was added."""
        if self._of_radial is not None:
            sampled = self._sampled
            gradients.add(sampled.frequencies, sampled.of_frequencies(*self._of_radial.unbind(1)))


PATH_TABLE_START = 3
"""The column of `paths` that says where the table of a path begins, in blocks of LANES."""
Plan = tuple[Tensor, Tensor, Tensor]
"""`paths`, `terms` and `coefficients` of `hienet.ops.interaction.convolution_plan`."""


class Table(NamedTuple):
    """Splines of path weights, `[blocks, n_rows, LANES]`, and what takes the gradient with respect to them."""

    values: Tensor
    backward: Callable[[Tensor], None]


class EmbeddingStep:
    """A `SpeciesEmbedding`: the features that the first layer reads."""

    def __init__(self, embedding: SpeciesEmbedding) -> None:
        self.embedding = embedding

    def forward(self, walk: Walk) -> tuple[Tensor, Callable[[Tensor], None]]:
        """`[n, order, channels]`, and what takes the gradient with respect to it."""
        weight, dropout, species = self.embedding.weight, self.embedding.dropout, walk.edges.species
        scale = 1.0 / math.sqrt(float(weight.shape[0]))
        features, mask = weight.index_select(0, species).mul_(scale), None
        if dropout.training and dropout.p > 0.0:
            mask = walk.mask(dropout, features.shape[0], features.shape[1], features)
            features *= mask

        def backward(gradient: Tensor) -> None:
            if walk.trains:
                of_rows = gradient[:, 0] * scale
                if mask is not None:
                    of_rows *= mask
                walk.gradients.add(weight, torch.zeros_like(weight).index_add_(0, species, of_rows))

        return jet.constant(features, walk.order), backward


class EquivariantStep:
    """An `EquivariantLayer` whose radial network is a table, or values and slopes at each edge."""

    def __init__(self, layer: EquivariantLayer, embedding: EdgeEmbedding) -> None:
        """`embedding` makes the edges of `layer`."""
        self.layer, self.embedding = layer, embedding
        dtype = next(layer.parameters()).dtype
        paths, terms, coefficients = convolution_plan(layer.convolution)
        self.plan = (paths, terms, coefficients.to(dtype))
        self.gate = gate = FusedGate(layer.gate) if isinstance(layer.gate, Gate) else None
        self.gates_at_once = gate is not None and gate.n_odd == 0 and layer.keeps_itself
        skip = layer.linear_skip
        self.skip = skip.weight if isinstance(skip, IrrepsLinear) else None
        self.columns = (
            torch.tensor(layer.linear_in.columns),
            torch.tensor(layer.linear_out.columns),
            torch.tensor(skip.columns) if isinstance(skip, IrrepsLinear) else None,
        )
        self.constants = (
            1.0 / layer.avg_num_neighbors,
            *((gate.blocks, gate.n_scalars, gate.scale) if gate and self.gates_at_once else (None, 0, 0.0)),
        )
        self.tables: RadialTables | None = None
        """What makes the splines of its path weights, given by `share_tables`."""

    def networks(self, edges: StepEdges) -> list[TrainingNetwork]:
        """None: `tables` has them."""
        return []

    def prepare(self, edges: StepEdges, samples: Samples, panels: PanelsOfStep, gradients: WeightGradients) -> Table:
        """The path weights' table; its backward adds to the gradients of panels and samples."""
        assert self.tables is not None
        return self.tables.prepare(self, edges, samples, panels)

    def forward(
        self, features: Tensor, walk: Walk, table: Table | None, panels: PanelsOfStep
    ) -> tuple[Tensor, Backward]:
        """Features `[n, order, irreps_in.dim]` to `[n, order, irreps_out.dim]`."""
        assert table is not None
        layer, edges, order, gradients = self.layer, walk.edges, walk.order, walk.gradients
        added = kept = of_kept_features = None
        if isinstance(layer.linear_skip, SpeciesLinear):
            kept, of_kept_features = of_species(layer.linear_skip, features, walk)
        if isinstance(layer.constants, ScalarConstants):
            to_sent, to_update = layer.constants.of_width(layer.state_width).split([layer.sent_width, layer.kept_width])
            added = jet.constant(to_sent.unsqueeze(0), order).expand(edges.n_nodes, -1, -1)
            if layer.keeps_itself:
                constant = jet.constant(to_update.unsqueeze(0), order).expand(edges.n_nodes, -1, -1)
                kept = constant if kept is None else kept + constant
        inputs = (
            *(edges.geometry, walk.tangents, edges.first_row, edges.factors, table.values),
            *(edges.center, edges.neighbor, *self.plan),
            *(layer.linear_in.weight, self.columns[0], layer.linear_out.weight, self.columns[1]),
            *(self.skip, self.columns[2], *self.constants),
        )
        result, *saved = torch.ops.hienet.training_interaction(features, added, kept, *inputs)

        def backward(gradient: Tensor) -> Tensor:
            of_features, of_sent, of_update, of_edges_or_table, of_in, of_out, of_skip = (
                torch.ops.hienet.training_interaction_backward(gradient, *saved, features, *inputs)
            )
            if of_kept_features is not None:
                of_features = of_features + of_kept_features(of_update)
            if not walk.trains:
                walk.of_geometry.add_(of_edges_or_table)
                return of_features
            table.backward(of_edges_or_table)
            gradients.add(layer.linear_in.weight, of_in)
            gradients.add(layer.linear_out.weight, of_out)
            if self.skip is not None:
                gradients.add(self.skip, of_skip)
            if isinstance(layer.constants, ScalarConstants):
                of_state = [of_sent[:, 0].sum(0)] + ([of_update[:, 0].sum(0)] if layer.keeps_itself else [])
                gradients.add(layer.constants.weight, torch.cat(of_state).index_select(0, layer.constants.columns))
            return of_features

        if self.gates_at_once:
            return result, backward
        backs: list[Backward] = [backward]
        if not layer.keeps_itself:
            result, back = of_species(layer.message_of_species, result, walk)
            backs.append(back)
        if self.gate is not None:
            result, back = gated(self.gate, result)
            backs.append(back)
        return result, in_reverse(backs)


def in_reverse(backs: Sequence[Backward]) -> Backward:
    """The backward of functions that follow each other."""

    def backward(gradient: Tensor) -> Tensor:
        for back in reversed(backs):
            gradient = back(gradient)
        return gradient

    return backward


def of_species(layer: SpeciesLinear, features: Tensor, walk: Walk) -> tuple[Tensor, Backward]:
    """A map of the jets of atoms, in plain torch."""
    weights, order = [layer.weight] if walk.trains and layer.weight.requires_grad else [], walk.order
    species = walk.edges.species if order == 1 else walk.edges.species.repeat_interleave(order)
    result, back = differentiated(lambda x: jet.from_rows(layer(jet.rows(x), species), order), [features], weights)

    def backward(gradient: Tensor) -> Tensor:
        of_features, *found = back(gradient)
        for weight, of_weight in zip(weights, found, strict=True):
            if of_weight is not None:
                walk.gradients.add(weight, of_weight)
        return torch.zeros_like(features) if of_features is None else of_features

    return result, backward


def gated(gate: FusedGate, features: Tensor) -> tuple[Tensor, Backward]:
    """The gate of `[n, order, gate.irreps_in.dim]`."""
    constants = (gate.blocks, gate.n_scalars, gate.scale)
    even = features[:, :, gate.n_odd :].contiguous()
    operators = torch.ops.hienet
    if features.shape[1] == 1:
        even = even.squeeze(1)
        result = operators.gate(even, *constants).unsqueeze(1)
    else:
        result = operators.dual_gate(even, *constants)

    def of_even(gradient: Tensor) -> Tensor:
        if features.shape[1] == 1:
            return operators.gate_backward(gradient.squeeze(1), even, *constants).unsqueeze(1)
        return operators.dual_gate_backward(gradient, even, *constants)

    if gate.n_odd == 0:
        return result, of_even
    odd, of_odd = differentiated(jet.normalized_tanh, [features[:, :, : gate.n_odd]])

    def backward(gradient: Tensor) -> Tensor:
        (found,) = of_odd(gradient[:, :, : gate.n_odd])
        assert found is not None
        return torch.cat([found, of_even(gradient[:, :, gate.n_odd :].contiguous())], dim=2)

    return torch.cat([odd, result], dim=2), backward


def in_lanes(columns: Tensor) -> Tensor:
    """`[rows, columns]`, whole vectors of LANES, to `[blocks, rows, LANES]`."""
    return columns.view(columns.shape[0], columns.shape[1] // LANES, LANES).transpose(0, 1).contiguous()


def out_of_lanes(table: Tensor) -> Tensor:
    """The reverse of `in_lanes`."""
    return table.transpose(0, 1).flatten(1)


def first_layers(program: EdgeProgram, network: RadialNetwork, n_layers: int) -> Value:
    """What these make of the edges' first columns: SiLU stands behind all but the network's last."""
    value = program.edge(0, network.weights[0].shape[0])
    for i, weight in enumerate(list(network.weights)[:n_layers]):
        value = program.linear(value, weight, scale=1.0 / math.sqrt(weight.shape[0]))
        if i < network.n_layers - 1:
            value = program.silu(value, scale=jet.SILU_FACTOR)
    return value


class RadialTables:
    """The tables of the path weights of some layers, whose radial networks read the same samples: one network for all.

    A call of an operator takes longer than what a small network has to do.
    """

    def __init__(self, steps: Sequence[EquivariantStep]) -> None:
        self.steps, networks = steps, [cast(RadialNetwork, step.layer.radial_network) for step in steps]
        weights = [weight for network in networks for weight in network.parameters()]
        inner, last = EdgeProgram(), EdgeProgram()
        column, self.blocks = 0, list[int]()
        for step, network in zip(steps, networks, strict=True):
            matrix, first_column = network.weights[-1], last.edge_width
            width = matrix.shape[0]
            inner.store(first_layers(inner, network, network.n_layers - 1), column)
            hidden = last.edge(column, width)
            column += width
            # Each path begins a block of lanes.
            channels = [path.channels for path in step.layer.convolution.paths]
            for path, row in zip(matrix.split(channels, dim=1), step.plan[0], strict=True):
                value = last.linear(hidden, path, scale=1.0 / math.sqrt(width))
                last.store(value, first_column + int(row[PATH_TABLE_START]) * LANES)
            last.edge_width += -last.edge_width % LANES
            self.blocks.append((last.edge_width - first_column) // LANES)
        self.width = last.edge_width
        self.inner = TrainingNetwork(inner, weights) if any(network.n_layers > 1 for network in networks) else None
        self.last = TrainingNetwork(last, weights)
        self._made: tuple[StepEdges, list[Table]] | None = None

    def networks(self) -> list[TrainingNetwork]:
        """Both, or the last alone."""
        return [self.last] if self.inner is None else [self.inner, self.last]

    def prepare(self, step: EquivariantStep, edges: StepEdges, samples: Samples, panels: PanelsOfStep) -> Table:
        """The table of one of the layers: all are made when the first is asked for."""
        if self._made is None or self._made[0] is not edges:
            self._made = (edges, self._tables(edges, samples, panels))
        table = self._made[1][self.steps.index(step)]
        if step is self.steps[-1]:
            self._made = None
        return table

    def _tables(self, edges: StepEdges, samples: Samples, panels: PanelsOfStep) -> list[Table]:
        hidden, order = samples.radial.flatten(1), samples.radial.shape[1]
        backs: list[Backward] = []
        if self.inner is not None:
            hidden, back = self.inner.on_rows(panels[self.inner], order, hidden)
            backs.append(back)
        if edges.table is not None:
            # The map to rows is linear, as the last layer is: it goes first, where there are fewer columns.
            to_samples = edges.table.from_samples.t()
            hidden = edges.table.from_samples @ hidden
            backs.append(lambda of_rows: to_samples @ of_rows)
        columns, back = self.last.on_rows(panels[self.last], order, hidden)
        backs.append(back)
        if edges.table is None:
            columns = jet.rows(F.pad(columns.view(len(columns), order, self.width), [0, 0, 0, ROWS - order]))
        found: dict[int, Tensor] = {}

        def backward(layer: int, of_table: Tensor) -> None:
            found[layer] = of_table
            if len(found) < len(self.steps):
                return
            gradient = out_of_lanes(torch.cat([found.pop(i) for i in range(len(self.steps))]))
            if edges.table is None:
                gradient = gradient.view(-1, ROWS, self.width)[:, :order].flatten(1)
            for back in reversed(backs):
                gradient = back(gradient)
            samples.add(gradient.view_as(samples.radial))

        tables = in_lanes(columns).split(self.blocks)
        return [Table(table, functools.partial(backward, i)) for i, table in enumerate(tables)]


SHARED_COLUMNS = 2048
"""Path weights of an edge in all layers, up to which these share a network for their tables: rows of more would not
stay in the cache while the network runs."""


def share_tables(steps: Sequence[LayerStep]) -> list[RadialTables]:
    """Give the equivariant layers among these what makes their tables."""
    found = [step.inner if isinstance(step, ReadoutStep) else step for step in steps]
    layers = [step for step in found if isinstance(step, EquivariantStep)]
    n_columns = sum(path.channels for step in layers for path in step.layer.convolution.paths)
    groups = [layers] if layers and n_columns <= SHARED_COLUMNS else [[step] for step in layers]
    tables = [RadialTables(group) for group in groups]
    for each in tables:
        for step in each.steps:
            step.tables = each
    return tables


def network_on_rows(network: RadialNetwork) -> TrainingNetwork:
    """A whole network."""
    program = EdgeProgram()
    program.store(first_layers(program, network, network.n_layers), 0)
    return TrainingNetwork(program, network.parameters())


# ----------------------------------------------------------------------
# invariant layers
# ----------------------------------------------------------------------


class InvariantStep:
    """An `InvariantLayer`, evaluated edge by edge."""

    def __init__(self, layer: InvariantLayer) -> None:
        self.layer = layer
        weights = list(layer.parameters())
        self.of_atoms = TrainingNetwork(atom_program(layer), weights)
        self.updated = TrainingNetwork(update_program(layer), weights)
        # By whether features are dropped.
        self.messages = {
            dropped: TrainingNetwork(message_program(layer, dropped=dropped), weights)
            for dropped in {False, self.can_drop}
        }

    @property
    def can_drop(self) -> bool:
        """Whether the layer has dropout."""
        return self.layer.edge_dropout.p > 0.0 or self.layer.attention_dropout.p > 0.0

    @property
    def drops(self) -> bool:
        """Whether it is on."""
        return self.layer.training and self.can_drop

    def networks(self, edges: StepEdges) -> list[TrainingNetwork]:
        """Of atoms, of edges, and of the update."""
        return [self.of_atoms, self.messages[self.drops], self.updated]

    def prepare(
        self, edges: StepEdges, samples: Samples, panels: PanelsOfStep, gradients: WeightGradients
    ) -> Table | None:
        """A table, where there is one."""
        return None

    def forward(
        self, features: Tensor, walk: Walk, table: Table | None, panels: PanelsOfStep
    ) -> tuple[Tensor, Backward]:
        """`[n, order, channels]` to the same."""
        order, layer, edges = walk.order, self.layer, walk.edges
        atoms, of_features_of = self.of_atoms.on_rows(panels[self.of_atoms], order, features.flatten(1), walk.trains)
        columns = [walk.radial()]
        n_edges, n_radial = columns[0].shape[0], columns[0].shape[2]
        if self.drops:
            for dropout in (layer.edge_dropout, layer.attention_dropout):
                mask = walk.mask(dropout, n_edges, layer.channels, features)
                columns.append(jet.constant(mask, order))
        rows = torch.cat(columns, dim=2).flatten(1)
        network = self.messages[self.drops]
        run = network(panels[network], order, atoms, atoms, rows, edges.center, edges.neighbor, walk.trains)
        result, of_inputs = self.update(features, run.sums.view(-1, order, layer.channels), walk, panels)

        def backward(gradient: Tensor) -> Tensor:
            of_features, of_received = of_inputs(gradient)
            of_centers, of_neighbors, of_rows = run.backward(of_received.flatten(1), None)
            walk.add_of_radial(of_rows.unflatten(1, (order, of_rows.shape[1] // order))[:, :, :n_radial])
            return of_features + of_features_of(of_centers + of_neighbors).view_as(features)

        return result, backward

    def update(
        self, features: Tensor, received: Tensor, walk: Walk, panels: PanelsOfStep
    ) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """`InvariantLayer.updated` on jets; its backward leads to both."""
        each, nothing = own_rows(len(features), features.dtype)
        rows = (features.flatten(1), nothing, received.flatten(1))
        run = self.updated(panels[self.updated], walk.order, *rows, each, each, walk.trains)

        def backward(gradient: Tensor) -> tuple[Tensor, Tensor]:
            of_features, _, of_received = run.backward(None, gradient.flatten(1))
            return of_features.view_as(features), of_received.view_as(features)

        return run.edges.view_as(features), backward


ROWS_FOR_AN_EDGE = 1.5
"""Rows of tables that cost less than the message of an edge: that is computed in both passes, once with its tangent."""


class FirstInvariantStep(InvariantStep):
    """The first layer of a model if it is invariant: its message depends on two species and the distance.

    Where edges are many and nothing is dropped, it is evaluated at the distances of a table for each ordered pair of
    species in the batch.
    """

    def __init__(self, layer: InvariantLayer, species: SpeciesEmbedding) -> None:
        """`species` makes the features that the layer reads."""
        super().__init__(layer)
        self.species_embedding, c = species, layer.channels
        program = message_program(layer, summed=False)
        self.of_pairs = TrainingNetwork(program, layer.parameters())
        # A convolution of ones: one path of scalars.
        paths = torch.tensor([[0, 1, c, 0, 0, c, 1, 0, 1]])
        self.plan = (paths, torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, dtype=species.weight.dtype))

    def is_tabulated(self, edges: StepEdges) -> bool:
        """Whether a table for each pair of species is worth it, and possible."""
        drops = self.drops or (self.layer.training and self.species_embedding.dropout.p > 0.0)
        if edges.table is None or drops:
            return False
        return len(edges.pairs) * edges.table.n_rows <= ROWS_FOR_AN_EDGE * len(edges.center)

    def networks(self, edges: StepEdges) -> list[TrainingNetwork]:
        """As the base class, or of atoms, of pairs, and of the update."""
        return [self.of_atoms, self.of_pairs, self.updated] if self.is_tabulated(edges) else super().networks(edges)

    def prepare(
        self, edges: StepEdges, samples: Samples, panels: PanelsOfStep, gradients: WeightGradients
    ) -> Table | None:
        """If tabulated, messages of each pair of species, one behind the other, `[blocks, n_pairs * n_rows, LANES]`."""
        if not self.is_tabulated(edges):
            return None
        assert edges.table is not None
        pairs, channels, from_samples = edges.pairs, self.layer.channels, edges.table.from_samples
        species, n_samples = self.species_embedding.weight, edges.table.n_rows
        scale = 1.0 / math.sqrt(float(len(species)))
        atoms, of_species_rows = self.of_atoms.on_rows(panels[self.of_atoms], 1, species.detach() * scale)
        center, neighbor = pairs.t().repeat_interleave(n_samples, dim=1).unbind(0)
        rows = edges.sampled.values.repeat(len(pairs), 1)
        run = self.of_pairs(panels[self.of_pairs], 1, atoms, atoms, rows, center, neighbor)
        columns = from_samples @ run.edges.view(len(pairs), n_samples, channels)
        table = in_lanes(F.pad(columns.flatten(0, 1), [0, -channels % LANES]))

        def backward(of_table: Tensor) -> None:
            of_columns = out_of_lanes(of_table)[:, :channels].reshape(len(pairs), n_samples, channels)
            of_messages = (from_samples.t() @ of_columns).flatten(0, 1)
            of_centers, of_neighbors, of_rows = run.backward(None, of_messages)
            of_samples = of_rows.view(len(pairs), n_samples, -1).sum(0)
            samples.add(of_samples[:, : samples.radial.shape[2]].unsqueeze(1))
            gradients.add(species, of_species_rows(of_centers + of_neighbors) * scale)

        return Table(table, backward)

    def forward(
        self, features: Tensor, walk: Walk, table: Table | None, panels: PanelsOfStep
    ) -> tuple[Tensor, Backward]:
        """`[n, order, channels]` to the same."""
        if table is None:
            return super().forward(features, walk, table, panels)
        edges, operators, of_table = walk.edges, torch.ops.hienet, table.backward
        assert edges.table is not None
        ones = features.new_ones(edges.n_nodes, self.layer.channels)
        located = (
            edges.first_row_of_pair,
            edges.factors,
            table.values,
            edges.center,
            edges.neighbor,
            edges.n_nodes,
            *self.plan,
        )
        if walk.tangents is None:
            received = operators.training_convolution(ones, edges.geometry, *located).unsqueeze(1)
        else:
            ones = jet.constant(ones, 2)
            received = operators.dual_convolution(ones, edges.geometry, walk.tangents, *located)
        result, of_inputs = self.update(features, received, walk, panels)

        def backward(gradient: Tensor) -> Tensor:
            of_features, of_received = of_inputs(gradient)
            if walk.tangents is None:
                _, of_geometry = operators.training_convolution_backward(
                    of_received.squeeze(1), ones, edges.geometry, *located
                )
                walk.of_geometry.add_(of_geometry)
            else:
                of_table(
                    operators.dual_convolution_backward(of_received, ones, edges.geometry, walk.tangents, *located)[1]
                )
            return of_features

        return result, backward


class ScalarsStep:
    """A `LayerOnScalars`."""

    def __init__(self, layer: LayerOnScalars) -> None:
        self.start, self.stop = layer.start, layer.start + layer.channels
        self.inner = InvariantStep(cast(InvariantLayer, layer.layer))
        self.networks = self.inner.networks
        self.prepare = self.inner.prepare

    def forward(
        self, features: Tensor, walk: Walk, table: Table | None, panels: PanelsOfStep
    ) -> tuple[Tensor, Backward]:
        """`[n, order, irreps.dim]` to the same."""
        inner, back = self.inner.forward(features[:, :, self.start : self.stop].contiguous(), walk, table, panels)

        def around(scalars: Tensor, others: Tensor) -> Tensor:
            return torch.cat([others[:, :, : self.start], scalars, others[:, :, self.stop :]], dim=2)

        def backward(gradient: Tensor) -> Tensor:
            return around(back(gradient[:, :, self.start : self.stop].contiguous()), gradient)

        return around(inner, features), backward


class ReadoutStep:
    """A `LayerWithReadout`: energies of the layers add up in the last column."""

    def __init__(self, layer: LayerWithReadout, embedding: EdgeEmbedding) -> None:
        self.plain = layer
        self.inner = EquivariantStep(cast(EquivariantLayer, layer.layer), embedding)
        self.readout = network_on_rows(layer.layer_readout.network)
        self.prepare = self.inner.prepare

    def networks(self, edges: StepEdges) -> list[TrainingNetwork]:
        """As the layer's, and the readout."""
        return [*self.inner.networks(edges), self.readout]

    def forward(
        self, features: Tensor, walk: Walk, table: Table | None, panels: PanelsOfStep
    ) -> tuple[Tensor, Backward]:
        """`[n, order, features + energies]` to `[n, order, features + 1]`."""
        n_energies, readout, order = self.plain.n_energies, self.plain.layer_readout, walk.order
        width = features.shape[2] - n_energies
        result, of_layer = self.inner.forward(features[:, :, :width].contiguous(), walk, table, panels)
        scalars = result[:, :, readout.start : readout.stop].flatten(1)
        energy, of_readout = self.readout.on_rows(panels[self.readout], order, scalars, walk.trains)
        energy = energy.unsqueeze(2)
        if n_energies > 0:
            energy = energy + features[:, :, -1:]

        def backward(gradient: Tensor) -> Tensor:
            of_result, of_energy = gradient[:, :, :-1].clone(), gradient[:, :, -1:]
            of_scalars = of_readout(of_energy.flatten(1))
            of_result[:, :, readout.start : readout.stop] += of_scalars.view(len(of_result), order, -1)
            of_features = of_layer(of_result)
            return torch.cat([of_features, of_energy], dim=2) if n_energies > 0 else of_features

        return torch.cat([result, energy], dim=2), backward


class EnergyStep:
    """An `EnergyReadout`, without scale and shift of the species."""

    def __init__(self, readout: EnergyReadout) -> None:
        self.dropout = readout.dropout
        (hidden,), (energy,) = readout.hidden.columns, readout.energy.columns
        self.width = hidden[3]
        self._networks = {}
        for drops in {False, readout.dropout.p > 0.0}:
            program = EdgeProgram()
            value = program.edge(0, hidden[1])
            value = program.linear(value, readout.hidden.weight.view(hidden[1], -1), scale=1.0 / math.sqrt(hidden[1]))
            if drops:
                value = program.multiply(value, program.edge(hidden[1], self.width))
            value = program.linear(value, readout.energy.weight.view(energy[1], 1), scale=1.0 / math.sqrt(energy[1]))
            program.store(value, 0)
            self._networks[drops] = TrainingNetwork(program, readout.parameters())

    @property
    def network(self) -> TrainingNetwork:
        """That of the present mode."""
        return self._networks[self.dropout.training and self.dropout.p > 0.0]

    def forward(self, features: Tensor, walk: Walk, panels: PanelsOfStep) -> tuple[Tensor, Backward]:
        """`[n, order, channels]` to `[n, order]`."""
        order, channels, network = walk.order, features.shape[2], self.network
        if network is not self._networks[False]:
            kept = walk.mask(self.dropout, len(features), self.width, features)
            features = torch.cat([features, jet.constant(kept, order)], dim=2)
        output, back = network.on_rows(panels[network], order, features.flatten(1), walk.trains)
        return output, lambda gradient: back(gradient).view_as(features)[:, :, :channels].contiguous()


LayerStep = EquivariantStep | InvariantStep | ScalarsStep | ReadoutStep


def step_of(layer: nn.Module, embedding: EdgeEmbedding, species: SpeciesEmbedding | None) -> LayerStep:
    """The form for training of a layer; `species`: of a model's first layer, what makes its input."""
    if isinstance(layer, EquivariantLayer):
        return EquivariantStep(layer, embedding)
    if isinstance(layer, LayerWithReadout):
        return ReadoutStep(layer, embedding)
    if isinstance(layer, LayerOnScalars):
        return ScalarsStep(layer)
    assert isinstance(layer, InvariantLayer)
    return InvariantStep(layer) if species is None else FirstInvariantStep(layer, species)
