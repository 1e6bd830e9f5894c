"""A layer of e3nn's own modules, with weights of order one, is the layer of ours that its weights are translated to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from e3nn import nn as e3nn_nn
from e3nn import o3

from hienet.convert.layers import ForeignLayer, check_order_of_irreps
from hienet.errors import HIENetError
from hienet.nn.equivariant import EquivariantLayer
from hienet.nn.irreps import irrep_blocks, sorted_irreps

N_RADIAL, N_SPECIES, N_NEIGHBORS = 4, 3, 5.0


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        previous = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        yield
        torch.set_default_dtype(previous)


class TheirLayer(torch.nn.Module):
    """Self-connection, linear map, product summed over neighbours, linear map, gate: as SevenNet and HIENet have it.

    Irreps keep the order in which they are given, but for messages and the gate's input, which e3nn sorts.
    """

    def __init__(
        self, irreps_in: str, irreps_out: str, harmonics: o3.Irreps, odd_messages: bool, by_species: bool, sort: bool
    ) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = o3.Irreps(irreps_in), o3.Irreps(irreps_out)
        scalars = o3.Irreps([(n, irrep) for n, irrep in self.irreps_out if irrep.l == 0])
        gated = o3.Irreps([(n, irrep) for n, irrep in self.irreps_out if irrep.l > 0])
        activations = [torch.nn.functional.silu if irrep.p == 1 else torch.tanh for _, irrep in scalars]
        gates = o3.Irreps([(n, (0, 1)) for n, _ in gated])
        self.gate = e3nn_nn.Gate(scalars, activations, gates, [torch.nn.functional.silu] * len(gates), gated)
        self.linear_in = o3.Linear(self.irreps_in, self.irreps_in)
        self.by_species = by_species
        if by_species:
            self.skip = o3.FullyConnectedTensorProduct(self.irreps_in, f"{N_SPECIES}x0e", self.gate.irreps_in)
        else:
            self.skip = o3.Linear(self.irreps_in, self.gate.irreps_in)
        possible = [(l, p) for l in range(self.irreps_out.lmax + 1) for p in ((-1, 1) if odd_messages else (1,))]
        paths = [
            (i, j, irrep, n)
            for i, (n, one) in enumerate(self.irreps_in)
            for j, (_, other) in enumerate(harmonics)
            for irrep in one * other
            if (irrep.l, irrep.p) in possible
        ]
        messages, order, _ = o3.Irreps([(n, irrep) for *_, irrep, n in paths]).sort()
        instructions = [(i, j, order[k], "uvu", True) for k, (i, j, _, _) in enumerate(paths)]
        if sort:
            instructions.sort(key=lambda instruction: instruction[2])
        self.convolution = o3.TensorProduct(
            self.irreps_in, harmonics, messages, instructions, shared_weights=False, internal_weights=False
        )
        self.linear_out = o3.Linear(messages.simplify(), self.gate.irreps_in)
        self.path_weights = torch.randn(N_RADIAL, self.convolution.weight_numel)

    def forward(self, x, angular, radial, species, center, neighbor):
        one_hot = torch.nn.functional.one_hot(species, N_SPECIES).to(x)
        skip = self.skip(x, one_hot) if self.by_species else self.skip(x)
        weights = radial @ self.path_weights / N_RADIAL**0.5
        messages = self.convolution(self.linear_in(x)[neighbor], angular, weights)
        total = torch.zeros(len(x), messages.shape[1]).index_add(0, center, messages) / N_NEIGHBORS
        return self.gate(self.linear_out(total) + skip)


def in_our_order(features: torch.Tensor, irreps: o3.Irreps) -> torch.Tensor:
    """From theirs, `[channels, 2l+1]` block by block as given, to ours: sorted, each irrep once, `[2l+1, channels]`."""
    blocks: dict[o3.Irrep, list[torch.Tensor]] = {}
    for part, (n, irrep) in zip(irreps.slices(), irreps, strict=True):
        blocks.setdefault(irrep, []).append(features[:, part].view(-1, n, irrep.dim))
    return torch.cat([torch.cat(blocks[irrep], dim=1).transpose(1, 2).flatten(1) for irrep in sorted(blocks)], dim=1)


CASES = {
    "natural": ("5x0e", "4x0e+3x1o+2x2e+2x3o", True),
    "natural, later": ("4x0e+3x1o+2x2e+2x3o", "4x0e+3x1o+2x2e", True),
    "every kind": ("2x0o+4x0e+3x1o+2x1e+2x2o+3x2e", "3x0o+5x0e+2x1o+4x1e+3x2o+2x2e", True),
    "2e in front of 2o, 0e of 0o": ("4x0e+2x0o+3x1o+2x1e+3x2e+2x2o", "5x0e+3x0o+4x1e+2x1o+2x2e+3x2o", True),
    "tensors in front of vectors": ("4x0e+2x2e+3x1o", "5x0e+2x2e+2x2o+4x1o+3x1e", True),
    "irreps in several blocks": ("4x0e+2x1o+3x2e+3x1o+2x2e", "2x0e+3x0o+3x0e+2x1o+2x2e+4x1o+3x1e", True),
    "out of reach": ("4x0e", "3x0o+4x0e+2x1o+3x1e+2x2o", True),
    "wants no vectors": ("4x0e+2x1o+2x2e", "4x0e+2x2e", True),
    "last": ("2x0o+4x0e+3x1o+2x1e+2x2e", "5x0e", False),
    "all even": ("4x0e+3x1e+2x2e", "5x0e+2x1e+3x2e+2x3e", False),
    "all even, tensors in front of vectors": ("4x0e+2x2e+3x1e", "5x0e+3x2e+2x1e", False),
}


@pytest.mark.parametrize(
    ("by_species", "sort"), [(False, False), (True, True)], ids=["one self-connection", "by species, paths sorted"]
)
@pytest.mark.parametrize(("irreps_in", "irreps_out", "odd_messages"), CASES.values(), ids=CASES)
def test_a_layer_of_e3nns_modules_is_translated(irreps_in, irreps_out, odd_messages, by_species, sort):
    harmonics = o3.Irreps.spherical_harmonics(3, p=-1 if "o" in irreps_in + irreps_out else 1)
    theirs = TheirLayer(irreps_in, irreps_out, harmonics, odd_messages, by_species, sort)
    foreign = ForeignLayer(theirs.irreps_in, theirs.irreps_out, harmonics, odd_messages, sort)
    ours = EquivariantLayer(
        sorted_irreps(irreps_in),
        sorted_irreps(irreps_out),
        harmonics,
        N_RADIAL,
        [],
        N_NEIGHBORS,
        N_SPECIES if by_species else None,
    )
    skip = theirs.skip.weight.detach()
    ours.load_state_dict(
        {
            "linear_in.weight": foreign.linear_in(theirs.linear_in.weight.detach()),
            "linear_out.weight": foreign.linear_out(theirs.linear_out.weight.detach()),
            "linear_skip.weight": foreign.species_skip(skip, N_SPECIES) if by_species else foreign.linear_skip(skip),
            "radial_network.weights.0": foreign.path_weights(theirs.path_weights),
        }
    )
    n_nodes, n_edges = 6, 30
    center, neighbor = torch.randint(n_nodes, (n_edges,)).sort().values, torch.randint(n_nodes, (n_edges,))
    species, features = torch.randint(N_SPECIES, (n_nodes,)), torch.randn(n_nodes, theirs.irreps_in.dim)
    angular = o3.spherical_harmonics([0, 1, 2, 3], torch.randn(n_edges, 3), True, "component")
    radial = torch.randn(n_edges, N_RADIAL)
    expected = in_our_order(theirs(features, angular, radial, species, center, neighbor).detach(), theirs.irreps_out)
    edges = torch.cat([radial, torch.ones(n_edges, 1), angular], dim=1)
    state = ours.prepare(in_our_order(features, theirs.irreps_in), species)
    found = ours(state, edges, species, center, neighbor, n_nodes).detach()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    # Nothing of it is small: each irrep that something leads to counts.
    for block in irrep_blocks(sorted_irreps(irreps_out)):
        irrep = o3.Irrep(block.l, block.parity)
        reached = any(irrep in one * other for _, one in theirs.irreps_in for _, other in harmonics)
        assert (found[:, block.start : block.stop].abs().max() > 0.1) == reached


def test_a_wrong_number_of_weights_is_noticed():
    layer = ForeignLayer(o3.Irreps("4x0e+3x1o"), o3.Irreps("4x0e+3x1o"), o3.Irreps("0e+1o"), True)
    with pytest.raises(RuntimeError, match="a linear map has 7 weights, expected 25"):
        layer.linear_in(torch.zeros(7))
    with pytest.raises(RuntimeError, match="9 path weights, expected"):
        layer.path_weights(torch.zeros(2, 9))


@pytest.mark.parametrize("irreps", ["4x1o+4x0e", "4x0e+4x1o+2x0o", "4x0o+4x1o"])
def test_features_that_a_gate_would_put_in_another_order_are_refused(irreps):
    with pytest.raises(HIENetError, match=r"its irreps `.*` must have 0e, and scalars in front of all others"):
        check_order_of_irreps("file.pth", ["4x0e", irreps])
