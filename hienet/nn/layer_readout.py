"""Readouts of every layer: what a layer says of the energy travels to the end as a column of the state."""

import torch
from e3nn import o3
from torch import Tensor, nn

from hienet.nn.equivariant import EquivariantLayer
from hienet.nn.irreps import irrep_blocks
from hienet.nn.radial import RadialNetwork
from hienet.nn.readout import as_float32_pairs, scaled_and_shifted


class ScalarReadout(nn.Module):
    """One number of an atom's even scalars: a linear map, or a network with SiLU between its layers; no biases."""

    def __init__(self, irreps: o3.Irreps | str, hidden: list[int]) -> None:
        """For features of `irreps`, which have 0e; `hidden`: widths between, none for a linear map."""
        super().__init__()
        (scalars,) = [block for block in irrep_blocks(irreps) if (block.l, block.parity) == (0, 1)]
        self.start, self.stop = scalars.start, scalars.stop
        self.network = RadialNetwork([scalars.channels, *hidden, 1])

    def forward(self, features: Tensor) -> Tensor:
        """`[n, irreps.dim]` to `[n, 1]`."""
        return self.network(features[:, self.start : self.stop])


class LayerWithReadout(nn.Module):
    """A layer and what is read of its output: energies add up in the last column of features and of the state.

    Neighbours do not read that column, so that it is not exchanged. The first layer of a model finds no energies in
    front of it.
    """

    def __init__(self, layer: EquivariantLayer, layer_readout: ScalarReadout, n_energies: int) -> None:
        """`n_energies`: columns of energies in the features that come in, 0 or 1."""
        super().__init__()
        self.layer: nn.Module = layer
        self.layer_readout, self.n_energies = layer_readout, n_energies
        self.state_width, self.exchanged_width = layer.state_width + n_energies, layer.exchanged_width

    def prepare(self, features: Tensor, species: Tensor) -> Tensor:
        """Features with energies behind them to the state."""
        width = features.shape[1] - self.n_energies
        prepared = self.layer.prepare(features[:, :width], species)  # type: ignore[operator]
        return torch.cat([prepared, features[:, width:]], dim=1)

    def load_elements(self, species: Tensor) -> int:
        """Bytes of the tables that the layer builds for these species."""
        return self.layer.load_elements(species)  # type: ignore[operator]

    def forward(
        self, state: Tensor, edges: Tensor, species: Tensor, center: Tensor, neighbor: Tensor, n_local: int
    ) -> Tensor:
        """As the layer's; `[n_local, features + 1]`."""
        features = self.layer(state, edges, species, center, neighbor, n_local)
        energy = self.layer_readout(features)
        if self.n_energies > 0:
            energy = energy + state[:n_local, -1:]
        return torch.cat([features, energy], dim=1)


class SummedReadout(nn.Module):
    """e_i = scale[species] * (sum over layers) + shift[species], in eV and float64.

    Scale and shift are statistics of the training set, not weights.
    """

    # TorchScript reads these annotations, and only where they are not strings.
    scale: Tensor
    shift: Tensor

    def __init__(self, scale: list[float], shift: list[float]) -> None:
        super().__init__()
        self.register_buffer("scale", as_float32_pairs(scale), persistent=False)
        self.register_buffer("shift", as_float32_pairs(shift), persistent=False)

    def forward(self, features: Tensor, species: Tensor) -> Tensor:
        """Features with the layers' energies in the last column, `[n_local, width]`, to energies `[n_local]` (eV)."""
        return scaled_and_shifted(features[:, -1], self.scale, self.shift, species)
