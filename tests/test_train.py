"""Training does what its parts promise, can be stopped anywhere, and goes on as if it had not been."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from labelled_frames import emt_frames, tiny_values, write_frames
from rich.console import Console
from torch import nn

from hienet.calculator import load_model
from hienet.checkpoint import load_checkpoint, save_checkpoint
from hienet.config import TrainConfig, parse_config
from hienet.data.dataset import Targets, build_dataset
from hienet.data.mirror import mirrored
from hienet.data.prepare import prepare_data
from hienet.data.reader import read_frames
from hienet.derivatives import Prediction, predict
from hienet.errors import HIENetError
from hienet.metrics import compare, errors
from hienet.models.factory import build_model
from hienet.models.hienet import PRESETS
from hienet.testing import tiny_model
from hienet.train.display import LineDisplay, LiveDisplay
from hienet.train.ema import MovingAverage
from hienet.train.logs import COLUMNS
from hienet.train.loop import NonFiniteLossError, StoppedBySignal, Trainer
from hienet.train.loss import LossSettings, mean_loss, training_loss
from hienet.train.run import InterruptedTrainingError, Run
from hienet.train.schedule import Schedule


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_frames(tmp_path / "data.extxyz")


def quiet() -> Console:
    return Console(file=io.StringIO())


def make_trainer(data: Path, **given: Any) -> Trainer:
    """Of values of the sections `data` and `training`."""
    sections = {name: given.pop(name) for name in ("validation", "allow_missing") if name in given}
    values = tiny_values(data, data.parent / "run", **given)
    values["data"] |= sections
    config = parse_config(values)
    dtype = getattr(torch, config.training.dtype)
    prepared = prepare_data(config.data, config.model, dtype, config.training.seed)
    model = build_model("hienet", prepared.model, config.training.seed).to(dtype)
    return Trainer(model, prepared.train, prepared.validation, config.training)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


# Loss


def labels_and_perfect_prediction() -> tuple[Targets, Prediction]:
    energy, forces = torch.tensor([-8.0, -4.0], dtype=torch.float64), torch.randn(6, 3)
    stress = torch.randn(2, 3, 3)
    stress = stress + stress.transpose(1, 2)
    voigt = torch.stack([stress[:, i, j] for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))], dim=1)
    weights = torch.ones(2, 3, dtype=torch.float64)
    targets = Targets(energy, torch.tensor([4.0, 2.0], dtype=torch.float64), forces, voigt, weights)
    return targets, Prediction(torch.zeros(6), energy.clone(), forces.clone(), stress)


def test_the_loss_of_a_perfect_prediction_is_zero() -> None:
    targets, prediction = labels_and_perfect_prediction()
    assert training_loss(prediction, targets, LossSettings()).total.item() == 0.0


def test_the_loss_is_hubers_of_energy_per_atom_forces_and_stress_in_kbar() -> None:
    targets, prediction = labels_and_perfect_prediction()
    assert prediction.stress is not None
    off = Prediction(
        prediction.energies,
        prediction.energy + torch.tensor([0.4, 0.01]),
        prediction.forces,
        prediction.stress + torch.eye(3) / 1602.1766208,
    )
    loss = training_loss(off, targets, LossSettings())
    linear, quadratic = 0.01 * (0.1 - 0.005), 0.5 * 0.005**2
    assert loss.energy.item() == pytest.approx((linear + quadratic) / 2)
    assert loss.forces.item() == 0.0
    assert loss.stress.item() == pytest.approx(0.5 * 0.01 * (1.0 - 0.005), rel=1e-3)
    assert loss.total.item() == pytest.approx(loss.energy.item() + 0.01 * loss.stress.item())


def test_missing_labels_do_not_count() -> None:
    label = torch.tensor([1.0, torch.nan, 3.0])
    predicted = torch.tensor([2.0, torch.nan, 3.0])
    loss, gradient = mean_loss(predicted, label, 10.0)
    assert loss.item() == pytest.approx(0.25)
    assert gradient.tolist() == pytest.approx([0.5, 0.0, 0.0])
    loss, gradient = mean_loss(predicted, torch.full((3,), torch.nan), 10.0)
    assert loss.item() == 0.0
    assert gradient.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", ["huber", "mse", "l1"])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_gradient_of_the_loss_is_its_derivative(kind, power) -> None:
    targets, prediction = labels_and_perfect_prediction()
    assert prediction.stress is not None
    generator = torch.Generator().manual_seed(0)
    weights = 0.5 + torch.rand(2, 3, dtype=torch.float64, generator=generator)
    targets = replace(targets, weights=weights, forces=targets.forces.double(), stress=targets.stress.double())
    # Errors on both sides of Huber's delta, none near it or near zero, where derivatives jump.
    off = [
        (part.double() + 0.1 + 0.3 * torch.randint(3, part.shape, generator=generator)).requires_grad_()
        for part in (prediction.energy, prediction.forces, prediction.stress)
    ]
    settings = LossSettings(0.7, 1.3, 0.2, 0.25, (kind,) * 3, power, 1.7, (2.0, 3.0, 0.5))

    def total() -> torch.Tensor:
        parts = replace(prediction, energy=off[0], forces=off[1], stress=off[2])
        return training_loss(parts, targets, settings).total

    found = torch.autograd.grad(3.0 * total(), off)
    for part, gradient in zip(off, found, strict=True):
        for i in range(part.numel()):
            with torch.no_grad():
                part.view(-1)[i] += 1e-6
                above = total()
                part.view(-1)[i] -= 2e-6
                slope = 3.0 * (above - total()) / 2e-6
                part.view(-1)[i] += 1e-6
            assert gradient.reshape(-1)[i].item() == pytest.approx(slope.item(), rel=1e-6, abs=1e-9)


# Schedule and average


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    schedule = Schedule(peak=0.01, final=0.001, warmup_fraction=0.1, warmup_factor=0.2)
    assert schedule(0.0) == pytest.approx(0.002)
    assert schedule(0.05) == pytest.approx(0.006)
    assert schedule(0.1) == pytest.approx(0.01)
    assert schedule(0.55) == pytest.approx(0.0055)
    assert schedule(1.0) == pytest.approx(0.001)
    assert Schedule(0.01, 0.001, 0.0)(0.0) == pytest.approx(0.01)


def test_the_average_pairs_weights_by_name() -> None:
    model = nn.ModuleDict({"a": nn.Linear(1, 1, bias=False), "b": nn.Linear(1, 1, bias=False)})
    with torch.no_grad():
        model["a"].weight.fill_(1.0)
        model["b"].weight.fill_(-1.0)
    average = MovingAverage(model, 0.999)
    with torch.no_grad():
        model["a"].weight.fill_(2.0)
    average.update(model)
    assert average.averages["a.weight"].item() == pytest.approx(1.9)  # decay (1 + 0) / (10 + 0)
    assert average.averages["b.weight"].item() == -1.0
    other = nn.ModuleDict({"b": model["b"], "a": model["a"]})
    with average.applied_to(other):
        assert model["a"].weight.item() == pytest.approx(1.9)
    assert model["a"].weight.item() == 2.0


def test_the_average_of_other_weights_is_refused() -> None:
    average = MovingAverage(nn.Linear(1, 1), 0.9)
    with pytest.raises(ValueError, match="averages of other weights"):
        average.load_state_dict({"n_updates": 1, "averages": {"bias": torch.zeros(1)}})


def test_decay_zero_is_no_average() -> None:
    model = nn.Linear(1, 1)
    average = MovingAverage(model, 0.0)
    with torch.no_grad():
        model.weight.fill_(3.0)
    average.update(model)
    assert average.averages["weight"].item() == 3.0


# The loop


def test_training_lowers_the_loss(data: Path) -> None:
    trainer = make_trainer(data, epochs=12, learning_rate=0.02)
    trainer.run()
    rows = trainer.state.history
    assert [row["epoch"] for row in rows] == list(range(1, 13))
    assert rows[-1]["train_loss"] < 0.5 * rows[0]["train_loss"]  # type: ignore[operator]
    assert rows[-1]["validation_loss"] < rows[0]["validation_loss"]  # type: ignore[operator]
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(trainer.schedule(35 / 36))


@pytest.mark.parametrize(("stop_after", "reflect"), [(2, False), (3, False), (5, False), (4, True)])
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    data: Path, stop_after: int, reflect: bool
) -> None:
    whole = make_trainer(data, gradient_clip=1.0, reflect=reflect)
    whole.run()

    first = make_trainer(data, gradient_clip=1.0, reflect=reflect)
    with pytest.raises(StoppedBySignal):
        first.run(should_stop=lambda: first.state.step == stop_after)
    state, raw = first.state_dict(), weights(first.model)
    torch.manual_seed(99)  # what happens in between must not matter

    second = make_trainer(data, gradient_clip=1.0, reflect=reflect)
    second.model.load_state_dict(raw)
    second.load_state_dict(state)
    second.run()
    assert second.state.step == whole.state.step == 9
    assert_same(weights(second.model), weights(whole.model))
    assert_same(second.averaged_weights(), whole.averaged_weights())
    ignored = {"seconds"}
    for one, other in zip(second.state.history, whole.state.history, strict=True):
        assert {k: v for k, v in one.items() if k not in ignored} == {
            k: v for k, v in other.items() if k not in ignored
        }


def test_the_seed_decides_and_dropout_is_active_in_training_only(data: Path) -> None:
    trainers = [make_trainer(data, epochs=1, seed=seed) for seed in (1, 1, 2)]
    for trainer in trainers:
        # Building the next trainer seeded the generator; each run begins from its own seed.
        torch.manual_seed(trainer.settings.seed)
        trainer.run()
    losses = [trainer.state.history[0]["train_loss"] for trainer in trainers]
    assert losses[0] == losses[1] != losses[2]
    assert trainers[0]._validate()[0] == trainers[0]._validate()[0]


def test_frames_without_stress_forces_or_volume_can_be_trained_on(tmp_path: Path) -> None:
    frames = emt_frames()
    frames[0].calc = SinglePointCalculator(frames[0], energy=frames[0].get_potential_energy())
    frames[1].calc = SinglePointCalculator(frames[1], forces=frames[1].get_forces())
    frames[2].pbc = False
    trainer = make_trainer(write_frames(tmp_path / "data.extxyz", frames), epochs=2, dtype="float64")
    trainer.run()
    assert all(np.isfinite(row["train_loss"]) for row in trainer.state.history)  # type: ignore[arg-type]
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


QUANTITIES = ("energy", "forces", "stress")
KINDS = ("crystal", "slab", "molecule", "molecule in a box")


def labelled_frames(kind: str, quantities: tuple[str, ...], n_frames: int, seed: int) -> list[Atoms]:
    """Frames of a kind with these labels only; a label of stress is given also where stress is undefined."""
    frames = emt_frames(n_frames, seed)
    for atoms in frames:
        results = {name: atoms.calc.results[name] for name in quantities}
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.pbc = {"crystal": True, "slab": (True, True, False)}.get(kind, False)
        if kind == "molecule":
            atoms.cell = None
        elif kind == "slab":
            atoms.cell[2] = 0.0
    return frames


@pytest.mark.parametrize("quantities", [("energy",), ("forces",), ("energy", "forces"), QUANTITIES], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_any_labels_of_any_kind_of_frame_train_and_validate(
    tmp_path: Path, kind: str, quantities: tuple[str, ...]
) -> None:
    """Whole sets without a quantity; the set of validation has a crystal with all labels among them."""
    data = write_frames(tmp_path / "data.extxyz", labelled_frames(kind, quantities, 4, 0))
    mixed = [*labelled_frames(kind, quantities, 2, 1), *labelled_frames("crystal", QUANTITIES, 1, 2)]
    validation = str(write_frames(tmp_path / "validation.extxyz", mixed))
    trainer = make_trainer(data, validation=validation, allow_missing=["energy", "forces"], epochs=2)
    found: list[bool] = []
    trainer.run(on_epoch=lambda row, is_best: found.append(is_best))
    assert found[0]
    for row in trainer.state.history:
        assert row["train_loss"] > 0  # type: ignore[operator]
        assert row["validation_loss"] > 0  # type: ignore[operator]
        assert row["stress_mae_gpa"] > 0  # type: ignore[operator]
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
    total = errors(compare(trainer.model.eval(), trainer.train))
    assert (total.energy_mae is not None) == ("energy" in quantities)
    assert (total.forces_mae is not None) == ("forces" in quantities)
    assert (total.stress_mae is not None) == ("stress" in quantities and kind == "crystal")


def test_a_run_on_molecules_without_a_cell_leaves_a_model_and_valid_json(tmp_path: Path) -> None:
    data = write_frames(tmp_path / "data.extxyz", labelled_frames("molecule", ("energy", "forces"), 6, 0))
    result = Run(parse_config(tiny_values(data, tmp_path / "run", epochs=2)), False, quiet()).train()
    assert result.best.exists()
    folder = tmp_path / "run"
    lines = [json.loads(line, parse_constant=pytest.fail) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert all(line["validation_loss"] > 0 for line in lines)
    assert lines[-1]["stress_mae_gpa"] is None
    results = json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)
    assert results["errors"]["validation"]["stress_mae_gpa"] is None


def test_the_validation_loss_is_that_of_training_over_the_same_frames(tmp_path: Path) -> None:
    """Mixed labels, weights, masked atoms and undefined stresses, in one batch."""
    frames = [atoms for kind in KINDS for atoms in labelled_frames(kind, QUANTITIES, 1, 3)]
    frames += [atoms for name in QUANTITIES for atoms in labelled_frames("crystal", (name,), 1, 4)]
    frames[0].calc.results["forces"][1] = np.nan
    for i, atoms in enumerate(frames):
        atoms.info["config_weight"] = 0.5 + i
    trainer = make_trainer(
        write_frames(tmp_path / "data.extxyz", frames), validation=str(tmp_path / "data.extxyz"), dtype="float64"
    )
    graph, targets = trainer.train.batch(range(len(frames)))
    with trainer.average.applied_to(trainer.model):
        expected = training_loss(predict(trainer.model.eval(), graph), targets, trainer.loss_settings).total.item()
    assert trainer._validate()[0] == pytest.approx(expected, rel=1e-9)


def test_masked_atoms_have_no_part_in_loss_and_gradient() -> None:
    targets, prediction = labels_and_perfect_prediction()
    assert prediction.forces is not None
    targets.forces[2] = torch.nan
    forces = (prediction.forces + 1.0).requires_grad_()
    loss = training_loss(replace(prediction, forces=forces), targets, LossSettings())
    loss.total.backward()
    assert loss.forces.item() == pytest.approx(0.01 * (1.0 - 0.005))
    assert forces.grad is not None
    assert forces.grad.abs().sum(dim=1).gt(0).tolist() == [True, True, False, True, True, True]


def test_the_weight_of_a_frame_multiplies_its_part_of_the_loss() -> None:
    """Also in a batch of one frame, where a weighted mean would cancel it."""
    targets, prediction = labels_and_perfect_prediction()
    off = Prediction(
        prediction.energies, prediction.energy + torch.tensor([4.0, 6.0]), prediction.forces, prediction.stress
    )
    settings = LossSettings(huber_delta=100.0)
    assert training_loss(off, targets, settings).energy.item() == pytest.approx((0.5 * 1 + 0.5 * 9) / 2)
    weighted = replace(targets, weights=torch.tensor([[3.0, 1, 1], [0.0, 1, 1]], dtype=torch.float64))
    assert training_loss(off, weighted, settings).energy.item() == pytest.approx(3 * 0.5 * 1 / 2)


def test_frames_of_weight_zero_are_as_if_absurd_labels_were_not_there(tmp_path: Path) -> None:
    """Same steps, same weights of the model, whatever the label says."""
    found = []
    for i, energy in enumerate((0.0, 1e6)):
        frames = emt_frames()
        frames[2].calc.results["energy"] = energy
        frames[2].info["config_weight"] = 0.0
        trainer = make_trainer(write_frames(tmp_path / f"{i}.extxyz", frames), validation=0.0, epochs=2)
        trainer.run()
        found.append(weights(trainer.model))
    assert_same(*found)


@pytest.mark.parametrize(
    ("training", "name"),
    [({"energy_weight": 0.0, "forces_weight": 0.0}, "training"), ({"energy_weight": 0.0}, "validation")],
)
def test_a_set_none_of_whose_labels_counts_is_refused(tmp_path: Path, training: dict[str, float], name: str) -> None:
    data = write_frames(tmp_path / "data.extxyz", labelled_frames("crystal", ("energy", "forces"), 4, 0))
    other = write_frames(tmp_path / "validation.extxyz", labelled_frames("crystal", ("energy",), 4, 1))
    with pytest.raises(
        HIENetError,
        match=rf"no label of the {name} frames counts in the loss, they have energy in 4 of 4 frames "
        r"\(`training.energy_weight: 0`\)",
    ):
        make_trainer(data, validation=str(other), allow_missing=["forces", "energy"], **training)


def test_a_batch_without_labels_that_count_does_no_harm(tmp_path: Path) -> None:
    frames = emt_frames()
    frames[0].calc = SinglePointCalculator(frames[0], energy=frames[0].get_potential_energy())
    trainer = make_trainer(write_frames(tmp_path / "data.extxyz", frames), epochs=1, batch_size=1, energy_weight=0.0)
    trainer.run()
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def test_an_output_folder_that_cannot_be_made_is_refused_before_anything_else(data: Path) -> None:
    (data.parent / "file").write_text("")
    for folder in ("file", "file/run"):
        with pytest.raises(HIENetError, match=r"cannot write to the folder `.*`: .*; choose another as `output`"):
            Run(parse_config(tiny_values(data, data.parent / folder)), False, quiet())


def test_without_validation_frames_the_training_loss_chooses_the_best(data: Path) -> None:
    values = tiny_values(data, data.parent / "run")
    values["data"]["validation"] = 0
    result = Run(parse_config(values), False, quiet()).train()
    assert set(result.errors) == {"train"}


def test_a_time_limit_ends_the_run_with_the_learning_rate_at_its_end(data: Path) -> None:
    trainer = make_trainer(data, epochs=100_000, max_minutes=0.02)
    begin = time.monotonic()
    trainer.run()
    assert 1.0 < time.monotonic() - begin < 8.0
    assert trainer.finished
    assert trainer.optimizer.param_groups[0]["lr"] < 0.1 * trainer.settings.learning_rate


def test_a_loss_that_is_not_a_number_stops_with_the_frames_and_keeps_the_best(data: Path) -> None:
    run = Run(parse_config(tiny_values(data, data.parent / "run", learning_rate=1e30, epochs=5)), False, quiet())
    run.trainer.state.best_loss = float("inf")
    with pytest.raises(
        NonFiniteLossError, match=r"the loss became \S+ in epoch \d.*frame \d.*lower `training.learning_rate`"
    ):
        run.train()


def test_a_validation_loss_that_is_not_a_number_stops_at_once_with_the_frames(data: Path) -> None:
    """And not after all epochs, none of which would be the best."""
    run = Run(config_of(data, epochs=50), False, quiet())
    validation = run.trainer.validation
    assert validation is not None
    graph = validation.graphs[1]
    validation.graphs[1] = replace(graph, edge_vectors=torch.full_like(graph.edge_vectors, torch.nan))
    source = validation.frames[1].source
    with pytest.raises(
        NonFiniteLossError,
        match=f"the validation loss became nan in epoch 1, with the frames {source}, and cannot choose the best model; "
        "lower `training.learning_rate`",
    ):
        run.train()
    assert "validation loss became nan" in (data.parent / "run" / "train.log").read_text()


def test_one_absurd_frame_is_learnt_around(tmp_path: Path) -> None:
    """The Huber loss limits what it pulls: the others are fitted nearly as without it."""
    found = []
    for absurd in (False, True):
        frames = emt_frames(12)
        if absurd:
            frames[5].calc.results |= {"energy": 2e4, "forces": np.array([[1e5, 0, 0], [-1e5, 0, 0], [0] * 3, [0] * 3])}
        folder = tmp_path / str(absurd)
        folder.mkdir()
        validation = write_frames(folder / "validation.extxyz", emt_frames(6, seed=8))
        trainer = make_trainer(
            write_frames(folder / "data.extxyz", frames), validation=str(validation), epochs=20, batch_size=4
        )
        trainer.run()
        found.append(trainer.state.history[-1])
    for name in ("energy_mae_mev_per_atom", "forces_mae_mev_per_angstrom"):
        assert found[1][name] < 1.6 * found[0][name]  # type: ignore[operator]


# Mirror images


def trained_with(data: Path, reflect: bool, **values: object) -> dict[str, torch.Tensor]:
    """Weights after three epochs in float64 of a model of three equivariant layers."""
    settings = tiny_values(data, data.parent / "run", dtype="float64", reflect=reflect)
    settings["model"] |= {"equivariant_irreps": ["8x0e+4x1e", "8x0e+4x1e", "8x0e"], "dropout": 0.0, **values}
    config = parse_config(settings)
    prepared = prepare_data(config.data, config.model, torch.float64, config.training.seed)
    trainer = Trainer(build_model("hienet", prepared.model, 0), prepared.train, prepared.validation, config.training)
    trainer.run()
    return weights(trainer.model)


def test_reflecting_frames_teaches_a_model_without_parity_something_and_one_with_it_nothing(data: Path) -> None:
    with_parity = {"parity": True, "equivariant_irreps": ["8x0e+4x1o", "8x0e+4x1o", "8x0e"], "attention_dropout": 0.0}
    for values, is_taught in ((with_parity, False), ({"attention_dropout": 0.0}, True)):
        plain, reflected = (trained_with(data, reflect, **values) for reflect in (False, True))
        largest = max(float((plain[name] - reflected[name]).abs().max()) for name in plain)
        assert (largest > 1e-7) == is_taught, largest
        assert is_taught or largest < 1e-9


def test_half_of_the_frames_are_reflected_others_in_each_epoch_the_same_for_a_seed(data: Path) -> None:
    trainer, same, other = (make_trainer(data, reflect=True, seed=seed) for seed in (1, 1, 2))
    chosen = torch.stack([trainer._reflected(epoch) for epoch in range(200)])  # type: ignore[misc]
    assert torch.equal(chosen, torch.stack([same._reflected(epoch) for epoch in range(200)]))  # type: ignore[misc]
    assert not torch.equal(chosen, torch.stack([other._reflected(epoch) for epoch in range(200)]))  # type: ignore[misc]
    assert 0.4 < float(chosen.double().mean()) < 0.6
    assert float(chosen.double().mean(0).min()) > 0.3
    assert make_trainer(data)._reflected(0) is None


def test_mirror_images_have_the_labels_of_mirror_images(data: Path) -> None:
    """As found by inverting the structures themselves; EMT, which the labels are of, knows no hand."""
    frames = emt_frames(4)
    graph, targets = build_dataset(read_frames([data]), ["Ag", "Cu"], 3.5, torch.float64).batch(range(4))
    chosen = torch.tensor([True, False, True, True])
    for i, atoms in enumerate(frames):
        if chosen[i]:
            calculator = atoms.calc
            atoms.set_cell(-atoms.cell.array)
            atoms.set_positions(-atoms.positions)
            calculator.results["forces"] = -calculator.results["forces"]
            atoms.calc = SinglePointCalculator(atoms, **calculator.results)
    inverted = build_dataset(read_frames([write_frames(data, frames)]), ["Ag", "Cu"], 3.5, torch.float64)
    expected_graph, expected = inverted.batch(range(4))
    found_graph, found = mirrored(graph, targets, chosen)
    for name in ("energy", "forces", "stress"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-6)
    model = tiny_model(elements=("Ag", "Cu"))
    one, other = (predict(model.module, one) for one in (found_graph, expected_graph))
    torch.testing.assert_close(one.forces, other.forces, rtol=0, atol=1e-6)
    torch.testing.assert_close(one.stress, other.stress, rtol=0, atol=1e-6)


# A run in its folder


def without(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a checkpoint in place, into what an earlier version would have written."""
    contents = torch.load(path, weights_only=True)
    change(contents)
    torch.save(contents, path)


