"""Fused training steps have the energies, forces and gradients of weights that plain torch has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor, nn

from hienet.config import TrainingSection
from hienet.data.dataset import Targets
from hienet.derivatives import predict
from hienet.graph import AtomicGraph, batch_graphs, graph_from_atoms
from hienet.ops import jet
from hienet.ops.basis_table import BasisTable
from hienet.ops.fused_training import fused_training, has_fused_training
from hienet.ops.geometry import EdgeGeometry
from hienet.ops.training import FusedTraining
from hienet.testing import VARIANTS, silicon_carbide, tiny_checkpoint
from hienet.train.engine import choose_engine
from hienet.train.loss import LossSettings, training_loss

pytestmark = pytest.mark.usefixtures("operators")

DROPOUT = {"dropout": 0.2, "attention_dropout": 0.3}
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: VARIANTS[name] for name in VARIANTS if VARIANTS[name][0] not in ("nemp", "geodite")},
    "dropout": ("hienet", DROPOUT),
    "dropout of an InvNet": ("invnet", DROPOUT),
    "three invariant layers": ("hienet", {"n_invariant_layers": 3}),
    "invariant layers last": ("hienet", {"layer_order": "invariant_last", "invariant_channels": 6}),
    "no invariant layer": ("hienet", {"n_invariant_layers": 0}),
    "jump at the cutoff": ("hienet", {"smooth_cutoff": False}),
    "ZBL": ("hienet", {"zbl": True}),
    "XPLOR": ("sevennet", {"xplor_onset": 3.2}),
    "one species": ("hienet", {"elements": ("Si",)}),
    "half a vector of channels": ("hienet", {"equivariant_irreps": (*("8x0e+8x1e+8x2e",) * 2, "8x0e"), "l_max": 2}),
}
"""Every kind of layer, and every option that changes what a layer computes."""

DOUBLE_BACKWARD: dict[str, tuple[str, dict[str, Any]]] = {
    "nemp": ("nemp", {}),
    "nemp, one iteration and deep networks": ("nemp", {"n_iterations": 1, "n_blocks": 2, "layers_per_block": 1}),
    "nemp with ZBL": ("nemp", {"zbl": True, "smooth_coordination": False}),
    "geodite": ("geodite", {}),
    "geodite, other edges": (
        "geodite",
        {"edge_network": "linear", "edge_gate": "tanh", "rejection": False, "trainable_weighting": True},
    ),
    "geodite, no gate": ("geodite", {"edge_gate": "identity", "zbl": False}),
}
"""Models whose forces a backward makes, in training too."""
OPTIONS_OF_ALL = {**OPTIONS, **DOUBLE_BACKWARD}

STRUCTURES = {
    "crystals": [silicon_carbide(seed=1), silicon_carbide((2, 1, 1), seed=2), silicon_carbide(seed=3)],
    "very different sizes": [silicon_carbide((2, 2, 1), seed=1), Atoms("Si2", [[0, 0, 0], [2.2, 0.3, 0.1]])],
    "an atom without neighbours": [
        Atoms("SiCSi", [[0, 0, 0], [1.9, 0.2, 0], [40, 0, 0]]),
        silicon_carbide(seed=2),
    ],
    "one atom": [Atoms("Si", [[0, 0, 0]])],
}


def graph_of(structures: list[Atoms], elements: tuple[str, ...], cutoff: float) -> AtomicGraph:
    graphs = []
    for atoms in structures:
        atoms = atoms.copy()
        if len(elements) == 1:
            atoms.symbols[:] = elements[0]
        graphs.append(graph_from_atoms(atoms, elements, cutoff))
    return batch_graphs(graphs)


def model_of(name: str, dtype: torch.dtype = torch.float64, train: bool = True) -> nn.Module:
    architecture, values = OPTIONS_OF_ALL[name]
    model = tiny_checkpoint(architecture, **values).build(torch.float64)
    return model.to(dtype).train(train).requires_grad_(True)


def targets_of(graph: AtomicGraph, missing: str = "") -> Targets:
    """Random labels; those of `missing` are absent from the first frame, or from all."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n = graph.n_structures
    n_atoms = torch.bincount(graph.structure).double()
    weights = torch.rand(n, 3, generator=generator, dtype=torch.float64)
    targets = Targets(normal(n), n_atoms, normal(graph.n_local, 3), 0.01 * normal(n, 6), weights)
    if missing == "some":
        targets.energy[0] = torch.nan
        targets.forces[:2] = torch.nan
        targets.stress[0] = torch.nan
    elif missing:
        getattr(targets, missing)[:] = torch.nan
    return targets


