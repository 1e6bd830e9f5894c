"""What the architectures with equivariant layers share: part of the configuration, and the row of layers."""

from __future__ import annotations

from e3nn import o3
from pydantic import Field, ValidationInfo, field_validator, model_validator
from torch import nn

from hienet.models.config import ModelConfig, Symmetry
from hienet.nn.convolution import coupling_paths
from hienet.nn.equivariant import EquivariantLayer
from hienet.nn.irreps import labelled_even, sorted_irreps, with_natural_parity


class EquivariantConfig(ModelConfig):
    """Equivariant layers, radial networks, readout."""

    # In front of the irreps, whose validator reads it.
    parity: bool = Field(
        False,
        description="harmonics of odd l are odd, irreps have parities (64x0e+32x1o), and a structure and its mirror "
        "image have the same energy; false, as published: all are labelled even, and they may differ",
    )
    equivariant_irreps: tuple[str, ...] = Field(
        ("512x0e+128x1e+64x2e+32x3e", "512x0e+128x1e+64x2e+32x3e", "512x0e"),
        min_length=1,
        description="irreps that each equivariant layer puts out; the last one 0e only",
    )
    l_max: int = Field(3, ge=0, le=11, description="largest l of the spherical harmonics")
    n_radial: int = Field(8, ge=1, description="number of Bessel functions")
    envelope_power: int = Field(6, ge=3, description="power p of the polynomial envelope")
    radial_hidden: tuple[int, ...] = Field((64, 64), description="hidden widths of the radial networks")
    readout_channels: int = Field(256, ge=1, description="hidden width of the readout")

    @field_validator("equivariant_irreps")
    @classmethod
    def _irreps_are_sorted(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        parity = info.data.get("parity", True)
        for text in value:
            try:
                irreps = o3.Irreps(text)
            except ValueError as error:
                raise ValueError(
                    f"`{text}` are not irreps; write them like 64x0e+32x1{'o' if parity else 'e'}"
                ) from error
            if not parity and any(irrep.p != 1 for _, irrep in irreps):
                raise ValueError(f"`{text}` has odd parity; set `parity: true`, or write {labelled_even(text)}")
            if irreps != sorted_irreps(irreps) or irreps.count("0e") == 0:
                order = "0o, 0e, 1o, 1e, 2o, 2e, ..." if parity else "increasing l"
                raise ValueError(f"`{text}` must list each irrep once, in the order {order}, with 0e")
        return value

    @model_validator(mode="after")
    def _last_layer_is_scalar(self) -> EquivariantConfig:
        if any(irrep != o3.Irrep("0e") for _, irrep in o3.Irreps(self.equivariant_irreps[-1])):
            raise ValueError(f"the last of `equivariant_irreps` must be scalars, got `{self.equivariant_irreps[-1]}`")
        return self

    @property
    def irreps_harmonics(self) -> o3.Irreps:
        """Of the spherical harmonics that the layers take."""
        return o3.Irreps.spherical_harmonics(self.l_max, p=-1 if self.parity else 1)

    @property
    def symmetry(self) -> Symmetry:
        """O(3) with parities, and where all irreps are labelled even but no path has odd l1 + l2 + l3; else SO(3)."""
        if self.parity:
            return "O(3)"
        irreps = o3.Irreps("0e")
        for text in self.equivariant_irreps:
            paths = coupling_paths(irreps, self.irreps_harmonics, o3.Irreps(text))
            if any((path.l_feature + path.l_harmonic + path.l) % 2 for path in paths):
                return "SO(3)"
            irreps = o3.Irreps(text)
        return "O(3)"

    def check_for_training(self) -> None:
        """Every irrep that a layer is asked for is made of something.

        Raises:
            ValueError: one would stay zero whatever the weights.
        """
        present = [o3.Irrep("0e")]
        for i, text in enumerate(self.equivariant_irreps):
            made = {irrep for one in present for _, other in self.irreps_harmonics for irrep in one * other}
            missing = o3.Irreps([(channels, irrep) for channels, irrep in o3.Irreps(text) if irrep not in made])
            if missing:
                advice = "leave it out"
                if self.parity and all(irrep.p == 1 for _, irrep in o3.Irreps(text)):
                    advice = (
                        "with `parity: true` harmonics of odd l are odd: write "
                        f"{with_natural_parity(text)}, and so in all layers, or set `parity: false`"
                    )
                raise ValueError(
                    f"layer {i + 1} of `equivariant_irreps` is to put out `{text}`, but no product of "
                    f"{' + '.join(map(str, present))} with harmonics of l up to {self.l_max} makes {missing}; {advice}"
                )
            present = [irrep for _, irrep in o3.Irreps(text)]


def equivariant_layers(
    channels: int, config: EquivariantConfig, n_species: int | None = None, scalar_constants: bool = False
) -> list[nn.Module]:
    """The layers of `config.equivariant_irreps`, the first of which reads `channels` scalars.

    With `n_species`, self-connections have a matrix for each species; `scalar_constants` as in `EquivariantLayer`.
    """
    irreps = o3.Irreps(f"{channels}x0e")
    layers: list[nn.Module] = []
    for text in config.equivariant_irreps:
        layers.append(
            EquivariantLayer(
                irreps,
                text,
                config.irreps_harmonics,
                config.n_radial,
                list(config.radial_hidden),
                config.avg_num_neighbors,
                n_species,
                scalar_constants=scalar_constants,
            )
        )
        irreps = o3.Irreps(text)
    return layers
