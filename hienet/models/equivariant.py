"""What the architectures with equivariant layers share: part of the configuration, and the row of layers."""

from __future__ import annotations

from typing import ClassVar

from e3nn import o3
from pydantic import Field, field_validator, model_validator
from torch import nn

from hienet.models.staged import ModelConfig
from hienet.nn.equivariant import EquivariantLayer
from hienet.nn.irreps import sorted_irreps


class EquivariantConfig(ModelConfig):
    """Equivariant layers, radial networks, readout."""

    odd_irreps_allowed: ClassVar[bool] = False

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

    @field_validator("equivariant_irreps")
    @classmethod
    def _irreps_are_sorted(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            try:
                irreps = o3.Irreps(text)
            except ValueError as error:
                raise ValueError(f"`{text}` are not irreps; write them like 64x0e+32x1e") from error
            if not cls.odd_irreps_allowed and any(irrep.p != 1 for _, irrep in irreps):
                raise ValueError(f"`{text}` has odd parity; this architecture labels all irreps even, like 64x0e+32x1e")
            if irreps != sorted_irreps(irreps) or irreps.count("0e") == 0:
                order = "0o, 0e, 1o, 1e, 2o, 2e, ..." if cls.odd_irreps_allowed else "increasing l"
                raise ValueError(f"`{text}` must list each irrep once, in the order {order}, with 0e")
        return value

    @model_validator(mode="after")
    def _last_layer_is_scalar(self) -> EquivariantConfig:
        if any(irrep != o3.Irrep("0e") for _, irrep in o3.Irreps(self.equivariant_irreps[-1])):
            raise ValueError(f"the last of `equivariant_irreps` must be scalars, got `{self.equivariant_irreps[-1]}`")
        return self


def equivariant_layers(
    channels: int, config: EquivariantConfig, parity: bool = False, n_species: int | None = None
) -> list[nn.Module]:
    """The layers of `config.equivariant_irreps`, the first of which reads `channels` scalars.

    Args:
        parity: harmonics of odd l are odd, so that the model is O(3)-equivariant; otherwise all are labelled even.
        n_species: number of species, if self-connections have a matrix for each.
    """
    harmonics = o3.Irreps([(1, (l, (-1) ** l if parity else 1)) for l in range(config.l_max + 1)])
    irreps = o3.Irreps(f"{channels}x0e")
    layers: list[nn.Module] = []
    for text in config.equivariant_irreps:
        hidden = list(config.radial_hidden)
        layers.append(
            EquivariantLayer(irreps, text, harmonics, config.n_radial, hidden, config.avg_num_neighbors, n_species)
        )
        irreps = o3.Irreps(text)
    return layers
