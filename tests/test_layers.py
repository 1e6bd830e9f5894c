"""Layers against e3nn, and the counts that identify the published architectures."""

from __future__ import annotations

import pytest
import torch
from ase.data import chemical_symbols
from e3nn import nn as e3nn_nn
from e3nn import o3
from e3nn.math import normalize2mom

from hienet.errors import HIENetError
from hienet.models.factory import ARCHITECTURES, DEFAULT_PRESET, build_model, make_config, symmetry_of
from hienet.nn.activation import normalized_silu
from hienet.nn.convolution import TensorProductConvolution
from hienet.nn.gate import Gate
from hienet.nn.irreps import irrep_blocks
from hienet.nn.linear import IrrepsLinear
from hienet.nn.radial import BesselBasis, RadialNetwork, polynomial_envelope, xplor_envelope
from hienet.nn.species_linear import SpeciesLinear

IRREPS = o3.Irreps("5x0e+4x1e+3x2e+2x3e")
MPTRJ = [s for s in sorted(chemical_symbols[1:95]) if s not in ("Po", "At", "Rn", "Fr", "Ra")]


@pytest.fixture(autouse=True)
def _double_precision():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        previous = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        yield
        torch.set_default_dtype(previous)


def to_e3nn(features: torch.Tensor, irreps: o3.Irreps) -> torch.Tensor:
    """From our layout, `[2l+1, channels]`, to e3nn's, `[channels, 2l+1]`."""
    return torch.cat(
        [
            features[:, b.start : b.stop].view(-1, b.dim, b.channels).transpose(1, 2).flatten(1)
            for b in irrep_blocks(irreps)
        ],
        dim=1,
    )


def test_the_normalized_silu_is_e3nns():
    x = torch.linspace(-5, 5, 11)
    torch.testing.assert_close(normalized_silu(x), normalize2mom(torch.nn.functional.silu)(x), rtol=1e-15, atol=0)


def test_the_linear_map_is_e3nns():
    irreps_out = o3.Irreps("6x0e+2x1e+7x3e")
    ours, theirs = IrrepsLinear(IRREPS, irreps_out), o3.Linear(IRREPS, irreps_out)
    theirs.weight.data = ours.weight.data
    features = torch.randn(9, IRREPS.dim)
    torch.testing.assert_close(to_e3nn(ours(features), irreps_out), theirs(to_e3nn(features, IRREPS)))


def test_an_irrep_that_the_input_lacks_is_zero():
    output = IrrepsLinear("3x0e", "2x0e+2x1e")(torch.randn(4, 3))
    assert output[:, 2:].abs().max() == 0
    assert output[:, :2].abs().min() > 0


def test_the_radial_network_is_e3nns():
    ours, theirs = RadialNetwork([8, 16, 12, 30]), e3nn_nn.FullyConnectedNet([8, 16, 12, 30], torch.nn.functional.silu)
    for layer, weight in zip(theirs, ours.weights, strict=True):
        layer.weight.data = weight.data
    x = torch.randn(7, 8)
    torch.testing.assert_close(ours(x), theirs(x))


def test_the_gate_is_e3nns():
    ours = Gate(IRREPS)
    theirs = e3nn_nn.Gate("5x0e", [torch.nn.functional.silu], "9x0e", [torch.nn.functional.silu], "4x1e+3x2e+2x3e")
    features = torch.randn(6, ours.irreps_in.dim)
    torch.testing.assert_close(to_e3nn(ours(features), IRREPS), theirs(to_e3nn(features, ours.irreps_in)))


def test_the_gate_with_odd_irreps_is_e3nns():
    irreps = o3.Irreps("3x0o+5x0e+4x1o+3x1e+2x2o")
    silu, tanh = torch.nn.functional.silu, torch.tanh
    ours, theirs = Gate(irreps), e3nn_nn.Gate("3x0o+5x0e", [tanh, silu], "9x0e", [silu], "4x1o+3x1e+2x2o")
    assert ours.irreps_in == theirs.irreps_in
    features = torch.randn(6, ours.irreps_in.dim)
    torch.testing.assert_close(to_e3nn(ours(features), irreps), theirs(to_e3nn(features, ours.irreps_in)))


@pytest.mark.parametrize("irreps", ["4x1o", "4x0o+4x1o", "4x0e+4x0o"])
def test_the_gate_refuses_irreps_in_another_order(irreps):
    with pytest.raises(ValueError, match="takes irreps that begin with 0e, or with 0o and 0e"):
        Gate(irreps)


