"""Geodite: attention over scalars and steerable features, with physical priors.

Reschuetzegger et al., arXiv 2601.15492 (2026); a descendant of GotenNet (Aykent and Xia, ICLR 2025). Steerable features
meet through their inner products only, so that no tensor products are needed. Features of edges are updated from layer
to layer.
"""

# No `from __future__ import annotations`: TorchScript reads the annotations of buffers where they are not strings.
import torch
from ase.data import atomic_numbers
from e3nn import o3
from pydantic import Field, model_validator
from torch import Tensor, nn

from hienet.models.config import LAST_WITH_RADIUS, ModelConfig
from hienet.models.staged import Stage
from hienet.nn.distance_weighting import DistanceWeighting
from hienet.nn.embedding import SpeciesTable
from hienet.nn.geometric_attention import (
    EdgeGate,
    EdgeUpdate,
    EdgeUpdateNetwork,
    GeometricAttention,
    NeighborDensity,
)
from hienet.nn.radial import bessel_basis, bessel_frequencies, polynomial_envelope
from hienet.nn.readout import as_float32_pairs, scaled_and_shifted
from hienet.nn.scalar_network import linear, scalar_network
from hienet.nn.scatter import sum_over_neighbors
from hienet.nn.steerable import SteerableCoupling, SteerableLayerNorm
from hienet.nn.zbl import UNIVERSAL_SCREENING, ZBLRepulsion

INITIAL_SCREENING = (0.4546 * 0.529, 0.0842, *(0.1663,) * 4, *(0.0354,) * 4)
"""With which the authors begin to train the repulsion's screening (the order of `UNIVERSAL_SCREENING`)."""


class GeoditeConfig(ModelConfig):
    """What defines a Geodite, apart from its weights; sizes are those that give Geodite-MP's number of parameters."""

    cutoff: float = Field(6.0, gt=0, description="Å")
    channels: int = Field(192, ge=1, description="width of the features of atoms and edges, of each l")
    n_layers: int = Field(4, ge=1, description="number of interaction blocks")
    n_heads: int = Field(8, ge=1, description="heads of the attention; a divisor of `channels`")
    l_max: int = Field(2, ge=1, description="largest l of spherical harmonics and steerable features")
    n_radial: int = Field(12, ge=1, description="number of Bessel functions")
    envelope_power: int = Field(6, ge=3, description="power p of the polynomial envelope")
    distance_weighting: bool = Field(
        False,
        description="damp what is learnt where atoms overlap, by Agnesi's function of distance and covalent radii",
    )
    trainable_weighting: bool = Field(False, description="the two exponents of that weighting are trained")
    edge_network: EdgeUpdateNetwork = Field(
        "mlp", description="of the edges' features in their update: `linear` or `mlp`"
    )
    edge_gate: EdgeGate = Field(
        "linear", description="of the neighbours' inner product in that update: `identity`, `linear` or `tanh`"
    )
    rejection: bool = Field(True, description="that inner product leaves out what points along the edge")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="dropout in training: attention")
    zbl: bool = Field(True, description="add the repulsion of nuclei at short range (ZBL), with trainable screening")
    universal_screening: bool = Field(
        False, description="begin to train that screening at the constants of ZBL; false: at the authors' start"
    )

    @model_validator(mode="after")
    def _sizes_agree(self) -> "GeoditeConfig":
        if self.channels % self.n_heads:
            raise ValueError(f"`n_heads` must divide `channels`, got {self.n_heads} and {self.channels}")
        unknown = [symbol for symbol in self.elements if atomic_numbers[symbol] > LAST_WITH_RADIUS]
        if self.distance_weighting and unknown:
            raise ValueError(f"the covalent radii of {unknown} are not known; set `distance_weighting: false`")
        if self.trainable_weighting and not self.distance_weighting:
            raise ValueError("`trainable_weighting` is given, but `distance_weighting` is false; set it too")
        return self


PRESETS: dict[str, dict[str, object]] = {
    "paper": {"distance_weighting": True},
    "small": {
        "cutoff": 5.0,
        "channels": 48,
        "n_layers": 2,
        "distance_weighting": True,
        "universal_screening": True,
    },
}
"""`paper`: Geodite-MP as far as it is known; `small`: a few elements."""


