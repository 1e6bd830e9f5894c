"""Gated non-linearity for equivariant features."""

import torch
from e3nn import o3
from torch import Tensor, nn

from hienet.nn.activation import normalized_silu
from hienet.nn.irreps import irrep_blocks


class Gate(nn.Module):
    """SiLU on scalars; blocks of l > 0 are multiplied by SiLU of extra scalars, one for each channel.

    Both SiLUs have unit second moment. The input's scalars are the output's scalars followed by the gates of the
    blocks, in their order.

    Raises:
        ValueError: an irrep of odd parity, for which SiLU of a scalar is not equivariant.
    """

    # TorchScript cannot infer the type of an empty list, and reads annotations only where they are not strings.
    gated: list[tuple[int, int]]
    """(2l+1, channels) of each gated block."""

    def __init__(self, irreps_out: o3.Irreps | str) -> None:
        super().__init__()
        irreps_out = o3.Irreps(irreps_out)
        if any(irrep.p != 1 for _, irrep in irreps_out):
            raise ValueError(f"`Gate` takes even irreps, got `{irreps_out}`")
        blocks = irrep_blocks(irreps_out)
        self.n_scalars = sum(block.channels for block in blocks if block.l == 0)
        gated = [block for block in blocks if block.l > 0]
        n_gates = sum(block.channels for block in gated)
        self.gated = [(block.dim, block.channels) for block in gated]
        self.irreps_in = o3.Irreps(
            [(self.n_scalars + n_gates, (0, 1))] + [(block.channels, (block.l, 1)) for block in gated]
        )

    def forward(self, features: Tensor) -> Tensor:
        """`[n, irreps_in.dim]` to `[n, irreps_out.dim]`."""
        n_channels = self.n_scalars
        for _, channels in self.gated:
            n_channels += channels
        activated = normalized_silu(features[:, :n_channels])
        outputs = [activated[:, : self.n_scalars]]
        gate, start = self.n_scalars, n_channels
        for dim, channels in self.gated:
            block = features[:, start : start + dim * channels].reshape(-1, dim, channels)
            outputs.append((block * activated[:, gate : gate + channels].unsqueeze(1)).flatten(1))
            gate += channels
            start += dim * channels
        return torch.cat(outputs, dim=1)
