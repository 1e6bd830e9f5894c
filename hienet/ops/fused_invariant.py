"""An invariant layer behind other layers, its networks on edges in one operator; `hienet.nn.invariant` is it in plain
torch, `hienet.ops.invariant` the first layer, which is tabulated."""

import math

import torch
from torch import Tensor, nn

from hienet.nn.embedding import EdgeEmbedding
from hienet.nn.invariant import InvariantLayer, PairNetwork
from hienet.ops.edge_network import EdgeNetwork, EdgeProgram, Value


class FusedInvariantLayer(InvariantLayer):
    """What an `InvariantLayer` computes; for inference.

    The maps to keys and values and the first maps of both networks follow each other without anything between, so that
    each pair of them is one matrix that acts on atoms.
    """

    # TorchScript reads these annotations, and only where they are not strings.
    of_center: Tensor
    """`[channels, 3 channels]`: features to the query, divided by sqrt(channels), and to the center's share of what
    enters the SiLU of both networks."""
    center_bias: Tensor
    of_neighbor: Tensor
    """`[channels, 2 channels]`: features to the neighbour's share."""

    def __init__(self, plain: InvariantLayer, embedding: EdgeEmbedding) -> None:
        """The same layer as `plain`, for edges that `EdgeGeometry` makes.

        Args:
            plain: in float64; convert afterwards.
            embedding: makes the edges of `plain`.

        Raises:
            HIENetError: the library of operators is not compiled.
        """
        nn.Module.__init__(self)
        self.channels = plain.channels
        self.basis, self.envelope = embedding.basis, embedding.envelope
        self.output, self.output_norm = plain.output, plain.output_norm
        self.reset, self.update = plain.reset, plain.update
        with torch.no_grad():
            key, value = _first_map(plain.key, plain.key_network), _first_map(plain.value, plain.message_network)
            scale = 1.0 / math.sqrt(float(plain.channels))
            constants = [
                plain.query.bias * scale,
                _constant(plain.key, plain.key_network, plain.edge),
                _constant(plain.value, plain.message_network, plain.edge),
            ]
            for name, tensor in {
                "of_center": torch.cat([plain.query.weight.t() * scale, key[0], value[0]], dim=1),
                "center_bias": torch.cat(constants),
                "of_neighbor": torch.cat([key[1], value[1]], dim=1),
            }.items():
                self.register_buffer(name, tensor, persistent=False)
        self.network = EdgeNetwork(_message_program(plain))

    def forward(
        self, state: Tensor, edges: Tensor, species: Tensor, center: Tensor, neighbor: Tensor, n_local: int
    ) -> Tensor:
        """As `InvariantLayer.forward`, with `edges` of `EdgeGeometry`."""
        x = state[:n_local]
        distance = edges[:, :1]
        envelope = self.envelope(distance)
        of_distance = torch.cat([self.basis(distance) * envelope, envelope], dim=1)
        centers = torch.addmm(self.center_bias, x, self.of_center)
        received, _ = self.network(centers, state @ self.of_neighbor, of_distance, center, neighbor)
        return self.updated(x, received)


def _first_map(map_of_atoms: nn.Linear, network: PairNetwork) -> tuple[Tensor, Tensor]:
    """The atoms' map and the network's first map as one: `[channels, channels]` of the center and of the neighbour."""
    c, weight = network.channels, network.first.weight
    before = map_of_atoms.weight.t()
    return before @ weight[:, :c].t(), before @ weight[:, c : 2 * c].t()


def _constant(map_of_atoms: nn.Linear, network: PairNetwork, edge: nn.Linear) -> Tensor:
    """What all biases up to the network's SiLU add up to, `[channels]`."""
    c, weight = network.channels, network.first.weight
    of_atoms = map_of_atoms.bias @ (weight[:, :c] + weight[:, c : 2 * c]).t()
    return network.first.bias + of_atoms + edge.bias @ weight[:, 2 * c :].t()


def _message_program(plain: InvariantLayer) -> EdgeProgram:
    """Reads the radial basis and the envelope of the edges and what `FusedInvariantLayer` makes of the atoms, and sums
    the messages."""
    program, c = EdgeProgram(), plain.channels
    radial = program.edge(0, plain.n_radial)

    def network(plain_network: PairNetwork, center: int, neighbor: int) -> Value:
        hidden = program.center(center, c)
        program.add_neighbor(hidden, neighbor)
        program.add_linear(hidden, radial, (plain_network.first.weight[:, 2 * c :] @ plain.edge.weight).t())
        return program.linear(program.silu(hidden), plain_network.second.weight.t(), plain_network.second.bias)

    key = network(plain.key_network, c, 0)
    attention = program.multiply(program.center(0, c), key)
    gate = program.sigmoid(program.layer_norm(attention, plain.attention_norm))
    message = program.multiply(network(plain.message_network, 2 * c, c), gate)
    if plain.smooth_cutoff:
        message = program.multiply(message, program.edge(plain.n_radial, 1))
    program.sum(message, 0)
    return program
