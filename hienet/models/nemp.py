"""NEMP: tensor products on nodes, networks on edges (Zhang and Guo, Chem. Sci. 2026, doi 10.1039/d5sc07248d)."""

import math

import torch
from e3nn import o3
from pydantic import Field, model_validator
from torch import Tensor, nn

from hienet.models.config import ModelConfig
from hienet.models.repulsion import repulsion_of
from hienet.models.staged import Stage
from hienet.nn.degrees import scale_degrees, sum_components, sum_components_of_edges
from hienet.nn.node_product import NodeTensorProduct, SpeciesChannelMix
from hienet.nn.radial import PolynomialEnvelope
from hienet.nn.readout import as_float32_pairs, scaled_and_shifted
from hienet.nn.residual_network import ResidualNetwork
from hienet.nn.scatter import sum_over_neighbors
from hienet.nn.species_pairs import SpeciesPairs
from hienet.nn.zbl import ZBLRepulsion


class NEMPConfig(ModelConfig):
    """What defines a NEMP, apart from its weights; the defaults are those of its published configuration for HME21.

    `avg_num_neighbors` is not used: sums over neighbours are divided by a count of each atom's own.
    """

    cutoff: float = Field(6.0, gt=0, description="Å")
    channels: int = Field(16, ge=1, description="channels K of every feature")
    l_max: int = Field(2, ge=0, le=6, description="largest l of the features of atoms, which ranks exchange")
    l_max_density: int = Field(2, ge=0, le=6, description="largest l of the harmonics that they are multiplied with")
    n_iterations: int = Field(3, ge=1, description="number of message-passing iterations")
    n_radial: int = Field(16, ge=1, description="number of radial functions")
    envelope_power: int = Field(6, ge=3, description="power p of the polynomial envelope, which is squared")
    pair_code: int = Field(128, ge=1, description="length of the code of a pair of species")
    pair_hidden: int = Field(128, ge=1, description="width of the networks of pairs of species")
    edge_hidden: int = Field(64, ge=1, description="width of the networks of edges")
    readout_hidden: int = Field(128, ge=1, description="width of the readout")
    n_blocks: int = Field(2, ge=0, description="residual blocks of each network")
    layers_per_block: int = Field(2, ge=1, description="layers of each residual block")
    smooth_coordination: bool = Field(
        True,
        description="divide sums over neighbours by 1 + n, n the smooth number of neighbours; false: by n, as "
        "published, with which the energy of a lone pair drops within 0.1 Å of the cutoff",
    )
    normalize_features: bool = Field(True, description="divide an atom's features by their RMS in each iteration")

    @model_validator(mode="after")
    def _density_has_all_degrees(self) -> "NEMPConfig":
        if self.l_max_density < self.l_max:
            raise ValueError(
                f"`l_max_density` must not be below `l_max` = {self.l_max}, whose harmonics the first features need; "
                f"got {self.l_max_density}"
            )
        return self


PRESETS: dict[str, dict[str, object]] = {
    "paper": {},
    "small": {
        "cutoff": 5.0,
        "n_radial": 8,
        "n_iterations": 2,
        "pair_code": 16,
        "pair_hidden": 32,
        "edge_hidden": 32,
        "readout_hidden": 32,
        "n_blocks": 1,
    },
}
"""`paper`: the published configuration for HME21, 37 elements; `small`: a few elements on a laptop."""


class EdgeGeometryEmbedding(nn.Module):
    """Squared envelope, distance, and real spherical harmonics (component normalisation) of each edge, side by side.

    The envelope is zero from the cutoff on, so that edges of a list with a skin have no effect.
    """

    def __init__(self, cutoff: float, envelope_power: int, l_max: int) -> None:
        super().__init__()
        self.envelope = PolynomialEnvelope(cutoff, envelope_power)
        self.spherical_harmonics = o3.SphericalHarmonics(
            list(range(l_max + 1)), normalize=True, normalization="component"
        )

    def forward(self, edge_vectors: Tensor) -> Tensor:
        """`[n_edges, 3]` (Å) to `[n_edges, 2 + (l_max+1)^2]`."""
        distance = torch.linalg.vector_norm(edge_vectors, dim=1, keepdim=True)
        envelope = self.envelope(distance)
        return torch.cat([envelope * envelope, distance, self.spherical_harmonics(edge_vectors)], dim=1)


