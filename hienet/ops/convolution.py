"""The tensor-product convolution as one compiled operator; `hienet.nn.convolution` is the same in plain torch."""

import math

import torch
from e3nn import o3
from torch import Tensor, nn

from hienet.nn.convolution import TensorProductConvolution
from hienet.nn.irreps import irrep_blocks
from hienet.ops.library import load_operators

OPERATOR = "hienet::tensor_product_convolution"

MAX_L = 11
"""Largest l of features and messages that the operator takes."""


class FusedConvolution(nn.Module):
    """What a `TensorProductConvolution` computes, in one pass over the edges of each center, on the CPU.

    No message of an edge is stored; the backward is written by hand and can be differentiated no further, so that
    training keeps the plain module. The plan, which the operator follows:

    * `paths` `[n_paths, 10]` int64, in the order of their weights: the first column of the features, 2l+1 of the
      features, channels, first column of the weights, first column of the output, channels of the output's block, 2l+1
      of the message, first coupling, first term, one past the last term;
    * `terms` `[n_terms, 2]` int64 and `coefficients` `[n_terms]`: non-zero Clebsch-Gordan coefficients, path by path
      and sorted by harmonic. Coupling `terms[t, 0]` (m_out * (2 l_feature + 1) + m_feature) of the path is the sum of
      `coefficients[t]` times harmonic `terms[t, 1]`.
    """

    # TorchScript reads these annotations, and only where they are not strings.
    paths: Tensor
    terms: Tensor
    coefficients: Tensor

    def __init__(self, plain: TensorProductConvolution) -> None:
        """The same convolution as `plain`, in its dtype.

        Raises:
            HIENetError: the library of operators is not compiled.
            ValueError: l above `MAX_L`.
        """
        super().__init__()
        load_operators()
        self.irreps_out, self.n_weights = plain.irreps_out, plain.n_weights
        paths, terms, coefficients = convolution_plan(plain)
        self.register_buffer("paths", paths, persistent=False)
        self.register_buffer("terms", terms, persistent=False)
        dtype = plain.get_buffer("coupled.0.coupling").dtype
        self.register_buffer("coefficients", coefficients.to(dtype), persistent=False)

    def forward(
        self, features: Tensor, harmonics: Tensor, weights: Tensor, center: Tensor, neighbor: Tensor, n_local: int
    ) -> Tensor:
        """As `TensorProductConvolution.forward`."""
        return torch.ops.hienet.tensor_product_convolution(
            features, harmonics, weights, center, neighbor, n_local, self.paths, self.terms, self.coefficients
        )


def convolution_plan(plain: TensorProductConvolution) -> tuple[Tensor, Tensor, Tensor]:
    """`paths`, `terms` and `coefficients` (float64) of `FusedConvolution`."""
    blocks = irrep_blocks(plain.irreps_features)
    harmonics = plain.irreps_harmonics.slices()
    outputs = {(block.l, block.parity): block for block in irrep_blocks(plain.irreps_out)}
    used = dict.fromkeys(outputs, 0)
    rows: list[list[int]] = []
    terms: list[tuple[int, int]] = []
    coefficients: list[float] = []
    first_weight = first_coupling = 0
    for path in plain.paths:
        if max(path.l, path.l_feature) > MAX_L:
            raise ValueError(f"the compiled convolution takes l up to {MAX_L}, got {max(path.l, path.l_feature)}")
        source, target = blocks[path.feature], outputs[path.l, path.parity]
        symbol = o3.wigner_3j(path.l_feature, path.l_harmonic, path.l, dtype=torch.float64) * math.sqrt(2 * path.l + 1)
        first_term = len(terms)
        # [harmonic, message, features]: sorted by harmonic
        for m, m_out, m_in in (symbol.permute(1, 2, 0).abs() > 1e-10).nonzero().tolist():
            terms.append((m_out * source.dim + m_in, harmonics[path.harmonic].start + m))
            coefficients.append(float(symbol[m_in, m, m_out]))
        first_output = target.start + used[path.l, path.parity]
        rows.append(
            [
                *(source.start, source.dim, source.channels, first_weight, first_output, target.channels, target.dim),
                *(first_coupling, first_term, len(terms)),
            ]
        )
        used[path.l, path.parity] += path.channels
        first_weight += path.channels
        first_coupling += source.dim * target.dim
    return torch.tensor(rows), torch.tensor(terms), torch.tensor(coefficients, dtype=torch.float64)


def fuse_convolutions(model: nn.Module) -> int:
    """Replace every `TensorProductConvolution` inside `model`; returns how many there were."""
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, TensorProductConvolution)]
    for name, module in found:
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, FusedConvolution(module))
    return len(found)
