"""What a step of a compiled model cannot do without: operations and traffic of an atom, counted from its tensors.

Energies and forces are counted, forward and backward; the weights are constant, so that a linear map's backward is one
product, as its forward. Nothing is counted that could be kept in a cache or in registers: no message, no path weight.
"""

from __future__ import annotations

from dataclasses import dataclass

from operators import GATE_FLOP, SPLINE_FLOP, convolution_flop, geometry_flop, linear_flop
from torch import nn

from hienet.ops.interaction import FusedEquivariantLayer
from hienet.ops.invariant import TabulatedInvariantLayer

NUMBER = 4.0
"""Bytes of a float32."""
INDEX = 8.0
"""Bytes of a neighbour's number."""


@dataclass(frozen=True)
class Work:
    """Of one part of a step, for one atom.

    Attributes:
        name: the part.
        flop: operations; a fused multiplication and addition counts as two.
        bytes_moved: between memory and chip if the features of neighbours are found in the cache.
        gathered: bytes more if none of them is.
    """

    name: str
    flop: float
    bytes_moved: float
    gathered: float = 0.0


def work_of_step(model: nn.Module, neighbors: float) -> list[Work]:
    """The parts of a step of a compiled `LayeredModel` without later invariant layers.

    A tensor that a layer makes is written, read by the next layer, and read again by its backward; its gradient is
    written and read: five times its size. The edges' features are read by every layer forward and backward, and a
    gradient of them written by each and read once.
    """
    geometry = model.edge_embedding
    edge_width = 1 + geometry.n_harmonics  # type: ignore[operator]
    edges = NUMBER * edge_width * neighbors
    layers = list(model.layers)  # type: ignore[arg-type]
    parts = [
        Work(
            "edge_geometry",
            3.0 * neighbors * geometry_flop(geometry.coefficients.numel()),  # type: ignore[operator, union-attr]
            2.0 * 2.0 * 3.0 * NUMBER * neighbors + edges + len(layers) * edges,
        )
    ]
    for number, layer in enumerate(layers, 1):
        indices = 2.0 * INDEX * neighbors
        if isinstance(layer, TabulatedInvariantLayer):
            flop = 2.0 * SPLINE_FLOP * layer.channels * neighbors
            moved = 2.0 * (edges + indices) + 5.0 * NUMBER * layer.channels
            parts.append(Work(f"pair_message_sum, layer {number}", flop, moved))
        elif isinstance(layer, FusedEquivariantLayer):
            prepared = 2.0 * linear_flop(layer.prepared.plan)
            parts.append(Work(f"irreps_linear, layer {number}", prepared, 5.0 * NUMBER * layer.state_width))
            flop = 3.0 * convolution_flop(layer) * neighbors + 2.0 * linear_flop(layer.linear)
            moved = 3.0 * edges + 2.0 * indices + 5.0 * NUMBER * layer.kept_width
            # Neighbours' features forward and backward, and their gradient, which is added to: read and written.
            gathered = 4.0 * NUMBER * layer.sent_width * neighbors
            parts.append(Work(f"interaction, layer {number}", flop, moved, gathered))
            width = layer.gate.n_scalars + sum(dim * channels for dim, channels in layer.gate.blocks.tolist())
            parts.append(Work(f"gate, layer {number}", 2.0 * GATE_FLOP * width, 5.0 * NUMBER * width))
        else:
            raise TypeError(f"the work of a {type(layer).__name__} is not counted here")
    channels = model.energy_readout.weight.numel()  # type: ignore[operator, union-attr]
    return [*parts, Work("readout", 4.0 * channels, NUMBER * channels)]


def floor_seconds(parts: list[Work], tflops: float, terabytes: float, cached: bool = True) -> float:
    """Seconds of an atom: each part takes as long as the slower of its arithmetic and its traffic.

    `cached`: neighbours' features are found in the cache.
    """
    return sum(
        max(part.flop / (1e12 * tflops), (part.bytes_moved + (0.0 if cached else part.gathered)) / (1e12 * terabytes))
        for part in parts
    )