class Normalization(nn.Module):
    """What sums over neighbours are divided by: 1 + n_i, or n_i + 1e-6 as published."""

    def __init__(self, smooth: bool) -> None:
        super().__init__()
        self.offset = 1.0 if smooth else 1e-6

    def forward(self, coordination: Tensor) -> Tensor:
        """n_i = sum_j f(r_ij), of any shape, to the divisor."""
        return self.offset + coordination


class InitialLayer(nn.Module):
    """From the geometry to first features.

    With f the squared envelope, a and w of the pair of species, and q_l, q_D, q_g of the radial network:
        x_ij  = [w_ij f, sinc(a_ij r / r_c) f] -> q(x_ij)
        g_ij  = [w'_ij f, q_g]                        invariants of the edge
        D_i   = sum_j q_D                             invariants of the atom
        C_ilm = S_species sum_j q_l Y_lm / (1 + n_i)  features of the atom
    """

    def __init__(self, config: NEMPConfig, repulsion: ZBLRepulsion | None) -> None:
        """`repulsion`: its energy is one of the atom's own columns."""
        super().__init__()
        channels, n_species = config.channels, len(config.elements)
        self.cutoff, self.channels, self.l_max = config.cutoff, channels, config.l_max
        self.n_harmonics = (config.l_max_density + 1) ** 2
        self.n_features = (config.l_max + 1) ** 2
        self.pairs = SpeciesPairs(
            list(config.elements),
            config.pair_code,
            config.pair_hidden,
            config.n_blocks,
            config.layers_per_block,
            n_weights=channels + config.n_radial,
            n_frequencies=config.n_radial,
        )
        self.radial_network = ResidualNetwork(
            2 * config.n_radial,
            config.edge_hidden,
            config.n_blocks,
            config.layers_per_block,
            (config.l_max + 3) * channels,
        )
        self.mix = SpeciesChannelMix(n_species, channels)
        self.normalization = Normalization(config.smooth_coordination)
        self.repulsion = repulsion

    def forward(
        self, state: Tensor, edges: Tensor, species: Tensor, center: Tensor, neighbor: Tensor, n_local: int
    ) -> tuple[Tensor, Tensor]:
        """As `Iteration.forward`; `state` has no columns, `edges` are those of `EdgeGeometryEmbedding`."""
        envelope, distance, harmonics = edges.split([1, 1, self.n_harmonics], 1)
        weights, frequencies = self.pairs(species.index_select(0, center), species.index_select(0, neighbor))
        of_edge, of_basis = weights[:, : self.channels], weights[:, self.channels :]
        basis = torch.sinc(frequencies * (distance / self.cutoff))
        radial = torch.cat([of_basis, basis], dim=1) * envelope
        coordination = sum_over_neighbors(envelope, center, n_local)
        sums, of_invariants = self.neighborhood(radial, harmonics, center, neighbor, n_local, species.shape[0])
        features, density = sums[:, : self.n_features], sums[:, self.n_features]
        features = self.mix(features / self.normalization(coordination).unsqueeze(2), species[:n_local])
        invariants = torch.cat([of_edge * envelope, of_invariants], dim=1)
        own = coordination
        if self.repulsion is not None:
            repulsion = self.repulsion(distance.squeeze(1), species, center, neighbor, n_local)
            own = torch.cat([coordination, repulsion], dim=1)
        return torch.cat([features.flatten(1), own, density], dim=1), torch.cat([harmonics, invariants], dim=1)

    def neighborhood(
        self, radial: Tensor, harmonics: Tensor, center: Tensor, neighbor: Tensor, n_local: int, n_nodes: int
    ) -> tuple[Tensor, Tensor]:
        """Radial functions x `[n_edges, 2 n_radial]` and harmonics `[n_edges, (l_max_density+1)^2]` to the sums
        sum_j q_l Y_lm and sum_j q_D, `[n_local, (l_max+1)^2 + 1, channels]`, and q_g `[n_edges, channels]`.

        `n_nodes`, the number of atoms with ghosts, is for compiled operators.
        """
        q = self.radial_network(radial).view(-1, self.l_max + 3, self.channels)
        of_features, of_density, of_invariants = q.split([self.l_max + 1, 1, 1], 1)
        terms = scale_degrees(harmonics[:, : self.n_features].unsqueeze(2), of_features, self.l_max)
        terms.append(of_density)
        return sum_components_of_edges(terms, center, n_local), of_invariants.squeeze(1)