def test_a_run_of_before_an_option_was_there_goes_on(data: Path) -> None:
    whole = Run(config_of(data, epochs=2), False, quiet()).train()
    without(data.parent / "run" / "last.pt", lambda contents: contents["resume"]["config"]["training"].pop("reflect"))
    assert Run(config_of(data, epochs=2), True, quiet()).train().errors == whole.errors


def test_a_run_goes_on_with_its_model_when_a_preset_has_changed_since(data: Path, monkeypatch) -> None:
    """As the preset `small`, which has parity today, and had not."""
    values = tiny_values(data, data.parent / "run", epochs=1)
    values["model"] = {"preset": "small", "cutoff": 3.5}
    old = {**PRESETS["small"], "parity": False, "equivariant_irreps": ("32x0e+16x1e+8x2e",) * 2 + ("32x0e",)}
    with monkeypatch.context() as before:
        before.setitem(PRESETS, "small", old)
        first = Run(parse_config(values), False, quiet())
        first.save_last()
    resumed = Run(parse_config(values), True, quiet())
    assert resumed.data.model == first.data.model
    assert resumed.data.model.symmetry == "SO(3)"
    # Who says it in the configuration may do so, and another model is refused.
    model = values["model"] | {"parity": False, "equivariant_irreps": old["equivariant_irreps"]}
    Run(parse_config({**values, "model": model}), True, quiet())
    model = values["model"] | {"equivariant_irreps": ["32x0e+16x1o", "32x0e"]}
    with pytest.raises(HIENetError, match=r"the configuration differs from that of the run"):
        Run(parse_config({**values, "model": model}), True, quiet())


