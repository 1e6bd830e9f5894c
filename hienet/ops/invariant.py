"""The first invariant layer as a table over species pairs and distance; `hienet.nn.invariant` is it in plain torch.

The features that the first layer reads depend on species only, so the message between two atoms is a function of their
species and their distance. The layers after it read features that depend on the environment and stay as they are.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hienet.nn.embedding import EdgeEmbedding, SpeciesEmbedding
from hienet.nn.invariant import InvariantLayer, PairNetwork, attended
from hienet.nn.radial import bessel_basis
from hienet.ops.library import load_operators
from hienet.ops.spline import LANES, SAMPLES, fit_matrix, in_lanes, sample_distances, spline_coefficients


class _TabulatedNetwork(nn.Module):
    """A `PairNetwork` of features that depend on species: the first map is a sum of three that are known in advance."""

    # TorchScript reads these annotations, and only where they are not strings.
    of_center: Tensor
    """`[n_species, channels]`, biases included."""
    of_neighbor: Tensor
    of_radial: Tensor
    """`[n_radial, channels]`."""
    second: Tensor
    """`[channels, channels]`."""
    bias: Tensor

    def __init__(self, plain: PairNetwork, nodes: Tensor, edge: nn.Linear) -> None:
        """`nodes`: what the network reads of each species, `[n_species, channels]`."""
        super().__init__()
        c = plain.channels
        weight = plain.first.weight.detach()
        constant = plain.first.bias + edge.bias @ weight[:, 2 * c :].t()
        self.register_buffer("of_center", (nodes @ weight[:, :c].t() + constant).detach(), persistent=False)
        self.register_buffer("of_neighbor", (nodes @ weight[:, c : 2 * c].t()).detach(), persistent=False)
        self.register_buffer("of_radial", (weight[:, 2 * c :] @ edge.weight).t().detach(), persistent=False)
        self.register_buffer("second", plain.second.weight.detach().t(), persistent=False)
        self.register_buffer("bias", plain.second.bias.detach().clone(), persistent=False)

    def forward(self, center: int, neighbors: Tensor, radial: Tensor) -> Tensor:
        """A species, others `[m]`, and `[n, n_radial]` float64 to `[n, m, channels]` float64."""
        of_nodes = (self.of_center[center] + self.of_neighbor.index_select(0, neighbors)).to(torch.float64)
        hidden = (radial @ self.of_radial.to(torch.float64)).unsqueeze(1) + of_nodes
        return F.silu(hidden) @ self.second.to(torch.float64) + self.bias.to(torch.float64)


class TabulatedInvariantLayer(nn.Module):
    """What an `InvariantLayer` computes of species embeddings; for inference.

    The linear map `output` after the sum over neighbours is part of the tabulated message. The tables, for 89 elements
    31 GB, are built by `load_elements` for the elements in use; until then every pair of atoms is an error.
    """

    # TorchScript reads these annotations, and only where they are not strings.
    table: Tensor
    """`[n_pairs, blocks, n_intervals, 6, LANES]`: splines (hienet.ops.spline) of the messages of each ordered pair."""
    pair_row: Tensor
    """`[n_species, n_species]` int64: species of center and neighbour to a row of `table`, or -1."""
    query: Tensor
    """`[n_species, channels]`, divided by sqrt(channels)."""
    keep: Tensor
    """`[n_species, channels]`: what the layer puts out is keep + take * softplus(LayerNorm(sum))."""
    take: Tensor
    frequencies: Tensor
    attention_weight: Tensor
    attention_bias: Tensor
    output: Tensor
    output_bias: Tensor

    def __init__(
        self, plain: InvariantLayer, species: SpeciesEmbedding, embedding: EdgeEmbedding, n_intervals: int
    ) -> None:
        """The same layer as `plain`, for edges that `EdgeGeometry` makes.

        Args:
            plain: the first layer, in float64; convert afterwards.
            species: makes the features that it reads.
            embedding: makes the edges of `plain`.
            n_intervals: of the tables.

        Raises:
            HIENetError: the library of operators is not compiled.
        """
        super().__init__()
        load_operators()
        self.channels, self.lanes, self.samples = plain.channels, LANES, SAMPLES
        self.n_intervals = n_intervals
        self.cutoff, self.envelope = embedding.cutoff, embedding.envelope
        self.smooth_cutoff = plain.smooth_cutoff
        self.epsilon = plain.attention_norm.eps
        n_species = species.weight.shape[0]
        with torch.no_grad():
            x = species.weight / math.sqrt(float(n_species))
            self.key_network = _TabulatedNetwork(plain.key_network, plain.key(x), plain.edge)
            self.message_network = _TabulatedNetwork(plain.message_network, plain.value(x), plain.edge)
            reset, update = torch.sigmoid(plain.reset(x)), torch.sigmoid(plain.update(x))
            for name, value in {
                "table": x.new_zeros(0, math.ceil(plain.channels / LANES), n_intervals, 6, LANES),
                "pair_row": torch.full((n_species, n_species), -1),
                "query": plain.query(x) / math.sqrt(float(plain.channels)),
                "keep": (1.0 - update) * reset * x + update * (1.0 - update) * x,
                "take": update * update,
                "frequencies": embedding.basis.frequencies.clone(),
                "attention_weight": plain.attention_norm.weight.clone(),
                "attention_bias": plain.attention_norm.bias.clone(),
                "output": plain.output.weight.t().clone(),
                "output_bias": plain.output.bias.clone(),
            }.items():
                self.register_buffer(name, value, persistent=False)
        self.output_norm = plain.output_norm

    @property
    def state_width(self) -> int:
        """Columns of the state that the layer reads: none, the species say it all."""
        return 0

    @property
    def exchanged_width(self) -> int:
        """Leading columns that it reads of neighbours."""
        return 0

    def prepare(self, features: Tensor, species: Tensor) -> Tensor:
        """Any features to the empty state."""
        return features[:, :0]

    def load_elements(self, species: Tensor) -> int:
        """Have the tables of all pairs of these species, `[n]` int64 on any device, and no others; returns their bytes.

        It may be called again: tables of pairs that stay are kept.

        Raises:
            ValueError: a species that the model does not have.
        """
        device = self.table.device
        kinds = torch.unique(species).to(device)
        chosen: list[int] = kinds.tolist()
        n_species = self.pair_row.size(0)
        for kind in chosen:
            if kind < 0 or kind >= n_species:
                raise ValueError(f"species must be below {n_species}, got {kind}")
        distance = sample_distances(self.cutoff, self.n_intervals, self.samples).to(device).unsqueeze(1)
        envelope = self.envelope(distance)
        radial = bessel_basis(distance, self.frequencies.to(torch.float64), self.cutoff) * envelope
        fit = fit_matrix(self.samples).to(device)
        output = self.output.to(torch.float64)
        # Allocated once: together with a list of tables it would take twice the memory.
        shape = [len(chosen) * len(chosen), self.table.size(1), self.n_intervals, self.table.size(3), self.lanes]
        table = torch.empty(shape, dtype=self.table.dtype, device=device)
        rows = torch.full_like(self.pair_row, -1)
        # A few neighbours at once keep several threads busy and little memory in use.
        at_once = max(1, 2048 // distance.size(0))
        for place, center in enumerate(chosen):
            first = place * len(chosen)
            rows[center, kinds] = torch.arange(first, first + len(chosen), device=device)
            before: list[int] = self.pair_row[center, kinds].tolist()
            missing: list[int] = []
            for k, row in enumerate(before):
                if row >= 0:
                    table[first + k] = self.table[row]
                else:
                    missing.append(k)
            for start in range(0, len(missing), at_once):
                some = missing[start : start + at_once]
                samples = self.messages(center, kinds[torch.tensor(some, device=device)], radial, envelope)
                splines = spline_coefficients(samples.view(self.n_intervals, self.samples, -1), fit)
                # The map after the sum is linear: it takes the coefficients, which are fewer than the samples.
                mapped = splines.view(self.n_intervals, splines.size(1), -1, self.channels) @ output
                for i, k in enumerate(some):
                    table[first + k] = in_lanes(mapped[:, :, i], self.lanes)
        self.pair_row = rows
        self.table = table
        return table.numel() * table.element_size()

    def messages(self, center: int, neighbors: Tensor, radial: Tensor, envelope: Tensor) -> Tensor:
        """From several species `[m]` to one, without the linear map after the sum: `[n, m, channels]` float64.

        `radial` `[n, n_radial]` and `envelope` `[n, 1]` are those of n distances.
        """
        messages = attended(
            self.message_network(center, neighbors, radial),
            self.query[center].to(torch.float64) * self.key_network(center, neighbors, radial),
            self.attention_weight.to(torch.float64),
            self.attention_bias.to(torch.float64),
            self.epsilon,
        )
        if self.smooth_cutoff:
            messages = messages * envelope.unsqueeze(1)
        return messages

    def forward(
        self, state: Tensor, edges: Tensor, species: Tensor, center: Tensor, neighbor: Tensor, n_local: int
    ) -> Tensor:
        """As `InvariantLayer.forward`, with `edges` of `EdgeGeometry`; the state is not read.

        Raises:
            ValueError: a pair of species for which no table was built.
        """
        total = torch.ops.hienet.pair_message_sum(
            edges, species, self.table, self.pair_row, center, neighbor, n_local, self.channels, self.cutoff
        )
        own = species[:n_local]
        added = F.softplus(self.output_norm(total + self.output_bias))
        return torch.addcmul(self.keep.index_select(0, own), self.take.index_select(0, own), added)