class Iteration(nn.Module):
    """One iteration of message passing, in which edges see invariants only and atoms one tensor product.

    With C' = C / sqrt((2l + 1)(L + 1)), filters rho = MLP(g) and orbital coefficients o = MLP([g, e]):
        e_ij  = sqrt(1/2) sum_lm Y_lm (rho_0l C'_ilm + rho_1l C'_jlm);    g_ij <- [g_ij, e_ij]
        D_i  <- [D_i, sum_lm C'_ilm sum_j rho_2l Y_lm]
        A_ilm = sum_j o_l (W_1 C_j)_lm,    B_ilm = sum_j o_(L+1+l) Y_lm
        C_i  <- [W_3 C_i + W_2 (B_i x A_i) / (1 + n_i)^2] / sqrt(2),    divided by its RMS

    After the last iteration filters are evaluated once more, and D_i gets
    sum_lm C'_ilm sum_j (rho_0 + rho_1 + rho_2)_l Y_lm with the new C' = C / sqrt(3 (2l + 1)(L + 1)).
    """

    # What is not compiled for the other value does not fit a model without closing filters.
    __constants__ = ("last",)

    # TorchScript reads this annotation, and only where it is not a string.
    degree_factor: Tensor
    """`[(L+1)^2, 1]`: 1 / sqrt((2l + 1)(L + 1))."""

    def __init__(self, config: NEMPConfig, index: int) -> None:
        """`index`: number of iterations before this one."""
        super().__init__()
        channels, n_species = config.channels, len(config.elements)
        self.channels, self.l_max, self.l_max_density = channels, config.l_max, config.l_max_density
        self.n_features, self.n_harmonics = (config.l_max + 1) ** 2, (config.l_max_density + 1) ** 2
        self.n_invariants = (2 + index) * channels
        self.n_own = 2 if config.zbl else 1
        self.normalize = config.normalize_features
        self.last = index == config.n_iterations - 1

        def network(inputs: int, degrees: int) -> ResidualNetwork:
            return ResidualNetwork(
                inputs, config.edge_hidden, config.n_blocks, config.layers_per_block, degrees * channels
            )

        self.filters = network(self.n_invariants, 3 * (config.l_max + 1))
        self.orbitals = network(self.n_invariants + channels, config.l_max + 1 + config.l_max_density + 1)
        if self.last:
            self.closing_filters = network(self.n_invariants + channels, 3 * (config.l_max + 1))
        self.mix_sent = SpeciesChannelMix(n_species, channels)
        self.mix_message = SpeciesChannelMix(n_species, channels)
        self.mix_kept = SpeciesChannelMix(n_species, channels)
        self.product = NodeTensorProduct(n_species, channels, config.l_max_density, config.l_max, config.l_max)
        self.normalization = Normalization(config.smooth_coordination)
        degrees = [l for l in range(config.l_max + 1) for _ in range(2 * l + 1)]
        factor = [1.0 / math.sqrt((2 * l + 1) * (config.l_max + 1)) for l in degrees]
        self.register_buffer("degree_factor", torch.tensor(factor, dtype=torch.float64).view(-1, 1), persistent=False)

    def forward(
        self, state: Tensor, edges: Tensor, species: Tensor, center: Tensor, neighbor: Tensor, n_local: int
    ) -> tuple[Tensor, Tensor]:
        """The next state of owned atoms, and the edges that the next iteration reads.

        Args:
            state: `[n_nodes, width]`: features C, coordination n, energy of repulsion of a model that has one,
                densities D; of ghosts the features only.
            edges: `[n_edges, edge_width]`: harmonics, invariants g.
            species: `[n_nodes]` int64.
            center, neighbor: `[n_edges]` int64.
            n_local: number of owned atoms.
        """
        harmonics, invariants = edges.split([self.n_harmonics, self.n_invariants], 1)
        column = self.n_features * self.channels
        features = state[:, :column].view(-1, self.n_features, self.channels)
        own, densities = state[:n_local, column : column + self.n_own], state[:n_local, column + self.n_own :]
        coordination = own[:, :1]

        scaled = features * self.degree_factor
        sums, new = self.neighborhood(
            scaled, self.mix_sent(features, species), harmonics, invariants, center, neighbor, n_local
        )
        edges = torch.cat([edges, new], dim=1)
        densities = torch.cat([densities, sums[:, -1]], dim=1)
        own_species, divisor = species[:n_local], self.normalization(coordination).unsqueeze(2)
        message = self.product(
            sums[:, self.n_features : -1] / divisor, sums[:, : self.n_features] / divisor, own_species
        )
        features = self.mix_kept(features[:n_local], own_species) + self.mix_message(message, own_species)
        features = features * math.sqrt(0.5)
        if self.normalize:
            square = features.square().sum([1, 2], keepdim=True) / ((self.l_max + 1) * self.channels)
            features = features * torch.rsqrt(square + 1e-6)

        if self.last:
            scaled = features * (self.degree_factor * math.sqrt(1.0 / 3.0))
            density = self.closing_density(scaled, edges, center, neighbor, state.shape[0])
            return torch.cat([own, densities, density], dim=1), edges[:, :0]
        return torch.cat([features.flatten(1), own, densities], dim=1), edges

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
        """What happens on edges.

        Args:
            scaled: C', `[n_nodes, (L+1)^2, channels]`.
            sent: W_1 C, of the same shape.
            harmonics: `[n_edges, (l_max_density+1)^2]`.
            invariants: g, `[n_edges, n_invariants]`.
            center, neighbor: `[n_edges]` int64.
            n_local: number of owned atoms.

        Returns:
            A, B and what is added to D, side by side, `[n_local, (L+1)^2 + (l_max_density+1)^2 + 1, channels]`, and the
            new invariants e `[n_edges, channels]`.
        """
        of_features = harmonics[:, : self.n_features].unsqueeze(2)
        of_neighbors = torch.cat([scaled, sent], dim=1).index_select(0, neighbor)
        scaled_neighbors, sent = of_neighbors.split([self.n_features, self.n_features], 1)
        # Y . C of both atoms, degree by degree: [n_edges, l_max+1, channels].
        of_center = sum_components(scaled.index_select(0, center) * of_features, self.l_max)
        of_neighbor = sum_components(scaled_neighbors * of_features, self.l_max)
        rho = self.filters(invariants).view(-1, 3, self.l_max + 1, self.channels)
        rho_center, rho_neighbor, rho_density = rho.unbind(1)
        new = (rho_center * of_center + rho_neighbor * of_neighbor).sum(1) * math.sqrt(0.5)
        coefficients = self.orbitals(torch.cat([invariants, new], dim=1))
        coefficients = coefficients.view(-1, self.l_max + self.l_max_density + 2, self.channels)
        of_sent, of_fresh = coefficients.split([self.l_max + 1, self.l_max_density + 1], 1)
        terms = scale_degrees(sent, of_sent, self.l_max)
        terms += scale_degrees(harmonics.unsqueeze(2), of_fresh, self.l_max_density)
        # Y summed over neighbours and then multiplied by C_i is the sum over neighbours of Y . C_i.
        terms.append((rho_density * of_center).sum(1, keepdim=True))
        return sum_components_of_edges(terms, center, n_local), new

    def closing_density(self, scaled: Tensor, edges: Tensor, center: Tensor, neighbor: Tensor, n_nodes: int) -> Tensor:
        """The last densities, `[n_local, channels]`, of the new C' `[n_local, (L+1)^2, channels]` and of harmonics and
        all invariants, `[n_edges, edge_width]`; `n_nodes` is the number of atoms with ghosts."""
        harmonics, invariants = edges.split([self.n_harmonics, self.n_invariants + self.channels], 1)
        rho = self.closing_filters(invariants).view(-1, 3, self.l_max + 1, self.channels)
        of_features = harmonics[:, : self.n_features].unsqueeze(2)
        of_center = sum_components(scaled.index_select(0, center) * of_features, self.l_max)
        return sum_over_neighbors((rho.sum(1) * of_center).sum(1), center, scaled.shape[0])


