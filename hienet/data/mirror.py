"""Mirror images of structures, as graphs.

The mirror image that is taken is the inverted structure, r -> -r. It differs from that behind any mirror by a
rotation, which changes nothing in the energy of a model and rotates its forces. Edge vectors and forces change their
signs, energies and stresses stay.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hienet.data.dataset import Targets
from hienet.derivatives import EnergyFunction
from hienet.graph import AtomicGraph


def mirrored(graph: AtomicGraph, targets: Targets, chosen: Tensor) -> tuple[AtomicGraph, Targets]:
    """A batch in which some structures are replaced by their mirror images, with the labels of these.

    Args:
        graph, targets: of the batch.
        chosen: `[n_structures]` bool, on the CPU as they are.
    """
    sign = torch.where(chosen, -1.0, 1.0).to(graph.edge_vectors.dtype)[graph.structure].unsqueeze(1)
    return (
        replace(graph, edge_vectors=graph.edge_vectors * sign[graph.center]),
        replace(targets, forces=targets.forces * sign),
    )


def of_mirror_images(model: EnergyFunction) -> EnergyFunction:
    """The model that says of a structure what `model` says of its mirror image.

    It is the same function if the energy has O(3) symmetry. Derivatives are with respect to the structure as it is, so
    that its forces stand beside those of `model` without being turned.
    """

    def energies(species: Tensor, center: Tensor, neighbor: Tensor, edge_vectors: Tensor, n_local: int) -> Tensor:
        return model(species, center, neighbor, -edge_vectors, n_local)

    return energies
