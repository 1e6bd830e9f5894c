"""What Geodite does on edges, as compiled operators; `hienet.nn.geometric_attention` is it in plain torch."""

import math

import torch
from torch import Tensor, nn

from hienet.models.geodite import EdgeInitialization, Geodite, NeighborhoodEmbedding
from hienet.nn.geometric_attention import EdgeUpdate, GeometricAttention
from hienet.ops.edge_network import EdgeNetwork, EdgeProgram, NetworkMaker, Value


def compile_geodite(model: Geodite, network: NetworkMaker = EdgeNetwork) -> None:
    """Replace what the model does on edges; it stays a `Geodite`, with the same states and edges. `network` makes the
    operators, with the default those for inference. Attention is not dropped."""
    model.node_embedding = FusedNeighborhoodEmbedding(model.node_embedding, network)  # type: ignore[assignment]
    model.edge_embedding = FusedEdgeInitialization(model.edge_embedding, network)  # type: ignore[assignment]
    for block in model.blocks:
        block.attention = FusedGeometricAttention(block.attention, model.n_components, network)  # type: ignore[arg-type]
        if block.edge_update is not None:
            block.edge_update = FusedEdgeUpdate(block.edge_update, model.n_components, network)  # type: ignore[arg-type]


class FusedNeighborhoodEmbedding(nn.Module):
    """A `NeighborhoodEmbedding`."""

    def __init__(self, plain: NeighborhoodEmbedding, network: NetworkMaker) -> None:
        super().__init__()
        self.own, self.of_neighbor, self.density = plain.own, plain.of_neighbor, plain.density
        self.output = plain.network
        program = EdgeProgram()
        channels, n_radial = plain.radial.weight.shape
        of_distance = program.linear(program.edge(0, n_radial), plain.radial.weight.t())
        program.sum(program.multiply(of_distance, program.neighbor(0, channels)), 0)
        self.network = network(program)

    def forward(self, radial: Tensor, species: Tensor, center: Tensor, neighbor: Tensor, n_local: int) -> Tensor:
        """As `NeighborhoodEmbedding.forward`."""
        nothing = radial.new_zeros([n_local, 0])
        received, _ = self.network(nothing, self.of_neighbor(species), radial, center, neighbor)
        received = received * self.density(radial, center, n_local)
        return self.output(torch.cat([self.own(species[:n_local]), received], dim=1))


class FusedEdgeInitialization(nn.Module):
    """An `EdgeInitialization`."""

    def __init__(self, plain: EdgeInitialization, network: NetworkMaker) -> None:
        super().__init__()
        program = EdgeProgram()
        channels, n_radial = plain.radial.weight.shape
        both = program.center(0, channels)
        program.add_neighbor(both, 0)
        program.store(program.multiply(program.linear(program.edge(0, n_radial), plain.radial.weight.t()), both), 0)
        self.network = network(program)

    def forward(self, scalars: Tensor, radial: Tensor, center: Tensor, neighbor: Tensor) -> Tensor:
        """As `EdgeInitialization.forward`."""
        # All nodes as centers: those without edges cost nothing.
        _, features = self.network(scalars, scalars, radial, center, neighbor)
        return features