class NEMPReadout(nn.Module):
    """e_i = scale [a MLP(D_i / (1 + n_i)) + b] + shift, with a, b, scale and shift of the species; in eV and float64.

    The energy of repulsion of a model that has one is added.

    Scale and shift are statistics of the training set; a and b are weights. An atom without neighbours has
    scale b + shift.
    """

    # TorchScript reads these annotations, and only where they are not strings.
    scale: Tensor
    shift: Tensor

    def __init__(self, config: NEMPConfig) -> None:
        super().__init__()
        n_species = len(config.elements)
        self.with_repulsion = config.zbl
        self.normalization = Normalization(config.smooth_coordination)
        self.network = ResidualNetwork(
            (config.n_iterations + 2) * config.channels,
            config.readout_hidden,
            config.n_blocks,
            config.layers_per_block,
            1,
        )
        self.factor = nn.Parameter(torch.ones(n_species, dtype=torch.float64))
        self.offset = nn.Parameter(torch.zeros(n_species, dtype=torch.float64))
        self.register_buffer("scale", as_float32_pairs(list(config.scale)), persistent=False)
        self.register_buffer("shift", as_float32_pairs(list(config.shift)), persistent=False)

    def forward(self, state: Tensor, species: Tensor) -> Tensor:
        """Coordination, repulsion and densities, `[n_local, 1 (or 2) + (n_iterations+2) channels]`, to energies
        `[n_local]`."""
        densities = state[:, 2:] if self.with_repulsion else state[:, 1:]
        output = self.network(densities / self.normalization(state[:, :1])).squeeze(1)
        output = self.factor.index_select(0, species) * output + self.offset.index_select(0, species)
        energies = scaled_and_shifted(output, self.scale, self.shift, species)
        return energies + state[:, 1].to(torch.float64) if self.with_repulsion else energies

    @torch.jit.unused
    def keep_species(self, rows: list[int]) -> None:
        """Forget all species but these, which get the numbers 0, 1, ..."""
        self.factor = nn.Parameter(self.factor.detach()[rows])
        self.offset = nn.Parameter(self.offset.detach()[rows])


