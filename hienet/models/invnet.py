"""InvNet: the invariant layers of HIENet alone, an ablation of its paper (Yan et al., 2025)."""

from __future__ import annotations

from pydantic import Field

from hienet.models.config import ModelConfig
from hienet.models.layered import LayeredModel
from hienet.models.repulsion import repulsion_of
from hienet.nn.embedding import EdgeEmbedding, SpeciesEmbedding
from hienet.nn.invariant import InvariantLayer
from hienet.nn.readout import EnergyReadout


class InvNetConfig(ModelConfig):
    """What defines an InvNet, apart from its weights."""

    channels: int = Field(512, ge=1, description="width of the species embedding and of the layers")
    n_layers: int = Field(4, ge=1, description="number of layers")
    n_radial: int = Field(8, ge=1, description="number of Bessel functions")
    envelope_power: int = Field(6, ge=3, description="power p of the polynomial envelope")
    readout_channels: int = Field(256, ge=1, description="hidden width of the readout")
    dropout: float = Field(0.06, ge=0, lt=1, description="dropout in training: embeddings and readout")
    attention_dropout: float = Field(0.1, ge=0, lt=1, description="dropout in training: attention")
    smooth_cutoff: bool = Field(
        True, description="multiply messages by the envelope, so that the energy has no jump at the cutoff"
    )


PRESETS: dict[str, dict[str, object]] = {
    "large": {},
    "small": {"channels": 32, "n_layers": 3, "readout_channels": 16, "dropout": 0.0, "attention_dropout": 0.0},
}
"""`large`: as HIENet's `paper`, with invariant layers in the place of the equivariant ones; `small`: a few elements."""


class InvNet(LayeredModel):
    """Embedding, invariant layers, readout: scalars and distances only."""

    def __init__(self, config: InvNetConfig) -> None:
        super().__init__(
            EdgeEmbedding(config.cutoff, config.n_radial, config.envelope_power, l_max=0),
            SpeciesEmbedding(len(config.elements), config.channels, config.dropout),
            [
                InvariantLayer(
                    config.channels, config.n_radial, config.dropout, config.attention_dropout, config.smooth_cutoff
                )
                for _ in range(config.n_layers)
            ],
            EnergyReadout(
                config.channels, config.readout_channels, list(config.scale), list(config.shift), config.dropout
            ),
            repulsion_of(config),
        )