def test_a_run_says_its_symmetry_and_where_reflecting_is_no_use(data: Path) -> None:
    values = tiny_values(data, data.parent / "run", epochs=1, reflect=True)
    values["model"] |= {"parity": True, "equivariant_irreps": ["8x0e+4x1o", "8x0e"]}
    console = quiet()
    Run(parse_config(values), False, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "parameters, symmetry O(3), cutoff 3.5 Å" in said
    assert "`training.reflect` teaches this model nothing" in said


def config_of(data: Path, **training: Any) -> TrainConfig:
    return parse_config(tiny_values(data, data.parent / "run", **training))


def test_a_run_leaves_models_logs_splits_and_plots(data: Path) -> None:
    config = config_of(data)
    result = Run(config, False, quiet()).train()
    folder = data.parent / "run"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("config.yaml", "split.json", "validation.extxyz", "best.pt", "last.pt", "results.json"),
        *("log.csv", "log.jsonl", "train.log", "learning_curves.png", "parity.png"),
    }
    rows = list(csv.DictReader((folder / "log.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert tuple(json.loads((folder / "log.jsonl").read_text().splitlines()[0])) == COLUMNS
    split = json.loads((folder / "split.json").read_text())
    assert sorted(split["train"] + split["validation"]) == list(range(8))
    best = load_checkpoint(result.best)
    assert best.resume is None
    assert best.training is not None
    assert best.training["errors"]["validation"] == result.errors["validation"].as_dict()
    assert best.training["n_frames"] == {"train": 6, "validation": 2, "test": 0}


def test_best_holds_the_averaged_weights_of_the_best_epoch(data: Path) -> None:
    run = Run(config_of(data, learning_rate=1e-3), False, quiet())
    result = run.train()
    assert run.trainer.state.best_epoch == 3
    assert_same(dict(load_checkpoint(result.best).weights), run.trainer.averaged_weights())


def test_the_last_weights_can_be_kept_in_place_of_the_best(data: Path) -> None:
    trainer = make_trainer(data, epochs=4, select="last")
    found = []
    trainer.run(on_epoch=lambda row, is_best: found.append(is_best))
    assert found == [True] * 4
    assert trainer.state.best_epoch == 4


def test_an_existing_run_is_not_overwritten(data: Path) -> None:
    config = config_of(data, epochs=1)
    Run(config, False, quiet()).train()
    with pytest.raises(HIENetError, match=r"already contains a training run; add --resume"):
        Run(config, False, quiet())


def test_resuming_nothing_is_refused(data: Path) -> None:
    with pytest.raises(HIENetError, match=r"there is nothing to resume in .*: no `last.pt`"):
        Run(config_of(data), True, quiet())


def test_resuming_with_another_configuration_or_other_data_is_refused(data: Path) -> None:
    Run(config_of(data, epochs=1), False, quiet()).train()
    with pytest.raises(HIENetError, match=r"`training.batch_size` was `2` and is `3`"):
        Run(config_of(data, epochs=1, batch_size=3), True, quiet())
    with pytest.raises(HIENetError, match=r"only `output`, `training.epochs`, .* may change"):
        Run(config_of(data, epochs=1, learning_rate=1.0), True, quiet())
    write_frames(data, emt_frames(seed=1))
    with pytest.raises(HIENetError, match=r"the data are not those with which the run .* began"):
        Run(config_of(data, epochs=1), True, quiet())


def test_a_finished_run_can_be_resumed_and_reports_again(data: Path) -> None:
    first = Run(config_of(data), False, quiet()).train()
    again = Run(config_of(data), True, quiet()).train()
    assert again.errors == first.errors


def test_a_run_goes_on_with_more_epochs_where_their_schedule_is(data: Path) -> None:
    Run(config_of(data, epochs=2), False, quiet()).train()
    run = Run(config_of(data, epochs=4), True, quiet())
    assert run.trainer.progress == 0.5
    run.train()
    rows = run.trainer.state.history
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[2]["learning_rate"] == pytest.approx(run.trainer.schedule(8 / 12))
    assert rows[3]["learning_rate"] == pytest.approx(run.trainer.schedule(11 / 12))
    log = (data.parent / "run" / "train.log").read_text()
    assert "4 epochs in place of 2: the learning rate goes on at" in log
    assert yaml.safe_load((data.parent / "run" / "config.yaml").read_text())["training"]["epochs"] == 4
    with pytest.raises(HIENetError, match=r"`training.epochs` is 3, but the run in `.*` has begun epoch 4; give at"):
        Run(config_of(data, epochs=3), True, quiet())


def test_a_run_that_an_older_version_began_goes_on_with_defaults_and_its_own_statistics(data: Path) -> None:
    run = Run(config_of(data, epochs=1), False, quiet())
    run.train()
    last = load_checkpoint(run.last_path)
    assert last.resume is not None
    del last.resume["config"]["data"]["weight_key"]
    config = last.config.model_copy(update={"scale": (7.0, 7.0)})
    save_checkpoint(replace(last, config=config), run.last_path)
    resumed = Run(config_of(data, epochs=2), True, quiet())
    resumed.train()
    assert load_checkpoint(resumed.best_path).config.scale == (7.0, 7.0)


@pytest.mark.parametrize("epochs", [2, 3])
def test_a_best_model_that_was_taken_away_is_replaced(data: Path, epochs: int) -> None:
    Run(config_of(data, epochs=2), False, quiet()).train()
    best = data.parent / "run" / "best.pt"
    best.unlink()
    run = Run(config_of(data, epochs=epochs), True, quiet())
    result = run.train()
    assert result.best == best
    assert_same(dict(load_checkpoint(best).weights), run.trainer.averaged_weights())
    assert "best.pt` is gone" in (data.parent / "run" / "train.log").read_text()


def test_an_epoch_is_always_ended_so_that_there_is_a_model(data: Path) -> None:
    result = Run(config_of(data, max_minutes=1e-9), False, quiet()).train()
    assert result.best.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_ends_after_the_present_step_and_resumed_as_an_uninterrupted_one(
    data: Path, number: signal.Signals
) -> None:
    whole = Run(config_of(data), False, quiet())
    whole.train()
    values = {**tiny_values(data, data.parent / "other")}
    run = Run(parse_config(values), False, quiet())
    count = 0

    def interrupt() -> None:
        nonlocal count
        count += 1
        if count == 4:
            os.kill(os.getpid(), number)

    step = run.trainer.optimizer.step
    run.trainer.optimizer.step = lambda *a, **k: (step(*a, **k), interrupt())[0]  # type: ignore[method-assign]
    with pytest.raises(
        InterruptedTrainingError, match=rf"stopped by {number.name} in epoch 2; go on with: hienet train"
    ):
        run.train()
    assert run.trainer.state.step == count == 4
    Run(parse_config(values), True, quiet()).train()
    folders = [data.parent / name for name in ("run", "other")]
    one, other = (dict(load_checkpoint(folder / "best.pt").weights) for folder in folders)
    assert_same(one, other)


def test_ctrl_c_leaves_a_run_that_can_be_resumed(data: Path) -> None:
    config = data.parent / "config.yaml"
    config.write_text(yaml.safe_dump(tiny_values(data, data.parent / "run", epochs=400)))
    command = [sys.executable, "-W", "error", "-m", "hienet.cli", "train", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = data.parent / "run" / "log.csv"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not log.exists() or len(log.read_text().splitlines()) < 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped by SIGINT" in stderr
    assert "--resume" in stderr
    assert "Traceback" not in stderr
    checkpoint = load_checkpoint(data.parent / "run" / "last.pt")
    assert checkpoint.resume is not None
    assert checkpoint.resume["trainer"]["loop"]["step"] > 3


# Display


def row(epoch: int) -> dict[str, float | int | None]:
    values: dict[str, float | int | None] = dict.fromkeys(COLUMNS, 1.0)
    return {**values, "epoch": epoch, "stress_mae_gpa": None}


def test_a_log_gets_plain_lines_and_the_last_epoch_always(capsys: pytest.CaptureFixture[str]) -> None:
    with LineDisplay(Console(force_terminal=False, width=60), 3) as display:
        display.step(1, 2, 10, 0.5, 0.1)
        for epoch in (1, 2, 3):
            display.epoch(row(epoch), epoch == 3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("epoch 1/3  batch 2/10  loss 5.000e-01")
    assert lines[-1].startswith("epoch 3/3  lr 1.00e+00  loss 1.000e+00  validation 1.000e+00  E 1.00 meV/atom")
    assert lines[-1].endswith("best")
    assert "\x1b" not in "".join(lines)


def test_a_terminal_gets_a_table_of_the_latest_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveDisplay(Console(force_terminal=True, width=100), 30) as display:
        for epoch in range(1, 13):
            display.step(epoch, 1, 2, 0.5, epoch / 30)
            display.epoch(row(epoch), False)
    table = capsys.readouterr().out
    assert "meV/atom" in table
    assert "12" in table


# The repulsion at short range


def test_statistics_do_not_depend_on_the_repulsion_and_the_trained_model_has_it(data: Path) -> None:
    """Labels are not changed: the network learns what the repulsion leaves of them."""
    values = tiny_values(data, data.parent / "run", epochs=2)
    plain = prepare_data(*_sections(values), torch.float64, 0).model
    values["model"] = {**values["model"], "zbl": True}
    model = prepare_data(*_sections(values), torch.float64, 0).model
    assert model.zbl
    assert (model.scale, model.shift) == (plain.scale, plain.shift)
    Run(parse_config(values), resume=False, console=quiet()).train()
    trained = load_model(data.parent / "run" / "best.pt")
    pair = [Atoms("CuAg", positions=[[0, 0, 0], [0, 0, distance]]) for distance in (0.3, 0.4, 0.6, 0.9)]
    energies = [trained.predict(atoms).energy.item() for atoms in pair]
    assert energies == sorted(energies, reverse=True)
    assert energies[0] > 3000


def _sections(values: dict[str, Any]) -> tuple[Any, Any]:
    config = parse_config(values)
    return config.data, config.model