@pytest.mark.parametrize("irreps_in", ["5x0e", "3x0o+5x0e+4x1o+3x1e+2x2o"])
def test_the_linear_map_of_species_is_e3nns_product_with_the_one_hot_species(irreps_in):
    irreps_out = "2x0o+4x0e+3x1o+2x1e+2x2o"
    ours = SpeciesLinear(irreps_in, irreps_out, 3)
    theirs = o3.FullyConnectedTensorProduct(irreps_in, "3x0e", irreps_out)
    parts = []
    for _, fan_in, _, fan_out, first in ours.columns:
        weight = ours.weight.detach()[:, first : first + fan_in * fan_out].view(3, fan_in, fan_out)
        parts.append(weight.transpose(0, 1).flatten())
    features, species = torch.randn(7, o3.Irreps(irreps_in).dim), torch.tensor([2, 0, 0, 1, 2, 2, 0])
    one_hot = torch.nn.functional.one_hot(species, 3).double()
    expected = theirs(to_e3nn(features, o3.Irreps(irreps_in)), one_hot, torch.cat(parts))
    torch.testing.assert_close(to_e3nn(ours(features, species), o3.Irreps(irreps_out)), expected)


def test_the_xplor_envelope_falls_smoothly_from_onset_to_cutoff():
    r = torch.tensor([0.1, 4.4999999, 4.5000001, 4.75, 4.9999999, 5.1], dtype=torch.float64, requires_grad=True)
    value = xplor_envelope(r, 5.0, 4.5)
    expected = (25 - 4.75**2) ** 2 * (25 + 2 * 4.75**2 - 3 * 4.5**2) / (25 - 4.5**2) ** 3
    torch.testing.assert_close(value.detach(), r.new_tensor([1.0, 1.0, 1.0, expected, 0.0, 0.0]), rtol=0, atol=1e-6)
    (slope,) = torch.autograd.grad(value.sum(), r)
    assert slope[[0, 1, 2, 4, 5]].abs().max() < 1e-5


@pytest.mark.parametrize(
    ("irreps_in", "irreps_out"), [("5x0e", "4x0e+3x1e+2x2e+2x3e"), (str(IRREPS), str(IRREPS)), (str(IRREPS), "4x0e")]
)
def test_the_convolution_is_e3nns_tensor_product_summed_over_neighbors(irreps_in, irreps_out):
    harmonics = o3.Irreps.spherical_harmonics(3, p=1)
    ours = TensorProductConvolution(irreps_in, harmonics, irreps_out)
    mid = o3.Irreps([(path.channels, (path.l, path.parity)) for path in ours.paths])
    mid, order, _ = mid.sort()
    instructions = [(p.feature, p.harmonic, order[i], "uvu", True) for i, p in enumerate(ours.paths)]
    theirs = o3.TensorProduct(
        o3.Irreps(irreps_in), harmonics, mid, instructions, shared_weights=False, internal_weights=False
    )
    n_edges, n_nodes, n_local = 40, 12, 7
    center = torch.randint(n_local, (n_edges,)).sort().values
    neighbor = torch.randint(n_nodes, (n_edges,))
    features = torch.randn(n_nodes, o3.Irreps(irreps_in).dim)
    angular = o3.spherical_harmonics([0, 1, 2, 3], torch.randn(n_edges, 3), True, "component")
    weights = torch.randn(n_edges, ours.n_weights)
    messages = theirs(to_e3nn(features, o3.Irreps(irreps_in))[neighbor], angular, weights)
    expected = torch.zeros(n_local, mid.dim).index_add(0, center, messages)
    found = ours(features, angular, weights, center, neighbor, n_local)
    torch.testing.assert_close(to_e3nn(found, ours.irreps_out), expected)


def test_the_envelope_and_two_derivatives_vanish_at_the_cutoff():
    r = torch.tensor([5.0 - 1e-9], requires_grad=True)
    value = polynomial_envelope(r, 5.0, 6)
    (slope,) = torch.autograd.grad(value.sum(), r, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), r)
    assert max(abs(tensor.item()) for tensor in (value, slope, curvature)) < 1e-6
    assert float(polynomial_envelope(torch.tensor([0.0]), 5.0, 6)) == 1.0
    assert float(polynomial_envelope(torch.tensor([5.1]), 5.0, 6)) == 0.0


def test_the_bessel_basis_is_finite_at_zero_distance_and_right_elsewhere():
    basis = BesselBasis(5.0, 8)
    n = torch.arange(1, 9)
    at_zero = basis(torch.zeros(1, 1))
    torch.testing.assert_close(at_zero[0], 0.4 * n * torch.pi / 5.0)
    torch.testing.assert_close(basis(torch.tensor([[2.0]]))[0], 0.4 * torch.sin(n * torch.pi * 2.0 / 5.0) / 2.0)