def gradients(energy: Any, model: nn.Module, graph: AtomicGraph, targets: Targets, seed: int = 7) -> dict[str, Tensor]:
    """Of the loss, by name of weight; and what was predicted."""
    torch.manual_seed(seed)
    model.zero_grad(set_to_none=True)
    prediction = predict(energy, graph, training=True)
    loss = training_loss(prediction, targets, LossSettings())
    loss.total.backward()
    found = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    for name in ("energies", "forces", "stress"):
        found[f"predicted {name}"] = getattr(prediction, name).detach().double()
    return found


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    largest = max(float(gradient.abs().max()) for gradient in expected.values() if gradient.numel())
    for name, gradient in expected.items():
        if name not in found:
            # Nothing depends on it.
            assert float(gradient.abs().max()) == 0.0, name
            continue
        scale = max(float(gradient.nan_to_num().abs().max()), 1e-9 * largest) if gradient.numel() else 1.0
        torch.testing.assert_close(
            found[name], gradient, rtol=0, atol=tolerance * scale, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("name", list(OPTIONS))
def test_gradients_of_weights_are_those_of_plain_torch(name):
    model = model_of(name)
    graph = graph_of(STRUCTURES["crystals"], *properties(name))
    targets = targets_of(graph)
    expected = gradients(model, model, graph, targets)
    found = gradients(FusedTraining(model, exactly=True), model, graph, targets)
    assert found.keys() <= expected.keys()
    assert_equal(found, expected, 1e-9)


@pytest.mark.parametrize("name", list(OPTIONS))
def test_tables_change_gradients_by_little(name):
    model = model_of(name)
    graph = graph_of(STRUCTURES["crystals"], *properties(name))
    targets = targets_of(graph)
    expected = gradients(model, model, graph, targets)
    assert_equal(gradients(FusedTraining(model, exactly=False), model, graph, targets), expected, 1e-5)


@pytest.mark.parametrize(
    ("name", "structures"),
    [
        *((name, "crystals") for name in DOUBLE_BACKWARD),
        *((name, structures) for name in ("nemp", "geodite") for structures in STRUCTURES if structures != "crystals"),
    ],
)
def test_a_second_backward_gives_the_gradients_of_plain_torch(name, structures):
    model = model_of(name)
    graph = graph_of(STRUCTURES[structures], *properties(name))
    targets = targets_of(graph)
    expected = gradients(model, model, graph, targets)
    found = gradients(fused_training(model), model, graph, targets)
    assert found.keys() <= expected.keys()
    assert_equal(found, expected, 1e-9)


@pytest.mark.parametrize("structures", list(STRUCTURES))
@pytest.mark.parametrize("name", ["hienet", "hienet-alternating", "botnet", "ZBL"])
@pytest.mark.parametrize("exactly", [True, None])
def test_awkward_batches(name, structures, exactly):
    model = model_of(name)
    graph = graph_of(STRUCTURES[structures], *properties(name))
    targets = targets_of(graph)
    expected = gradients(model, model, graph, targets)
    tolerance = 1e-9 if exactly else 1e-5
    assert_equal(gradients(FusedTraining(model, exactly=exactly), model, graph, targets), expected, tolerance)


@pytest.mark.parametrize("missing", ["some", "energy", "forces", "stress"])
def test_labels_may_be_missing(missing):
    model = model_of("hienet")
    graph = graph_of(STRUCTURES["crystals"], *properties("hienet"))
    targets = targets_of(graph, missing)
    expected = gradients(model, model, graph, targets)
    assert_equal(gradients(FusedTraining(model, exactly=True), model, graph, targets), expected, 1e-9)


def test_gradients_are_finite_differences_of_the_loss():
    """Of the very function that is trained, tables included."""
    model = model_of("hienet")
    graph = graph_of(STRUCTURES["crystals"], *properties("hienet"))
    targets, energy = targets_of(graph), FusedTraining(model, exactly=False)
    found = gradients(energy, model, graph, targets)
    generator = torch.Generator().manual_seed(0)

    def loss() -> float:
        return float(training_loss(predict(energy, graph), targets, LossSettings()).total)

    for name, parameter in model.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        step = 1e-5 / max(1.0, float(direction.norm()))
        values = []
        for sign in (1.0, -2.0, 1.0):
            parameter.data += sign * step * direction
            values.append(loss())
        slope = (values[0] - values[1]) / (2.0 * step)
        expected = float((found[name] * direction).sum())
        assert slope == pytest.approx(expected, rel=2e-4, abs=1e-6), name


@pytest.mark.parametrize(
    "name", ["hienet", "half a vector of channels", "sevennet", "hienet-alternating", "nemp", "geodite"]
)
def test_every_instruction_set_in_single_precision(name, instruction_set):
    exact = model_of(name)
    graph = graph_of(STRUCTURES["crystals"], *properties(name))
    targets = targets_of(graph)
    expected = gradients(exact, exact, graph, targets)
    model = model_of(name, torch.float32)
    rounded = replace(targets, forces=targets.forces.float(), stress=targets.stress.float())
    found = gradients(fused_training(model), model, graph.to(dtype=torch.float32), rounded)
    assert_equal(found, expected, 2e-3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"neighbor": [0, 2]}, "edge 1 belongs to no atom"),
        ({"structure": [0, 1]}, "atom 1 belongs to no structure"),
        ({"center": [0]}, "a number for each edge or atom"),
    ],
)
def test_forces_are_refused_for_indices_that_do_not_exist(changed, message):
    index = {"center": [0, 1], "neighbor": [1, 0], "structure": [0, 0]} | changed
    center, neighbor, structure = (torch.tensor(values) for values in index.values())
    vectors = torch.ones(2, 3)
    with pytest.raises(ValueError, match=message):
        torch.ops.hienet.forces_and_stress(vectors, vectors, center, neighbor, structure, 2, torch.ones(1))


