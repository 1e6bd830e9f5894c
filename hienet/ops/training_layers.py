"""The layers of a `LayeredModel` on jets, in compiled operators: what a training step is made of.

Each class holds a plain layer and computes the same: on jets of order 1 the features, differentiable once with respect
to the edges; on jets of order 2 features with tangents, differentiable with respect to the weights. What is made of the
weights once in a step, tables and panels, `prepare` returns, and `forward` takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

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
from hienet.ops.edge_network import EdgeProgram
from hienet.ops.fused_invariant import atom_program, message_program, update_program
from hienet.ops.gate import FusedGate
from hienet.ops.interaction import convolution_plan
from hienet.ops.spline import LANES
from hienet.ops.training_functions import Convolution, DualConvolution, DualGate, Interaction
from hienet.ops.training_network import TrainingNetwork


@dataclass(frozen=True)
class StepEdges:
    """The edges of a batch in one step.

    Attributes:
        embedding: basis and envelope.
        species: `[n_nodes]` int64.
        center, neighbor: `[n_edges]` int64.
        geometry: `[n_edges, order, 1 + harmonics]`: distance (Å) and spherical harmonics, a jet.
        table: where functions of the distance are sampled; None: at the edges themselves.
        first_row, factors: what edges read of tables (`BasisTable.locate`).
        pairs: `[n_pairs, 2]` int64, the ordered pairs of species (center, neighbour) among the edges.
        pair: `[n_edges]` int64, which of them an edge is.
    """

    embedding: EdgeEmbedding
    species: Tensor
    center: Tensor
    neighbor: Tensor
    geometry: Tensor
    table: BasisTable | None
    first_row: Tensor
    factors: Tensor
    pairs: Tensor
    pair: Tensor

    @property
    def order(self) -> int:
        """Of the jets."""
        return self.geometry.shape[1]

    @property
    def n_nodes(self) -> int:
        """Atoms of the batch."""
        return self.species.shape[0]

    def columns(self) -> tuple[Tensor, Tensor | None]:
        """Distance and harmonics `[n_edges, 1 + harmonics]`, and their tangents."""
        if self.order == 1:
            return self.geometry.squeeze(1), None
        return self.geometry[:, 0], self.geometry[:, 1]

    def radial(self) -> tuple[Tensor, Tensor]:
        """The radial basis times the envelope, `[n_edges, order, n_radial]`, and the envelope `[n_edges, order, 1]`."""
        distance = self.geometry[:, :, :1]
        if self.order == 1:
            radial, envelope = radial_features(self.embedding, distance[:, 0])
            return radial.unsqueeze(1), envelope.unsqueeze(1)
        return radial_jets(self.embedding, distance[:, 0], distance[:, 1])


def radial_jets(embedding: EdgeEmbedding, distance: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
    """`radial_features` of distances `[n, 1]` (Å) with these tangents, as jets of order 2.

    Both are functions of one number, so that one backward gives the slopes of all: torch's own forward mode compiles
    scripts when it is first used, and warns of that.
    """
    with torch.enable_grad():
        narrow = distance.detach().clone().requires_grad_()
        wide = narrow.detach().repeat(1, len(embedding.basis.frequencies)).requires_grad_()
        envelope, basis = embedding.envelope(narrow), embedding.basis(wide)
        (envelope_slope,) = torch.autograd.grad(envelope.sum(), narrow)
        (basis_slope,) = torch.autograd.grad(basis.sum(), wide, create_graph=True)
    if not torch.is_grad_enabled():
        basis, basis_slope = basis.detach(), basis_slope.detach()
    envelope = torch.stack([envelope.detach(), envelope_slope * tangent], dim=1)
    return jet.product(torch.stack([basis, basis_slope * tangent], dim=1), envelope), envelope


@dataclass(frozen=True)
class Samples:
    """Where tables sample functions of the distance: at the distances of a `BasisTable`, or at the edges, with slopes.

    Attributes:
        radial: basis times envelope, `[n, order, n_radial]`; order 1 for a table, 2 for edges.
        envelope: `[n, order, 1]`.
    """

    radial: Tensor
    envelope: Tensor

    @classmethod
    def of(cls, edges: StepEdges) -> Samples:
        """For these edges, a function of the basis' frequencies."""
        if edges.table is None:
            distance = edges.geometry[:, 0, :1]
            return cls(*radial_jets(edges.embedding, distance, torch.ones_like(distance)))
        parts = radial_features(edges.embedding, edges.table.distances.unsqueeze(1))
        return cls(parts[0].unsqueeze(1), parts[1].unsqueeze(1))


