"""From per-atom energies to forces and stress: the only place in the package where their signs appear."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from hienet.graph import AtomicGraph
from hienet.torch_state import ordinary, own_torch_state

EnergyFunction = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""(species, center, neighbor, edge_vectors, n_local) -> energies `[n_local]`: any model, scripted or not."""


@runtime_checkable
class DifferentiatedEnergy(Protocol):
    """An energy function that differentiates itself, by compiled operators on the CPU."""

    def energies_and_gradient(
        self, species: Tensor, center: Tensor, neighbor: Tensor, edge_vectors: Tensor, n_local: int
    ) -> tuple[Tensor, Tensor]:
        """Energies `[n_local]` and dE/d(edge_vectors) `[n_edges, 3]`, with a gradient where gradients are enabled."""


@dataclass(frozen=True)
class Prediction:
    """What a model says of a graph.

    Attributes:
        energies: `[n_local]` (eV, float64).
        energy: `[n_structures]` (eV, float64), sums of `energies`.
        forces: `[n_local, 3]` (eV/Å), or None if not asked for.
        stress: `[n_structures, 3, 3]` (eV/Å^3, symmetric, positive = tension), NaN where there is no volume; or None.
    """

    energies: Tensor
    energy: Tensor
    forces: Tensor | None
    stress: Tensor | None


@own_torch_state()
def predict(model: EnergyFunction, graph: AtomicGraph, derivatives: bool = True, training: bool = False) -> Prediction:
    """Energies, and with `derivatives` forces and stress, of a graph without ghosts.

    The same numbers whatever modes of torch the caller is in (`no_grad`, autocast, ...).

    With g_e = dE/d(edge_vector_e): F_center += g_e, F_neighbor -= g_e, stress = sum_e (edge_vector_e (x) g_e) / V.

    Args:
        model: gives energies per atom.
        graph: one structure or a batch.
        derivatives: also forces and stress.
        training: keep the graph of the derivatives, so that a loss on forces can be differentiated.
    """
    graph = _ordinary(graph)
    if derivatives:
        graph = replace(graph, edge_vectors=graph.edge_vectors.detach().requires_grad_())
    inputs = (graph.species, graph.center, graph.neighbor, graph.edge_vectors, graph.n_local)
    gradient: Tensor | None = None
    constant = False
    """Whether the gradient is one of the weights only, not of the edge vectors."""
    with torch.set_grad_enabled(derivatives or training):
        if derivatives and isinstance(model, DifferentiatedEnergy):
            constant = True
            with torch.set_grad_enabled(training):
                energies, gradient = model.energies_and_gradient(*inputs)
        else:
            energies = model(*inputs)
        energy = energies.new_zeros(graph.n_structures).index_add(0, graph.structure, energies)
    if not derivatives:
        return Prediction(energies, energy, None, None)
    if gradient is None:
        gradient = _edge_gradient(energy, graph.edge_vectors, training)
    if not training:
        energies, energy, graph = (
            energies.detach(),
            energy.detach(),
            replace(graph, edge_vectors=graph.edge_vectors.detach()),
        )
    derived = _Derived.apply if constant else _forces_and_stress
    forces, stress = derived(
        *(gradient, graph.edge_vectors, graph.center, graph.neighbor, graph.structure, graph.n_local, graph.volume)
    )
    return Prediction(energies, energy, forces, stress)


def _forces_and_stress(
    gradient: Tensor,
    edge_vectors: Tensor,
    center: Tensor,
    neighbor: Tensor,
    structure: Tensor,
    n_local: int,
    volume: Tensor,
) -> tuple[Tensor, Tensor]:
    """`[n_local, 3]` and `[n_structures, 3, 3]` from dE/d(edge_vectors)."""
    forces = gradient.new_zeros(n_local, 3)
    forces = forces.index_add(0, center, gradient).index_add(0, neighbor, -gradient)
    outer = edge_vectors.unsqueeze(2) * gradient.unsqueeze(1)
    strain_derivative = outer.new_zeros(len(volume), 3, 3).index_add(0, structure.index_select(0, center), outer)
    strain_derivative = 0.5 * (strain_derivative + strain_derivative.transpose(1, 2))
    return forces, strain_derivative / volume.view(-1, 1, 1)


class _Derived(torch.autograd.Function):
    """`_forces_and_stress` as a function of the gradient alone, which may be differentiated once: in a training step of
    a small model torch's own operations, and their way back, would take as long as a layer.

    By compiled operators, which a `DifferentiatedEnergy` has loaded.
    """

    @staticmethod
    def forward(ctx, gradient, *graph):  # type: ignore[no-untyped-def]
        ctx.graph = graph
        return torch.ops.hienet.forces_and_stress(gradient, *graph)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, of_forces, of_stress):  # type: ignore[no-untyped-def]
        return torch.ops.hienet.forces_and_stress_backward(of_forces, of_stress, *ctx.graph), *(None,) * 6


def _ordinary(graph: AtomicGraph) -> AtomicGraph:
    """The graph, without tensors of inference mode."""
    parts: dict[str, Any] = {name: ordinary(part) for name, part in vars(graph).items() if isinstance(part, Tensor)}
    return replace(graph, **parts)


def _edge_gradient(energy: Tensor, edge_vectors: Tensor, training: bool) -> Tensor:
    """dE/d(edge_vectors).

    Raises:
        RuntimeError: there are edges, but the energies do not depend on them: zeros would be a wrong answer.
    """
    if edge_vectors.shape[0] == 0:
        return torch.zeros_like(edge_vectors)
    gradient: Tensor | None = None
    if energy.requires_grad:
        (gradient,) = torch.autograd.grad(
            [energy.sum()], [edge_vectors], create_graph=training, retain_graph=training, allow_unused=True
        )
    if gradient is None:
        raise RuntimeError(
            f"the model's energies do not depend on the {edge_vectors.shape[0]} edge vectors, so that there are no "
            "forces; expected energies that torch can differentiate, without `detach` or `no_grad` in the model"
        )
    return gradient


VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
"""ASE's order of the six components: xx, yy, zz, yz, xz, xy."""


def to_voigt(stress: Tensor) -> Tensor:
    """`[..., 3, 3]` to `[..., 6]` in ASE's order."""
    # One operation: in a training step of a small model a dozen take as long as a layer.
    columns = torch.tensor([3 * i + j for i, j in VOIGT], device=stress.device)
    return stress.flatten(-2).index_select(-1, columns)
