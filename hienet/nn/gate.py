"""Gated non-linearity for equivariant features."""

import torch
from e3nn import o3
from torch import Tensor, nn

from hienet.nn.activation import normalized_silu, normalized_tanh
from hienet.nn.irreps import irrep_blocks


class Gate(nn.Module):
    """SiLU on even scalars; blocks of l > 0 are multiplied by SiLU of extra even scalars, one for each channel; tanh on
    odd scalars, which being odd keeps their parity.

    All activations have unit second moment. The input has the output's irreps with the gates of the blocks, in their
    order, behind the even scalars.

    Raises:
        ValueError: irreps that do not begin with 0e, or with 0o and 0e.
    """

    # TorchScript cannot infer the type of an empty list, and reads annotations only where they are not strings.
    gated: list[tuple[int, int]]
    """(2l+1, channels) of each gated block."""

    def __init__(self, irreps_out: o3.Irreps | str) -> None:
        super().__init__()
        blocks = irrep_blocks(irreps_out)
        scalars = [block for block in blocks if block.l == 0]
        if [block.parity for block in scalars] not in ([1], [-1, 1]) or blocks[: len(scalars)] != scalars:
            raise ValueError(f"`Gate` takes irreps that begin with 0e, or with 0o and 0e, got `{irreps_out}`")
        self.n_scalars = scalars[-1].channels
        self.n_odd = sum(block.channels for block in scalars) - self.n_scalars
        gated = [block for block in blocks if block.l > 0]
        n_gates = sum(block.channels for block in gated)
        self.gated = [(block.dim, block.channels) for block in gated]
        self.irreps_in = o3.Irreps(
            ([(self.n_odd, (0, -1))] if self.n_odd else [])
            + [(self.n_scalars + n_gates, (0, 1))]
            + [(block.channels, (block.l, block.parity)) for block in gated]
        )

    def forward(self, features: Tensor) -> Tensor:
        """`[n, irreps_in.dim]` to `[n, irreps_out.dim]`."""
        n_even = self.n_scalars
        for _, channels in self.gated:
            n_even += channels
        start = self.n_odd + n_even
        activated = normalized_silu(features[:, self.n_odd : start])
        outputs = [activated[:, : self.n_scalars]]
        if self.n_odd > 0:
            outputs.insert(0, normalized_tanh(features[:, : self.n_odd]))
        gate = self.n_scalars
        for dim, channels in self.gated:
            block = features[:, start : start + dim * channels].reshape(-1, dim, channels)
            outputs.append((block * activated[:, gate : gate + channels].unsqueeze(1)).flatten(1))
            gate += channels
            start += dim * channels
        return torch.cat(outputs, dim=1)
