"""An invariant layer among equivariant ones: it acts on the scalars of the features."""

import torch
from e3nn import o3
from torch import Tensor, nn

from hienet.nn.invariant import InvariantLayer
from hienet.nn.irreps import irrep_blocks


class LayerOnScalars(nn.Module):
    """An invariant layer on the even scalars of equivariant features, which hands all other irreps on as they are.

    Neighbours read the scalars alone: the other columns are not exchanged.
    """

    def __init__(self, layer: InvariantLayer, irreps: o3.Irreps | str) -> None:
        """For features of `irreps`, which begin with as many 0e as `layer` has channels.

        Raises:
            ValueError: they do not.
        """
        super().__init__()
        first = irrep_blocks(irreps)[0]
        if (first.l, first.parity, first.channels) != (0, 1, layer.channels):
            raise ValueError(f"`irreps` must begin with {layer.channels}x0e, the channels of the layer; got `{irreps}`")
        self.layer: nn.Module = layer
        self.channels = layer.channels
        self.state_width, self.exchanged_width = o3.Irreps(irreps).dim, layer.channels

    def prepare(self, features: Tensor, species: Tensor) -> Tensor:
        """Features `[n, irreps.dim]` to the state that `forward` reads: here the features themselves."""
        return features

    def load_elements(self, species: Tensor) -> int:
        """Bytes of the tables that the layer builds for these species."""
        return self.layer.load_elements(species)  # type: ignore[operator]

    def forward(
        self, state: Tensor, edges: Tensor, species: Tensor, center: Tensor, neighbor: Tensor, n_local: int
    ) -> Tensor:
        """As `InvariantLayer.forward`; `[n_local, irreps.dim]`."""
        scalars = self.layer(state[:, : self.channels], edges, species, center, neighbor, n_local)
        return torch.cat([scalars, state[:n_local, self.channels :]], dim=1)