def test_energies_and_forces_without_gradients():
    """As validation wants them; the state of dropout follows the model."""
    model = model_of("dropout", train=False)
    graph = graph_of(STRUCTURES["crystals"], *properties("dropout"))
    fused = FusedTraining(model, exactly=True)
    expected, found = predict(model, graph), predict(fused, graph)
    for name in ("energies", "forces", "stress"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-12)
        assert not getattr(found, name).requires_grad


def test_a_step_is_the_same_each_time_and_leaves_the_random_numbers_where_plain_torch_does():
    model = model_of("dropout")
    graph = graph_of(STRUCTURES["crystals"], *properties("dropout"))
    targets, fused = targets_of(graph), FusedTraining(model)
    first = gradients(fused, model, graph, targets)
    after = torch.rand(3)
    second = gradients(fused, model, graph, targets)
    assert all(torch.equal(first[name], second[name]) for name in first)
    gradients(model, model, graph, targets)
    assert torch.equal(torch.rand(3), after)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "exactly"), [("hienet", False), ("dropout", True)])
def test_loss_curves_are_those_of_plain_torch(name, exactly):
    """A curve multiplies the smallest of differences, here some hundred thousand times: what tables change, 1e-9 at the
    first step, is followed for half as long as what rounding changes."""
    curves = []
    for engine in ("plain", "fused"):
        model = model_of(name)
        graph = graph_of([silicon_carbide(seed=1), silicon_carbide(seed=2)], *properties(name))
        targets, energy = targets_of(graph), model
        if engine == "fused":
            energy = FusedTraining(model, exactly=exactly)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0003, eps=1e-6)
        torch.manual_seed(0)
        losses = []
        for _ in range(200):
            optimizer.zero_grad()
            loss = training_loss(predict(energy, graph, training=True), targets, LossSettings()).total
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        curves.append(losses)
    plain, fused = np.array(curves)
    assert plain[-1] < 0.9 * plain[0]
    difference = np.abs(fused / plain - 1.0)
    assert difference[: 200 if exactly else 80].max() < 1e-4
    assert difference.max() < 0.05


