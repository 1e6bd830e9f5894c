"""The layers of a `LayeredModel` on jets, with compiled convolutions: what a training step is made of.

Each class holds a plain layer, whose weights it reads at every call, and computes the same: on jets of order 1 the
features, differentiable once with respect to the edges; on jets of order 2 features with tangents, differentiable with
respect to the weights.
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
from hienet.nn.invariant import InvariantLayer, PairNetwork
from hienet.nn.layer_readout import LayerWithReadout
from hienet.nn.linear import IrrepsLinear
from hienet.nn.radial import RadialNetwork
from hienet.nn.scalar_layer import LayerOnScalars
from hienet.nn.scatter import sum_over_neighbors
from hienet.nn.species_linear import SpeciesLinear
from hienet.ops import jet
from hienet.ops.basis_table import ROWS, BasisTable
from hienet.ops.gate import FusedGate
from hienet.ops.interaction import convolution_plan
from hienet.ops.spline import LANES
from hienet.ops.training_functions import Convolution, DualConvolution, DualGate, Linear


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
        parts = radial_features(edges.embedding, edges.table.distances.to(edges.geometry.dtype).unsqueeze(1))
        return cls(parts[0].unsqueeze(1), parts[1].unsqueeze(1))


def radial_features(embedding: EdgeEmbedding, distance: Tensor) -> tuple[Tensor, Tensor]:
    """Of distances `[n, 1]` (Å): basis times envelope `[n, n_radial]`, and the envelope `[n, 1]`."""
    envelope = embedding.envelope(distance)
    return embedding.basis(distance) * envelope, envelope


Plan = tuple[Tensor, Tensor, Tensor]
"""`paths`, `terms` and `coefficients` of `hienet.ops.interaction.convolution_plan`."""


def convolve(sent: Tensor, edges: StepEdges, first_row: Tensor, table: Tensor, plan: Plan) -> Tensor:
    """Messages of features `[n, order, width]`, summed over neighbours: `[n, order, message width]`.

    `first_row` `[n_edges]` are the rows of `table` `[blocks, n_rows, LANES]` at which edges begin to read.
    """
    located = (first_row, edges.factors, table, edges.center, edges.neighbor, plan)
    if edges.order == 1:
        return Convolution.apply(sent[:, 0], edges.geometry[:, 0], *located).unsqueeze(1)
    geometry, tangents = edges.geometry.unbind(1)
    return DualConvolution.apply(sent, geometry, tangents, *located)


class EquivariantStep:
    """An `EquivariantLayer` whose radial network is a table, or values and slopes at each edge."""

    def __init__(self, layer: EquivariantLayer, embedding: EdgeEmbedding) -> None:
        """`embedding` makes the edges of `layer`."""
        self.layer, self.embedding = layer, embedding
        dtype = next(layer.parameters()).dtype
        self.columns = {
            linear: torch.tensor(linear.columns)
            for linear in (layer.linear_in, layer.linear_out, layer.linear_skip)
            if isinstance(linear, IrrepsLinear)
        }
        paths, terms, coefficients = convolution_plan(layer.convolution)
        self.plan = (paths, terms, coefficients.to(dtype))
        self.channels = [path.channels for path in layer.convolution.paths]
        self.gate = FusedGate(layer.gate) if isinstance(layer.gate, Gate) else None

    def tabulate(self, edges: StepEdges, samples: Samples) -> Tensor:
        """The path weights' table `[blocks, n_rows, LANES]`, a function of the radial network's weights."""
        network = self.layer.radial_network
        assert isinstance(network, RadialNetwork)
        hidden = network_on_jets(network, samples.radial, network.n_layers - 1)
        last = network.weights[-1] / math.sqrt(network.weights[-1].shape[0])
        if edges.table is None:
            return self.in_lanes(jet.rows(F.pad(hidden @ last, [0, 0, 0, ROWS - 2])))
        # The map to rows is linear, as the last layer is: it goes first, where there are fewer columns.
        return self.in_lanes((edges.table.from_samples.to(last) @ hidden[:, 0]) @ last)

    def in_lanes(self, columns: Tensor) -> Tensor:
        """`[rows, n_weights]` to `[blocks, rows, LANES]`; each path begins a block of its own."""
        parts = columns.split(self.channels, dim=1)
        if any(channels % LANES for channels in self.channels):
            columns = torch.cat([F.pad(part, [0, -part.shape[1] % LANES]) for part in parts], dim=1)
        return columns.view(columns.shape[0], columns.shape[1] // LANES, LANES).transpose(0, 1).contiguous()

    def forward(self, features: Tensor, edges: StepEdges, table: Tensor | None) -> Tensor:
        """Features `[n, order, irreps_in.dim]` to `[n, order, irreps_out.dim]`."""
        assert table is not None
        layer, order = self.layer, edges.order
        x = jet.rows(features)
        species = edges.species if order == 1 else edges.species.repeat_interleave(order)
        sent = jet.from_rows(self.linear(layer.linear_in, x), order)
        constants = layer.constants
        if isinstance(constants, ScalarConstants):
            of_sent, of_update = constants.of_width(layer.state_width).split([layer.sent_width, layer.kept_width])
            sent = sent + jet.constant(of_sent.unsqueeze(0), order)
        messages = convolve(sent, edges, edges.first_row, table, self.plan)
        update = self.linear(layer.linear_out, jet.rows(messages), 1.0 / layer.avg_num_neighbors)
        if isinstance(layer.linear_skip, IrrepsLinear):
            update = update + self.linear(layer.linear_skip, x)
        elif isinstance(layer.linear_skip, SpeciesLinear):
            update = update + layer.linear_skip(x, species)
        else:
            update = layer.message_of_species(update, species)
        update = jet.from_rows(update, order)
        if isinstance(constants, ScalarConstants):
            update = update + jet.constant(of_update.unsqueeze(0), order)
        return self.gated(update)

    def linear(self, plain: IrrepsLinear, features: Tensor, scale: float = 1.0) -> Tensor:
        """`plain(features)` times the scale."""
        return Linear.apply(features, plain.weight, self.columns[plain], scale)

    def gated(self, features: Tensor) -> Tensor:
        """The gate of `[n, order, gate.irreps_in.dim]`."""
        gate = self.gate
        if gate is None:
            return features
        if features.shape[1] == 1:
            return gate(features[:, 0]).unsqueeze(1)
        even = DualGate.apply(features[:, :, gate.n_odd :], gate.blocks, gate.n_scalars, gate.scale)
        return torch.cat([jet.normalized_tanh(features[:, :, : gate.n_odd]), even], dim=2) if gate.n_odd else even


def network_on_jets(network: RadialNetwork, features: Tensor, n_layers: int) -> Tensor:
    """The first layers of a network, `[n, order, inputs]` to `[n, order, outputs]`; SiLU behind all but its last."""
    for i, weight in enumerate(list(network.weights)[:n_layers]):
        features = jet.affine(features, weight.t() / math.sqrt(weight.shape[0]), None)
        if i < network.n_layers - 1:
            features = jet.normalized_silu(features)
    return features


# ----------------------------------------------------------------------
# invariant layers
# ----------------------------------------------------------------------


class InvariantStep:
    """An `InvariantLayer`, evaluated edge by edge."""

    def __init__(self, layer: InvariantLayer) -> None:
        self.layer = layer

    def tabulate(self, edges: StepEdges, samples: Samples) -> Tensor | None:
        """Nothing: messages depend on the atoms' features."""
        return None

    def forward(self, features: Tensor, edges: StepEdges, table: Tensor | None) -> Tensor:
        """`[n, order, channels]` to the same."""
        layer, order = self.layer, edges.order
        radial, envelope = edges.radial()
        edge = jet.dropout(jet.linear(radial, layer.edge), layer.edge_dropout)
        key = self._network(layer.key_network, jet.linear(features, layer.key), edge, edges)
        query = jet.linear(features, layer.query).index_select(0, edges.center)
        attention = jet.product(query, key) / math.sqrt(float(layer.channels))
        attention = jet.layer_norm(jet.dropout(attention, layer.attention_dropout), layer.attention_norm)
        message = self._network(layer.message_network, jet.linear(features, layer.value), edge, edges)
        message = jet.product(message, jet.sigmoid(attention))
        if layer.smooth_cutoff:
            message = jet.product(message, envelope)
        total = sum_over_neighbors(message.flatten(1), edges.center, edges.n_nodes)
        return updated(layer, features, total.view(-1, order, layer.channels))

    def _network(self, network: PairNetwork, nodes: Tensor, edge: Tensor, edges: StepEdges) -> Tensor:
        c, weight = network.channels, network.first.weight
        of_center = jet.affine(nodes, weight[:, :c], None).index_select(0, edges.center)
        of_neighbor = jet.affine(nodes, weight[:, c : 2 * c], None).index_select(0, edges.neighbor)
        hidden = jet.affine(edge, weight[:, 2 * c :], network.first.bias) + of_center + of_neighbor
        return jet.linear(jet.silu(hidden), network.second)


