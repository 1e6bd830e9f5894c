"""Equivariant message passing: one interaction layer of the NequIP family."""

import torch
from e3nn import o3
from torch import Tensor, nn

from hienet.nn.convolution import TensorProductConvolution
from hienet.nn.embedding import split_edges
from hienet.nn.gate import Gate
from hienet.nn.irreps import irrep_blocks
from hienet.nn.linear import IrrepsLinear
from hienet.nn.radial import RadialNetwork
from hienet.nn.species_linear import SpeciesLinear


class NoSelfConnection(nn.Module):
    """In the place of a self-connection: the atom keeps nothing, in no columns."""

    def forward(self, features: Tensor, species: Tensor) -> Tensor:
        """`[n, irreps_in.dim]` to `[n, 0]`."""
        return features[:, :0]


class ScalarConstants(nn.Module):
    """Trainable constants that are added to some columns of a state: those of even scalars."""

    # TorchScript reads this annotation, and only where it is not a string.
    columns: Tensor
    """`[n]` int64."""

    def __init__(self, irreps: list[o3.Irreps]) -> None:
        """For a state that has features of these irreps side by side; zero at the start."""
        super().__init__()
        columns: list[int] = []
        start = 0
        for one in irreps:
            for block in irrep_blocks(one):
                if (block.l, block.parity) == (0, 1):
                    columns += range(start + block.start, start + block.stop)
            start += one.dim
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.int64), persistent=False)
        self.weight = nn.Parameter(torch.zeros(len(columns), dtype=torch.float64))

    def of_width(self, width: int) -> Tensor:
        """What is added to each row, `[width]`: zero but in the columns of even scalars."""
        return self.weight.new_zeros(width).index_add(0, self.columns, self.weight)

    def forward(self, state: Tensor) -> Tensor:
        """`[n, width]` to the same."""
        return state + self.of_width(state.shape[1])


class EquivariantLayer(nn.Module):
    """x_i <- Gate(Linear_out[(1/N) sum_j TP(Linear_in(x_j), Y_ij; w(d_ij))] + Linear_skip(x_i)).

    N is the mean number of neighbours. The radial network has no biases and the radial basis vanishes at the cutoff, so
    messages do. The linear maps have no biases, so an isolated atom keeps Gate(Linear_skip(x)).

    Options make of it what the BOTNet paper compares (Batatia et al., arXiv 2205.06643): no gate, so that the update is
    linear; no self-connection, in whose place a linear map for each species stands behind Linear_out; and path weights
    that are linear in the radial basis, with a matrix for each species of the sending atom.
    """

    # What is not compiled for the other value does not fit the other kind of module.
    __constants__ = ("by_species", "keeps_itself", "radial_by_species")

    def __init__(
        self,
        irreps_in: o3.Irreps | str,
        irreps_out: o3.Irreps | str,
        irreps_harmonics: o3.Irreps | str,
        n_radial: int,
        radial_hidden: list[int],
        avg_num_neighbors: float,
        n_species: int | None = None,
        *,
        gated: bool = True,
        self_connection: bool = True,
        element_dependent_radial: bool = False,
        scalar_constants: bool = False,
    ) -> None:
        """With `n_species`, Linear_skip has a matrix for each species, as in NequIP.

        With `scalar_constants` Linear_in and Linear_skip add a constant to each even scalar, which is the same for all
        atoms: what the one-hot modality of a multi-fidelity SevenNet comes to for one of its modalities.

        Raises:
            ValueError: an option that needs `n_species`, without it.
        """
        super().__init__()
        if n_species is None and (element_dependent_radial or not self_connection):
            raise ValueError(
                "a layer without self-connection, or with element-dependent radial maps, needs `n_species`"
            )
        self.n_radial = n_radial
        self.gate: Gate | nn.Identity = Gate(irreps_out) if gated else nn.Identity()
        irreps_update = self.gate.irreps_in if isinstance(self.gate, Gate) else o3.Irreps(irreps_out)
        self.linear_in = IrrepsLinear(irreps_in, irreps_in)
        self.by_species = n_species is not None
        self.keeps_itself = self_connection
        self.linear_skip: IrrepsLinear | SpeciesLinear | NoSelfConnection
        if n_species is None:
            self.linear_skip = IrrepsLinear(irreps_in, irreps_update)
        elif self_connection:
            self.linear_skip = SpeciesLinear(irreps_in, irreps_update, n_species)
        else:
            self.linear_skip = NoSelfConnection()
            self.message_of_species = SpeciesLinear(irreps_out, irreps_update, n_species)
        self.convolution = TensorProductConvolution(irreps_in, irreps_harmonics, irreps_out)
        self.radial_by_species = element_dependent_radial
        self.radial_network: RadialNetwork | SpeciesLinear
        if n_species is not None and element_dependent_radial:
            self.radial_network = SpeciesLinear(f"{n_radial}x0e", f"{self.convolution.n_weights}x0e", n_species)
        else:
            self.radial_network = RadialNetwork([n_radial, *radial_hidden, self.convolution.n_weights])
        self.linear_out = IrrepsLinear(self.convolution.irreps_out, irreps_update if self_connection else irreps_out)
        self.constants: ScalarConstants | nn.Identity = nn.Identity()
        if scalar_constants:
            self.constants = ScalarConstants([o3.Irreps(irreps_in), *([irreps_update] if self_connection else [])])
        self.avg_num_neighbors = avg_num_neighbors
        self.sent_width = o3.Irreps(irreps_in).dim
        self.kept_width = irreps_update.dim if self_connection else 0

    @property
    def state_width(self) -> int:
        """Columns of the state that the layer reads."""
        return self.sent_width + self.kept_width

    @property
    def exchanged_width(self) -> int:
        """Leading columns that it reads of neighbours."""
        return self.sent_width

    def prepare(self, features: Tensor, species: Tensor) -> Tensor:
        """Features `[n, irreps_in.dim]` to the state: what neighbours read, then the atom's own part of the update.

        `species`: `[n]` int64.
        """
        kept = self.linear_skip(features, species) if self.by_species else self.linear_skip(features)
        return self.constants(torch.cat([self.linear_in(features), kept], dim=1))

    def load_elements(self, species: Tensor) -> int:
        """Bytes of the tables built for these species: a plain layer has none."""
        return 0

    def forward(
        self,
        state: Tensor,
        edges: Tensor,
        species: Tensor,
        center: Tensor,
        neighbor: Tensor,
        n_local: int,
    ) -> Tensor:
        """New features of the owned atoms.

        Args:
            state: `[n_nodes, state_width]`; more columns may follow and are not read.
            edges: what `EdgeEmbedding` returns.
            species: `[n_nodes]` int64, read by the options that depend on it.
            center, neighbor: `[n_edges]` int64.
            n_local: number of owned atoms.

        Returns:
            `[n_local, irreps_out.dim]`.
        """
        radial, _, harmonics = split_edges(edges, self.n_radial)
        if self.radial_by_species:
            weights = self.radial_network(radial, species.index_select(0, neighbor))
        else:
            weights = self.radial_network(radial)
        messages = self.convolution(state, harmonics, weights, center, neighbor, n_local) / self.avg_num_neighbors
        update = self.linear_out(messages)
        if self.keeps_itself:
            update = update + state[:n_local, self.sent_width : self.sent_width + self.kept_width]
        else:
            update = self.message_of_species(update, species[:n_local])
        return self.gate(update)
