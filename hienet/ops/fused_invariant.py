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
        self.network = EdgeNetwork(message_program(plain, merged=True))

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


def message_program(
    plain: InvariantLayer, *, merged: bool = False, dropped: bool = False, summed: bool = True
) -> EdgeProgram:
    """Reads what the layer makes of atoms and the radial basis and the envelope of edges; gives out the messages.

    Of centers it reads queries and their shares of what enters the SiLU of the networks of keys and of messages, of
    neighbours their shares of both.

    Args:
        plain: whose weights they are.
        merged: the queries contain 1/sqrt(channels), and the maps of the radial basis up to the SiLU are one matrix.
            Otherwise centers and neighbours have all five columns of `atom_program`.
        dropped: behind the envelope the edges have what dropout multiplies the edge's features and the attention with.
        summed: over the edges of a center; otherwise stored for each edge.
    """
    program, c = EdgeProgram(), plain.channels
    radial = program.edge(0, plain.n_radial)
    edge = radial if merged else program.linear(radial, plain.edge.weight.t(), plain.edge.bias)
    if dropped:
        edge = program.multiply(edge, program.edge(plain.n_radial + 1, c))
    first_of_neighbors = 0 if merged else 3 * c

    def network(plain_network: PairNetwork, place: int) -> Value:
        weight = plain_network.first.weight[:, 2 * c :]
        hidden = program.center((place + 1) * c, c)
        program.add_neighbor(hidden, first_of_neighbors + place * c)
        program.add_linear(hidden, edge, (weight @ plain.edge.weight).t() if merged else weight.t())
        return program.linear(program.silu(hidden), plain_network.second.weight.t(), plain_network.second.bias)

    key = network(plain.key_network, 0)
    attention = program.multiply(program.center(0, c), key, scale=1.0 if merged else 1.0 / math.sqrt(float(c)))
    if dropped:
        attention = program.multiply(attention, program.edge(plain.n_radial + 1 + c, c))
    gate = program.sigmoid(program.layer_norm(attention, plain.attention_norm))
    message = program.multiply(network(plain.message_network, 1), gate)
    if plain.smooth_cutoff:
        message = program.multiply(message, program.edge(plain.n_radial, 1))
    if summed:
        program.sum(message, 0)
    else:
        program.store(message, 0)
    return program


def atom_program(plain: InvariantLayer) -> EdgeProgram:
    """Reads features of atoms, and stores what `message_program` reads of them: query, the center's shares of what
    enters the networks of keys and of messages, and the neighbour's shares."""
    program, c = EdgeProgram(), plain.channels
    x = program.edge(0, c)
    program.store(program.linear(x, plain.query.weight.t(), plain.query.bias), 0)
    for place, (layer, network) in enumerate(((plain.key, plain.key_network), (plain.value, plain.message_network))):
        mapped, weight = program.linear(x, layer.weight.t(), layer.bias), network.first.weight
        program.store(program.linear(mapped, weight[:, :c].t(), network.first.bias), (1 + place) * c)
        program.store(program.linear(mapped, weight[:, c : 2 * c].t()), (3 + place) * c)
    return program


def update_program(plain: InvariantLayer) -> EdgeProgram:
    """Reads features of centers, and of edges the sums of the messages to them: for atoms each of which is its own
    center and edge. Stores the new features:
    reset x + update (candidate - reset x), candidate = x + update (softplus(LayerNorm(output)) - x)."""
    program, c = EdgeProgram(), plain.channels
    x = program.center(0, c)
    reset = program.sigmoid(program.linear(x, plain.reset.weight.t(), plain.reset.bias))
    update = program.sigmoid(program.linear(x, plain.update.weight.t(), plain.update.bias))
    output = program.linear(program.edge(0, c), plain.output.weight.t(), plain.output.bias)
    added = program.softplus(program.layer_norm(output, plain.output_norm))
    candidate = program.center(0, c)
    program.add_multiply(candidate, update, added)
    program.add_multiply(candidate, update, x, scale=-1.0)
    result = program.multiply(reset, x)
    program.add_multiply(result, update, candidate)
    program.add_multiply(result, program.multiply(update, reset), x, scale=-1.0)
    program.store(result, 0)
    return program
