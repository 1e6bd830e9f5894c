"""An invariant layer among equivariant ones: it acts on the scalars of the features."""

import torch
from e3nn import o3
from torch import Tensor, nn

from hienet.nn.invariant import InvariantLayer
from hienet.nn.irreps import irrep_blocks


class LayerOnScalars(nn.Module):
    """An invariant layer on the even scalars of equivariant features, which hands all other irreps on as they are.

    Neighbours read these scalars alone: they stand first in the state, and the other columns are not exchanged.
    """

    def __init__(self, layer: InvariantLayer, irreps: o3.Irreps | str) -> None:
        """For features of `irreps`, which have as many 0e as `layer` has channels.

        Raises:
            ValueError: they do not.
        """
        super().__init__()
        even = [block for block in irrep_blocks(irreps) if (block.l, block.parity) == (0, 1)]
        if [block.channels for block in even] != [layer.channels]:
            raise ValueError(f"`irreps` must have {layer.channels}x0e, the channels of the layer; got `{irreps}`")
        self.layer: nn.Module = layer
        self.channels = layer.channels
        self.start = even[0].start
        """Columns in front of these scalars: odd ones."""
        self.state_width, self.exchanged_width = o3.Irreps(irreps).dim, layer.channels

    def prepare(self, features: Tensor, species: Tensor) -> Tensor:
        """Features `[n, irreps.dim]` to the state that `forward` reads: even scalars, then all others in order."""
        if self.start == 0:
            return features
        stop = self.start + self.channels
        return torch.cat([features[:, self.start : stop], features[:, : self.start], features[:, stop:]], dim=1)

    def load_elements(self, species: Tensor) -> int:
        """Bytes of the tables that the layer builds for these species."""
        return self.layer.load_elements(species)  # type: ignore[operator]

    def forward(
        self, state: Tensor, edges: Tensor, species: Tensor, center: Tensor, neighbor: Tensor, n_local: int
    ) -> Tensor:
        """As `InvariantLayer.forward`; `[n_local, irreps.dim]`."""
        scalars = self.layer(state[:, : self.channels], edges, species, center, neighbor, n_local)
        behind = self.channels + self.start
        return torch.cat([state[:n_local, self.channels : behind], scalars, state[:n_local, behind:]], dim=1)
