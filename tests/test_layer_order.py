"""Where HIENet's invariant layers stand among the equivariant ones."""

from __future__ import annotations

import pytest
import torch

from hienet.errors import HIENetError
from hienet.models.factory import build_model, make_config
from hienet.models.hienet import HIENet
from hienet.nn.invariant import InvariantLayer
from hienet.nn.scalar_layer import LayerOnScalars
from hienet.testing import TINY, silicon_carbide, tiny_model


def tiny_hienet(**values: object) -> HIENet:
    return HIENet(make_config("hienet", None, {**TINY["hienet"], "elements": ("C", "Si"), **values}))


@pytest.mark.parametrize(
    ("order", "n_invariant", "expected"),
    [
        ("invariant_first", 2, "iieee"),
        ("invariant_last", 2, "eeeii"),
        ("alternating", 1, "eiee"),
        ("alternating", 2, "eieie"),
        ("alternating", 3, "eiieie"),
        ("alternating", 0, "eee"),
    ],
)
def test_layers_stand_in_the_order_asked_for(order, n_invariant, expected):
    layers = tiny_hienet(layer_order=order, n_invariant_layers=n_invariant).layers
    found = ["i" if isinstance(layer, InvariantLayer | LayerOnScalars) else "e" for layer in layers]
    assert "".join(found) == expected


def test_neighbors_read_only_the_scalars_of_an_invariant_layer_behind_an_equivariant_one():
    stages = tiny_hienet(layer_order="alternating", n_invariant_layers=2, invariant_channels=6).stages()
    assert [stage.exchanged_width for stage in stages] == [0, 8, 8 + 12 + 15 + 14, 8, 8 + 15 + 10]
    assert stages[1].width == 8 + 12 + 15 + 14


def test_a_layer_on_scalars_changes_them_as_the_layer_does_and_nothing_else():
    layer = InvariantLayer(3, 2, 0.0, 0.0, True)
    wrapped = LayerOnScalars(layer, "3x0e+2x1e")
    state, edges = torch.randn(4, 9, dtype=torch.float64), torch.rand(2, 3, dtype=torch.float64)
    center, neighbor, species = torch.tensor([0, 1]), torch.tensor([3, 0]), torch.zeros(4, dtype=torch.int64)
    found = wrapped(state, edges, species, center, neighbor, 2)
    torch.testing.assert_close(found[:, :3], layer(state[:, :3], edges, species, center, neighbor, 2))
    assert not torch.equal(found[:, :3], state[:2, :3])
    torch.testing.assert_close(found[:, 3:], state[:2, 3:], rtol=0, atol=0)


def test_a_layer_on_scalars_leaves_odd_ones_in_front_of_them_and_neighbors_do_not_read_these():
    torch.manual_seed(0)
    layer = InvariantLayer(3, 2, 0.0, 0.0, True)
    wrapped = LayerOnScalars(layer, "2x0o+3x0e+2x1o")
    features, edges = torch.randn(4, 11, dtype=torch.float64), torch.rand(2, 3, dtype=torch.float64)
    center, neighbor, species = torch.tensor([0, 1]), torch.tensor([3, 0]), torch.zeros(4, dtype=torch.int64)
    state = wrapped.prepare(features, species)
    state[2:, wrapped.exchanged_width :] = torch.nan
    found = wrapped(state, edges, species, center, neighbor, 2)
    torch.testing.assert_close(found[:, 2:5], layer(features[:, 2:5], edges, species, center, neighbor, 2))
    torch.testing.assert_close(found[:, :2], features[:2, :2], rtol=0, atol=0)
    torch.testing.assert_close(found[:, 5:], features[:2, 5:], rtol=0, atol=0)


@pytest.mark.parametrize("irreps", ["2x0e+2x1e", "3x0o+3x1e"])
def test_a_layer_on_scalars_wants_as_many_of_them_as_it_has_channels(irreps):
    with pytest.raises(ValueError, match=r"`irreps` must have 3x0e, the channels of the layer; got"):
        LayerOnScalars(InvariantLayer(3, 2, 0.0, 0.0, True), irreps)


def test_alternating_with_one_equivariant_layer_is_refused():
    with pytest.raises(HIENetError, match=r"`layer_order: alternating` puts .* has only one; give two or more"):
        tiny_hienet(layer_order="alternating", equivariant_irreps=("8x0e",))


def test_the_order_matters():
    energies = [
        tiny_model(layer_order=order).predict(silicon_carbide()).energies
        for order in ("invariant_first", "alternating", "invariant_last")
    ]
    assert min(float((a - b).abs().max()) for a in energies for b in energies if a is not b) > 1e-3


def test_without_invariant_layers_it_is_eqvnet():
    shared = {**TINY["hienet"], "elements": ("C", "Si")}
    del shared["attention_dropout"]
    channels = shared.pop("invariant_channels")
    eqvnet = build_model("eqvnet", make_config("eqvnet", None, {**shared, "channels": channels}), seed=0)
    hienet = build_model(
        "hienet",
        make_config("hienet", None, {**TINY["hienet"], "elements": ("C", "Si"), "n_invariant_layers": 0}),
        seed=0,
    )
    expected, found = eqvnet.state_dict(), hienet.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
