"""From per-atom energies to forces and stress: the only place in the package where their signs appear."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hienet.graph import AtomicGraph
from hienet.torch_state import ordinary, own_torch_state

EnergyFunction = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""(species, center, neighbor, edge_vectors, n_local) -> energies `[n_local]`: any model, scripted or not."""


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
    with torch.set_grad_enabled(derivatives or training):
        energies = model(graph.species, graph.center, graph.neighbor, graph.edge_vectors, graph.n_local)
        energy = energies.new_zeros(graph.n_structures).index_add(0, graph.structure, energies)
    if not derivatives:
        return Prediction(energies, energy, None, None)
    gradient = _edge_gradient(energy, graph.edge_vectors, training)
    if not training:
        energies, energy, graph = (
            energies.detach(),
            energy.detach(),
            replace(graph, edge_vectors=graph.edge_vectors.detach()),
        )
    forces = gradient.new_zeros(graph.n_local, 3)
    forces = forces.index_add(0, graph.center, gradient).index_add(0, graph.neighbor, -gradient)
    outer = graph.edge_vectors.unsqueeze(2) * gradient.unsqueeze(1)
    strain_derivative = outer.new_zeros(graph.n_structures, 3, 3).index_add(0, graph.structure[graph.center], outer)
    strain_derivative = 0.5 * (strain_derivative + strain_derivative.transpose(1, 2))
    stress = strain_derivative / graph.volume.view(-1, 1, 1)
    return Prediction(energies, energy, forces, stress)


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
    return torch.stack([stress[..., i, j] for i, j in VOIGT], dim=-1)
