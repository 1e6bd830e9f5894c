"""The equivariant layer in compiled operators; `hienet.nn.equivariant` is the same in plain torch."""

import math

import torch
from e3nn import o3
from torch import Tensor, nn

from hienet.nn.convolution import TensorProductConvolution
from hienet.nn.embedding import EdgeEmbedding
from hienet.nn.equivariant import EquivariantLayer
from hienet.nn.gate import Gate
from hienet.nn.irreps import irrep_blocks
from hienet.nn.linear import IrrepsLinear
from hienet.ops.gate import FusedGate
from hienet.ops.library import load_operators
from hienet.ops.linear import FusedLinear, linear_plan
from hienet.ops.spline import LANES, in_lanes, tabulate

MAX_L = 11
"""Largest l of features and messages that the operator takes."""


class FusedEquivariantLayer(nn.Module):
    """What an `EquivariantLayer` computes, with its radial network as a table; for inference.

    Convolution and the linear map after it are one operator, which takes a block of centers at a time: no message and
    no path weight of an edge is stored. The plan of its convolution:

    * `paths` `[n_paths, 9]` int64: the first column of the features, 2l+1 of the features, channels, first block of
      LANES columns of the table, first column of the output, channels of the output's block, 2l+1 of the message,
      first term, one past the last term;
    * `terms` `[n_terms, 2]` int64 and `coefficients` `[n_terms]`: non-zero Clebsch-Gordan coefficients, path by path
      and sorted by harmonic. Coupling `terms[t, 0]` (m_out * (2 l_feature + 1) + m_feature) of the path is the sum of
      `coefficients[t]` times harmonic `terms[t, 1]`;
    * `table` `[blocks, n_intervals, 6, LANES]`: splines of the path weights (hienet.ops.spline).
    """

    # What is not compiled for the other value may call modules that the layer lacks.
    __constants__ = ("by_species", "keeps_itself")
    # TorchScript reads these annotations, and only where they are not strings.
    table: Tensor
    weights: Tensor
    transposed: Tensor
    paths: Tensor
    terms: Tensor
    coefficients: Tensor
    linear: Tensor

    def __init__(self, plain: EquivariantLayer, embedding: EdgeEmbedding, n_intervals: int) -> None:
        """The same layer as `plain`, for edges that `EdgeGeometry` makes.

        Args:
            plain: in float64, so that the tables are exact; convert afterwards.
            embedding: what makes the edges of `plain`.
            n_intervals: of the table.

        Raises:
            HIENetError: the library of operators is not compiled.
            ValueError: l above `MAX_L`, or radial maps that depend on the element, which have no table.
        """
        super().__init__()
        if plain.radial_by_species:
            raise ValueError("the compiled interaction takes path weights that depend on the distance alone")
        load_operators()
        self.sent_width, self.kept_width = plain.sent_width, plain.kept_width
        self.state_width, self.exchanged_width = plain.state_width, plain.exchanged_width
        self.cutoff = embedding.cutoff
        self.by_species, self.keeps_itself = plain.by_species, plain.keeps_itself
        self.constants = plain.constants
        if isinstance(plain.linear_skip, IrrepsLinear):
            self.prepared = FusedLinear([plain.linear_in, plain.linear_skip])
        else:
            self.prepared, self.linear_skip = FusedLinear([plain.linear_in]), plain.linear_skip
        if not self.keeps_itself:
            self.message_of_species = plain.message_of_species
            self.message_width = plain.message_of_species.dim_in
        self.gate = FusedGate(plain.gate) if isinstance(plain.gate, Gate) else plain.gate
        paths, terms, coefficients = convolution_plan(plain.convolution)
        self.register_buffer("paths", paths, persistent=False)
        self.register_buffer("terms", terms, persistent=False)
        self.register_buffer("coefficients", coefficients, persistent=False)
        linear, weights, transposed = linear_plan([plain.linear_out])
        self.register_buffer("linear", linear, persistent=False)
        self.register_buffer("weights", weights / plain.avg_num_neighbors, persistent=False)
        self.register_buffer("transposed", transposed / plain.avg_num_neighbors, persistent=False)
        splines = tabulate_path_weights(plain, embedding, n_intervals)
        self.register_buffer("table", in_padded_lanes(splines, plain.convolution), persistent=False)

    def prepare(self, features: Tensor, species: Tensor) -> Tensor:
        """As `EquivariantLayer.prepare`."""
        prepared = self.prepared(features)
        if self.by_species:
            prepared = torch.cat([prepared, self.linear_skip(features, species)], dim=1)
        return self.constants(prepared)

    def load_elements(self, species: Tensor) -> int:
        """Bytes of the tables built for these species: this layer's do not depend on them."""
        return 0

    def forward(
        self, state: Tensor, edges: Tensor, species: Tensor, center: Tensor, neighbor: Tensor, n_local: int
    ) -> Tensor:
        """As `EquivariantLayer.forward`, with `edges` of `EdgeGeometry`."""
        if self.keeps_itself:
            update = self.interaction(state, edges, center, neighbor, n_local)
        else:
            # The operator adds messages to what the atom keeps.
            nothing = state.new_zeros(state.shape[0], self.message_width)
            state = torch.cat([state[:, : self.sent_width], nothing], dim=1)
            update = self.message_of_species(
                self.interaction(state, edges, center, neighbor, n_local), species[:n_local]
            )
        return self.gate(update)

    def interaction(self, state: Tensor, edges: Tensor, center: Tensor, neighbor: Tensor, n_local: int) -> Tensor:
        """Messages through the linear map, added to what the atom keeps: `[n_local, irreps of that map]`."""
        return torch.ops.hienet.interaction(
            state,
            edges,
            self.table,
            self.weights,
            self.transposed,
            center,
            neighbor,
            n_local,
            self.cutoff,
            self.paths,
            self.terms,
            self.coefficients,
            self.linear,
            self.sent_width,
        )


