"""The fully connected network with residual blocks of NEMP (Zhang and Guo, 2025)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualNetwork(nn.Module):
    """Dense, residual blocks, SiLU, Dense; without biases, so that zero goes to zero.

    A block is u = x; `layers_per_block` times u <- Dense(SiLU(u)); x <- (u + x) / sqrt(2). A Dense is
    x W c / sqrt(fan-in) with standard normal W, and with c = 1.67462, which keeps the second moment through a SiLU, but
    1 in the last.
    """

    def __init__(self, inputs: int, width: int, n_blocks: int, layers_per_block: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(inputs, width, dtype=torch.float64))
        self.hidden = nn.Parameter(torch.randn(n_blocks, layers_per_block, width, width, dtype=torch.float64))
        self.last = nn.Parameter(torch.randn(width, outputs, dtype=torch.float64))
        self.n_blocks, self.layers_per_block = n_blocks, layers_per_block
        self.gain = 1.67462

    def forward(self, features: Tensor) -> Tensor:
        """`[n, inputs]` to `[n, outputs]`."""
        x = features @ (self.first * (self.gain / math.sqrt(float(self.first.shape[0]))))
        hidden = self.hidden * (self.gain / math.sqrt(float(self.hidden.shape[2])))
        half = math.sqrt(0.5)
        for block in range(self.n_blocks):
            u = x
            for layer in range(self.layers_per_block - 1):
                u = F.silu(u) @ hidden[block, layer]
            # The block's last product and its sum with x in one pass over memory.
            x = torch.addmm(x, F.silu(u), hidden[block, self.layers_per_block - 1] * half, beta=half)
        return F.silu(x) @ (self.last / math.sqrt(float(self.last.shape[0])))


class BiasedResidualNetwork(nn.Module):
    """`ResidualNetwork` with biases, whose weights act a hundred times weaker: at first its output is the last bias.

    NEMP has it where the inputs are atomic numbers, which are far from unit variance.
    """

    def __init__(
        self, inputs: int, width: int, n_blocks: int, layers_per_block: int, outputs: int, last_bias: Tensor
    ) -> None:
        """`last_bias`: `[outputs]`, the bias of the last Dense; those before it begin at zero."""
        super().__init__()
        self.first = nn.Parameter(torch.randn(inputs, width, dtype=torch.float64))
        self.first_bias = nn.Parameter(torch.zeros(width, dtype=torch.float64))
        self.hidden = nn.Parameter(torch.randn(n_blocks, layers_per_block, width, width, dtype=torch.float64))
        self.hidden_bias = nn.Parameter(torch.zeros(n_blocks, layers_per_block, width, dtype=torch.float64))
        self.last = nn.Parameter(torch.randn(width, outputs, dtype=torch.float64))
        self.last_bias = nn.Parameter(last_bias.to(torch.float64))
        self.n_blocks, self.layers_per_block = n_blocks, layers_per_block

    def forward(self, features: Tensor) -> Tensor:
        """`[n, inputs]` to `[n, outputs]`."""
        x = features @ (self.first * (0.0167462 / math.sqrt(float(self.first.shape[0])))) + self.first_bias
        hidden = self.hidden * (0.0167462 / math.sqrt(float(self.hidden.shape[2])))
        for block in range(self.n_blocks):
            u = x
            for layer in range(self.layers_per_block):
                u = F.silu(u) @ hidden[block, layer] + self.hidden_bias[block, layer]
            x = (u + x) * math.sqrt(0.5)
        return F.silu(x) @ (self.last * (0.01 / math.sqrt(float(self.last.shape[0])))) + self.last_bias