class FusedGeometricAttention(nn.Module):
    """A `GeometricAttention` without dropout."""

    def __init__(self, plain: GeometricAttention, n_components: int, network: NetworkMaker) -> None:
        """`n_components`: of the harmonics and of the steerable features."""
        super().__init__()
        self.channels, self.first, self.n_components = plain.channels, plain.first, n_components
        self.width, self.of_heads = plain.n_parts * plain.channels, plain.heads_used * plain.block
        self.query, self.key = plain.query, plain.key
        self.attended, self.filtered = plain.attended, plain.filtered
        self.network = network(self._program(plain))

    def _program(self, plain: GeometricAttention) -> EdgeProgram:
        """Reads queries of centers; keys, attended, filtered and steerable features of neighbours; features and
        harmonics of edges. Sums the changes of scalars and of steerable features."""
        program, c = EdgeProgram(), self.channels
        edge = program.edge(0, c)
        match = program.multiply(program.center(0, c), program.neighbor(0, c))
        match = program.multiply(match, program.silu(program.linear(edge, plain.edge_key.weight.t())))
        alpha = program.silu(program.group_sum(match, plain.n_heads), scale=1.0 / math.sqrt(float(c)))
        attended = program.neighbor(c, self.of_heads)
        message = program.group_multiply(program.part(alpha, 0, plain.heads_used), attended)
        filters = program.linear(edge, plain.edge_filter.weight[: self.width].t())
        filtered = program.multiply(filters, program.neighbor(c + self.of_heads, self.width))
        parts = program.parts(program.add(filtered, program.part(message, 0, self.width)), c)
        program.sum(parts[0], 0)
        program.sum_directed(parts[1], c, c, self.n_components)
        if not self.first:
            program.sum_passed(parts[2], c, c + self.of_heads + self.width, self.n_components)
        return program

    def forward(
        self,
        scalars: Tensor,
        steerables: Tensor,
        edge_features: Tensor,
        harmonics: Tensor,
        center: Tensor,
        neighbor: Tensor,
        n_local: int,
    ) -> tuple[Tensor, Tensor]:
        """As `GeometricAttention.forward`."""
        of_neighbors = [
            self.key(scalars),
            self.attended(scalars)[:, : self.of_heads],
            self.filtered(scalars)[:, : self.width],
        ]
        if not self.first:
            of_neighbors.append(steerables.flatten(1))
        edges = torch.cat([edge_features, harmonics], dim=1)
        sums, _ = self.network(self.query(scalars[:n_local]), torch.cat(of_neighbors, dim=1), edges, center, neighbor)
        change, steered = sums.split([self.channels, self.n_components * self.channels], dim=1)
        return change, steered.reshape(n_local, self.n_components, self.channels)


class FusedEdgeUpdate(EdgeUpdate):
    """An `EdgeUpdate`."""

    def __init__(self, plain: EdgeUpdate, n_components: int, network: NetworkMaker) -> None:
        """`n_components`: of the harmonics and of the steerable features."""
        nn.Module.__init__(self)
        self.n_components = n_components
        self.degrees = plain.degrees
        self.query, self.keys = plain.query, plain.keys
        self.on_edges = network(self._program(plain))

    def _program(self, plain: EdgeUpdate) -> EdgeProgram:
        """Reads queries of centers, keys of neighbours, features and harmonics of edges. Stores new features."""
        program, c = EdgeProgram(), plain.query.weight.shape[0]
        edge = program.edge(0, c)
        products = program.center_dot_neighbor(0, 0, c, self.n_components)
        if plain.rejection:
            for start, dim in plain.degrees:
                of_center = program.center_along_edge(start * c, c, c + start, dim)
                of_neighbor = program.neighbor_along_edge(start * c, c, c + start, dim)
                products = program.add(products, program.multiply(of_center, of_neighbor, scale=-1.0))
        gate = self._applied(program, products, plain.gate)
        if plain.gate_kind == "tanh":
            gate = program.tanh(gate)
        change = program.multiply(self._applied(program, edge, plain.network), gate)
        program.store(program.add(edge, change), 0)
        return program

    def _applied(self, program: EdgeProgram, value: Value, module: nn.Module) -> Value:
        """The value that a network of linear maps and SiLU makes of another."""
        if isinstance(module, nn.Identity):
            return value
        if isinstance(module, nn.Linear):
            return program.linear(value, module.weight.t(), module.bias)
        if isinstance(module, nn.SiLU):
            return program.silu(value)
        if isinstance(module, nn.Sequential):
            for part in module:
                value = self._applied(program, value, part)
            return value
        raise TypeError(f"an edge network has no instruction for {type(module).__name__}")

    def forward(
        self,
        edge_features: Tensor,
        steerables: Tensor,
        harmonics: Tensor,
        center: Tensor,
        neighbor: Tensor,
        n_local: int,
    ) -> Tensor:
        """As `EdgeUpdate.forward`."""
        queries = self.query(steerables[:n_local]).flatten(1)
        edges = torch.cat([edge_features, harmonics], dim=1)
        _, updated = self.on_edges(queries, self.keys_of(steerables).flatten(1), edges, center, neighbor)
        return updated
