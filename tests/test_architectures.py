"""What every architecture of the package does alike: it is listed, made, trained, and deployed."""

from __future__ import annotations

import io
import json
import sys

import pytest
import torch
import yaml
from hienet_deploy.cli import app as deploy
from hienet_deploy.export import export
from labelled_frames import tiny_values, write_frames
from rich.console import Console
from typer.testing import CliRunner

from hienet.calculator import load_model
from hienet.checkpoint import load_checkpoint
from hienet.cli import app
from hienet.config import load_config, parse_config
from hienet.deployed import read_metadata
from hienet.models.factory import ARCHITECTURES, DEFAULT_PRESET, build_model
from hienet.tables import print_architectures
from hienet.testing import TINY, silicon_carbide, write_tiny_checkpoint


def hienet(*arguments: object) -> str:
    """Standard output of a command that must succeed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def listed() -> dict[str, dict]:
    return {entry["architecture"]: entry for entry in json.loads(hienet("models", "--json"))}


def test_every_architecture_is_listed(listed):
    assert set(listed) == set(ARCHITECTURES) == set(TINY)


def test_the_table_of_architectures_has_them_all(listed):
    output = io.StringIO()
    print_architectures(Console(file=output, width=200), list(listed.values()))
    assert all(f"{name}: {family.summary}" in output.getvalue() for name, family in ARCHITECTURES.items())
    assert "512 + 1440 + 1440" in output.getvalue()


def test_the_list_tells_parameters_and_what_ranks_exchange(listed, architecture):
    presets = {row["preset"]: row for row in listed[architecture]["presets"]}
    assert presets[DEFAULT_PRESET]["n_elements"] == 89
    assert all(row["parameters"] > 1000 for row in presets.values())
    if architecture == "hienet":
        assert presets["paper"] == {
            "preset": "paper",
            "symmetry": "SO(3)",
            "parameters": 7_859_976,
            "n_elements": 89,
            "cutoff": 5.0,
            "exchanged": [512, 1440, 1440],
        }


def test_a_new_model_is_described(architecture, tmp_path):
    path = tmp_path / "m.pt"
    hienet("new", "--architecture", architecture, "--elements", "Si,C", "--cutoff", 4.5, "-o", path)
    described = json.loads(hienet("info", path, "--json"))
    assert (described["architecture"], described["cutoff"]) == (architecture, 4.5)
    assert described["stages"][0]["exchanged_width"] == 0
    assert all(stage["exchanged_width"] <= stage["width"] for stage in described["stages"])


def test_init_writes_a_configuration_for_it(architecture, tmp_path):
    config = tmp_path / "config.yaml"
    hienet("init", write_frames(tmp_path / "data.extxyz"), "--architecture", architecture, "-o", config)
    section = load_config(config).model
    assert (section.architecture, section.preset) == (architecture, DEFAULT_PRESET)
    schema = json.loads(hienet("schema", "--architecture", architecture))
    assert set(ARCHITECTURES[architecture].config.model_fields) <= set(schema["$defs"]["ModelSection"]["properties"])


def test_it_trains(variant, tmp_path):
    """Every weight that the energy depends on has moved after one epoch, and the loss is finite."""
    data = write_frames(tmp_path / "data.extxyz")
    values = tiny_values(data, tmp_path / "run", epochs=1)
    values["model"] = {"preset": None, **TINY[variant["architecture"]], **variant, "cutoff": 3.5}
    values["model"].pop("avg_num_neighbors", None)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(parse_config(values).model_dump(mode="json")))
    assert "epoch 1/1" in hienet("train", config)
    checkpoint = load_checkpoint(tmp_path / "run" / "best.pt")
    untrained = build_model(checkpoint.architecture, checkpoint.config, seed=0).state_dict()
    moved = [name for name, tensor in checkpoint.weights.items() if not torch.equal(tensor, untrained[name])]
    assert len(moved) > 0.8 * len(untrained)
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint.weights.values())


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "plain"])
def test_deployed_it_is_its_source(variant, compiled, tmp_path):
    source = write_tiny_checkpoint(tmp_path / "m.pt", elements=("C", "O", "Si"), **variant)
    deployment = export(source, dtype="float64", compiled=compiled)
    atoms = silicon_carbide()
    expected, found = load_model(source).predict(atoms), load_model(deployment.path).predict(atoms)
    torch.testing.assert_close(found.energies, expected.energies, rtol=0, atol=1e-7)
    torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=1e-7)
    torch.testing.assert_close(found.stress, expected.stress, rtol=0, atol=1e-8)


def test_deployed_for_fewer_elements_in_another_order_it_is_its_source(variant, tmp_path):
    source = write_tiny_checkpoint(tmp_path / "m.pt", elements=("C", "O", "Si"), **variant)
    deployment = export(source, dtype="float64", elements=["Si", "C"], compiled=False)
    assert read_metadata(deployment.path)["elements"] == ["Si", "C"]
    atoms = silicon_carbide()
    expected, found = load_model(source).predict(atoms), load_model(deployment.path).predict(atoms)
    torch.testing.assert_close(found.energies, expected.energies, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=1e-10)


def test_without_a_compiled_form_it_is_deployed_plain_and_the_command_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["hienet.ops.compile"], "RULES", {})
    source = write_tiny_checkpoint(tmp_path / "m.pt")
    result = CliRunner().invoke(deploy, [str(source)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "plain TorchScript, for any device: `hienet` with these hyperparameters has no compiled form" in said
    metadata = read_metadata(tmp_path / "m.hienet.pt")
    assert (metadata["format_version"], metadata["operators"], metadata["tables"]) == (1, [], None)