def convolution_plan(plain: TensorProductConvolution) -> tuple[Tensor, Tensor, Tensor]:
    """`paths`, `terms` and `coefficients` (float64) of `FusedEquivariantLayer`."""
    blocks = irrep_blocks(plain.irreps_features)
    harmonics = plain.irreps_harmonics.slices()
    outputs = {(block.l, block.parity): block for block in irrep_blocks(plain.irreps_out)}
    used = dict.fromkeys(outputs, 0)
    rows: list[list[int]] = []
    terms: list[tuple[int, int]] = []
    coefficients: list[float] = []
    first_block = 0
    for path in plain.paths:
        if max(path.l, path.l_feature) > MAX_L:
            raise ValueError(f"the compiled interaction takes l up to {MAX_L}, got {max(path.l, path.l_feature)}")
        source, target = blocks[path.feature], outputs[path.l, path.parity]
        symbol = o3.wigner_3j(path.l_feature, path.l_harmonic, path.l, dtype=torch.float64) * math.sqrt(2 * path.l + 1)
        first_term = len(terms)
        # [harmonic, message, features]: sorted by harmonic
        for m, m_out, m_in in (symbol.permute(1, 2, 0).abs() > 1e-10).nonzero().tolist():
            terms.append((m_out * source.dim + m_in, harmonics[path.harmonic].start + m))
            coefficients.append(float(symbol[m_in, m, m_out]))
        first_output = target.start + used[path.l, path.parity]
        rows.append(
            [
                *(source.start, source.dim, source.channels, first_block, first_output, target.channels, target.dim),
                *(first_term, len(terms)),
            ]
        )
        used[path.l, path.parity] += path.channels
        first_block += math.ceil(path.channels / LANES)
    return torch.tensor(rows), torch.tensor(terms), torch.tensor(coefficients, dtype=torch.float64)


def tabulate_path_weights(plain: EquivariantLayer, embedding: EdgeEmbedding, n_intervals: int) -> Tensor:
    """Splines of the path weights as functions of the distance, `[n_intervals, 6, n_weights]`."""

    def path_weights(distance: Tensor) -> Tensor:
        d = distance.unsqueeze(1)
        return plain.radial_network(embedding.basis(d) * embedding.envelope(d))

    return tabulate(path_weights, embedding.cutoff, n_intervals, embedding.envelope.kink)


def in_padded_lanes(splines: Tensor, plain: TensorProductConvolution) -> Tensor:
    """`[n_intervals, 6, n_weights]` to `[blocks, n_intervals, 6, LANES]`; each path begins a block of its own."""
    channels = [path.channels for path in plain.paths]
    return torch.cat([in_lanes(part, LANES) for part in splines.split(channels, dim=2)])
