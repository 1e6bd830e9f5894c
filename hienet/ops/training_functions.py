"""Networks on edges as functions of autograd, for models whose forces a backward makes in training too
(`hienet.ops.training_twice`).

The arguments of their `forward` and `backward` are those of the operators in `pair_hienet/ops/network_panels.cpp` and
`edge_network.cpp`, which say what they compute.
"""

# mypy: disable-error-code="no-untyped-def"

import torch


class Panels(torch.autograd.Function):
    """Weights of a network on edges in the panels that the operators read: `(weights, vectors, transposed)` of the
    model's own tensors, differentiable once with respect to these. `transposed` is a copy without a gradient."""

    @staticmethod
    def forward(ctx, views, sizes, *tensors):
        ctx.views = views
        ctx.save_for_backward(*tensors)
        weights, transposed, vectors = torch.ops.hienet.network_panels(tensors, *views, sizes)
        ctx.mark_non_differentiable(transposed)
        return weights, vectors, transposed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, of_weights, of_vectors, _):
        found = torch.ops.hienet.network_panels_backward(of_weights, of_vectors, ctx.saved_tensors, *ctx.views)
        return None, None, *found


class TwiceNetwork(torch.autograd.Function):
    """Sums and edges of an edge network, for double backward: a backward in which a graph is made gives gradients of
    centers, neighbours and edges that can be differentiated once more; gradients of weights come of a backward without
    a graph.

    `programs` are the program and that with tangents, each `program`, `scales`, `values` of
    `hienet.ops.edge_network.EdgeNetwork`; `widths` are its `sum_width` and `edge_width`.
    """

    @staticmethod
    def forward(ctx, centers, neighbors, edges, weights, vectors, transposed, programs, center, neighbor, widths):
        inputs = (centers, neighbors, edges, weights, transposed, vectors, *programs[0], center, neighbor)
        sums, stored, kept = torch.ops.hienet.edge_network_forward(*inputs, *widths, any(ctx.needs_input_grad))
        ctx.save_for_backward(kept, *inputs)
        ctx.programs, ctx.widths = programs, widths
        return sums, stored

    @staticmethod
    def backward(ctx, of_sums, of_edges):
        inputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            found = NetworkGradient.apply(of_sums, of_edges, ctx.programs, ctx.widths, *inputs)
            return *found, *(None,) * 7
        *rows, of_weights, of_vectors = torch.ops.hienet.edge_network_training_backward(
            of_sums, of_edges, *inputs, *ctx.widths
        )
        return *rows, of_weights, of_vectors, *(None,) * 5


class NetworkGradient(torch.autograd.Function):
    """What `TwiceNetwork` gives back to centers, neighbours and edges, differentiable once.

    With g the gradients of the results f(x) and u those of what is returned here, u . (df/dx)^T g = g . f', f' the
    derivative of f along u. So the program with tangents gives all that is wanted: f' itself is the gradient of g, and
    its backward gives those of x and of the weights.
    """

    @staticmethod
    def forward(ctx, of_sums, of_edges, programs, widths, kept, *inputs):
        ctx.save_for_backward(of_sums, of_edges, *inputs)
        ctx.programs, ctx.widths = programs, widths
        return torch.ops.hienet.edge_network_backward(of_sums, of_edges, kept, *inputs, *widths)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *directions):
        of_sums, of_edges, *inputs = ctx.saved_tensors
        rows = [torch.cat([x, u], dim=1) for x, u in zip(inputs[:3], directions, strict=True)]
        widths = [2 * width for width in ctx.widths]
        arguments = (*rows, *inputs[3:6], *ctx.programs[1], *inputs[-2:])
        *results, kept = torch.ops.hienet.edge_network_forward(*arguments, *widths, True)
        seeds = [torch.cat([torch.zeros_like(g), g], dim=1) for g in (of_sums, of_edges)]
        *found, of_weights, of_vectors = torch.ops.hienet.edge_network_training_backward(
            *seeds, kept, *arguments, *widths
        )
        of_seeds = [result[:, width:] for result, width in zip(results, ctx.widths, strict=True)]
        of_rows = [g[:, : x.shape[1]] for g, x in zip(found, inputs, strict=False)]
        return *of_seeds, None, None, None, *of_rows, of_weights, None, of_vectors, *(None,) * 5
