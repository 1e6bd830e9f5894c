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


class Interaction(torch.autograd.Function):
    """An equivariant layer up to its gate, `[n, order, width]` to the same, differentiable once: without tangents with
    respect to features and geometry, with them to features, table and weights, and both ways to what is `added` to what
    neighbours read, and to what is `kept`.

    `located` and `constants` are arguments of the operator: what edges read of tables and the plan of the convolution;
    and what follows the weights.
    """

    @staticmethod
    def forward(ctx, features, added, kept, geometry, tangents, table, w_in, w_out, w_skip, located, constants):
        first_row, factors, center, neighbor, plan = located
        columns_in, columns_out, columns_skip, *rest = constants
        weights = (w_in, columns_in, w_out, columns_out, w_skip, columns_skip)
        inputs = (geometry, tangents, first_row, factors, table, center, neighbor, *plan, *weights, *rest)
        result, *saved = torch.ops.hienet.training_interaction(features, added, kept, *inputs)
        ctx.save_for_backward(*saved, features, geometry, tangents, table, w_in, w_out, w_skip)
        ctx.located, ctx.constants, ctx.adds, ctx.keeps = located, constants, added is not None, kept is not None
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        sent, messages, update, features, geometry, tangents, table, w_in, w_out, w_skip = ctx.saved_tensors
        first_row, factors, center, neighbor, plan = ctx.located
        columns_in, columns_out, columns_skip, *rest = ctx.constants
        weights = (w_in, columns_in, w_out, columns_out, w_skip, columns_skip)
        inputs = (geometry, tangents, first_row, factors, table, center, neighbor, *plan, *weights, *rest)
        of_features, of_added, of_kept, of_edges_or_table, *of_weights = torch.ops.hienet.training_interaction_backward(
            gradient, sent, messages, update, features, *inputs
        )
        of_added, of_kept = of_added if ctx.adds else None, of_kept if ctx.keeps else None
        if tangents is None:
            return of_features, of_added, of_kept, of_edges_or_table, *(None,) * 7
        if w_skip is None:
            of_weights[2] = None
        return of_features, of_added, of_kept, None, None, of_edges_or_table, *of_weights, None, None


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


class Network(torch.autograd.Function):
    """Sums and edges of an edge network, differentiable once with respect to all that it reads.

    `program` are `program`, `scales`, `values` of `hienet.ops.edge_network.EdgeNetwork`, `widths` its `sum_width` and
    `edge_width`.
    """

    @staticmethod
    def forward(ctx, centers, neighbors, edges, weights, vectors, transposed, program, center, neighbor, widths):
        keep = any(ctx.needs_input_grad)
        inputs = (centers, neighbors, edges, weights, transposed, vectors, *program, center, neighbor)
        sums, stored, kept = torch.ops.hienet.edge_network_forward(*inputs, *widths, keep)
        ctx.save_for_backward(kept, *inputs)
        ctx.widths = widths
        return sums, stored

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, of_sums, of_edges):
        inputs = ctx.saved_tensors
        none = (None,) * 5
        if not ctx.needs_input_grad[3]:
            found = torch.ops.hienet.edge_network_backward(of_sums, of_edges, *inputs, *ctx.widths)
            return *found, None, None, *none[:5]
        *rows, of_weights, of_vectors = torch.ops.hienet.edge_network_training_backward(
            of_sums, of_edges, *inputs, *ctx.widths
        )
        return *rows, of_weights, of_vectors, *none


class TwiceNetwork(torch.autograd.Function):
    """As `Network`, for double backward: a backward in which a graph is made gives gradients of centers, neighbours and
    edges that can be differentiated once more; gradients of weights come of a backward without a graph.

    `programs` are the program and that with tangents.
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
