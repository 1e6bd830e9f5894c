"""From a model in plain torch to the same model in compiled operators."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from hienet.models.geodite import Geodite
from hienet.models.layered import LayeredModel
from hienet.models.nemp import NEMP
from hienet.nn.embedding import EdgeEmbedding, SpeciesEmbedding
from hienet.nn.equivariant import EquivariantLayer
from hienet.nn.invariant import InvariantLayer
from hienet.nn.layer_readout import LayerWithReadout
from hienet.nn.readout import EnergyReadout
from hienet.nn.scalar_layer import LayerOnScalars
from hienet.ops.edge_network import EdgeNetwork
from hienet.ops.fused_invariant import FusedInvariantLayer
from hienet.ops.gate import FusedGate
from hienet.ops.geodite import compile_geodite
from hienet.ops.geometry import EdgeGeometry
from hienet.ops.interaction import FusedEquivariantLayer
from hienet.ops.invariant import TabulatedInvariantLayer
from hienet.ops.linear import FusedLinear
from hienet.ops.nemp import compile_nemp
from hienet.ops.readout import MergedReadout
from hienet.ops.spline import intervals_with_knot

OPERATORS = {
    EdgeGeometry: ("hienet::edge_geometry",),
    EdgeNetwork: ("hienet::edge_network",),
    FusedEquivariantLayer: ("hienet::interaction",),
    FusedGate: ("hienet::gate",),
    FusedLinear: ("hienet::irreps_linear",),
    TabulatedInvariantLayer: ("hienet::pair_message_sum",),
}
"""What the compiled modules call."""


class NoEmbedding(nn.Module):
    """Features of no columns: those of a model whose first layer is tabulated by species."""

    # TorchScript reads this annotation, and only where it is not a string.
    empty: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("empty", torch.zeros(0, dtype=torch.float64), persistent=False)

    def forward(self, species: Tensor) -> Tensor:
        """`[n_nodes]` int64 to `[n_nodes, 0]`."""
        return self.empty.new_zeros([species.shape[0], 0])


def compile_layers(model: nn.Module, n_intervals: int) -> None:
    """The rule for `LayeredModel`: edges become `EdgeGeometry`, each layer follows the rule of its own type."""
    embedding = cast(EdgeEmbedding, model.edge_embedding)
    if embedding.envelope.kink is not None:
        n_intervals = intervals_with_knot(n_intervals, embedding.cutoff, embedding.envelope.kink)
    layers = cast(nn.ModuleList, model.layers)
    compiled: list[nn.Module] = []
    for i, layer in enumerate(layers):
        if isinstance(layer, EquivariantLayer):
            compiled.append(FusedEquivariantLayer(layer, embedding, n_intervals))
        elif isinstance(layer, LayerWithReadout):
            layer.layer = FusedEquivariantLayer(cast(EquivariantLayer, layer.layer), embedding, n_intervals)
            compiled.append(layer)
        elif isinstance(layer, InvariantLayer) and i == 0 and embedding.envelope.kink is None:
            # The tables of pairs are built when the file is loaded, with no regard to a kink.
            species = cast(SpeciesEmbedding, model.species_embedding)
            compiled.append(TabulatedInvariantLayer(layer, species, embedding, n_intervals))
            model.species_embedding = NoEmbedding()
        elif isinstance(layer, LayerOnScalars):
            layer.layer = FusedInvariantLayer(cast(InvariantLayer, layer.layer), embedding)
            compiled.append(layer)
        else:
            compiled.append(FusedInvariantLayer(cast(InvariantLayer, layer), embedding))
    model.edge_embedding = EdgeGeometry(embedding)
    model.layers = nn.ModuleList(compiled)
    if isinstance(model.energy_readout, EnergyReadout):
        model.energy_readout = MergedReadout(model.energy_readout)


def layers_have_compiled_forms(model: nn.Module) -> bool:
    """Whether `compile_layers` knows every part of this `LayeredModel`."""
    return all(_has_compiled_form(layer) for layer in cast(nn.ModuleList, model.layers))


def _has_compiled_form(layer: nn.Module) -> bool:
    if isinstance(layer, LayerWithReadout | LayerOnScalars):
        return _has_compiled_form(layer.layer)
    if isinstance(layer, EquivariantLayer):
        return not layer.radial_by_species
    return isinstance(layer, InvariantLayer)


@dataclass(frozen=True)
class CompileRule:
    """How the models of one class are compiled.

    Attributes:
        knows: whether this model, with its hyperparameters, has a compiled form.
        compile: replaces parts of the model; the number is that of the splines' intervals.
    """

    knows: Callable[[nn.Module], bool]
    compile: Callable[[nn.Module, int], None]


RULES: dict[type[nn.Module], CompileRule] = {
    LayeredModel: CompileRule(layers_have_compiled_forms, compile_layers),
    Geodite: CompileRule(lambda model: True, lambda model, n_intervals: compile_geodite(cast(Geodite, model))),
    NEMP: CompileRule(lambda model: True, lambda model, n_intervals: compile_nemp(cast(NEMP, model))),
}
"""By class of the model, subclasses included. A model for which there is none is deployed as plain TorchScript."""


def _rule(model: nn.Module) -> CompileRule | None:
    for kind, rule in RULES.items():
        if isinstance(model, kind) and rule.knows(model):
            return rule
    return None


def has_compiled_form(model: nn.Module) -> bool:
    """Whether `compile_model` can compile it."""
    return _rule(model) is not None


def compile_model(model: nn.Module, n_intervals: int) -> list[str]:
    """Replace the parts of `model` by compiled ones.

    Args:
        model: one with a compiled form, in float64 and evaluation mode; convert afterwards.
        n_intervals: of every spline that replaces a function of the distance.

    Returns:
        the operators that it calls now.

    Raises:
        HIENetError: the library of operators is not compiled.
        TypeError: the model has no compiled form.
    """
    rule = _rule(model)
    if rule is None:
        raise TypeError(f"{type(model).__name__} has no compiled form; see `has_compiled_form`")
    rule.compile(model, n_intervals)
    return sorted(operators_of(model))


def operators_of(model: nn.Module) -> set[str]:
    """The operators that a compiled model calls."""
    return {name for module in model.modules() for name in OPERATORS.get(type(module), ())}


def describe_tables(model: nn.Module) -> dict[str, int] | None:
    """Intervals of the splines of a compiled model, and their bytes in its present dtype: in its file, and for each
    ordered pair of elements when they are loaded. None if it has no splines."""
    fused = [m.table for m in model.modules() if isinstance(m, FusedEquivariantLayer)]
    in_file = sum(table.nbytes for table in fused)
    tabulated = [m.table for m in model.modules() if isinstance(m, TabulatedInvariantLayer)]
    if not fused and not tabulated:
        return None
    pair = sum(math.prod(table.shape[1:]) * table.itemsize for table in tabulated)
    n_intervals = max(table.shape[-3] for table in [*fused, *tabulated])
    return {"n_intervals": n_intervals, "bytes": in_file, "bytes_for_each_pair": pair}
