"""HIENet: invariant message passing first, equivariant message passing after (Yan et al., 2025)."""

from __future__ import annotations

from e3nn import o3
from pydantic import Field, field_validator, model_validator
from torch import nn

from hienet.models.layered import LayeredModel
from hienet.models.staged import ModelConfig
from hienet.nn.embedding import EdgeEmbedding, SpeciesEmbedding
from hienet.nn.equivariant import EquivariantLayer
from hienet.nn.invariant import InvariantLayer
from hienet.nn.readout import EnergyReadout


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
        energy_readout = EnergyReadout(
            irreps.dim, config.readout_channels, list(config.scale), list(config.shift), config.dropout
        )
        super().__init__(edge_embedding, species_embedding, layers, energy_readout)
