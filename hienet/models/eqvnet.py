"""EqvNet: HIENet without its invariant layers, an ablation of its paper (Yan et al., 2025)."""

from __future__ import annotations

from e3nn import o3
from pydantic import Field

from hienet.models.equivariant import EquivariantConfig, equivariant_layers
from hienet.models.layered import LayeredModel
from hienet.models.repulsion import repulsion_of
from hienet.nn.embedding import EdgeEmbedding, SpeciesEmbedding
from hienet.nn.readout import EnergyReadout


class EqvNetConfig(EquivariantConfig):
    """What defines an EqvNet, apart from its weights."""

    channels: int = Field(512, ge=1, description="width of the species embedding")
    dropout: float = Field(0.06, ge=0, lt=1, description="dropout in training: embedding and readout")


PRESETS: dict[str, dict[str, object]] = {
    "large": {
        "parity": True,
        "equivariant_irreps": (
            "512x0e+128x1o+64x2e+32x3o",
            "512x0e+128x1o+64x2e+32x3o",
            "512x0e+128x1o+64x2e+32x3o",
            "512x0e",
        ),
    },
    "small": {
        "channels": 32,
        "parity": True,
        "equivariant_irreps": ("32x0e+16x1o+8x2e", "32x0e+16x1o+8x2e", "32x0e"),
        "l_max": 2,
        "radial_hidden": (32, 32),
        "readout_channels": 16,
        "dropout": 0.0,
    },
}
"""`large`: HIENet's `paper-o3` with an equivariant layer in the place of the invariant one; `small`: a few elements."""


class EqvNet(LayeredModel):
    """Embedding, equivariant layers, readout."""

    def __init__(self, config: EqvNetConfig) -> None:
        super().__init__(
            EdgeEmbedding(config.cutoff, config.n_radial, config.envelope_power, config.l_max),
            SpeciesEmbedding(len(config.elements), config.channels, config.dropout),
            equivariant_layers(config.channels, config),
            EnergyReadout(
                o3.Irreps(config.equivariant_irreps[-1]).dim,
                config.readout_channels,
                list(config.scale),
                list(config.shift),
                config.dropout,
            ),
            repulsion_of(config),
        )