def test_weights_loaded_later_are_used():
    model, other = model_of("hienet"), tiny_checkpoint("hienet", seed=1).build(torch.float64)
    graph = graph_of(STRUCTURES["crystals"], *properties("hienet"))
    fused = FusedTraining(model, exactly=True)
    before = predict(fused, graph).energies
    model.load_state_dict(other.state_dict())
    assert (predict(fused, graph).energies - before).abs().max() > 1e-3
    torch.testing.assert_close(predict(fused, graph).energies, predict(other, graph).energies, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("architecture", "values", "engine", "reason"),
    [
        ("hienet", {}, "fused", "steps are fused"),
        ("hienet", {}, "plain", "`training.engine: plain` asks"),
        ("nemp", {}, "fused", "steps are fused"),
        ("geodite", {}, "fused", "steps are fused"),
        ("geodite", {"attention_dropout": 0.1}, "fused", "has no fused steps"),
        ("botnet", {"element_dependent_radial": True}, "fused", "has no fused steps"),
    ],
)
def test_the_log_says_what_computes_the_steps(architecture, values, engine, reason):
    model = tiny_checkpoint(architecture, **values).build(torch.float32)
    energy, sentence = choose_engine(model, TrainingSection(engine=engine))
    assert reason in sentence
    assert (energy is not model) == ("fused:" in sentence)
    assert has_fused_training(model) or energy is model


def test_training_without_the_library_is_plain_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("HIENET_PLUGIN_DIR", str(tmp_path))
    monkeypatch.setattr("hienet.ops.library._is_loaded", lambda: False)
    model = tiny_checkpoint().build(torch.float32)
    energy, sentence = choose_engine(model, TrainingSection())
    assert energy is model
    assert "run `hienet build`" in sentence


@pytest.mark.parametrize("kink", [None, 2.5])
def test_a_table_holds_polynomials_and_follows_smooth_functions(kink):
    table = BasisTable(5.0, 20, kink)
    distance = torch.linspace(0.0, 5.0, 301, dtype=torch.float64)

    def read(function, at):
        rows = table.from_samples @ function(table.distances)
        first_row, factors = table.locate(at)
        return (rows[first_row.unsqueeze(1) + torch.arange(6)].unsqueeze(1) * factors).sum(2).unbind(1)

    value, slope = read(lambda d: 1.0 + d - 0.1 * d**5, distance)
    torch.testing.assert_close(value, 1.0 + distance - 0.1 * distance**5, rtol=0, atol=1e-10)
    torch.testing.assert_close(slope, 1.0 - 0.5 * distance**4, rtol=0, atol=1e-9)
    value, slope = read(torch.sin, distance)
    torch.testing.assert_close(value, torch.sin(distance), rtol=0, atol=1e-7)
    torch.testing.assert_close(slope, torch.cos(distance), rtol=0, atol=3e-6)
    if kink is not None:
        value, _ = read(lambda d: (d - kink).abs(), distance)
        torch.testing.assert_close(value, (distance - kink).abs(), rtol=0, atol=1e-10)


