"""Training steps of a `LayeredModel` through compiled operators.

With alpha = dL/dE and v = dL/d(dE/dr), the gradient of a loss L on energies E and their derivatives by the edge vectors
r is that of

    S = sum_i alpha_i E_i + sum_e v_e . dE/dr_e

with alpha and v held fixed, and the second sum is the derivative of the energy along v. So a step is an evaluation,
energies and dE/dr without gradients of weights, and then one forward pass that carries tangents along v, and one
backward pass through it that ends at the weights.

Radial networks are tabulated at the beginning of a step (`hienet.ops.basis_table`). What is trained is the function
that the table represents: its forces are exact derivatives of its energy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from hienet.models.layered import LayeredModel
from hienet.nn.embedding import EdgeEmbedding, SpeciesEmbedding
from hienet.nn.layer_readout import SummedReadout
from hienet.nn.readout import EnergyReadout
from hienet.ops.basis_table import BasisTable, rows_of_edges
from hienet.ops.compile import layers_have_compiled_forms
from hienet.ops.geometry import EdgeGeometry
from hienet.ops.library import load_training_operators
from hienet.ops.radial_functions import RadialFunctions
from hienet.ops.spline import intervals_with_knot
from hienet.ops.training_layers import (
    EmbeddingStep,
    EnergyStep,
    FirstInvariantStep,
    LayerStep,
    Samples,
    StepEdges,
    Table,
    Walk,
    WeightGradients,
    share_tables,
    step_of,
)
from hienet.ops.training_network import NetworkPanels, PanelsOfStep

N_INTERVALS = 96
"""Of the tables: splines of degree 5 follow radial networks to 1e-7 or better, slopes to 1e-6."""


class FusedTraining:
    """A `LayeredModel` that is evaluated and differentiated by compiled operators while its weights change.

    It is an energy function as the model is, and gives energies and their derivatives at once. The model's weights are
    read at every call; they must stay in the same memory, where optimizers and `load_state_dict` leave them.
    """

    def __init__(self, model: LayeredModel, n_intervals: int = N_INTERVALS, exactly: bool | None = None) -> None:
        """Prepare the operators' plans.

        Args:
            model: one that `has_training_form`, on the CPU, in the precision of training.
            n_intervals: of the tables of radial functions.
            exactly: evaluate radial networks at each edge (True), or by tables (False); None: whichever is cheaper for
                a batch.

        Raises:
            HIENetError: the library of operators is not compiled, or too old.
        """
        load_training_operators()
        self.model, self.exactly = model, exactly
        self._parameters = list(model.parameters())
        embedding = cast(EdgeEmbedding, model.edge_embedding)
        kink = embedding.envelope.kink
        if kink is not None:
            n_intervals = intervals_with_knot(n_intervals, embedding.cutoff, kink)
        dtype = next(model.parameters()).dtype
        self._table = BasisTable(embedding.cutoff, n_intervals, kink).to(dtype)
        self._envelope = embedding.envelope(self._table.distances.unsqueeze(1))
        geometry = EdgeGeometry(embedding).to(dtype)
        self._harmonics = (geometry.terms, geometry.coefficients, geometry.n_harmonics)
        self._steps = _Steps(model)

    def __call__(self, species: Tensor, center: Tensor, neighbor: Tensor, edge_vectors: Tensor, n_local: int) -> Tensor:
        """Energies `[n_local]` (eV, float64), as the model's."""
        return self.energies_and_gradient(species, center, neighbor, edge_vectors, n_local)[0]

    def energies_and_gradient(
        self, species: Tensor, center: Tensor, neighbor: Tensor, edge_vectors: Tensor, n_local: int
    ) -> tuple[Tensor, Tensor]:
        """Energies `[n_local]` (eV, float64) and dE/d(edge_vectors) `[n_edges, 3]` (eV/Å).

        Where gradients are enabled, a loss on both can be differentiated with respect to the weights, once.
        """
        parameters = [parameter for parameter in self._parameters if parameter.requires_grad]
        wanted = torch.is_grad_enabled() and bool(parameters)
        vectors = edge_vectors.detach()
        with torch.no_grad():
            step = _Step(self._steps, self._edges(species, center, neighbor, vectors), wanted)
            energies, of_geometry = step.evaluate()
            gradient = torch.ops.hienet.edge_geometry_backward(of_geometry, vectors, *self._harmonics)
        if not wanted:
            return energies, gradient

        def gradients_of_weights(of_energies: Tensor, of_gradient: Tensor) -> list[Tensor | None]:
            with torch.no_grad():
                tangents = torch.ops.hienet.edge_geometry_tangents(vectors, of_gradient, *self._harmonics)
                found = step.gradients(of_energies, tangents)
                return [found.of(parameter) for parameter in parameters]

        return _Differentiated.apply(gradients_of_weights, energies, gradient, *parameters)

    def _edges(self, species: Tensor, center: Tensor, neighbor: Tensor, vectors: Tensor) -> StepEdges:
        geometry = torch.ops.hienet.edge_geometry(vectors, *self._harmonics)
        distance, n_edges = geometry[:, 0], len(center)
        exactly = n_edges < self._table.n_rows if self.exactly is None else self.exactly
        first_row, factors = rows_of_edges(distance) if exactly else self._table.locate(distance)
        embedding = cast(EdgeEmbedding, self.model.edge_embedding)
        table = None if exactly else self._table
        pairs = first_row_of_pair = species[:0]
        if table is not None and isinstance(self._steps.layers[0], FirstInvariantStep):
            n_species = len(cast(SpeciesEmbedding, self.model.species_embedding).weight)
            pairs, pair = _pairs_of_species(species, center, neighbor, n_species)
            first_row_of_pair = first_row + pair * table.n_rows
        radial = RadialFunctions(embedding, geometry[:, :1])
        sampled = radial if exactly else RadialFunctions(embedding, self._table.distances.unsqueeze(1), self._envelope)
        places = (table, radial, sampled, first_row, factors)
        return StepEdges(species, center, neighbor, geometry, *places, pairs, first_row_of_pair)


