"""SevenNet: equivariant message passing of the NequIP family (Park et al., J. Chem. Theory Comput. 20, 4857 (2024))."""

from __future__ import annotations

from e3nn import o3
from pydantic import Field, model_validator

from hienet.models.equivariant import EquivariantConfig, equivariant_layers
from hienet.models.layered import LayeredModel
from hienet.models.repulsion import repulsion_of
from hienet.nn.embedding import EdgeEmbedding, SpeciesEmbedding
from hienet.nn.irreps import reachable_irreps
from hienet.nn.readout import EnergyReadout


class SevenNetConfig(EquivariantConfig):
    """What defines a SevenNet, apart from its weights; the defaults are those of SevenNet-l3i5."""

    channels: int = Field(128, ge=1, description="width of the species embedding")
    equivariant_irreps: tuple[str, ...] = Field(
        (*("128x0e+64x1e+32x2e+32x3e",) * 4, "128x0e"),
        min_length=1,
        description="irreps that each layer puts out; the last one 0e only",
    )
    species_self_connection: bool = Field(
        False, description="self-connections have a matrix for each species, as in NequIP; false: one for all"
    )
    xplor_onset: float | None = Field(
        None, gt=0, description="Å; where XPLOR's cutoff function, in place of the polynomial one, begins to fall"
    )
    readout_channels: int = Field(64, ge=1, description="hidden width of the readout")
    scalar_constants: bool = Field(
        False,
        description="add trainable constants to the scalars in front of each convolution and of each gate, as models "
        "have them that were trained on data of several kinds",
    )

    @model_validator(mode="after")
    def _onset_lies_within_the_cutoff(self) -> SevenNetConfig:
        if self.xplor_onset is not None and self.xplor_onset >= self.cutoff:
            raise ValueError(f"`xplor_onset` must be below the cutoff {self.cutoff:g} Å, got {self.xplor_onset:g}")
        return self


def possible_irreps(channels: int, l_max: int, harmonics: o3.Irreps, n_layers: int) -> tuple[str, ...]:
    """Irreps of each layer's output where SevenNet's configuration names none: every irrep with l <= l_max that the
    products of the input with the spherical harmonics have, `channels` of each; 0e only from the last layer."""
    layers = [
        str(o3.Irreps([(channels, irrep) for irrep in irreps]))
        for irreps in reachable_irreps(l_max, harmonics, n_layers - 1)
    ]
    return (*layers, f"{channels}x0e")


L3I5_O3: dict[str, object] = {
    "parity": True,
    "equivariant_irreps": (*("128x0e+64x1o+32x2e+32x3o",) * 4, "128x0e"),
}
_SEVENNET_0 = ("128x0e+64x1e+32x2e",) * 4

PRESETS: dict[str, dict[str, object]] = {
    "l3i5": {},
    "l3i5-o3": L3I5_O3,
    "sevennet-0": {"equivariant_irreps": (*_SEVENNET_0, "128x0e"), "l_max": 2, "xplor_onset": 4.5},
    "nequip": {
        "channels": 64,
        "equivariant_irreps": possible_irreps(64, 2, o3.Irreps("0e+1o+2e"), 4),
        "l_max": 2,
        "parity": True,
        "species_self_connection": True,
        "readout_channels": 32,
    },
    "small": {
        "channels": 32,
        "parity": True,
        "equivariant_irreps": ("32x0e+16x1o+8x2e", "32x0e+16x1o+8x2e", "32x0e"),
        "l_max": 2,
        "radial_hidden": (32, 32),
        "readout_channels": 16,
    },
}
"""`l3i5` and `sevennet-0`: the released potentials, which are SO(3); `l3i5-o3`: that with parities; `nequip`: NequIP
(Batzner et al., 2022), the same layers with both parities of each l and a self-connection for each species; `small`: a
few elements."""


class SevenNet(LayeredModel):
    """Embedding, equivariant layers, readout."""

    def __init__(self, config: SevenNetConfig) -> None:
        n_species = len(config.elements)
        super().__init__(
            EdgeEmbedding(config.cutoff, config.n_radial, config.envelope_power, config.l_max, config.xplor_onset),
            SpeciesEmbedding(n_species, config.channels, dropout=0.0),
            equivariant_layers(
                config.channels,
                config,
                n_species if config.species_self_connection else None,
                config.scalar_constants,
            ),
            EnergyReadout(
                o3.Irreps(config.equivariant_irreps[-1]).dim,
                config.readout_channels,
                list(config.scale),
                list(config.shift),
                dropout=0.0,
            ),
            repulsion_of(config),
        )