class NEMP(nn.Module):
    """First features, iterations, readout, as stages (docs/conventions.md) whose edges evolve.

    Ranks exchange the features C before each iteration, (l_max+1)^2 * channels numbers an atom; the edges' invariants
    stay with the owner of the center. Irreps have natural parity only (0e, 1o, 2e, ...).
    """

    def __init__(self, config: NEMPConfig) -> None:
        super().__init__()
        self.edge_embedding = EdgeGeometryEmbedding(config.cutoff, config.envelope_power, config.l_max_density)
        self.layers = nn.ModuleList(
            [
                InitialLayer(config, repulsion_of(config)),
                *(Iteration(config, index) for index in range(config.n_iterations)),
            ]
        )
        self.energy_readout = NEMPReadout(config)
        self.l_max, self.l_max_density, self.channels = config.l_max, config.l_max_density, config.channels
        self.n_own = 2 if config.zbl else 1

    def stages(self) -> list[Stage]:
        """The features, coordination and densities that each iteration reads, and its harmonics and invariants."""
        n_features = (self.l_max + 1) ** 2 * self.channels
        n_harmonics = (self.l_max_density + 1) ** 2
        first = Stage("Density", width=0, exchanged_width=0, edge_width=2 + n_harmonics)
        return [
            first,
            *(
                Stage(
                    f"Iteration {i}",
                    width=n_features + self.n_own + i * self.channels,
                    exchanged_width=n_features,
                    edge_width=n_harmonics + (1 + i) * self.channels,
                )
                for i in range(1, len(self.layers))
            ),
        ]

    @torch.jit.export
    def load_elements(self, species: Tensor) -> int:
        """Bytes of the tables built for these species, `[n]` int64: none."""
        return 0

    @torch.jit.export
    def embed_edges(self, edge_vectors: Tensor) -> Tensor:
        """`[n_edges, 3]` (Å) to edge features `[n_edges, edge_width]`."""
        return self.edge_embedding(edge_vectors)

    @torch.jit.export
    def embed_nodes(self, species: Tensor) -> Tensor:
        """`[n_nodes]` to a state of no columns: the first stage needs the species only."""
        return self.layers[1].degree_factor.new_zeros([species.shape[0], 0])  # type: ignore[operator]

    @torch.jit.export
    def stage(
        self, index: int, state: Tensor, edges: Tensor, species: Tensor, center: Tensor, neighbor: Tensor, n_local: int
    ) -> tuple[Tensor, Tensor]:
        """Layer `index`: the next state of owned atoms and the edges that the next layer reads."""
        for i, layer in enumerate(self.layers):
            if i == index:
                state, edges = layer(state, edges, species, center, neighbor, n_local)
        return state, edges

    @torch.jit.export
    def readout(self, state: Tensor, species: Tensor) -> Tensor:
        """Energies of the owned atoms, `[n_local]` (eV, float64)."""
        return self.energy_readout(state, species)

    def forward(self, species: Tensor, center: Tensor, neighbor: Tensor, edge_vectors: Tensor, n_local: int) -> Tensor:
        """Energies `[n_local]` (eV, float64) of a graph without ghosts."""
        edges, state = self.embed_edges(edge_vectors), self.embed_nodes(species)
        for index in range(len(self.layers)):
            state, edges = self.stage(index, state, edges, species, center, neighbor, n_local)
        return self.readout(state, species[:n_local])
