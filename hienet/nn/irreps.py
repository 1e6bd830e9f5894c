"""Irreps as plain integers: what TorchScript and the layers need of e3nn's `Irreps`."""

from __future__ import annotations

from dataclasses import dataclass

from e3nn import o3


@dataclass(frozen=True)
class IrrepBlock:
    """`channels` copies of the irrep (l, parity) in a feature tensor, stored as `[2l+1, channels]` from `start` on."""

    l: int
    parity: int
    channels: int
    start: int

    @property
    def dim(self) -> int:
        """2l + 1."""
        return 2 * self.l + 1

    @property
    def stop(self) -> int:
        """One past the last column."""
        return self.start + self.dim * self.channels


def sorted_irreps(irreps: o3.Irreps | str) -> o3.Irreps:
    """The same irreps in increasing l, one block for each (l, parity)."""
    return o3.Irreps(irreps).sort().irreps.simplify()


def with_natural_parity(irreps: o3.Irreps | str) -> o3.Irreps:
    """The same channels of each l with parity (-1)^l, that of the spherical harmonics."""
    return sorted_irreps([(channels, (irrep.l, (-1) ** irrep.l)) for channels, irrep in o3.Irreps(irreps)])


def labelled_even(irreps: o3.Irreps | str) -> o3.Irreps:
    """The same channels of each l, all with even parity."""
    return sorted_irreps([(channels, (irrep.l, 1)) for channels, irrep in o3.Irreps(irreps)])


def reachable_irreps(l_max: int, harmonics: o3.Irreps, n_layers: int) -> list[list[o3.Irrep]]:
    """After each layer, every irrep with l <= l_max that products of the features before it with the spherical
    harmonics have, when features begin as 0e."""
    present = {o3.Irrep("0e")}
    layers: list[list[o3.Irrep]] = []
    for _ in range(n_layers):
        present = {irrep for one in present for _, other in harmonics for irrep in one * other if irrep.l <= l_max}
        layers.append(sorted(present))
    return layers


def irrep_blocks(irreps: o3.Irreps | str) -> list[IrrepBlock]:
    """The blocks of a feature tensor.

    Raises:
        ValueError: an irrep occurs in two blocks.
    """
    blocks: list[IrrepBlock] = []
    start = 0
    for channels, irrep in o3.Irreps(irreps):
        if any((block.l, block.parity) == (irrep.l, irrep.p) for block in blocks):
            raise ValueError(f"`{irreps}` has two blocks of {irrep}; write it as one")
        blocks.append(IrrepBlock(irrep.l, irrep.p, channels, start))
        start = blocks[-1].stop
    return blocks