def radial_features(embedding: EdgeEmbedding, distance: Tensor) -> tuple[Tensor, Tensor]:
    """Of distances `[n, 1]` (Å): basis times envelope `[n, n_radial]`, and the envelope `[n, 1]`."""
    envelope = embedding.envelope(distance)
    return embedding.basis(distance) * envelope, envelope


PATH_TABLE_START = 3
"""The column of `paths` that says where the table of a path begins, in blocks of LANES."""
Plan = tuple[Tensor, Tensor, Tensor]
"""`paths`, `terms` and `coefficients` of `hienet.ops.interaction.convolution_plan`."""


def convolve(sent: Tensor, edges: StepEdges, first_row: Tensor, table: Tensor, plan: Plan) -> Tensor:
    """Messages of features `[n, order, width]`, summed over neighbours: `[n, order, message width]`.

    `first_row` `[n_edges]` are the rows of `table` `[blocks, n_rows, LANES]` at which edges begin to read.
    """
    located = (first_row, edges.factors, table, edges.center, edges.neighbor, plan)
    geometry, tangents = edges.columns()
    if tangents is None:
        return Convolution.apply(sent.squeeze(1), geometry, *located).unsqueeze(1)
    return DualConvolution.apply(sent, geometry, tangents, *located)


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
        self.constants = (
            torch.tensor(layer.linear_in.columns),
            torch.tensor(layer.linear_out.columns),
            torch.tensor(skip.columns) if isinstance(skip, IrrepsLinear) else None,
            1.0 / layer.avg_num_neighbors,
            *((gate.blocks, gate.n_scalars, gate.scale) if gate and self.gates_at_once else (None, 0, 0.0)),
        )
        network = layer.radial_network
        assert isinstance(network, RadialNetwork)
        self.radial = network_on_rows(network, network.n_layers - 1)
        last, program = network.weights[-1], EdgeProgram()
        hidden = program.edge(0, last.shape[0])
        # Each path begins a block of lanes.
        for path, row in zip(
            last.split([path.channels for path in layer.convolution.paths], dim=1), paths, strict=True
        ):
            value = program.linear(hidden, path, scale=1.0 / math.sqrt(last.shape[0]))
            program.store(value, int(row[PATH_TABLE_START]) * LANES)
        program.edge_width += -program.edge_width % LANES
        self.width, self.lanes = program.edge_width, TrainingNetwork(program, network.parameters())

    def prepare(self, edges: StepEdges, samples: Samples) -> tuple[Tensor, ...]:
        """The path weights' table `[blocks, n_rows, LANES]`, a function of the radial network's weights."""
        hidden, order = samples.radial.flatten(1), samples.radial.shape[1]
        if self.radial is not None:
            hidden = self.radial.on_rows(self.radial.panels(), order, hidden)
        if edges.table is not None:
            # The map to rows is linear, as the last layer is: it goes first, where there are fewer columns.
            hidden = edges.table.from_samples @ hidden
        columns = self.lanes.on_rows(self.lanes.panels(), order, hidden)
        if edges.table is None:
            columns = jet.rows(F.pad(columns.view(len(columns), order, self.width), [0, 0, 0, ROWS - order]))
        return (in_lanes(columns),)

    def forward(self, features: Tensor, edges: StepEdges, prepared: tuple[Tensor, ...]) -> Tensor:
        """Features `[n, order, irreps_in.dim]` to `[n, order, irreps_out.dim]`."""
        (table,), layer, order = prepared, self.layer, edges.order
        species = edges.species if order == 1 else edges.species.repeat_interleave(order)
        added = kept = skip = None
        if isinstance(layer.linear_skip, IrrepsLinear):
            skip = layer.linear_skip.weight
        elif isinstance(layer.linear_skip, SpeciesLinear):
            kept = jet.from_rows(layer.linear_skip(jet.rows(features), species), order)
        if isinstance(layer.constants, ScalarConstants):
            to_sent, to_update = layer.constants.of_width(layer.state_width).split([layer.sent_width, layer.kept_width])
            added = jet.constant(to_sent.unsqueeze(0), order).expand(edges.n_nodes, -1, -1)
            if layer.keeps_itself:
                constant = jet.constant(to_update.unsqueeze(0), order).expand(edges.n_nodes, -1, -1)
                kept = constant if kept is None else kept + constant
        geometry, tangents = edges.columns()
        update = Interaction.apply(
            *(features, added, kept, geometry, tangents, table, layer.linear_in.weight, layer.linear_out.weight, skip),
            (edges.first_row, edges.factors, edges.center, edges.neighbor, self.plan),
            self.constants,
        )
        if not layer.keeps_itself:
            update = jet.from_rows(layer.message_of_species(jet.rows(update), species), order)
        return update if self.gates_at_once else self.gated(update)

    def gated(self, features: Tensor) -> Tensor:
        """The gate of `[n, order, gate.irreps_in.dim]`."""
        gate = self.gate
        if gate is None:
            return features
        if features.shape[1] == 1:
            return gate(features[:, 0]).unsqueeze(1)
        even = DualGate.apply(features[:, :, gate.n_odd :], gate.blocks, gate.n_scalars, gate.scale)
        return torch.cat([jet.normalized_tanh(features[:, :, : gate.n_odd]), even], dim=2) if gate.n_odd else even


