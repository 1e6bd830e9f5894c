"""BOTNet: the body-ordered tensor network, and NequIP as other options of the same layers.

Batatia, Batzner, Kovács, Musaelian, Simm, Drautz, Ortner, Kozinsky, Csányi, "The design space of E(3)-equivariant
atom-centred interatomic potentials", arXiv 2205.06643; Nature Machine Intelligence 7, 56 (2025).
"""

from __future__ import annotations

from e3nn import o3
from pydantic import Field
from torch import nn

from hienet.models.config import ModelConfig
from hienet.models.layered import LayeredModel
from hienet.models.repulsion import repulsion_of
from hienet.nn.embedding import EdgeEmbedding, SpeciesEmbedding
from hienet.nn.equivariant import EquivariantLayer
from hienet.nn.irreps import reachable_irreps
from hienet.nn.layer_readout import LayerWithReadout, ScalarReadout, SummedReadout


class BOTNetConfig(ModelConfig):
    """What defines a BOTNet, apart from its weights; the defaults are those of the paper but for the cutoff."""

    channels: int = Field(80, ge=1, description="channels of every irrep")
    n_layers: int = Field(5, ge=1, description="number of layers; layer t gives terms of body order t + 1")
    l_max: int = Field(3, ge=0, le=11, description="largest l of the spherical harmonics and of the features")
    natural_parity: bool = Field(
        False, description="keep irreps of parity (-1)^l only, half of them; false: both parities of each l"
    )
    n_radial: int = Field(8, ge=1, description="number of Bessel functions")
    envelope_power: int = Field(6, ge=3, description="power p of the polynomial envelope")
    radial_hidden: tuple[int, ...] = Field((64, 64, 64), description="hidden widths of the radial networks")
    element_dependent_radial: bool = Field(
        False,
        description="path weights are linear in the Bessel functions, with a matrix for each element of the sending "
        "atom; false: a network that does not see elements",
    )
    gates: bool = Field(
        False, description="gated non-linearities after each layer, as in NequIP; false: linear updates"
    )
    first_self_connection: bool = Field(
        False,
        description="the first layer keeps a part of the atom's own embedding, as in NequIP; an isolated atom then no "
        "longer has exactly its reference energy",
    )
    readout_every_layer: bool = Field(True, description="each layer contributes to the energy; false: only the last")
    readout_hidden: tuple[int, ...] = Field(
        (16,), description="hidden widths of the last layer's readout; none: linear, as those of the other layers"
    )
    unused_irreps: bool = Field(
        False,
        description="layers also put out irreps on which the energy does not depend, as in the published code; "
        "false: the same energies with fewer weights",
    )


PRESETS: dict[str, dict[str, object]] = {
    "paper": {"cutoff": 4.0},
    "natural-parity": {"cutoff": 4.0, "natural_parity": True},
    "nequip": {
        "channels": 64,
        "gates": True,
        "first_self_connection": True,
        "readout_every_layer": False,
        "readout_hidden": (),
    },
    "small": {
        "channels": 16,
        "n_layers": 3,
        "l_max": 2,
        "natural_parity": True,
        "radial_hidden": (32, 32),
    },
}
"""`paper`: BOTNet of the paper, for molecules; `natural-parity`: the same with half of the irreps; `nequip`: NequIP
(Batzner et al., Nature Communications 13, 2453 (2022)); `small`: a few elements on a laptop."""


class BOTNet(LayeredModel):
    """Embedding, equivariant layers each with a readout, sum."""

    def __init__(self, config: BOTNetConfig) -> None:
        n_species = len(config.elements)
        super().__init__(
            EdgeEmbedding(config.cutoff, config.n_radial, config.envelope_power, config.l_max),
            SpeciesEmbedding(n_species, config.channels, dropout=0.0),
            body_ordered_layers(config, n_species),
            SummedReadout(list(config.scale), list(config.shift)),
            repulsion_of(config),
        )


def body_ordered_layers(config: BOTNetConfig, n_species: int) -> list[nn.Module]:
    """x_i^1 = W_species m_i; x_i^t = m_i + W_species x_i^(t-1) for t > 1; read linearly, the last by a network.

    m_i is what `EquivariantLayer` sums over neighbours. Options replace parts of it.
    """
    harmonics = o3.Irreps.spherical_harmonics(config.l_max)
    irreps = o3.Irreps(f"{config.channels}x0e")
    layers: list[nn.Module] = []
    n_energies = 0
    for i, irreps_out in enumerate(features_of_layers(config, harmonics)):
        is_last = i == config.n_layers - 1
        layer = EquivariantLayer(
            irreps,
            irreps_out,
            harmonics,
            config.n_radial,
            list(config.radial_hidden),
            config.avg_num_neighbors,
            n_species,
            gated=config.gates,
            self_connection=i > 0 or config.first_self_connection,
            element_dependent_radial=config.element_dependent_radial,
        )
        if config.readout_every_layer or is_last:
            hidden = list(config.readout_hidden) if is_last else []
            layers.append(LayerWithReadout(layer, ScalarReadout(irreps_out, hidden), n_energies))
            n_energies = 1
        else:
            layers.append(layer)
        irreps = irreps_out
    return layers


def features_of_layers(config: BOTNetConfig, harmonics: o3.Irreps) -> list[o3.Irreps]:
    """Irreps that each layer puts out: all that can occur, but for what the options leave out."""
    kept = reachable_irreps(config.l_max, harmonics, config.n_layers)
    if config.natural_parity:
        kept = [[irrep for irrep in irreps if irrep in harmonics] for irreps in kept]
    if not config.unused_irreps:
        kept = used_irreps(kept, harmonics)
    return [o3.Irreps([(config.channels, irrep) for irrep in irreps]) for irreps in kept]


def used_irreps(layers: list[list[o3.Irrep]], harmonics: o3.Irreps) -> list[list[o3.Irrep]]:
    """Of the irreps of each layer those that reach the scalars of the last one, and scalars, which are read."""
    wanted = {o3.Irrep("0e")}
    used: list[list[o3.Irrep]] = []
    for irreps in reversed(layers):
        used.insert(0, [irrep for irrep in irreps if irrep in wanted])
        # Products with harmonics of l = 0 among them, so that what only a self-connection hands on is there too.
        wanted = {
            irrep
            for layer in layers
            for irrep in layer
            if irrep == o3.Irrep("0e") or any(made in used[0] for _, other in harmonics for made in irrep * other)
        }
    return used
