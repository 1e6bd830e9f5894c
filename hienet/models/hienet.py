"""HIENet: invariant message passing first, equivariant message passing after (Yan et al., 2025)."""

from __future__ import annotations

from e3nn import o3
from pydantic import Field
from torch import nn

from hienet.models.equivariant import EquivariantConfig, equivariant_layers
from hienet.models.layered import LayeredModel
from hienet.nn.embedding import EdgeEmbedding, SpeciesEmbedding
from hienet.nn.invariant import InvariantLayer
from hienet.nn.readout import EnergyReadout
from hienet.nn.zbl import repulsion_of


class HIENetConfig(EquivariantConfig):
    """What defines a HIENet, apart from its weights."""

    invariant_channels: int = Field(
        512, ge=1, description="width C of the species embedding and of the invariant layers"
    )
    n_invariant_layers: int = Field(1, ge=0, description="number of invariant layers")
    dropout: float = Field(0.06, ge=0, lt=1, description="dropout in training: embeddings and readout")
    attention_dropout: float = Field(0.1, ge=0, lt=1, description="dropout in training: attention")
    smooth_cutoff: bool = Field(
        True, description="multiply invariant messages by the envelope, so that the energy has no jump at the cutoff"
    )


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


class HIENet(LayeredModel):
    """Embedding, invariant layers, equivariant layers, readout."""

    def __init__(self, config: HIENetConfig) -> None:
        channels = config.invariant_channels
        edge_embedding = EdgeEmbedding(config.cutoff, config.n_radial, config.envelope_power, config.l_max)
        species_embedding = SpeciesEmbedding(len(config.elements), channels, config.dropout)
        layers: list[nn.Module] = [
            InvariantLayer(channels, config.n_radial, config.dropout, config.attention_dropout, config.smooth_cutoff)
            for _ in range(config.n_invariant_layers)
        ]
        layers += equivariant_layers(channels, config)
        width = o3.Irreps(config.equivariant_irreps[-1]).dim
        energy_readout = EnergyReadout(
            width, config.readout_channels, list(config.scale), list(config.shift), config.dropout
        )
        super().__init__(edge_embedding, species_embedding, layers, energy_readout, repulsion_of(config))
