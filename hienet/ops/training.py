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

import copy
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from hienet.models.layered import LayeredModel
from hienet.nn.embedding import EdgeEmbedding, SpeciesEmbedding
from hienet.nn.layer_readout import SummedReadout
from hienet.nn.readout import EnergyReadout
from hienet.ops import jet
from hienet.ops.basis_table import BasisTable, rows_of_edges
from hienet.ops.compile import layers_have_compiled_forms
from hienet.ops.geometry import EdgeGeometry
from hienet.ops.library import load_training_operators
from hienet.ops.spline import intervals_with_knot
from hienet.ops.training_layers import EnergyStep, FirstInvariantStep, LayerStep, Samples, StepEdges, step_of

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
        self._frozen = _frozen_twin(model)
        embedding = cast(EdgeEmbedding, model.edge_embedding)
        kink = embedding.envelope.kink
        if kink is not None:
            n_intervals = intervals_with_knot(n_intervals, embedding.cutoff, kink)
        dtype = next(model.parameters()).dtype
        self._table = BasisTable(embedding.cutoff, n_intervals, kink).to(dtype)
        self._geometry = EdgeGeometry(embedding).to(dtype)
        self._tangents = _GeometryTangents(self._geometry)
        self._steps, self._frozen_steps = _Steps(model), _Steps(self._frozen)

    def __call__(self, species: Tensor, center: Tensor, neighbor: Tensor, edge_vectors: Tensor, n_local: int) -> Tensor:
        """Energies `[n_local]` (eV, float64), as the model's."""
        return self.energies_and_gradient(species, center, neighbor, edge_vectors, n_local)[0]

    def energies_and_gradient(
        self, species: Tensor, center: Tensor, neighbor: Tensor, edge_vectors: Tensor, n_local: int
    ) -> tuple[Tensor, Tensor]:
        """Energies `[n_local]` (eV, float64) and dE/d(edge_vectors) `[n_edges, 3]` (eV/Å).

        Where gradients are enabled, a loss on both can be differentiated with respect to the weights, once.
        """
        # A walk through all modules takes as long as a layer.
        if self._frozen.training != self.model.training:
            self._frozen.train(self.model.training)
        graph = (species, center, neighbor)
        parameters = [parameter for parameter in self._parameters if parameter.requires_grad]
        wanted = torch.is_grad_enabled() and bool(parameters)
        # What dropout leaves out is drawn again, alike, in the backward.
        random_state = torch.get_rng_state()
        energies, gradient, step = self.evaluate(graph, edge_vectors.detach(), wanted)
        if not wanted:
            return energies, gradient

        def gradients_of_weights(of_energies: Tensor, of_gradient: Tensor) -> tuple[Tensor | None, ...]:
            with torch.random.fork_rng(devices=[]), torch.enable_grad():
                torch.set_rng_state(random_state)
                values, along = self.directional(step, edge_vectors.detach(), of_gradient)
                total = (of_energies * values).sum() + along.sum()
            return torch.autograd.grad(total, parameters, allow_unused=True)

        return _Differentiated.apply(gradients_of_weights, energies, gradient, *parameters)

    def evaluate(self, graph: Graph, edge_vectors: Tensor, wanted: bool) -> tuple[Tensor, Tensor, Step]:
        """Energies `[n]` and their gradient `[n_edges, 3]`, both constants, and what the pass with tangents needs.

        With `wanted` what is prepared leads to the weights.
        """
        species, center, neighbor = graph
        with torch.enable_grad():
            vectors = edge_vectors.detach().requires_grad_()
            geometry = self._geometry(vectors).unsqueeze(1)
        edges = self._step_edges(graph, geometry.detach())
        with torch.set_grad_enabled(wanted):
            prepared = self._steps.prepare(edges)
        with torch.enable_grad():
            constant = [tuple(tensor.detach() for tensor in of_layer) for of_layer in prepared]
            energies = self._frozen_steps.energies(replace(edges, geometry=geometry), constant)[:, 0]
            repulsion = self.model.repulsion
            if repulsion is not None:
                distance = geometry[:, 0, 0]
                energies = energies + repulsion(distance, species, center, neighbor, len(species))[:, 0].double()
            # Without edges nothing depends on them.
            total = energies.sum()
            gradient = torch.autograd.grad(total, vectors)[0] if len(center) > 0 else torch.zeros_like(vectors)
        return energies.detach(), gradient, (edges, prepared)

    def directional(self, step: Step, edge_vectors: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Energies `[n]` and their derivatives along a direction `[n_edges, 3]`, functions of the weights; without the
        energy of repulsion, which has none."""
        edges, prepared = step
        geometry = edges.geometry[:, 0]
        jets = torch.stack([geometry, self._tangents(edge_vectors, geometry, direction)], dim=1)
        energies = self._steps.energies(replace(edges, geometry=jets), prepared)
        return energies[:, 0], energies[:, 1]

    def _step_edges(self, graph: Graph, geometry: Tensor) -> StepEdges:
        species, center, neighbor = graph
        distance, n_edges = geometry[:, 0, 0], len(center)
        exactly = n_edges < self._table.n_rows if self.exactly is None else self.exactly
        first_row, factors = rows_of_edges(distance) if exactly else self._table.locate(distance)
        embedding = cast(EdgeEmbedding, self.model.edge_embedding)
        table = None if exactly else self._table
        pairs = pair = species[:0]
        if table is not None and isinstance(self._steps.layers[0], FirstInvariantStep):
            n_species = len(cast(SpeciesEmbedding, self.model.species_embedding).weight)
            pairs, pair = _pairs_of_species(species, center, neighbor, n_species)
        return StepEdges(embedding, species, center, neighbor, geometry, table, first_row, factors, pairs, pair)


Graph = tuple[Tensor, Tensor, Tensor]
"""species, center, neighbor"""
Prepared = list[tuple[Tensor, ...]]
"""What each layer, and in the end the readout, made of the weights for one step."""
Step = tuple[StepEdges, Prepared]
"""The edges of a batch, and what was made of the weights."""


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
        # The graph of what was prepared is used up.
        ctx.gradients_of_weights = None
        return None, None, None, *found


def _frozen_twin(model: LayeredModel) -> LayeredModel:
    """The same model on the same memory, whose weights need no gradient."""
    own = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    shared = {id(buffer): buffer for buffer in model.buffers()}
    return copy.deepcopy(model, {**own, **shared})


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
        self.layers: list[LayerStep] = [
            step_of(layer, embedding, None if i else species) for i, layer in enumerate(model.layers)
        ]
        self.readout = cast("EnergyReadout | SummedReadout", model.energy_readout)
        self.energy = EnergyStep(self.readout) if isinstance(self.readout, EnergyReadout) else None

    def prepare(self, edges: StepEdges) -> Prepared:
        """What depends on the weights alone."""
        samples = Samples.of(edges)
        prepared = [layer.prepare(edges, samples) for layer in self.layers]
        return [*prepared, () if self.energy is None else self.energy.prepare()]

    def energies(self, edges: StepEdges, prepared: Prepared) -> Tensor:
        """`[n, order]` (eV, float64)."""
        features = jet.constant(self.model.species_embedding(edges.species), edges.order)
        *of_layers, of_readout = prepared
        for layer, of_layer in zip(self.layers, of_layers, strict=True):
            features = layer.forward(features, edges, of_layer)
        output = features[:, :, -1] if self.energy is None else self.energy.forward(features, of_readout)
        scale, shift = (
            pair.to(torch.float64).sum(0).index_select(0, edges.species)
            for pair in (self.readout.scale, self.readout.shift)
        )
        return jet.constant(shift.unsqueeze(1), edges.order)[:, :, 0] + scale.unsqueeze(1) * output.to(torch.float64)


class _GeometryTangents:
    """How distance and spherical harmonics of edges move with the edge vectors, by the recursion of `EdgeGeometry`."""

    def __init__(self, geometry: EdgeGeometry) -> None:
        self.matrices: list[Tensor] = []
        l = 1
        while l * l < geometry.n_harmonics:
            matrix = geometry.coefficients.new_zeros(2 * l - 1, 3, 2 * l + 1)
            for (target, source, component), value in zip(
                geometry.terms.tolist(), geometry.coefficients.tolist(), strict=True
            ):
                if l * l <= target < (l + 1) ** 2:
                    matrix[source - (l - 1) ** 2, component, target - l * l] = value
            self.matrices.append(matrix.flatten(0, 1))
            l += 1

    def __call__(self, vectors: Tensor, geometry: Tensor, direction: Tensor) -> Tensor:
        """For edge vectors `[n, 3]`, their geometry `[n, 1 + harmonics]` and a direction `[n, 3]`: tangents of the
        geometry."""
        distance = geometry[:, :1]
        unit = vectors / distance
        moved = (unit * direction).sum(dim=1, keepdim=True)
        turned = (direction - unit * moved) / distance
        columns = [moved, torch.zeros_like(distance)]
        for l, matrix in enumerate(self.matrices, start=1):
            below = geometry[:, 1 + (l - 1) ** 2 : 1 + l * l]
            product = columns[-1].unsqueeze(2) * unit.unsqueeze(1) + below.unsqueeze(2) * turned.unsqueeze(1)
            columns.append(product.flatten(1) @ matrix)
        return torch.cat(columns, dim=1)