class RadialFeatures(nn.Module):
    """phi_n(d) = sqrt(2/r_c) sin(n pi d / r_c) / d * w(d) f(d), or without the weighting w, times d in its place."""

    frequencies: Tensor

    def __init__(self, config: GeoditeConfig) -> None:
        super().__init__()
        self.cutoff, self.envelope_power = config.cutoff, config.envelope_power
        self.norm = (0.5 * config.cutoff) ** 0.5
        self.register_buffer("frequencies", bessel_frequencies(config.n_radial, config.cutoff), persistent=False)
        self.weighting = (
            DistanceWeighting(config.elements, trainable=config.trainable_weighting)
            if config.distance_weighting
            else None
        )

    def forward(self, distance: Tensor, center: Tensor, neighbor: Tensor) -> Tensor:
        """Distances `[n_edges, 1]` (Å) between atoms of these species, `[n_edges]` int64: `[n_edges, n_radial]`."""
        weight = distance
        if self.weighting is not None:
            weight = self.weighting(distance, center, neighbor)
        weight = weight * polynomial_envelope(distance, self.cutoff, self.envelope_power)
        return self.norm * bessel_basis(distance, self.frequencies, self.cutoff) * weight


class NeighborhoodEmbedding(nn.Module):
    """h_i = network([A(Z_i), m_i]) with m_i = sum_j B(Z_j) (phi_ij W) / (1 + rho_i): an atom and who is around it."""

    def __init__(self, n_species: int, n_radial: int, channels: int) -> None:
        super().__init__()
        self.own, self.of_neighbor = SpeciesTable(n_species, channels), SpeciesTable(n_species, channels)
        self.radial = linear(n_radial, channels)
        self.density = NeighborDensity(n_radial)
        self.network = scalar_network(2 * channels, channels, channels)

    def forward(self, radial: Tensor, species: Tensor, center: Tensor, neighbor: Tensor, n_local: int) -> Tensor:
        """Radial features `[n_edges, n_radial]` and species `[n_nodes]` to `[n_local, channels]`."""
        messages = self.of_neighbor(species.index_select(0, neighbor)) * self.radial(radial)
        received = sum_over_neighbors(messages, center, n_local) * self.density(radial, center, n_local)
        return self.network(torch.cat([self.own(species[:n_local]), received], dim=1))


class EdgeInitialization(nn.Module):
    """t_ij = (h_i + h_j) (phi_ij W)."""

    def __init__(self, n_radial: int, channels: int) -> None:
        super().__init__()
        self.radial = linear(n_radial, channels)

    def forward(self, scalars: Tensor, radial: Tensor, center: Tensor, neighbor: Tensor) -> Tensor:
        """`[n_nodes, channels]` and `[n_edges, n_radial]` to `[n_edges, channels]`."""
        return (scalars.index_select(0, center) + scalars.index_select(0, neighbor)) * self.radial(radial)


class InteractionBlock(nn.Module):
    """Attention, update of the edges, coupling of scalars and steerable features, and this block's share of the energy.

    Ranks exchange features between attention and what follows it, which is why `forward` is in parts.
    """

    def __init__(self, config: GeoditeConfig, first: bool, last: bool) -> None:
        """In the first block steerable features are zero; after the last nobody reads the edges."""
        super().__init__()
        channels = config.channels
        self.norm = SteerableLayerNorm(channels, 0 if first else config.l_max)
        self.attention = GeometricAttention(channels, config.n_heads, config.attention_dropout, first)
        self.density = NeighborDensity(config.n_radial, float(config.n_radial))
        self.edge_update = (
            None
            if last
            else EdgeUpdate(channels, config.l_max, config.edge_network, config.edge_gate, config.rejection)
        )
        self.first = first
        self.coupling = SteerableCoupling(channels)
        self.energy = linear(channels, 1)

    def attend(
        self,
        scalars: Tensor,
        steerables: Tensor,
        edge_features: Tensor,
        radial: Tensor,
        harmonics: Tensor,
        center: Tensor,
        neighbor: Tensor,
        n_local: int,
    ) -> tuple[Tensor, Tensor]:
        """Features of all nodes to those of owned atoms; the normalised ones take the place of what came in."""
        scalars, steerables = self.norm(scalars, steerables)
        change, steered = self.attention(scalars, steerables, edge_features, harmonics, center, neighbor, n_local)
        factor = self.density(radial, center, n_local)
        steered = steered * factor.unsqueeze(2)
        if not self.first:
            steered = steered + steerables[:n_local]
        return scalars[:n_local] + change * factor, steered

    def update_edges(
        self,
        edge_features: Tensor,
        steerables: Tensor,
        harmonics: Tensor,
        center: Tensor,
        neighbor: Tensor,
        n_local: int,
    ) -> Tensor:
        """Edge features that the next block reads."""
        if self.edge_update is not None:
            edge_features = self.edge_update(edge_features, steerables, harmonics, center, neighbor, n_local)
        return edge_features


