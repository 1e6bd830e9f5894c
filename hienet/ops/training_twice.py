"""Training steps of models whose compiled operators are networks on edges: NEMP and Geodite.

Forces are made by a backward through the model, and a loss on them is differentiated by another, as plain torch does
it; but what happens on edges is one operator in each of the passes, and stores little (`hienet.ops.training_network`).
"""

from __future__ import annotations

import copy
from functools import partial

from torch import Tensor, nn

from hienet.models.geodite import Geodite
from hienet.models.nemp import NEMP
from hienet.ops.geodite import compile_geodite
from hienet.ops.library import load_training_operators
from hienet.ops.nemp import compile_nemp
from hienet.ops.training_network import TwiceDifferentiableNetwork


class TwiceDifferentiatedTraining:
    """A NEMP or a Geodite that is evaluated and differentiated by compiled operators while its weights change.

    It is an energy function as the model is. The model's weights are read at every call; they must stay in the same
    memory, where optimizers and `load_state_dict` leave them.
    """

    def __init__(self, model: NEMP | Geodite) -> None:
        """`model`: one that `is_trained_twice`, on the CPU, in the precision of training.

        Raises:
            HIENetError: the library of operators is not compiled, or too old.
        """
        load_training_operators()
        self.model, weights = model, list(model.parameters())
        shared = {id(tensor): tensor for tensor in (*weights, *model.buffers())}
        self._twin = copy.deepcopy(model, shared)
        network = partial(TwiceDifferentiableNetwork, weights=weights)
        if isinstance(self._twin, NEMP):
            compile_nemp(self._twin, network)
        else:
            compile_geodite(self._twin, network)

    def __call__(self, species: Tensor, center: Tensor, neighbor: Tensor, edge_vectors: Tensor, n_local: int) -> Tensor:
        """Energies `[n_local]` (eV, float64), as the model's."""
        if self._twin.training != self.model.training:
            self._twin.train(self.model.training)
        return self._twin(species, center, neighbor, edge_vectors, n_local)


def is_trained_twice(model: nn.Module) -> bool:
    """Whether `TwiceDifferentiatedTraining` knows every part of this model."""
    if isinstance(model, Geodite):
        return all(block.attention.dropout.p == 0.0 for block in model.blocks)  # type: ignore[union-attr]
    return isinstance(model, NEMP)
