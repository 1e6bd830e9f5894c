"""InvSevNet: SevenNet behind invariant layers, an ablation of HIENet's paper (Yan et al., 2025)."""

from __future__ import annotations

from e3nn import o3
from pydantic import Field
from torch import nn

from hienet.models.equivariant import equivariant_layers
from hienet.models.layered import LayeredModel
from hienet.models.repulsion import repulsion_of
from hienet.models.sevennet import L3I5_O3, SevenNetConfig
from hienet.nn.embedding import EdgeEmbedding, SpeciesEmbedding
from hienet.nn.invariant import InvariantLayer
from hienet.nn.readout import EnergyReadout


class InvSevNetConfig(SevenNetConfig):
    """What defines an InvSevNet, apart from its weights; the defaults are SevenNet-l3i5's with one layer in front."""

    n_invariant_layers: int = Field(1, ge=1, description="number of invariant layers in front")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout in training: embeddings")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="dropout in training: attention")


PRESETS: dict[str, dict[str, object]] = {
    "l3i5": {},
    "l3i5-o3": L3I5_O3,
    "small": {
        "channels": 32,
        "parity": True,
        "equivariant_irreps": ("32x0e+16x1o+8x2e", "32x0e+16x1o+8x2e", "32x0e"),
        "l_max": 2,
        "radial_hidden": (32, 32),
        "readout_channels": 16,
    },
}
"""`l3i5`: SevenNet-l3i5 and one invariant layer; `l3i5-o3`: that with parities; `small`: a few elements."""


class InvSevNet(LayeredModel):
    """Embedding, invariant layers, SevenNet's equivariant layers, readout."""

    def __init__(self, config: InvSevNetConfig) -> None:
        n_species = len(config.elements)
        layers: list[nn.Module] = [
            InvariantLayer(
                config.channels, config.n_radial, config.dropout, config.attention_dropout, smooth_cutoff=True
            )
            for _ in range(config.n_invariant_layers)
        ]
        layers += equivariant_layers(
            config.channels, config, n_species if config.species_self_connection else None, config.scalar_constants
        )
        super().__init__(
            EdgeEmbedding(config.cutoff, config.n_radial, config.envelope_power, config.l_max, config.xplor_onset),
            SpeciesEmbedding(n_species, config.channels, config.dropout),
            layers,
            EnergyReadout(
                o3.Irreps(config.equivariant_irreps[-1]).dim,
                config.readout_channels,
                list(config.scale),
                list(config.shift),
                dropout=0.0,
            ),
            repulsion_of(config),
        )