@pytest.mark.parametrize(("preset", "trainable"), [("paper", 7_859_976), ("published", 7_510_280)])
def test_parameter_counts_are_those_of_the_publications(preset, trainable):
    """The paper's 7,860,155 counts also 89 scales, 89 reference energies and one normalisation of neighbour sums."""
    assert len(MPTRJ) == 89
    model = build_model("hienet", make_config("hienet", preset, {"elements": MPTRJ}))
    assert sum(parameter.numel() for parameter in model.parameters()) == trainable
    assert 7_859_976 + 2 * 89 + 1 == 7_860_155


@pytest.mark.parametrize(
    ("preset", "layer", "paths"), [("paper", 2, 34), ("paper-o3", 2, 23), ("published", 3, 34), ("published-o3", 3, 23)]
)
def test_natural_parity_has_two_thirds_of_the_paths(preset, layer, paths):
    model = build_model("hienet", make_config("hienet", preset, {"elements": ["Si"]}))
    assert len(model.layers[layer].convolution.paths) == paths


@pytest.mark.parametrize(
    ("values", "symmetry"),
    [
        ({"equivariant_irreps": ["8x0e+4x1e", "8x0e+4x1e", "8x0e"]}, "SO(3)"),
        ({"equivariant_irreps": ["8x0e", "8x0e+4x1e", "8x0e"]}, "O(3)"),
        ({"equivariant_irreps": ["8x0e+4x1e", "8x0e"]}, "O(3)"),
        ({"equivariant_irreps": ["8x0e", "8x0e"]}, "O(3)"),
        ({"equivariant_irreps": ["8x0e+4x1o+4x1e", "8x0e+4x1o+4x1e", "8x0e"], "parity": True}, "O(3)"),
    ],
)
def test_the_symmetry_follows_from_the_paths(values, symmetry):
    assert symmetry_of("eqvnet", {"elements": ["Si"], **values}) == symmetry


def test_new_models_have_parity_and_the_published_forms_stay():
    for name in ("hienet", "eqvnet", "sevennet", "inv_sevennet"):
        presets = {preset: make_config(name, preset, {"elements": ["Si"]}) for preset in ARCHITECTURES[name].presets}
        assert presets[DEFAULT_PRESET].symmetry == "O(3)"
        without = {preset for preset, config in presets.items() if config.symmetry == "SO(3)"}
        assert without == set(presets) & {"paper", "published", "l3i5", "sevennet-0"}
    assert all(
        make_config(name, preset, {"elements": ["Si"]}).symmetry == "O(3)"
        for name in ("invnet", "nemp", "botnet", "geodite")
        for preset in ARCHITECTURES[name].presets
    )


def test_a_seed_fixes_the_weights_and_leaves_the_global_generator_alone():
    config = make_config("hienet", "small", {"elements": ["Si"]})
    before = torch.random.get_rng_state()
    first, second, other = (build_model("hienet", config, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.species_embedding.weight, second.species_embedding.weight)
    assert not torch.equal(first.species_embedding.weight, other.species_embedding.weight)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cutof": 5.0}, "unknown key `model.cutof`; allowed here: elements, cutoff"),
        ({"cutoff": float("inf")}, "key `model.cutoff`: Input should be a finite number"),
        ({"cutoff": -1.0}, "key `model.cutoff`: Input should be greater than 0.*given: `-1.0`"),
        (
            {"parity": False, "equivariant_irreps": ["8x0e+4x1o", "8x0e"]},
            r"`8x0e\+4x1o` has odd parity; set `parity: true`, or write 8x0e\+4x1e",
        ),
        ({"equivariant_irreps": ["8x0e+4x1e+4x1o", "8x0e"]}, "in the order 0o, 0e, 1o, 1e, 2o, 2e"),
        ({"equivariant_irreps": ["8x0e+4x1e"]}, "must be scalars"),
        ({"equivariant_irreps": ["8xe", "8x0e"]}, "are not irreps"),
        ({"elements": ["Si", "Xx"]}, "not chemical symbols"),
        ({"elements": ["Si", "Si"]}, "names an element twice"),
        ({"shift": [1.0, 2.0]}, "`shift` must have one number for each of the 1 elements"),
    ],
)
def test_wrong_hyperparameters_are_named(values, message):
    with pytest.raises(HIENetError, match=message):
        make_config("hienet", "small", {"elements": ["Si"], **values})


def test_unknown_architecture_and_preset_list_the_known_ones():
    with pytest.raises(HIENetError, match="unknown architecture `mace`; expected one of: hienet"):
        make_config("mace", None, {})
    with pytest.raises(
        HIENetError,
        match="unknown preset `huge` of `hienet`; expected one of: paper, paper-o3, published, published-o3, small,",
    ):
        make_config("hienet", "huge", {"elements": ["Si"]})
