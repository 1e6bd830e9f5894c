"""What NEMP does on edges, as compiled operators; `hienet.models.nemp` is it in plain torch."""

import math

import torch
from torch import Tensor, nn

from hienet.models.nemp import NEMP, InitialLayer, Iteration
from hienet.nn.residual_network import ResidualNetwork
from hienet.nn.species_pairs import SpeciesPairs
from hienet.ops.edge_network import EdgeNetwork, EdgeProgram, NetworkMaker, Value


def compile_nemp(model: NEMP, network: NetworkMaker = EdgeNetwork) -> None:
    """Replace what the model does on edges; it stays a `NEMP`, with the same states and edges.

    `network` makes the operators; with the default they are for inference, and what depends on pairs of species alone
    is evaluated once.
    """
    layers: list[nn.Module] = []
    for layer in model.layers:
        if isinstance(layer, InitialLayer):
            pairs = TabulatedSpeciesPairs(layer.pairs) if network is EdgeNetwork else layer.pairs
            layers.append(FusedInitialLayer(layer, network, pairs))
        else:
            layers.append(FusedIteration(layer, network))  # type: ignore[arg-type]
    model.layers = nn.ModuleList(layers)


class TabulatedSpeciesPairs(SpeciesPairs):
    """`SpeciesPairs` evaluated once for all pairs."""

    # TorchScript reads this annotation, and only where it is not a string.
    table: Tensor
    """`[n_species^2, n_weights + n_frequencies]`."""

    def __init__(self, plain: SpeciesPairs) -> None:
        nn.Module.__init__(self)
        self.n_weights, self.n_species = plain.n_weights, plain.n_species
        species = torch.arange(plain.n_species)
        with torch.no_grad():
            table = plain.of_pairs(species.repeat_interleave(len(species)), species.repeat(len(species)))
        self.register_buffer("table", table, persistent=False)

    def forward(self, center_species: Tensor, neighbor_species: Tensor) -> tuple[Tensor, Tensor]:
        """As `SpeciesPairs.forward`."""
        of_edges = self.table.index_select(0, center_species * self.n_species + neighbor_species)
        return of_edges[:, : self.n_weights], of_edges[:, self.n_weights :]


class FusedInitialLayer(InitialLayer):
    """An `InitialLayer` whose sums over neighbours are one operator."""

    def __init__(self, plain: InitialLayer, network: NetworkMaker, pairs: SpeciesPairs) -> None:
        nn.Module.__init__(self)
        self.cutoff, self.channels, self.l_max = plain.cutoff, plain.channels, plain.l_max
        self.n_harmonics, self.n_features = plain.n_harmonics, plain.n_features
        self.pairs = pairs
        self.mix, self.normalization, self.repulsion = plain.mix, plain.normalization, plain.repulsion
        self.network = network(self._program(plain.radial_network))

    def _program(self, radial_network: ResidualNetwork) -> EdgeProgram:
        program, k = EdgeProgram(), self.channels
        radial = program.edge(self.n_harmonics, radial_network.first.shape[0])
        *of_features, of_density, of_invariants = program.parts(residual_network(program, radial, radial_network), k)
        for l, factor in enumerate(of_features):
            program.sum_directed(factor, l * l * k, l * l, 2 * l + 1)
        program.sum(of_density, self.n_features * k)
        program.store(of_invariants, 0)
        return program

    def neighborhood(
        self, radial: Tensor, harmonics: Tensor, center: Tensor, neighbor: Tensor, n_local: int, n_nodes: int
    ) -> tuple[Tensor, Tensor]:
        """As `InitialLayer.neighborhood`."""
        sums, invariants = self.network(
            radial.new_zeros([n_local, 0]),
            radial.new_zeros([n_nodes, 0]),
            torch.cat([harmonics, radial], dim=1),
            center,
            neighbor,
        )
        return sums.view(n_local, self.n_features + 1, self.channels), invariants


