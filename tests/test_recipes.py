"""Ways of training that authors published: optimizers, losses, schedules, and where they are written down."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from labelled_frames import tiny_values, write_frames
from rich.console import Console
from torch import Tensor
from typer.testing import CliRunner

from hienet.cli import app
from hienet.config import TrainingSection, parse_config
from hienet.data.dataset import Targets
from hienet.data.prepare import prepare_data
from hienet.data.statistics import spreads_of_labels
from hienet.derivatives import Prediction
from hienet.errors import HIENetError
from hienet.models.factory import ARCHITECTURES, build_model
from hienet.recipes import RECIPES, find_recipe
from hienet.template import render, summarize
from hienet.train.loop import StoppedBySignal, Trainer
from hienet.train.loss import loss_settings, training_loss
from hienet.train.run import Run, divergence
from hienet.train.schedule import Schedule


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_frames(tmp_path_factory.mktemp("recipes") / "data.extxyz")


def trainer_of(data: Path, **training: Any) -> Trainer:
    config = parse_config(tiny_values(data, data.parent / "run", **training))
    prepared = prepare_data(config.data, config.model, torch.float32, config.training.seed)
    model = build_model("hienet", prepared.model, config.training.seed).to(torch.float32)
    spreads = spreads_of_labels(prepared.train, prepared.model.shift) if config.training.normalize_labels else None
    return Trainer(model, prepared.train, prepared.validation, config.training, spreads=spreads)


# Losses


def targets_and_prediction_off_by(energy: float, force: float, stress: float) -> tuple[Targets, Prediction]:
    zeros = torch.zeros(4, 3, dtype=torch.float64)
    targets = Targets(
        torch.zeros(1, dtype=torch.float64),
        torch.tensor([4.0], dtype=torch.float64),
        zeros,
        torch.zeros(1, 6, dtype=torch.float64),
        torch.ones(1, 3, dtype=torch.float64),
    )
    prediction = Prediction(zeros[:, 0], targets.energy + energy, zeros + force, torch.full((1, 3, 3), stress).double())
    return targets, prediction


def parts(settings: dict[str, Any], energy: float, force: float, stress: float) -> tuple[float, float, float]:
    targets, prediction = targets_and_prediction_off_by(energy, force, stress)
    loss = training_loss(prediction, targets, loss_settings(TrainingSection(**settings), (2.0, 4.0, 0.5), 1.0))
    found: tuple[Tensor, Tensor, Tensor] = (loss.energy, loss.forces, loss.stress)
    return tuple(float(part) for part in found)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"loss": "mse", "stress_unit": "eV/A^3"}, (0.2**2, 0.3**2, 0.1**2)),
        ({"loss": "l1", "stress_unit": "eV/A^3"}, (0.2, 0.3, 0.1)),
        ({"loss": "l1", "stress_unit": "GPa"}, (0.2, 0.3, 16.021766)),
        ({"loss": {"energy": "mse", "stress": "l1"}, "huber_delta": 0.1}, (0.2**2, 0.1 * (0.3 - 0.05), 160.21766)),
        ({"loss": "mse", "energy_normalization": "sqrt_atoms", "stress_unit": "eV/A^3"}, (0.4**2, 0.3**2, 0.1**2)),
        ({"loss": "mse", "energy_normalization": "none", "stress_unit": "eV/A^3"}, (0.8**2, 0.3**2, 0.1**2)),
        ({"loss": "l1", "normalize_labels": True}, (0.1, 0.075, 0.2)),
    ],
)
def test_losses_are_those_that_authors_have(settings, expected):
    assert parts(settings, energy=0.8, force=0.3, stress=0.1) == pytest.approx(expected, rel=1e-6)


def test_spreads_are_those_of_the_training_labels(data):
    trainer = trainer_of(data, normalize_labels=True)
    assert trainer.spreads is not None
    batch = trainer.train.batch(range(len(trainer.train)))[1]
    assert trainer.spreads[1] == pytest.approx(float(batch.forces.square().mean().sqrt()), rel=1e-5)
    assert trainer.spreads[2] == pytest.approx(float(batch.stress.std(correction=0)), rel=1e-5)
    assert all(part > 0 for part in trainer.spreads)
    assert trainer.loss_settings.spreads == trainer.spreads


# Schedules and optimizers


def test_the_learning_rate_falls_along_a_line_or_stays():
    line = Schedule(0.01, 0.002, 0.2, 0.5, "linear")
    assert [line(x) for x in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.005, 0.0075, 0.01, 0.006, 0.002])
    assert Schedule(0.01, 0.002, 0.0, 0.5, "constant")(1.0) == 0.01


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_optimizers_are_torchs(name, kind, data):
    optimizer = trainer_of(data, optimizer=name, amsgrad=True, weight_decay=0.02).optimizer
    assert type(optimizer) is kind
    assert optimizer.defaults["amsgrad"]
    assert optimizer.defaults["weight_decay"] == 0.02


PLATEAU = {
    "schedule": "plateau",
    "plateau_patience": 0,
    "plateau_factor": 0.5,
    "warmup_fraction": 0.0,
    "learning_rate": 0.02,
    "final_learning_rate": 0.004,
}


def with_losses(trainer: Trainer, losses: list[float]) -> Trainer:
    """One whose validation loss is what is wanted."""
    trainer._validate = lambda: (losses[trainer.state.epoch], None)  # type: ignore[method-assign]
    return trainer


def test_the_learning_rate_falls_where_the_validation_loss_does_not(data):
    trainer = with_losses(trainer_of(data, epochs=6, **PLATEAU), [3.0, 2.0, 2.5, 1.0, 1.5, 1.5])
    trainer.run()
    rates = [row["learning_rate"] for row in trainer.state.history]
    assert rates == pytest.approx([0.02, 0.02, 0.02, 0.01, 0.01, 0.005])
    assert trainer.learning_rate == pytest.approx(0.004)


def test_a_run_with_plateaus_goes_on_as_if_it_had_not_stopped(data):
    losses = [3.0, 4.0, 2.5, 2.6]
    whole = with_losses(trainer_of(data, epochs=4, **PLATEAU), losses)
    whole.run()
    first = with_losses(trainer_of(data, epochs=4, **PLATEAU), losses)
    with pytest.raises(StoppedBySignal):
        first.run(should_stop=lambda: first.state.step == 7)
    second = with_losses(trainer_of(data, epochs=4, **PLATEAU), losses)
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_dict(first.state_dict())
    second.run()
    assert [row["learning_rate"] for row in second.state.history] == [
        row["learning_rate"] for row in whole.state.history
    ]
    assert all(torch.equal(a, b) for a, b in zip(second.model.parameters(), whole.model.parameters(), strict=True))


def test_weights_of_the_loss_go_to_their_last_values_as_the_learning_rate_does(data):
    trainer = trainer_of(
        data,
        schedule="linear",
        warmup_fraction=0.0,
        final_learning_rate=0.0,
        forces_weight=10.0,
        final_forces_weight=0.1,
        epochs=2,
    )
    assert trainer.loss_settings.forces_weight == 10.0
    assert trainer.validation_settings.forces_weight == pytest.approx(0.1)
    seen: list[float] = []
    trainer.run(on_step=lambda loss: seen.append(trainer.loss_settings.forces_weight))
    steps = len(seen)
    assert seen == pytest.approx([0.1 + 9.9 * (1 - (i + 1) / steps) for i in range(steps)])


def test_a_run_ends_early_and_says_why(data, tmp_path):
    values = tiny_values(data, tmp_path / "run", epochs=20, early_stopping=2, select="last")
    run = Run(parse_config(values), False, Console(file=io.StringIO()))
    real, losses = run.trainer._validate, iter([3.0, 2.0, 2.5, 2.6, 1.0])
    run.trainer._validate = lambda: (next(losses), real()[1])  # type: ignore[method-assign]
    run.train()
    assert run.trainer.state.epoch == 4
    log = (tmp_path / "run" / "train.log").read_text()
    assert "ended after epoch 4, since the loss that is watched has not fallen since epoch 2 (`early_stopping`)" in log


@pytest.mark.parametrize(("last", "warns"), [(250.0, True), (150.0, False)])
def test_a_training_whose_loss_has_gone_far_up_says_so(last, warns, data, tmp_path):
    values = tiny_values(data, tmp_path / "run", epochs=3, select="last")
    run = Run(parse_config(values), False, Console(file=io.StringIO()))
    real, losses = run.trainer._validate, iter([3.0, 2.0, last])
    run.trainer._validate = lambda: (next(losses), real()[1])  # type: ignore[method-assign]
    run.train()
    log = (tmp_path / "run" / "train.log").read_text()
    sentence = "WARNING: the training has diverged: the loss of the last epoch is 250, that of epoch 2 was 2; lower"
    assert (sentence in log) == warns
    assert ("is of epoch 3" in log) == warns


def test_the_loss_of_the_training_tells_of_divergence_where_there_is_no_validation():
    row = {"validation_loss": None}
    assert divergence([]) is None
    assert divergence([{**row, "train_loss": 0.01}, {**row, "train_loss": 0.9}]) is None
    assert "lower `training.learning_rate`" in divergence([{**row, "train_loss": 0.01}, {**row, "train_loss": 1.1}])


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"loss": "l2"}, r"`training.loss`: must be huber, mse or l1, or one of these for some of energy, forces and"),
        ({"loss": {"virial": "mse"}}, r"`training.loss`: must be huber, mse or l1"),
        ({"optimizer": "sgd"}, r"`training.optimizer`: Input should be 'adamw' or 'adam' \(given: `sgd`\)"),
        ({"plateau_factor": 1.5}, r"`training.plateau_factor`: Input should be less than 1"),
        ({"early_stopping": 0}, r"`training.early_stopping`: Input should be greater than or equal to 1"),
        (
            {"final_energy_weight": 0, "final_forces_weight": 0, "final_stress_weight": 0},
            r"the weights of the losses are all 0 at the end",
        ),
        (
            {"final_forces_weight": 2.0, "final_learning_rate": 0.01},
            r"change as the learning rate does, but that is 0.01 all the time; lower `final_learning_rate`",
        ),
        ({"final_forces_weight": 2.0, "schedule": "constant"}, r"which `schedule: constant` keeps; choose another"),
    ],
)
def test_mistakes_are_named(training, message):
    with pytest.raises(HIENetError, match=message):
        parse_config({"data": {"train": "a.extxyz"}, "training": training})


# Presets


def test_every_architecture_has_the_recipe_of_its_paper():
    assert RECIPES.keys() == ARCHITECTURES.keys()
    assert all("paper" in recipes for recipes in RECIPES.values())
    guide = (Path(__file__).parents[1] / "docs" / "models.md").read_text()
    assert all(f"`--recipe {name}`" in guide for recipes in RECIPES.values() for name in recipes)


@pytest.mark.parametrize(("architecture", "name"), [(a, name) for a, names in RECIPES.items() for name in names])
def test_a_configuration_with_a_recipe_is_valid_and_says_what_is_published(architecture, name, data):
    recipe = find_recipe(architecture, name, mean_atoms=4.0)
    text = render(summarize([str(data)]), "run", architecture, "small", recipe)
    config = parse_config(yaml.safe_load(text))
    for key, value in recipe.training.items():
        assert getattr(config.training, key) == value
    assert f"#   published: {recipe.published}" in text
    assert (f"#   assumed: {recipe.assumed}" in text) == bool(recipe.assumed)


def test_botnets_weights_are_those_of_the_mean_number_of_atoms():
    weights = find_recipe("botnet", "paper", mean_atoms=27.0).training
    assert (weights["energy_weight"], weights["forces_weight"]) == (27.0, 729.0)


def test_the_command_writes_a_recipe_and_training_by_it_runs(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["init", str(data), "--architecture", "botnet", "--recipe", "paper", "-o", "b.yaml"]
    result = CliRunner().invoke(app, arguments)
    assert "recipe: BOTNet" in result.output
    values = yaml.safe_load((tmp_path / "b.yaml").read_text())
    assert values["training"]["early_stopping"] == 512
    values["training"] |= {"epochs": 1, "threads": 1}
    run = Run(parse_config(values), False, Console(file=io.StringIO()))
    run.trainer.run()
    assert np.isfinite(float(run.trainer.state.history[0]["train_loss"] or np.nan))
    result = CliRunner().invoke(app, ["init", str(data), "--recipe", "l3i5", "-o", "c.yaml"])
    assert "unknown recipe `l3i5` of `hienet`; expected one of: paper" in str(result.exception)