def updated(layer: InvariantLayer, x: Tensor, received: Tensor) -> Tensor:
    """`InvariantLayer.updated` on jets."""
    order = x.shape[1]
    one = jet.constant(x.new_ones(1, 1), order)
    reset = jet.sigmoid(jet.linear(x, layer.reset))
    update = jet.sigmoid(jet.linear(x, layer.update))
    stay = one - update
    added = jet.softplus(jet.layer_norm(jet.linear(received, layer.output), layer.output_norm))
    candidate = jet.product(stay, x) + jet.product(update, added)
    return jet.product(jet.product(stay, reset), x) + jet.product(update, candidate)


class FirstInvariantStep(InvariantStep):
    """The first layer of a model if it is invariant: its message depends on two species and the distance.

    Where edges are many and nothing is dropped, it is evaluated at the distances of a table for each ordered pair of
    species in the batch.
    """

    def __init__(self, layer: InvariantLayer, species: SpeciesEmbedding) -> None:
        """`species` makes the features that the layer reads."""
        super().__init__(layer)
        self.species_embedding = species
        # A convolution of ones: one path of scalars.
        paths = torch.tensor([[0, 1, layer.channels, 0, 0, layer.channels, 1, 0, 1]])
        self.plan = (paths, torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, dtype=species.weight.dtype))

    def tabulate(self, edges: StepEdges, samples: Samples) -> Tensor | None:
        """Messages of each pair of species, one behind the other, `[blocks, n_pairs * n_rows, LANES]`; or None."""
        layer, table, pairs = self.layer, edges.table, edges.pairs
        drops = [m for m in (self.species_embedding.dropout, layer.edge_dropout, layer.attention_dropout) if m.p > 0.0]
        if table is None or len(pairs) * table.n_rows > len(edges.center) or (layer.training and drops):
            return None
        x = self.species_embedding.weight / math.sqrt(float(self.species_embedding.weight.shape[0]))
        edge, envelope = layer.edge(samples.radial[:, 0]), samples.envelope[:, 0]
        key = self._network_of_pairs(layer.key_network, layer.key(x), edge, pairs)
        query = layer.query(x).index_select(0, pairs[:, 0]).unsqueeze(1)
        attention = torch.sigmoid(layer.attention_norm(query * key / math.sqrt(float(layer.channels))))
        message = self._network_of_pairs(layer.message_network, layer.value(x), edge, pairs) * attention
        if layer.smooth_cutoff:
            message = message * envelope
        columns = F.pad((table.from_samples.to(x) @ message).flatten(0, 1), [0, -layer.channels % LANES])
        return columns.view(columns.shape[0], columns.shape[1] // LANES, LANES).transpose(0, 1).contiguous()

    def _network_of_pairs(self, network: PairNetwork, nodes: Tensor, edge: Tensor, pairs: Tensor) -> Tensor:
        c, weight = network.channels, network.first.weight
        of_center = (nodes @ weight[:, :c].t()).index_select(0, pairs[:, 0])
        of_neighbor = (nodes @ weight[:, c : 2 * c].t()).index_select(0, pairs[:, 1])
        of_edge = F.linear(edge, weight[:, 2 * c :], network.first.bias)
        return network.second(F.silu(of_edge + (of_center + of_neighbor).unsqueeze(1)))

    def forward(self, features: Tensor, edges: StepEdges, table: Tensor | None) -> Tensor:
        """`[n, order, channels]` to the same."""
        if table is None or edges.table is None:
            return super().forward(features, edges, None)
        ones = jet.constant(features.new_ones(1, self.layer.channels), edges.order).expand(edges.n_nodes, -1, -1)
        first_row = edges.first_row + edges.pair * edges.table.n_rows
        return updated(self.layer, features, convolve(ones, edges, first_row, table, self.plan))


class ScalarsStep:
    """A `LayerOnScalars`."""

    def __init__(self, layer: LayerOnScalars) -> None:
        self.start, self.stop = layer.start, layer.start + layer.channels
        self.inner = InvariantStep(cast(InvariantLayer, layer.layer))

    def tabulate(self, edges: StepEdges, samples: Samples) -> Tensor | None:
        """Nothing."""
        return None

    def forward(self, features: Tensor, edges: StepEdges, table: Tensor | None) -> Tensor:
        """`[n, order, irreps.dim]` to the same."""
        scalars = self.inner.forward(features[:, :, self.start : self.stop], edges, None)
        return torch.cat([features[:, :, : self.start], scalars, features[:, :, self.stop :]], dim=2)


class ReadoutStep:
    """A `LayerWithReadout`: energies of the layers add up in the last column."""

    def __init__(self, layer: LayerWithReadout, embedding: EdgeEmbedding) -> None:
        self.plain = layer
        self.inner = EquivariantStep(cast(EquivariantLayer, layer.layer), embedding)

    def tabulate(self, edges: StepEdges, samples: Samples) -> Tensor:
        """As the layer's."""
        return self.inner.tabulate(edges, samples)

    def forward(self, features: Tensor, edges: StepEdges, table: Tensor | None) -> Tensor:
        """`[n, order, features + energies]` to `[n, order, features + 1]`."""
        width, readout = features.shape[2] - self.plain.n_energies, self.plain.layer_readout
        result = self.inner.forward(features[:, :, :width], edges, table)
        energy = result[:, :, readout.start : readout.stop]
        energy = network_on_jets(readout.network, energy, readout.network.n_layers)
        if self.plain.n_energies > 0:
            energy = energy + features[:, :, -1:]
        return torch.cat([result, energy], dim=2)


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
