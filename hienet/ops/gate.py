"""The gate as one compiled operator; `hienet.nn.gate` is the same in plain torch."""

import torch
from torch import Tensor, nn

from hienet.nn.activation import normalized_silu, normalized_tanh
from hienet.nn.gate import Gate
from hienet.ops.library import load_operators


class FusedGate(nn.Module):
    """What a `Gate` computes, forward and backward in one pass each; for inference.

    Odd scalars, which few models have, are left to torch.
    """

    # TorchScript reads this annotation, and only where it is not a string.
    blocks: Tensor
    """`[n_blocks, 2]` int64: 2l+1 and channels of each gated block."""

    def __init__(self, plain: Gate) -> None:
        """The same gate as `plain`.

        Raises:
            HIENetError: the library of operators is not compiled.
        """
        super().__init__()
        load_operators()
        self.n_scalars, self.n_odd = plain.n_scalars, plain.n_odd
        large = torch.tensor(100.0, dtype=torch.float64)
        self.scale = float(normalized_silu(large) / large)
        blocks = torch.tensor(plain.gated, dtype=torch.int64).view(-1, 2)
        self.register_buffer("blocks", blocks, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """As `Gate.forward`."""
        if self.n_odd == 0:
            return torch.ops.hienet.gate(features, self.blocks, self.n_scalars, self.scale)
        even = torch.ops.hienet.gate(features[:, self.n_odd :], self.blocks, self.n_scalars, self.scale)
        return torch.cat([normalized_tanh(features[:, : self.n_odd]), even], dim=1)
