"""A configuration says what is wrong with it, and what would be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from labelled_frames import tiny_values, write_frames

from hienet.config import TrainConfig, TrainingSection, json_schema, keys_of, load_config, parse_config, save_config
from hienet.errors import HIENetError
from hienet.models.hienet import HIENetConfig
from hienet.template import render, summarize


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def changed(**sections: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {"data": {"train": "a.extxyz"}}
    return {**values, **sections}


def test_defaults_are_the_papers() -> None:
    settings = TrainingSection()
    assert settings.learning_rate == 0.01
    assert settings.final_learning_rate == 5e-6
    assert settings.weight_decay == 0.001
    assert settings.ema_decay == 0.999
    assert (settings.warmup_fraction, settings.warmup_factor) == (0.1, 0.2)
    assert (settings.energy_weight, settings.forces_weight, settings.stress_weight) == (1.0, 1.0, 0.01)
    assert settings.huber_delta == 0.01


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (changed(train={}), r"unknown key `train`; allowed here: model, data, training, output"),
        (changed(training={"epoch": 3}), r"unknown key `training.epoch`; allowed here: epochs, batch_size, "),
        (changed(model={"cutof": 3}), r"unknown key `model.cutof`; allowed here: elements, cutoff"),
        (changed(training={"epochs": "many"}), r"key `training.epochs`: .*valid integer.*given: `many`"),
        (changed(training={"epochs": 0}), r"key `training.epochs`: .*greater than or equal to 1.*given: `0`"),
        (changed(training={"dtype": "float16"}), r"key `training.dtype`: .*'float32' or 'float64'.*given: `float16`"),
        (changed(training={"learning_rate": 1e-7}), r"`final_learning_rate` 5e-06 exceeds `learning_rate` 1e-07"),
        (
            changed(training={"energy_weight": 0, "forces_weight": 0, "stress_weight": 0}),
            r"at least one must be positive",
        ),
        (changed(training={"learning_rate": float("nan")}), r"key `training.learning_rate`: .*finite number"),
        (changed(model={"cutoff": -1}), r"key `model.cutoff`: .*greater than 0.*given: `-1`"),
        (
            changed(model={"preset": "small", "equivariant_irreps": ["32x0e+16x1e", "32x0e"]}),
            r"layer 1 of `equivariant_irreps` is to put out `32x0e\+16x1e`, but no product of 0e with harmonics of l "
            r"up to 2 makes 16x1e; with `parity: true` harmonics of odd l are odd: write 32x0e\+16x1o, and so in all "
            r"layers, or set `parity: false`",
        ),
        (
            changed(model={"preset": "small", "equivariant_irreps": ["32x0e+16x1o", "8x0o+32x0e+16x1e", "32x0e"]}),
            r"layer 2 .* but no product of 0e \+ 1o with harmonics of l up to 2 makes 8x0o; leave it out",
        ),
        (changed(model={"preset": "paper", "parity": True}), r"write 512x0e\+128x1o\+64x2e\+32x3o, and so in all"),
        (
            changed(model={"preset": "small", "parity": False}),
            r"`32x0e\+16x1o\+8x2e` has odd parity; set `parity: true`, or write 32x0e\+16x1e\+8x2e",
        ),
        (changed(training={"reflect": "sometimes"}), r"`training.reflect`: Input should be a valid boolean"),
        (
            changed(model={"preset": "huge"}),
            r"unknown preset `huge` .*expected one of: paper, paper-o3, published, published-o3, small, medium, large",
        ),
        (changed(model={"architecture": "resnet"}), r"unknown architecture `resnet`; expected one of: hienet"),
        (changed(model={"elements": ["Si", "Xx"]}), r"`elements` has \['Xx'\], which are not chemical symbols"),
        (changed(model={"scale": [1.0]}), r"give `model.elements` too"),
        ({"training": {}}, r"key `data` is missing"),
        ({"data": {}}, r"key `data.train` is missing"),
        ({"data": {"train": 3}}, r"key `data.train`: must be a file or a list of files \(given: `3`\)"),
        ({"data": {"train": []}}, r"key `data.train`: .*at least 1 item"),
        (
            {"data": {"train": "a", "validation": 1.5}},
            r"key `data.validation`: must be a fraction .*below 1.*given: `1.5`",
        ),
        (
            {"data": {"train": "a", "validation": 0.6, "test": 0.4}},
            r"`validation` and `test` take 1 of the frames; together they must take less than 1",
        ),
        (
            {"data": {"train": "a", "reference_energies": "dft"}},
            r"must be auto, least_squares, keep, or an energy",
        ),
        ({"data": {"train": "a", "reference_energies": {"Q": 1.0}}}, r"`Q` is not a chemical symbol"),
        ({"data": {"train": "a", "reference_energies": {"Si": "x"}}}, r"the energy of Si must be a number in eV"),
        ({"data": {"train": "a", "stress_key": "s", "virial_key": "v"}}, r"either `stress_key` or `virial_key`"),
        ("data", r"must hold the sections model, data, training, output, got `data`"),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(values: object, message: str) -> None:
    with pytest.raises(HIENetError, match=message):
        parse_config(values)


def test_bad_yaml_is_refused_with_its_place(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "data:\n  train: [a.xyz\ntraining: {}\n")
    with pytest.raises(HIENetError, match=r"is not valid YAML at line 3, column 9: .*check indentation"):
        load_config(path)


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "data:\n  train: a.xyz\n  train: b.xyz\n")
    with pytest.raises(HIENetError, match=r"line 3, column 3: key `train` is given twice"):
        load_config(path)


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(HIENetError, match=r"cannot read .*none.yaml`: No such file"):
        load_config(tmp_path / "none.yaml")


def test_yaml_cannot_execute_code(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "output: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(HIENetError, match="not valid YAML"):
        load_config(path)


def test_exponents_without_a_point_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "data: {train: a.xyz}\ntraining: {learning_rate: 1e-3}\n")
    assert load_config(path).training.learning_rate == 1e-3


def test_a_configuration_survives_writing_and_reading(tmp_path: Path) -> None:
    config = parse_config(tiny_values(tmp_path / "a.xyz", tmp_path, seed=7))
    save_config(config, tmp_path / "c.yaml")
    assert load_config(tmp_path / "c.yaml") == config


def test_a_configuration_cannot_be_changed() -> None:
    config = parse_config(changed())
    with pytest.raises(ValueError, match="frozen"):
        config.training.epochs = 3  # type: ignore[misc]


def test_every_key_is_described() -> None:
    for section in ("model", "data", "training"):
        fields = TrainConfig.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
        assert all(field.description for field in fields.values())
    assert all(field.description for field in HIENetConfig.model_fields.values())


def test_every_key_is_in_the_user_guide() -> None:
    guide = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    sections = [TrainConfig.model_fields[name].annotation for name in ("model", "data", "training")]
    names = [name for section in [*sections, HIENetConfig] for name in keys_of(section)]  # type: ignore[arg-type]
    assert [name for name in names if f"`{name}`" not in guide] == []


def test_the_schema_lists_the_arguments_of_the_model() -> None:
    schema = json_schema()
    model = schema["$defs"]["ModelSection"]
    assert {"architecture", "preset", *HIENetConfig.model_fields} == set(model["properties"])
    assert model["additionalProperties"] is False


def test_the_template_is_a_valid_configuration_for_its_data(tmp_path: Path) -> None:
    data = write_frames(tmp_path / "data.extxyz")
    text = render(summarize([str(data)]), "run")
    config = parse_config(yaml.safe_load(text))
    assert config.data.train == (str(data),)
    assert "# elements (atoms): Ag 7, Cu 25" in text


def test_the_template_stays_valid_with_all_its_comments_removed(tmp_path: Path) -> None:
    data = write_frames(tmp_path / "data.extxyz")
    lines = render(summarize([str(data)]), "run").splitlines()
    active = [line.replace("  # ", "  ", 1) if line.startswith("  # ") and ": " in line else line for line in lines]
    keys = [line for line in active if line.strip() and ":" in line]
    computed = ("elements", "avg_num_neighbors", "scale", "shift")
    known = {name for section in ("model", "data", "training") for name in _fields(section)} | set(computed)
    kept = [line for line in keys if line.split(":")[0].strip() in known | {"model", "data", "training", "output"}]
    kept = [line for line in kept if not line.strip().startswith(tuple(f"{name}: null" for name in computed))]
    config = parse_config(yaml.safe_load("\n".join(kept)))
    defaults = TrainingSection().model_dump(exclude={"epochs", "batch_size", "ema_decay"})
    assert config.training.model_dump(exclude={"epochs", "batch_size", "ema_decay"}) == defaults


def _fields(section: str) -> set[str]:
    model = TrainConfig.model_fields[section].annotation
    assert model is not None
    return set(keys_of(model)) | (set(HIENetConfig.model_fields) if section == "model" else set())


@pytest.mark.parametrize("word", ["yes", "on", "true", "TRUE"])
def test_nobelium_is_an_element_and_yes_is_true(word: str, tmp_path: Path) -> None:
    """YAML 1.1 takes `No` for false."""
    path = tmp_path / "config.yaml"
    path.write_text(
        f"model: {{architecture: hienet, elements: [C, No, Y], parity: {word}}}\n"
        "data: {train: on, reference_energies: {C: 1.0, No: 2.0, Y: 3.0}}\n"
        f"training: {{reflect: {word}}}\noutput: run\n"
    )
    config = load_config(path)
    assert list(config.model.arguments["elements"]) == ["C", "No", "Y"]
    assert config.data.reference_energies == {"C": 1.0, "No": 2.0, "Y": 3.0}
    assert config.data.train == ("on",)
    assert config.training.reflect is True
    computed = {"scale": (1.0,) * 3, "shift": (0.0,) * 3, "avg_num_neighbors": 1.0}
    assert config.model.hyperparameters(computed).parity is True
    save_config(config, tmp_path / "again.yaml")
    again = load_config(tmp_path / "again.yaml")
    assert again.data == config.data
    assert again.model.hyperparameters(computed) == config.model.hyperparameters(computed)