class FusedIteration(Iteration):
    """An `Iteration` whose part on edges is one operator, the last one's two."""

    def __init__(self, plain: Iteration, network: NetworkMaker) -> None:
        nn.Module.__init__(self)
        self.channels, self.l_max, self.l_max_density = plain.channels, plain.l_max, plain.l_max_density
        self.n_features, self.n_harmonics = plain.n_features, plain.n_harmonics
        self.n_invariants, self.n_own = plain.n_invariants, plain.n_own
        self.normalize, self.last = plain.normalize, plain.last
        self.mix_sent, self.mix_message, self.mix_kept = plain.mix_sent, plain.mix_message, plain.mix_kept
        self.product, self.normalization = plain.product, plain.normalization
        self.register_buffer("degree_factor", plain.degree_factor, persistent=False)
        self.network = network(self._program(plain.filters, plain.orbitals))
        if plain.last:
            self.closing_network = network(self._closing_program(plain.closing_filters, network is EdgeNetwork))

    def _program(self, filters: ResidualNetwork, orbitals: ResidualNetwork) -> EdgeProgram:
        """Reads C' of centers, C' and W_1 C of neighbours, harmonics and g of edges. Sums A, B and what is added to D,
        and stores e."""
        program, k, degrees = EdgeProgram(), self.channels, self.l_max + 1
        invariants = program.edge(self.n_harmonics, self.n_invariants)
        rho = program.parts(residual_network(program, invariants, filters), k)
        of_center = [program.center_along_edge(l * l * k, k, l * l, 2 * l + 1) for l in range(degrees)]
        of_neighbor = [program.neighbor_along_edge(l * l * k, k, l * l, 2 * l + 1) for l in range(degrees)]
        terms = [
            program.multiply(factor, along, scale=math.sqrt(0.5))
            for factor, along in zip(rho[: 2 * degrees], of_center + of_neighbor, strict=True)
        ]
        new = _total(program, terms)
        program.store(new, 0)
        _sum_density(program, rho[2 * degrees :], of_center, (self.n_features + self.n_harmonics) * k)
        coefficients = program.parts(residual_network(program, program.join(invariants, new), orbitals), k)
        for l, factor in enumerate(coefficients[:degrees]):
            program.sum_passed(factor, l * l * k, (self.n_features + l * l) * k, 2 * l + 1)
        for l, factor in enumerate(coefficients[degrees:]):
            program.sum_directed(factor, (self.n_features + l * l) * k, l * l, 2 * l + 1)
        return program

    def _closing_program(self, filters: ResidualNetwork, merged: bool) -> EdgeProgram:
        """Reads C' of centers, harmonics and all invariants of edges, and sums what is added to D."""
        program, k, degrees = EdgeProgram(), self.channels, self.l_max + 1
        invariants = program.edge(self.n_harmonics, self.n_invariants + k)
        # rho_0 + rho_1 + rho_2 is a linear map like each of them.
        last = list(filters.last.split(degrees * k, dim=1))
        if merged:
            last = [last[0] + last[1] + last[2]]
        rho = program.parts(residual_network(program, invariants, filters, last), k)
        of_center = [program.center_along_edge(l * l * k, k, l * l, 2 * l + 1) for l in range(degrees)]
        _sum_density(program, rho, of_center, 0)
        return program

    def neighborhood(
        self,
        scaled: Tensor,
        sent: Tensor,
        harmonics: Tensor,
        invariants: Tensor,
        center: Tensor,
        neighbor: Tensor,
        n_local: int,
    ) -> tuple[Tensor, Tensor]:
        """As `Iteration.neighborhood`."""
        sums, new = self.network(
            scaled[:n_local].flatten(1),
            torch.cat([scaled, sent], dim=1).flatten(1),
            torch.cat([harmonics, invariants], dim=1),
            center,
            neighbor,
        )
        return sums.view(n_local, self.n_features + self.n_harmonics + 1, self.channels), new

    def closing_density(self, scaled: Tensor, edges: Tensor, center: Tensor, neighbor: Tensor, n_nodes: int) -> Tensor:
        """As `Iteration.closing_density`."""
        sums, _ = self.closing_network(scaled.flatten(1), edges.new_zeros([n_nodes, 0]), edges, center, neighbor)
        return sums


def residual_network(
    program: EdgeProgram, value: Value, network: ResidualNetwork, last: list[Tensor] | None = None
) -> Value:
    """The network's instructions; the sum of `last` in the place of its last matrix."""
    first, width = network.first, network.hidden.shape[2]
    x = program.linear(value, first, scale=network.gain / math.sqrt(first.shape[0]))
    for block in network.hidden:
        u = x
        for matrix in block:
            u = program.linear(program.silu(u), matrix, scale=network.gain / math.sqrt(width))
        x = program.add(u, x, scale=math.sqrt(0.5))
    activated, scale = program.silu(x), 1.0 / math.sqrt(network.last.shape[0])
    matrices = [network.last] if last is None else last
    result = program.linear(activated, matrices[0], scale=scale)
    for matrix in matrices[1:]:
        program.add_linear(result, activated, matrix, scale=scale)
    return result


def _total(program: EdgeProgram, terms: list[Value]) -> Value:
    total = terms[0]
    for term in terms[1:]:
        total = program.add(total, term)
    return total


def _sum_density(program: EdgeProgram, rho: list[Value], of_center: list[Value], column: int) -> None:
    """Sums sum_l rho_l Y . C'_l."""
    terms = [program.multiply(factor, along) for factor, along in zip(rho, of_center, strict=True)]
    program.sum(_total(program, terms), column)