def has_training_form(model: nn.Module) -> bool:
    """Whether `FusedTraining` knows every part of this model."""
    return (
        isinstance(model, LayeredModel)
        and layers_have_compiled_forms(model)
        and isinstance(model.energy_readout, EnergyReadout | SummedReadout)
    )


class _Differentiated(torch.autograd.Function):
    """Hands energies and gradient on; backward, a given function makes of their gradients those of the weights."""

    @staticmethod
    def forward(ctx, gradients_of_weights, energies, gradient, *parameters):  # type: ignore[no-untyped-def]
        ctx.gradients_of_weights = gradients_of_weights
        return energies.view_as(energies), gradient.view_as(gradient)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, of_energies, of_gradient):  # type: ignore[no-untyped-def]
        found = ctx.gradients_of_weights(of_energies, of_gradient)
        # What was kept of the step is used up.
        ctx.gradients_of_weights = None
        return None, None, None, *found


def _pairs_of_species(species: Tensor, center: Tensor, neighbor: Tensor, n_species: int) -> tuple[Tensor, Tensor]:
    """The ordered pairs of species among the edges, sorted, `[n_pairs, 2]`, and which of them each edge is."""
    kind = species.index_select(0, center) * n_species + species.index_select(0, neighbor)
    occurs = torch.zeros(n_species * n_species, dtype=torch.bool).index_fill_(0, kind, True)
    kinds = occurs.nonzero().squeeze(1)
    row = torch.cumsum(occurs, 0) - 1
    return torch.stack([kinds // n_species, kinds % n_species], dim=1), row.index_select(0, kind)


class _Steps:
    """The layers and the readout of a model, as steps on jets."""

    def __init__(self, model: LayeredModel) -> None:
        self.model = model
        embedding, species = cast(EdgeEmbedding, model.edge_embedding), cast(SpeciesEmbedding, model.species_embedding)
        self.species = EmbeddingStep(species)
        self.layers: list[LayerStep] = [
            step_of(layer, embedding, None if i else species) for i, layer in enumerate(model.layers)
        ]
        self.tables = share_tables(self.layers)
        self.readout = cast("EnergyReadout | SummedReadout", model.energy_readout)
        self.energy = EnergyStep(self.readout) if isinstance(self.readout, EnergyReadout) else None
        self._panels: dict[tuple[int, ...], NetworkPanels] = {}

    def panels(self, edges: StepEdges) -> NetworkPanels:
        """Of all networks of a step on these edges."""
        networks = [network for tables in self.tables for network in tables.networks()]
        networks += [network for layer in self.layers for network in layer.networks(edges)]
        if self.energy is not None:
            networks.append(self.energy.network)
        key = tuple(id(network) for network in networks)
        if key not in self._panels:
            self._panels[key] = NetworkPanels(networks)
        return self._panels[key]

    def scale_and_shift(self, species: Tensor) -> tuple[Tensor, Tensor]:
        """Of these atoms, `[n]` (eV, float64)."""
        readout = self.readout
        both = torch.stack([readout.scale, readout.shift]).to(torch.float64).sum(1).index_select(1, species)
        return both[0], both[1]

    def forward(
        self, walk: Walk, tables: list[Table | None], panels: PanelsOfStep
    ) -> tuple[Tensor, Callable[[Tensor], None]]:
        """What the readout scales, `[n, order]`, and what takes the gradient with respect to it."""
        features, to_species = self.species.forward(walk)
        backs = []
        for layer, table in zip(self.layers, tables, strict=True):
            features, back = layer.forward(features, walk, table, panels)
            backs.append(back)
        width = features.shape[2]
        if self.energy is None:
            output = features[:, :, -1]
        else:
            output, back = self.energy.forward(features, walk, panels)
            backs.append(back)

        def backward(gradient: Tensor) -> None:
            if self.energy is None:
                of_features = gradient.new_zeros(*gradient.shape, width)
                of_features[:, :, -1] = gradient
                gradient = of_features
            # What a layer has kept is given back as soon as it has been walked through.
            while backs:
                gradient = backs.pop()(gradient)
            to_species(gradient)
            walk.finish()

        return output, backward


class _Step:
    """One step on one batch: what was made of the weights, and the two passes."""

    def __init__(self, steps: _Steps, edges: StepEdges, wanted: bool) -> None:
        """`wanted`: gradients of weights will be."""
        self.steps, self.edges = steps, edges
        self.found, self.masks = WeightGradients(), dict[tuple[int, int], Tensor]()
        self.panels, self.samples = steps.panels(edges).now(wanted), Samples(edges)
        self.tables = [layer.prepare(edges, self.samples, self.panels, self.found) for layer in steps.layers]
        self.scale, self.shift = steps.scale_and_shift(edges.species)

    def evaluate(self) -> tuple[Tensor, Tensor]:
        """Energies `[n]` (eV, float64), and their sum's gradient with respect to the geometry of the edges."""
        edges, model = self.edges, self.steps.model
        walk = Walk(edges, self.masks)
        output, backward = self.steps.forward(walk, self.tables, self.panels)
        energies = self.shift + self.scale * output[:, 0].to(torch.float64)
        backward(self.scale.to(output.dtype).unsqueeze(1))
        if model.repulsion is not None:
            added, slopes = model.repulsion.energies_and_slopes(
                edges.geometry[:, 0], edges.species, edges.center, edges.neighbor, edges.n_nodes
            )
            energies = energies + added
            walk.of_geometry[:, 0] += slopes
        return energies, walk.of_geometry

    def gradients(self, of_energies: Tensor, tangents: Tensor) -> WeightGradients:
        """Of the weights: those of the energies times `of_energies` `[n]`, and of their sum's derivative along these
        tangents of the geometry. To be called once; the energy of repulsion has no weights."""
        walk = Walk(self.edges, self.masks, tangents, self.found)
        output, backward = self.steps.forward(walk, self.tables, self.panels)
        backward(torch.stack([self.scale * of_energies, self.scale], dim=1).to(output.dtype))
        self.samples.finish(self.found)
        for tensor, gradient in self.panels.gradients():
            self.found.add(tensor, gradient)
        return self.found