def in_lanes(columns: Tensor) -> Tensor:
    """`[rows, columns]`, whole vectors of LANES, to `[blocks, rows, LANES]`."""
    return columns.view(columns.shape[0], columns.shape[1] // LANES, LANES).transpose(0, 1).contiguous()


def network_on_rows(network: RadialNetwork, n_layers: int) -> TrainingNetwork | None:
    """The first layers of a network, SiLU behind all but its last; None if they are no layers."""
    if n_layers == 0:
        return None
    program = EdgeProgram()
    value = program.edge(0, network.weights[0].shape[0])
    for i, weight in enumerate(list(network.weights)[:n_layers]):
        value = program.linear(value, weight, scale=1.0 / math.sqrt(weight.shape[0]))
        if i < network.n_layers - 1:
            value = program.silu(value, scale=jet.SILU_FACTOR)
    program.store(value, 0)
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

    def prepare(self, edges: StepEdges, samples: Samples) -> tuple[Tensor, ...]:
        """Panels of what acts on atoms, on edges, and of the update."""
        return (*self.of_atoms.panels(), *self.messages[self.drops].panels(), *self.updated.panels())

    def forward(self, features: Tensor, edges: StepEdges, prepared: tuple[Tensor, ...]) -> Tensor:
        """`[n, order, channels]` to the same."""
        order, layer = edges.order, self.layer
        of_atoms, of_messages, of_update = prepared[:3], prepared[3:6], prepared[6:]
        atoms = self.of_atoms.on_rows(of_atoms, order, features.flatten(1))  # type: ignore[arg-type]
        columns = [*edges.radial()]
        if self.drops:
            masks = [columns[0].new_ones(len(edges.center), layer.channels) for _ in range(2)]
            drops = (layer.edge_dropout, layer.attention_dropout)
            columns += [jet.constant(drop(mask), order) for drop, mask in zip(drops, masks, strict=True)]
        rows = torch.cat(columns, dim=2).flatten(1)
        network = self.messages[self.drops]
        sums, _ = network(of_messages, order, atoms, atoms, rows, edges.center, edges.neighbor)  # type: ignore[arg-type]
        return self.update(features, sums.view(-1, order, layer.channels), of_update)

    def update(self, features: Tensor, received: Tensor, panels: tuple[Tensor, ...]) -> Tensor:
        """`InvariantLayer.updated` on jets."""
        rows = torch.cat([features, received], dim=2).flatten(1)
        return self.updated.on_rows(panels, features.shape[1], rows).view_as(received)  # type: ignore[arg-type]


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
        return edges.table is not None and not drops and len(edges.pairs) * edges.table.n_rows <= len(edges.center)

    def prepare(self, edges: StepEdges, samples: Samples) -> tuple[Tensor, ...]:
        """If tabulated, messages of each pair of species, one behind the other, `[blocks, n_pairs * n_rows, LANES]`,
        and panels of the update; otherwise what the base class makes."""
        if not self.is_tabulated(edges):
            return super().prepare(edges, samples)
        assert edges.table is not None
        pairs, channels = edges.pairs, self.layer.channels
        species = self.species_embedding.weight
        atoms = self.of_atoms.on_rows(self.of_atoms.panels(), 1, species / math.sqrt(float(len(species))))
        at_samples = torch.cat([samples.radial[:, 0], samples.envelope[:, 0]], dim=1)
        center, neighbor = pairs.repeat_interleave(len(at_samples), dim=0).unbind(1)
        rows = at_samples.repeat(len(pairs), 1)
        _, messages = self.of_pairs(self.of_pairs.panels(), 1, atoms, atoms, rows, center, neighbor)
        columns = edges.table.from_samples @ messages.view(len(pairs), -1, channels)
        table = in_lanes(F.pad(columns.flatten(0, 1), [0, -channels % LANES]))
        return (table, *self.updated.panels())

    def forward(self, features: Tensor, edges: StepEdges, prepared: tuple[Tensor, ...]) -> Tensor:
        """`[n, order, channels]` to the same."""
        if not self.is_tabulated(edges):
            return super().forward(features, edges, prepared)
        assert edges.table is not None
        table, *panels = prepared
        ones = jet.constant(features.new_ones(1, self.layer.channels), edges.order).expand(edges.n_nodes, -1, -1)
        first_row = edges.first_row + edges.pair * edges.table.n_rows
        return self.update(features, convolve(ones, edges, first_row, table, self.plan), tuple(panels))


class ScalarsStep:
    """A `LayerOnScalars`."""

    def __init__(self, layer: LayerOnScalars) -> None:
        self.start, self.stop = layer.start, layer.start + layer.channels
        self.inner = InvariantStep(cast(InvariantLayer, layer.layer))

    def prepare(self, edges: StepEdges, samples: Samples) -> tuple[Tensor, ...]:
        """As the layer's."""
        return self.inner.prepare(edges, samples)

    def forward(self, features: Tensor, edges: StepEdges, prepared: tuple[Tensor, ...]) -> Tensor:
        """`[n, order, irreps.dim]` to the same."""
        scalars = self.inner.forward(features[:, :, self.start : self.stop], edges, prepared)
        return torch.cat([features[:, :, : self.start], scalars, features[:, :, self.stop :]], dim=2)


class ReadoutStep:
    """A `LayerWithReadout`: energies of the layers add up in the last column."""

    def __init__(self, layer: LayerWithReadout, embedding: EdgeEmbedding) -> None:
        self.plain = layer
        self.inner = EquivariantStep(cast(EquivariantLayer, layer.layer), embedding)
        network = network_on_rows(layer.layer_readout.network, layer.layer_readout.network.n_layers)
        assert network is not None
        self.readout = network

    def prepare(self, edges: StepEdges, samples: Samples) -> tuple[Tensor, ...]:
        """As the layer's, and the panels of the readout."""
        return (*self.inner.prepare(edges, samples), *self.readout.panels())

    def forward(self, features: Tensor, edges: StepEdges, prepared: tuple[Tensor, ...]) -> Tensor:
        """`[n, order, features + energies]` to `[n, order, features + 1]`."""
        width, readout = features.shape[2] - self.plain.n_energies, self.plain.layer_readout
        *of_inner, weights, vectors, transposed = prepared
        result = self.inner.forward(features[:, :, :width], edges, tuple(of_inner))
        scalars = result[:, :, readout.start : readout.stop].flatten(1)
        energy = self.readout.on_rows((weights, vectors, transposed), edges.order, scalars).unsqueeze(2)
        if self.plain.n_energies > 0:
            energy = energy + features[:, :, -1:]
        return torch.cat([result, energy], dim=2)


class EnergyStep:
    """An `EnergyReadout`, without scale and shift of the species."""

    def __init__(self, readout: EnergyReadout) -> None:
        self.dropout = readout.dropout
        (hidden,), (energy,) = readout.hidden.columns, readout.energy.columns
        self.width = hidden[3]
        self.networks = {}
        for drops in {False, readout.dropout.p > 0.0}:
            program = EdgeProgram()
            value = program.edge(0, hidden[1])
            value = program.linear(value, readout.hidden.weight.view(hidden[1], -1), scale=1.0 / math.sqrt(hidden[1]))
            if drops:
                value = program.multiply(value, program.edge(hidden[1], self.width))
            value = program.linear(value, readout.energy.weight.view(energy[1], 1), scale=1.0 / math.sqrt(energy[1]))
            program.store(value, 0)
            self.networks[drops] = TrainingNetwork(program, readout.parameters())

    @property
    def network(self) -> TrainingNetwork:
        """That of the present mode."""
        return self.networks[self.dropout.training and self.dropout.p > 0.0]

    def prepare(self) -> tuple[Tensor, ...]:
        """Panels."""
        return self.network.panels()

    def forward(self, features: Tensor, prepared: tuple[Tensor, ...]) -> Tensor:
        """`[n, order, channels]` to `[n, order]`."""
        order = features.shape[1]
        if self.network is not self.networks[False]:
            kept = self.dropout(features.new_ones(len(features), self.width))
            features = torch.cat([features, jet.constant(kept, order)], dim=2)
        return self.network.on_rows(prepared, order, features.flatten(1))  # type: ignore[arg-type]


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