def test_a_kink_between_knots_is_refused():
    with pytest.raises(ValueError, match=r"the kink at 2\.6 Å is not a knot of 20 intervals"):
        BasisTable(5.0, 20, 2.6)


@pytest.mark.parametrize("function", ["tanh", "normalized_tanh"])
def test_tangents_of_activations(function):
    value, tangent = torch.randn(2, 5, 4, dtype=torch.float64)
    expected = torch.autograd.functional.jvp(lambda x: getattr(jet, function)(x.unsqueeze(1))[:, 0], value, tangent)
    found = getattr(jet, function)(torch.stack([value, tangent], dim=1))
    torch.testing.assert_close(found, torch.stack(expected, dim=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first_row": torch.tensor([0, 9])}, "the rows of edge 1 lie outside the table's 10"),
        ({"features": torch.zeros(3, 4, dtype=torch.float32)}, "another input"),
        ({"basis": torch.zeros(2, 2, 5, dtype=torch.float64)}, r"`basis` must be \[2, 2, 6\]"),
        ({"table": torch.zeros(1, 10, 8, dtype=torch.float64)}, "`table` must be"),
        ({"neighbor": torch.tensor([0, 3])}, "neighbor"),
        ({"paths": torch.tensor([[0, 1, 5, 0, 0, 5, 1, 0, 1]])}, "path 0 of the interaction does not fit"),
    ],
)
def test_the_convolution_refuses_what_does_not_fit(change, message):
    inputs = {
        "features": torch.zeros(3, 4, dtype=torch.float64),
        "edges": torch.ones(2, 2, dtype=torch.float64),
        "first_row": torch.tensor([0, 4]),
        "basis": torch.zeros(2, 2, 6, dtype=torch.float64),
        "table": torch.zeros(1, 10, 16, dtype=torch.float64),
        "center": torch.tensor([0, 1]),
        "neighbor": torch.tensor([1, 2]),
        "n_local": 3,
        "paths": torch.tensor([[0, 1, 4, 0, 0, 4, 1, 0, 1]]),
        "terms": torch.zeros(1, 2, dtype=torch.int64),
        "coefficients": torch.ones(1, dtype=torch.float64),
    }
    torch.ops.hienet.training_convolution(**inputs)
    with pytest.raises(ValueError, match=message):
        torch.ops.hienet.training_convolution(**{**inputs, **change})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tangents_of_the_geometry_are_differences(dtype, instruction_set):
    embedding = tiny_checkpoint("hienet", l_max=3).build(torch.float64).edge_embedding
    geometry = EdgeGeometry(embedding)
    plan = (geometry.terms, geometry.coefficients, geometry.n_harmonics)
    vectors, direction = torch.randn(2, 21, 3, dtype=torch.float64)
    step = 1e-5 * direction
    expected = (geometry(vectors + step) - geometry(vectors - step)) / 2e-5
    found = torch.ops.hienet.edge_geometry_tangents(vectors.to(dtype), direction.to(dtype), *plan)
    scale = float(expected.abs().max())
    torch.testing.assert_close(
        found.double(), expected, rtol=0, atol=scale * (1e-8 if dtype == torch.float64 else 1e-5)
    )
    with pytest.raises(ValueError, match="`directions` must have the shape"):
        torch.ops.hienet.edge_geometry_tangents(vectors, direction[:3], *plan)


def test_places_in_tables_refuse_what_does_not_fit():
    table = BasisTable(5.0, 20)
    with pytest.raises(ValueError, match=r"`polynomials` must be \[2, 6, 6\]"):
        table.locate(torch.ones(3, dtype=torch.float32))
    with pytest.raises(ValueError, match=r"`distance` must be \[n_edges\]"):
        table.locate(torch.ones(3, 1, dtype=torch.float64))


def properties(name: str) -> tuple[tuple[str, ...], float]:
    """Elements and cutoff of a model."""
    architecture, values = OPTIONS_OF_ALL[name]
    config = tiny_checkpoint(architecture, **values).config
    return config.elements, config.cutoff
