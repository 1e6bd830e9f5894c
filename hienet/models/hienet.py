"""HIENet: invariant message passing first, equivariant message passing after (Yan et al., 2025)."""

from __future__ import annotations

import torch
from e3nn import o3
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from hienet.models.staged import ModelConfig, Stage
from hienet.nn.embedding import EdgeEmbedding, SpeciesEmbedding
from hienet.nn.equivariant import EquivariantLayer
from hienet.nn.invariant import InvariantLayer
from hienet.nn.readout import EnergyReadout
from hienet.nn.zbl import ZBLRepulsion


class HIENetConfig(ModelConfig):
    """What defines a HIENet, apart from its weights."""

    invariant_channels: int = Field(
        512, ge=1, description="width C of the species embedding and of the invariant layers"
    )
    n_invariant_layers: int = Field(1, ge=0, description="number of invariant layers")
    equivariant_irreps: tuple[str, ...] = Field(
        ("512x0e+128x1e+64x2e+32x3e", "512x0e+128x1e+64x2e+32x3e", "512x0e"),
        min_length=1,
        description="irreps that each equivariant layer puts out; the last one scalars only",
    )
    l_max: int = Field(3, ge=0, le=11, description="largest l of the spherical harmonics")
    n_radial: int = Field(8, ge=1, description="number of Bessel functions")
    envelope_power: int = Field(6, ge=3, description="power p of the polynomial envelope")
    radial_hidden: tuple[int, ...] = Field((64, 64), description="hidden widths of the radial networks")
    readout_channels: int = Field(256, ge=1, description="hidden width of the readout")
    dropout: float = Field(0.06, ge=0, lt=1, description="dropout in training: embeddings and readout")
    attention_dropout: float = Field(0.1, ge=0, lt=1, description="dropout in training: attention")
    smooth_cutoff: bool = Field(
        True, description="multiply invariant messages by the envelope, so that the energy has no jump at the cutoff"
    )

    @field_validator("equivariant_irreps")
    @classmethod
    def _irreps_are_even_and_sorted(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            try:
                irreps = o3.Irreps(text)
            except ValueError as error:
                raise ValueError(f"`{text}` are not irreps; write them like 64x0e+32x1e") from error
            if any(irrep.p != 1 for _, irrep in irreps):
                raise ValueError(f"`{text}` has odd parity; HIENet labels all irreps even, like 64x0e+32x1e")
            if [irrep.l for _, irrep in irreps] != sorted({irrep.l for _, irrep in irreps}) or irreps.count("0e") == 0:
                raise ValueError(f"`{text}` must list each l once, in increasing order, starting with 0e")
        return value

    @model_validator(mode="after")
    def _last_layer_is_scalar(self) -> HIENetConfig:
        if o3.Irreps(self.equivariant_irreps[-1]).lmax != 0:
            raise ValueError(f"the last of `equivariant_irreps` must be scalars, got `{self.equivariant_irreps[-1]}`")
        return self


PRESETS: dict[str, dict[str, object]] = {
    "paper": {},
    "published": {
        "invariant_channels": 384,
        "equivariant_irreps": (
            "512x0e+128x1e+64x2e",
            "512x0e+128x1e+64x2e+32x3e",
            "512x0e+128x1e+64x2e+32x3e",
            "512x0e",
        ),
        "dropout": 0.04,
        "attention_dropout": 0.08,
    },
    "small": {
        "invariant_channels": 32,
        "equivariant_irreps": ("32x0e+16x1e+8x2e", "32x0e+16x1e+8x2e", "32x0e"),
        "l_max": 2,
        "radial_hidden": (32, 32),
        "readout_channels": 16,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
}
"""`paper`: the paper's text and Table 5; `published`: the released checkpoint; `small`: a few elements on a laptop."""


class HIENet(nn.Module):
    """Embedding, invariant layers, equivariant layers, readout, as stages (docs/conventions.md)."""

    def __init__(self, config: HIENetConfig) -> None:
        super().__init__()
        self.edge_embedding = EdgeEmbedding(
            config.cutoff, config.n_radial, config.envelope_power, config.l_max, with_distance=config.zbl
        )
        channels = config.invariant_channels
        self.species_embedding = SpeciesEmbedding(len(config.elements), channels, config.dropout)
        layers: list[nn.Module] = [
            InvariantLayer(channels, config.n_radial, config.dropout, config.attention_dropout, config.smooth_cutoff)
            for _ in range(config.n_invariant_layers)
        ]
        irreps = o3.Irreps(f"{channels}x0e")
        harmonics = o3.Irreps([(1, (l, 1)) for l in range(config.l_max + 1)])
        for text in config.equivariant_irreps:
            layers.append(
                EquivariantLayer(
                    irreps,
                    o3.Irreps(text),
                    harmonics,
                    config.n_radial,
                    list(config.radial_hidden),
                    config.avg_num_neighbors,
                )
            )
            irreps = o3.Irreps(text)
        self.layers = nn.ModuleList(layers)
        self.n_layers = len(layers)
        self.energy_readout = EnergyReadout(
            irreps.dim, config.readout_channels, list(config.scale), list(config.shift), config.dropout
        )
        self.repulsion = ZBLRepulsion(config.elements, config.cutoff, config.zbl_outer) if config.zbl else None

    def stages(self) -> list[Stage]:
        """The state that each layer reads."""
        return [
            Stage(f"{type(layer).__name__} {i + 1}", layer.state_width, layer.exchanged_width if i else 0)  # type: ignore[arg-type]
            for i, layer in enumerate(self.layers)
        ]

    @torch.jit.export
    def load_elements(self, species: Tensor) -> int:
        """Build the tables that a compiled model needs for these species, `[n]` int64; returns their bytes."""
        n_bytes = 0
        for layer in self.layers:
            n_bytes += layer.load_elements(species)  # type: ignore[operator]
        return n_bytes

    @torch.jit.export
    def embed_edges(self, edge_vectors: Tensor) -> Tensor:
        """`[n_edges, 3]` (Å) to edge features `[n_edges, edge_width]`."""
        return self.edge_embedding(edge_vectors)

    @torch.jit.export
    def embed_nodes(self, species: Tensor) -> Tensor:
        """`[n_nodes]` to the state that the first stage reads."""
        features = self.species_embedding(species)
        for i, layer in enumerate(self.layers):
            if i == 0:
                features = layer.prepare(features)  # type: ignore[operator]
        return features

    @torch.jit.export
    def stage(
        self, index: int, state: Tensor, edges: Tensor, species: Tensor, center: Tensor, neighbor: Tensor, n_local: int
    ) -> Tensor:
        """Layer `index`, and what the next one wants of it: `[n_nodes, width]` to `[n_local, next width]`.

        The last one adds the column of the repulsion.
        """
        features = self.edge_embedding.features(edges)
        for i, layer in enumerate(self.layers):
            if i == index:
                state = layer(state, features, species, center, neighbor, n_local)
            elif i == index + 1:
                state = layer.prepare(state)  # type: ignore[operator]
        if index == self.n_layers - 1:
            state = self.with_repulsion(state, edges, species, center, neighbor, n_local)
        return state

    def with_repulsion(
        self, state: Tensor, edges: Tensor, species: Tensor, center: Tensor, neighbor: Tensor, n_local: int
    ) -> Tensor:
        """Features `[n_local, width]`, and as a last column the energy of repulsion (eV) of a model that has one."""
        if self.repulsion is not None:
            distance = self.edge_embedding.distance(edges)
            state = torch.cat([state, self.repulsion(distance, species, center, neighbor, n_local)], dim=1)
        return state

    @torch.jit.export
    def readout(self, state: Tensor, species: Tensor) -> Tensor:
        """Energies of the owned atoms, `[n_local]` (eV, float64)."""
        if self.repulsion is not None:
            return self.energy_readout(state[:, :-1], species) + state[:, -1].to(torch.float64)
        return self.energy_readout(state, species)

    def forward(self, species: Tensor, center: Tensor, neighbor: Tensor, edge_vectors: Tensor, n_local: int) -> Tensor:
        """Energies `[n_local]` (eV, float64) of a graph without ghosts."""
        edges = self.embed_edges(edge_vectors)
        edge_features = self.edge_embedding.features(edges)
        features = self.species_embedding(species)
        for layer in self.layers:
            features = layer(layer.prepare(features), edge_features, species, center, neighbor, n_local)  # type: ignore[operator]
        state = self.with_repulsion(features, edges, species, center, neighbor, n_local)
        return self.readout(state, species[:n_local])
