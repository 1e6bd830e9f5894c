"""The operators of training steps as functions of autograd; each can be differentiated once.

The arguments of their `forward` and `backward` are those of the operators in `pair_hienet/ops/training_*.cpp` and
`gate.cpp`, which say what they compute.
"""

# mypy: disable-error-code="no-untyped-def"

import torch


class Convolution(torch.autograd.Function):
    """Messages of features `[n, width]`, differentiable once with respect to features and geometry."""

    @staticmethod
    def forward(ctx, features, geometry, first_row, factors, table, center, neighbor, plan):
        ctx.save_for_backward(features, geometry, first_row, factors, table, center, neighbor)
        ctx.plan = plan
        return torch.ops.hienet.training_convolution(
            features, geometry, first_row, factors, table, center, neighbor, features.shape[0], *plan
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        saved = ctx.saved_tensors
        n = saved[0].shape[0]
        of_features, of_geometry = torch.ops.hienet.training_convolution_backward(gradient, *saved, n, *ctx.plan)
        return of_features, of_geometry, None, None, None, None, None, None


class DualConvolution(torch.autograd.Function):
    """Messages of jets `[n, 2, width]`, differentiable once with respect to features and table."""

    @staticmethod
    def forward(ctx, features, geometry, tangents, first_row, factors, table, center, neighbor, plan):
        ctx.save_for_backward(features, geometry, tangents, first_row, factors, table, center, neighbor)
        ctx.plan = plan
        return torch.ops.hienet.dual_convolution(
            features, geometry, tangents, first_row, factors, table, center, neighbor, features.shape[0], *plan
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        saved = ctx.saved_tensors
        n = saved[0].shape[0]
        of_features, of_table = torch.ops.hienet.dual_convolution_backward(gradient, *saved, n, *ctx.plan)
        return of_features, None, None, None, None, of_table, None, None, None


class Linear(torch.autograd.Function):
    """An `IrrepsLinear` times a scale, differentiable once with respect to features and weights."""

    @staticmethod
    def forward(ctx, features, weight, columns, scale):
        ctx.save_for_backward(features, weight, columns)
        ctx.scale = scale
        return torch.ops.hienet.training_linear(features, weight, columns, scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        wanted = ctx.needs_input_grad[1]
        of_features, of_weight = torch.ops.hienet.training_linear_backward(
            gradient, *ctx.saved_tensors, ctx.scale, wanted
        )
        return of_features, of_weight if wanted else None, None, None


class DualGate(torch.autograd.Function):
    """A gate of jets `[n, 2, width]`, without odd scalars, differentiable once."""

    @staticmethod
    def forward(ctx, features, blocks, n_scalars, scale):
        ctx.save_for_backward(features, blocks)
        ctx.constants = (n_scalars, scale)
        return torch.ops.hienet.dual_gate(features, blocks, n_scalars, scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return torch.ops.hienet.dual_gate_backward(gradient, *ctx.saved_tensors, *ctx.constants), None, None, None
