"""HIENet: invariant message passing first, equivariant message passing after (Yan et al., 2025)."""

from __future__ import annotations

from typing import Literal

from e3nn import o3
from pydantic import Field, model_validator
from torch import nn

from hienet.models.equivariant import EquivariantConfig, equivariant_layers
from hienet.models.layered import LayeredModel
from hienet.models.repulsion import repulsion_of
from hienet.nn.embedding import EdgeEmbedding, SpeciesEmbedding
from hienet.nn.invariant import InvariantLayer
from hienet.nn.readout import EnergyReadout
from hienet.nn.scalar_layer import LayerOnScalars


class HIENetConfig(EquivariantConfig):
    """What defines a HIENet, apart from its weights."""

    invariant_channels: int = Field(
        512, ge=1, description="width C of the species embedding and of the invariant layers"
    )
    n_invariant_layers: int = Field(1, ge=0, description="number of invariant layers")
    layer_order: Literal["invariant_first", "alternating", "invariant_last"] = Field(
        "invariant_first",
        description="where invariant layers stand: before, between or after the equivariant ones; "
        "behind one they act on its scalars, as wide as these are",
    )
    dropout: float = Field(0.06, ge=0, lt=1, description="dropout in training: embeddings and readout")
    attention_dropout: float = Field(0.1, ge=0, lt=1, description="dropout in training: attention")
    smooth_cutoff: bool = Field(
        True, description="multiply invariant messages by the envelope, so that the energy has no jump at the cutoff"
    )

    @model_validator(mode="after")
    def _alternating_layers_have_a_place(self) -> HIENetConfig:
        if self.layer_order == "alternating" and len(self.equivariant_irreps) < 2:
            raise ValueError(
                "`layer_order: alternating` puts invariant layers between equivariant ones, but `equivariant_irreps` "
                "has only one; give two or more, or another `layer_order`"
            )
        return self


_PUBLISHED: dict[str, object] = {
    "invariant_channels": 384,
    "equivariant_irreps": (
        "512x0e+128x1e+64x2e",
        "512x0e+128x1e+64x2e+32x3e",
        "512x0e+128x1e+64x2e+32x3e",
        "512x0e",
    ),
    "dropout": 0.04,
    "attention_dropout": 0.08,
}


def few_elements(scalars: int, vectors: int, tensors: int) -> dict[str, object]:
    """Three equivariant layers behind an invariant one, with so many channels of l = 0, 1, 2."""
    irreps = f"{scalars}x0e+{vectors}x1o+{tensors}x2e"
    return {
        "invariant_channels": scalars,
        "parity": True,
        "equivariant_irreps": (irreps, irreps, f"{scalars}x0e"),
        "l_max": 2,
        "radial_hidden": (32, 32),
        "readout_channels": scalars // 2,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }


PRESETS: dict[str, dict[str, object]] = {
    "paper": {},
    "paper-o3": {
        "parity": True,
        "equivariant_irreps": ("512x0e+128x1o+64x2e+32x3o", "512x0e+128x1o+64x2e+32x3o", "512x0e"),
    },
    "published": _PUBLISHED,
    "published-o3": {
        **_PUBLISHED,
        "parity": True,
        "equivariant_irreps": (
            "512x0e+128x1o+64x2e",
            "512x0e+128x1o+64x2e+32x3o",
            "512x0e+128x1o+64x2e+32x3o",
            "512x0e",
        ),
    },
    "small": few_elements(32, 16, 8),
    "medium": few_elements(64, 32, 16),
    "large": few_elements(128, 64, 32),
}
"""`paper`: the paper's text and Table 5; `published`: the released checkpoint, both SO(3) as they were published;
`paper-o3`, `published-o3`: the same widths with parities; `small`, `medium`, `large`: one to five elements, on CPUs."""


class HIENet(LayeredModel):
    """Embedding, invariant layers, equivariant layers, readout; or the layers in another order."""

    def __init__(self, config: HIENetConfig) -> None:
        channels = config.invariant_channels
        width = o3.Irreps(config.equivariant_irreps[-1]).dim
        super().__init__(
            EdgeEmbedding(config.cutoff, config.n_radial, config.envelope_power, config.l_max),
            SpeciesEmbedding(len(config.elements), channels, config.dropout),
            ordered_layers(config),
            EnergyReadout(width, config.readout_channels, list(config.scale), list(config.shift), config.dropout),
            repulsion_of(config),
        )


def ordered_layers(config: HIENetConfig) -> list[nn.Module]:
    """Each equivariant layer and the invariant layers behind it, after the invariant layers in front of all."""
    irreps = (f"{config.invariant_channels}x0e", *config.equivariant_irreps)
    in_front, *behind = invariant_layers_at(config)
    layers = [invariant_layer(irreps[0], config) for _ in range(in_front)]
    for i, layer in enumerate(equivariant_layers(config.invariant_channels, config)):
        layers.append(layer)
        layers += [invariant_layer(irreps[i + 1], config) for _ in range(behind[i])]
    return layers


def invariant_layers_at(config: HIENetConfig) -> list[int]:
    """How many invariant layers stand in front of all equivariant ones, and behind each of them."""
    last = len(config.equivariant_irreps)
    places = {"invariant_first": [0], "alternating": list(range(1, last)), "invariant_last": [last]}[config.layer_order]
    counts = [0] * (last + 1)
    for i in range(config.n_invariant_layers):
        counts[places[i % len(places)]] += 1
    return counts


def invariant_layer(irreps: str, config: HIENetConfig) -> nn.Module:
    """An invariant layer on the scalars of features of `irreps`, as wide as these are."""
    layer = InvariantLayer(
        o3.Irreps(irreps).count("0e"),
        config.n_radial,
        config.dropout,
        config.attention_dropout,
        config.smooth_cutoff,
    )
    return layer if layer.channels == o3.Irreps(irreps).dim else LayerOnScalars(layer, irreps)
