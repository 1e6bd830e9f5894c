"""Weights of equivariant layers from the order of e3nn's modules, as other programs use them, to ours.

Both programs whose files are read build a layer of `o3.Linear`, `o3.TensorProduct` and `e3nn.nn.Gate`. Ours has each
irrep once and sorted; theirs stand in the order of the configuration, which may name an irrep several times. Channels
are therefore found by what they are: the n-th of its irrep, the gate of such a one, or a message made of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from e3nn import o3
from torch import Tensor

from hienet.errors import HIENetError
from hienet.nn.convolution import coupling_paths
from hienet.nn.gate import Gate
from hienet.nn.irreps import sorted_irreps

_Channels = dict[o3.Irrep, list[tuple[object, ...]]]
"""For each irrep its channels in order, each named by what it is."""


def check_order_of_irreps(path: object, texts: Sequence[str]) -> None:
    """Features leave a gate in the order in which the next layer reads them, and gates are even.

    Raises:
        HIENetError: scalars behind other irreps, which a gate puts in front, or no even scalars.
    """
    for text in texts:
        degrees = [irrep.l for _, irrep in o3.Irreps(text)]
        if o3.Irreps(text).count("0e") == 0 or 0 in degrees[degrees.count(0) :]:
            raise HIENetError(
                f"`{path}` cannot be converted: its irreps `{text}` must have 0e, and scalars in front of all others"
            )


@dataclass(frozen=True)
class ForeignLayer:
    """One of their equivariant layers; its methods take their weights to ours.

    Attributes:
        irreps_in, irreps_out: of the features, in the order of their configuration.
        irreps_harmonics: of the spherical harmonics.
        odd_messages: messages of odd parity are computed. Theirs have every irrep up to the largest l of the output,
            wanted or not.
        paths_sorted: the weights of paths are sorted by the irrep of the message; else they lie as paths are listed,
            by input, by harmonic, by l of the message.
    """

    irreps_in: o3.Irreps
    irreps_out: o3.Irreps
    irreps_harmonics: o3.Irreps
    odd_messages: bool
    paths_sorted: bool = False

    def linear_in(self, theirs: Tensor) -> Tensor:
        """Of the map in front of the convolution."""
        matrices = _matrices(theirs, self.irreps_in, self.irreps_in)
        return torch.cat([matrices[irrep].flatten() for _, irrep in sorted_irreps(self.irreps_in)])

    def linear_skip(self, theirs: Tensor) -> Tensor:
        """Of a self-connection that is one linear map."""
        matrices = _matrices(theirs, self.irreps_in, self._gate.irreps_in)
        return torch.cat([part.flatten() for part in self._before_gate(matrices)])

    def species_skip(self, theirs: Tensor, n_species: int) -> Tensor:
        """Of a self-connection that is a product with the one-hot species, `[n_species, n_weights]`."""
        matrices = _matrices(theirs, self.irreps_in, self._gate.irreps_in, n_species)
        return torch.cat([part.transpose(0, 1).reshape(n_species, -1) for part in self._before_gate(matrices)], dim=1)

    def linear_out(self, theirs: Tensor) -> Tensor:
        """Of the map behind the convolution."""
        found = _grouped(self._messages())
        matrices = _matrices(theirs, self.irreps_messages, self._gate.irreps_in)
        for irrep, channels in _grouped(self._wanted_messages()).items():
            matrices[irrep] = matrices[irrep][_positions(channels, found[irrep])]
        return torch.cat([part.flatten() for part in self._before_gate(matrices)])

    def path_weights(self, theirs: Tensor) -> Tensor:
        """Of the last layer of the radial network, `[hidden, n_weights]`."""
        messages = self._messages()
        if self.paths_sorted:
            messages.sort(key=lambda message: message[0])
        columns = [(irrep, *channel) for irrep, channels in messages for channel in channels]
        if len(columns) != theirs.shape[1]:
            raise RuntimeError(f"{theirs.shape[1]} path weights, expected {len(columns)}")
        wanted = [(irrep, *channel) for irrep, channels in self._wanted_messages() for channel in channels]
        return theirs[:, _positions(wanted, columns)]

    @property
    def irreps_messages(self) -> o3.Irreps:
        """Of theirs, what the map behind the convolution reads."""
        found = _grouped(self._messages())
        return sorted_irreps(o3.Irreps([(len(channels), irrep) for irrep, channels in found.items()]))

    @property
    def irreps_update(self) -> o3.Irreps:
        """What enters the gate."""
        return self._gate.irreps_in

    def constants_before_gate(self, theirs: Tensor) -> Tensor:
        """Of constants that are added to the even scalars in front of the gate, in our order."""
        return theirs[_positions(_even_before_gate(sorted_irreps(self.irreps_out)), _even_before_gate(self.irreps_out))]

    @property
    def _gate(self) -> Gate:
        return Gate(sorted_irreps(self.irreps_out))

    def _before_gate(self, matrices: dict[o3.Irrep, Tensor]) -> list[Tensor]:
        """Of matrices to the irreps before the gate those that are there, with our order of gates, and of irreps."""
        even = o3.Irrep("0e")
        order = _positions(_even_before_gate(sorted_irreps(self.irreps_out)), _even_before_gate(self.irreps_out))
        return [
            matrices[irrep][..., order] if irrep == even else matrices[irrep]
            for _, irrep in self._gate.irreps_in
            if irrep in matrices
        ]

    def _messages(self) -> list[tuple[o3.Irrep, list[tuple[object, ...]]]]:
        """Irrep and channels of each path of theirs."""
        l_max, parities = self.irreps_out.lmax, (-1, 1) if self.odd_messages else (1,)
        irreps = o3.Irreps([(1, (l, p)) for l in range(l_max + 1) for p in parities])
        return _messages_of(self.irreps_in, self.irreps_harmonics, irreps)

    def _wanted_messages(self) -> list[tuple[o3.Irrep, list[tuple[object, ...]]]]:
        """Irrep and channels of each path of ours."""
        return _messages_of(sorted_irreps(self.irreps_in), self.irreps_harmonics, self.irreps_out)


def without_modality(
    theirs: Tensor, irreps_in: o3.Irreps, irreps_out: o3.Irreps, n_modalities: int, modality: int
) -> tuple[Tensor, Tensor]:
    """The flat weights of an `o3.Linear` that also reads the one-hot modality, for one modality.

    Theirs lies behind the other scalars of the input, and counts in the fan-in of even scalars.

    Args:
        theirs: flat weights.
        irreps_in: without the modality.
        irreps_out: as they have them.
        n_modalities, modality: how many there are, and which is wanted.

    Returns:
        Flat weights of the map without it, and the constants `[n]` that it adds to the even scalars of the output, in
        their order.

    Raises:
        RuntimeError: another number of weights.
    """
    even = o3.Irrep("0e")
    fan_in, fan_out = irreps_in.count(even), irreps_out.count(even)
    n_head = sum(n * m for n, one in irreps_in for m, other in irreps_out if one == other)
    if theirs.numel() != n_head + n_modalities * fan_out:
        raise RuntimeError(
            f"a linear map has {theirs.numel()} weights, expected {n_head + n_modalities * fan_out} with the modality"
        )
    head, tail = theirs[:n_head].clone(), theirs[n_head:]
    start = 0
    for n, one in irreps_in:
        for m, other in irreps_out:
            if one == other:
                if one == even:
                    head[start : start + n * m] *= math.sqrt(fan_in / (fan_in + n_modalities))
                start += n * m
    constants: list[Tensor] = []
    start = 0
    for m, other in irreps_out:
        if other == even:
            constants.append(tail[start : start + n_modalities * m].view(n_modalities, m)[modality])
            start += n_modalities * m
    return head, torch.cat(constants) / math.sqrt(fan_in + n_modalities)


def _messages_of(
    irreps_in: o3.Irreps, irreps_harmonics: o3.Irreps, irreps_out: o3.Irreps
) -> list[tuple[o3.Irrep, list[tuple[object, ...]]]]:
    """A channel of a message is the n-th channel of an irrep of the features, and a harmonic."""
    features: list[list[tuple[object, ...]]] = []
    seen: dict[o3.Irrep, int] = {}
    for n, irrep in irreps_in:
        first = seen.get(irrep, 0)
        features.append([(irrep, first + k) for k in range(n)])
        seen[irrep] = first + n
    return [
        (o3.Irrep(path.l, path.parity), [(*channel, path.l_harmonic) for channel in features[path.feature]])
        for path in coupling_paths(irreps_in, irreps_harmonics, irreps_out)
    ]


def _grouped(messages: list[tuple[o3.Irrep, list[tuple[object, ...]]]]) -> _Channels:
    """The channels of each irrep, path after path."""
    found: _Channels = {}
    for irrep, channels in messages:
        found.setdefault(irrep, []).extend(channels)
    return found


def _even_before_gate(irreps_out: o3.Irreps) -> list[tuple[object, ...]]:
    """The even scalars that enter a gate: those that leave it, then the gates of the other irreps in their order."""
    gates: _Channels = {}
    order: list[tuple[object, ...]] = [("scalar", k) for k in range(irreps_out.count("0e"))]
    for n, irrep in irreps_out:
        if irrep.l > 0:
            of_irrep = gates.setdefault(irrep, [])
            new = [("gate", irrep, len(of_irrep) + k) for k in range(n)]
            of_irrep += new
            order += new
    return order


def _positions(wanted: Sequence[tuple[object, ...]], found: Sequence[tuple[object, ...]]) -> Tensor:
    """Where each of `wanted` is in `found`, `[n]` int64."""
    where = {channel: i for i, channel in enumerate(found)}
    return torch.tensor([where[channel] for channel in wanted], dtype=torch.int64)


def _matrices(
    weights: Tensor, irreps_in: o3.Irreps, irreps_out: o3.Irreps, n_species: int | None = None
) -> dict[o3.Irrep, Tensor]:
    """The flat weights of `o3.Linear` as a matrix `[fan-in, fan-out]` for each irrep that input and output have.

    With `n_species` those of `o3.FullyConnectedTensorProduct` with the one-hot species, `[fan-in, n_species, fan-out]`.
    They lie block by block of the input, and for each by block of the output.

    Raises:
        RuntimeError: another number of weights.
    """
    middle = () if n_species is None else (n_species,)
    n_weights = math.prod(middle) * sum(n * m for n, one in irreps_in for m, other in irreps_out if one == other)
    if n_weights != weights.numel():
        raise RuntimeError(f"a linear map has {weights.numel()} weights, expected {n_weights}")
    rows: dict[o3.Irrep, list[Tensor]] = {}
    start = 0
    for fan_in, irrep in irreps_in:
        columns: list[Tensor] = []
        for fan_out in [n for n, other in irreps_out if other == irrep]:
            shape = (fan_in, *middle, fan_out)
            size = math.prod(shape)
            columns.append(weights[start : start + size].view(shape))
            start += size
        if columns:
            rows.setdefault(irrep, []).append(torch.cat(columns, dim=-1))
    return {irrep: torch.cat(parts) for irrep, parts in rows.items()}