class Geodite(nn.Module):
    """Embedding, interaction blocks, readout after each; as stages (docs/conventions.md): the embedding, and each block
    from the end of the one before it up to its attention, the last one to its end.

    An isolated atom has exactly its reference energy: what the network says of an atom without neighbours is taken off,
    a constant for each element. While the model is trained, these are computed with it; `fix_constants` keeps them.

    The repulsion of nuclei is inside the scaling of energies: its eV are those of the model only where the scale is 1.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, config: GeoditeConfig) -> None:
        super().__init__()
        self.channels, self.n_radial, self.n_layers = config.channels, config.n_radial, config.n_layers
        n_species, degrees = len(config.elements), list(range(1, config.l_max + 1))
        self.n_components = (config.l_max + 1) ** 2 - 1
        self.spherical_harmonics = o3.SphericalHarmonics(degrees, normalize=True, normalization="norm")
        self.radial_features = RadialFeatures(config)
        self.node_embedding = NeighborhoodEmbedding(n_species, config.n_radial, config.channels)
        self.edge_embedding = EdgeInitialization(config.n_radial, config.channels)
        self.blocks = nn.ModuleList(
            [InteractionBlock(config, i == 0, i == config.n_layers - 1) for i in range(config.n_layers)]
        )
        screening = UNIVERSAL_SCREENING if config.universal_screening else INITIAL_SCREENING
        self.repulsion = (
            ZBLRepulsion(config.elements, config.cutoff, config.zbl_outer, 5, screening, trainable=True)
            if config.zbl
            else None
        )
        # `[n_species]`, what the network says of an atom without neighbours; None where weights may still change. No
        # annotation: TorchScript then knows which of the two it is, and leaves out what would compute it.
        self.register_buffer("vacuum", None, persistent=False)
        self.register_buffer("scale", as_float32_pairs(list(config.scale)), persistent=False)
        self.register_buffer("shift", as_float32_pairs(list(config.shift)), persistent=False)

    @torch.jit.unused
    def stages(self) -> list[Stage]:
        """What each stage reads: the embedding, and one for each block."""
        fixed = self.n_radial + self.n_components
        features = (1 + self.n_components) * self.channels
        return [
            Stage("Embedding", 0, 0, 1 + self.n_components),
            Stage("InteractionBlock 1", self.channels + 1, self.channels, fixed),
            *(
                Stage(f"InteractionBlock {i}", features + 1, features, fixed + self.channels)
                for i in range(2, self.n_layers + 1)
            ),
        ]

    @torch.jit.unused
    def fix_constants(self) -> None:
        """Keep the energies of isolated atoms, in the present dtype, from now on."""
        with torch.no_grad():
            self.vacuum = self.vacuum_energies()

    @torch.jit.export
    def load_elements(self, species: Tensor) -> int:
        """Bytes of the tables built for these species: none."""
        return 0

    @torch.jit.export
    def embed_edges(self, edge_vectors: Tensor) -> Tensor:
        """`[n_edges, 3]` (Å) to distance and harmonics, `[n_edges, 1 + components]`."""
        distance = torch.linalg.vector_norm(edge_vectors, dim=1, keepdim=True)
        return torch.cat([distance, self.spherical_harmonics(edge_vectors)], dim=1)

    @torch.jit.export
    def embed_nodes(self, species: Tensor) -> Tensor:
        """`[n_nodes]` to a state of no columns: the first stage reads species only."""
        return self.scale.new_zeros([species.shape[0], 0])

    def embed(
        self, distance: Tensor, species: Tensor, center: Tensor, neighbor: Tensor, n_local: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Distances `[n_edges, 1]` to radial features, first scalars of owned atoms, and their energies so far,
        `[n_local, 1]`: the repulsion's."""
        species_center, species_neighbor = species.index_select(0, center), species.index_select(0, neighbor)
        radial = self.radial_features(distance, species_center, species_neighbor)
        scalars = self.node_embedding(radial, species, center, neighbor, n_local)
        if self.repulsion is not None:
            energy = self.repulsion(distance.squeeze(1), species, center, neighbor, n_local)
        else:
            energy = scalars.new_zeros([n_local, 1])
        return radial, scalars, energy

    @torch.jit.export
    def stage(
        self, index: int, state: Tensor, edges: Tensor, species: Tensor, center: Tensor, neighbor: Tensor, n_local: int
    ) -> tuple[Tensor, Tensor]:
        """The next state and the next edges.

        A state is `[scalars, steerable features, energy so far]`, the last column not exchanged; edges are
        `[radial features, harmonics, edge features]`, and before the first stage `[distance, harmonics]`.
        """
        if index == 0:
            radial, scalars, energy = self.embed(edges[:, :1], species, center, neighbor, n_local)
            return torch.cat([scalars, energy], dim=1), torch.cat([radial, edges[:, 1:]], dim=1)
        of_features = edges.shape[1] - self.n_radial - self.n_components
        radial, harmonics, edge_features = torch.split(edges, [self.n_radial, self.n_components, of_features], dim=1)
        n_components = 0 if index == 1 else self.n_components
        scalars, flat, energy = torch.split(state, [self.channels, n_components * self.channels, 1], dim=1)
        steerables, energy = flat.reshape(state.shape[0], n_components, self.channels), energy[:n_local]
        if index == 1:
            edge_features = self.edge_embedding(scalars, radial, center, neighbor)
        for i, block in enumerate(self.blocks):
            if i == index - 2:
                edge_features = block.update_edges(edge_features, steerables, harmonics, center, neighbor, n_local)  # type: ignore[operator]
                scalars, steerables = block.coupling(scalars, steerables)  # type: ignore[operator]
                energy = energy + block.energy(scalars[:n_local])  # type: ignore[operator]
            elif i == index - 1:
                scalars, steerables = block.attend(  # type: ignore[operator]
                    scalars, steerables, edge_features, radial, harmonics, center, neighbor, n_local
                )
                if i == self.n_layers - 1:
                    scalars, steerables = block.coupling(scalars, steerables)  # type: ignore[operator]
                    energy = energy + block.energy(scalars)  # type: ignore[operator]
        if index == self.n_layers:
            return energy, edges[:, :0]
        return (
            torch.cat([scalars, steerables.flatten(1), energy], dim=1),
            torch.cat([radial, harmonics, edge_features], dim=1),
        )

    def outputs(self, species: Tensor, center: Tensor, neighbor: Tensor, edge_vectors: Tensor, n_local: int) -> Tensor:
        """What network and repulsion say of each atom of a graph without ghosts, `[n_local, 1]`: all stages."""
        edges, state = self.embed_edges(edge_vectors), self.embed_nodes(species)
        for index in range(self.n_layers + 1):
            state, edges = self.stage(index, state, edges, species, center, neighbor, n_local)
        return state

    def vacuum_energies(self) -> Tensor:
        """`[n_species]`: what the network says of an atom of each element without neighbours."""
        if self.vacuum is not None:
            return self.vacuum
        n_species = self.scale.shape[1]
        species = torch.arange(n_species, device=self.scale.device)
        none = species[:0]
        return self.outputs(species, none, none, self.scale.new_zeros([0, 3]), n_species).squeeze(1)

    @torch.jit.export
    def readout(self, state: Tensor, species: Tensor) -> Tensor:
        """Energies of the owned atoms, `[n_local]` (eV, float64), of the last state, `[n_local, 1]`."""
        output = state.squeeze(1) - self.vacuum_energies().index_select(0, species)
        return scaled_and_shifted(output, self.scale, self.shift, species)

    def forward(self, species: Tensor, center: Tensor, neighbor: Tensor, edge_vectors: Tensor, n_local: int) -> Tensor:
        """Energies `[n_local]` (eV, float64) of a graph without ghosts."""
        return self.readout(self.outputs(species, center, neighbor, edge_vectors, n_local), species[:n_local])
