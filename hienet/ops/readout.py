"""The readout of a compiled model: its two linear maps, with nothing between, are one vector."""

import math

import torch
from torch import Tensor, nn

from hienet.nn.readout import EnergyReadout, scaled_and_shifted


class MergedReadout(nn.Module):
    """e_i = scale[species] * (x_i . w) + shift[species], as `EnergyReadout` in inference."""

    # TorchScript reads these annotations, and only where they are not strings.
    weight: Tensor
    """`[channels]`."""
    scale: Tensor
    shift: Tensor

    def __init__(self, plain: EnergyReadout) -> None:
        """The same readout as `plain`."""
        super().__init__()
        matrices = []
        for linear in (plain.hidden, plain.energy):
            ((_, fan_in, _, fan_out, _),) = linear.columns
            matrices.append(linear.weight.detach().view(fan_in, fan_out) / math.sqrt(fan_in))
        self.register_buffer("weight", (matrices[0] @ matrices[1])[:, 0], persistent=False)
        self.register_buffer("scale", plain.scale.clone(), persistent=False)
        self.register_buffer("shift", plain.shift.clone(), persistent=False)

    def forward(self, features: Tensor, species: Tensor) -> Tensor:
        """As `EnergyReadout.forward`."""
        return scaled_and_shifted(torch.mv(features, self.weight), self.scale, self.shift, species)
