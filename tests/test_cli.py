"""The command line: what it prints, what it writes, and how it says no."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from commands import hienet, refusal
from labelled_frames import tiny_values, write_frames
from typer.testing import CliRunner

from hienet.checkpoint import load_checkpoint
from hienet.cli import app
from hienet.config import load_config
from hienet.testing import write_tiny_checkpoint
from hienet.train.pace import Pace, chosen_of


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_frames(tmp_path / "data.extxyz")


def test_help_needs_no_torch_and_is_instant() -> None:
    code = "import sys; import hienet.cli; assert not {'torch', 'ase', 'e3nn', 'pydantic'} & set(sys.modules)"
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert time.monotonic() - begin < 5.0


COMMANDS = [command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_text(command: str) -> None:
    assert command in hienet("--help")
    assert "Usage" in hienet(command, "--help")


def test_new_writes_a_model_that_the_seed_decides(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        hienet("new", "--elements", "Si, C", "--preset", "small", "--seed", seed, "-o", tmp_path / f"{name}.pt")
    one, same, other = (load_checkpoint(tmp_path / f"{name}.pt") for name in "abc")
    assert one.config.elements == ("C", "Si")
    name = "species_embedding.weight"
    assert torch.equal(one.weights[name], same.weights[name])
    assert not torch.equal(one.weights[name], other.weights[name])


def test_the_papers_model_has_the_papers_number_of_parameters(tmp_path: Path) -> None:
    path = tmp_path / "paper.pt"
    hienet("new", "--architecture", "hienet", "--preset", "paper", "--elements", "mptrj", "-o", path)
    assert len(load_checkpoint(path).config.elements) == 89
    text = " ".join(hienet("info", path).split())
    assert "7,859,976 trainable" in text
    assert "7,860,155 with the scales, reference energies and neighbour normalisation" in text
    described = json.loads(hienet("info", path, "--json"))
    assert described["parameters"] == 7_859_976
    assert described["parameters_with_constants"] == 7_860_155
    assert [stage["exchanged_width"] for stage in described["stages"]] == [0, 512, 1440, 1440]


def test_new_takes_a_cutoff(tmp_path: Path) -> None:
    hienet("new", "--elements", "Si", "--cutoff", 4.25, "-o", tmp_path / "a.pt")
    assert load_checkpoint(tmp_path / "a.pt").config.cutoff == 4.25


def test_from_data_to_an_evaluated_model(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "energy from `energy (calculator)` in 8 of 8" in hienet("init", data)
    assert load_config("config.yaml").data.train == (str(data),)
    Path("config.yaml").write_text(yaml.safe_dump(tiny_values(data, tmp_path / "unused", epochs=1)))
    output = hienet("train", "config.yaml", "--output", "run")
    assert "epoch 1/1" in output
    assert "hienet-deploy run/best.pt" in output
    described = hienet("info", "run/best.pt")
    assert "train 6, validation 2, test 0" in described
    output = hienet("eval", "run/best.pt", data, "-o", "errors")
    assert "config_type" in output
    assert "second" in output
    assert Path("errors/frames.csv").exists()
    assert "state of a training run" in hienet("info", "run/last.pt")


def test_a_deployed_model_is_described_and_evaluated(tmp_path: Path) -> None:
    export = pytest.importorskip("hienet_deploy.cli")
    source = write_tiny_checkpoint(tmp_path / "m.pt", elements=("Ag", "Cu"))
    deployed = tmp_path / "m.hienet.pt"
    result = CliRunner().invoke(export.app, [str(source), "-o", str(deployed)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    described = hienet("info", deployed)
    assert "deployed model" in described
    assert "largest errors at export" in described
    data = write_frames(tmp_path / "data.extxyz")
    assert "config_type" in hienet("eval", deployed, data, "-o", tmp_path / "errors")


def test_the_schema_is_json(tmp_path: Path) -> None:
    schema = json.loads(hienet("schema"))
    assert set(schema["properties"]) == {"model", "data", "training", "output"}
    hienet("schema", "-o", tmp_path / "schema.json")
    assert json.loads((tmp_path / "schema.json").read_text()) == schema


def test_init_keeps_an_existing_file(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("mine")
    assert "exists; add --force" in refusal(capsys, monkeypatch, "init", data, "-o", config)
    assert config.read_text() == "mine"


def test_init_finds_what_the_given_time_is_enough_for(data: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    said = hienet("init", data, "--minutes", "0.5", "-o", config)
    found = re.search(r"preset `small`: a step takes \S+ ms here on \d+ thread.s., so that 0.5 minutes make", said)
    assert found, said
    written = load_config(config)
    assert (written.model.preset, written.training.max_minutes) == ("small", 0.5)
    assert "preset `medium`" not in said or "chosen: preset `small`" in said
    said = hienet("init", data, "--minutes", "0.5", "--preset", "medium", "-o", config, "--force")
    assert "chosen: preset `medium`, 0.5 minutes" in said
    assert load_config(config).model.preset == "medium"


def test_the_largest_preset_is_chosen_that_makes_enough_steps() -> None:
    paces = [Pace("small", 0.01, 50, 1), Pace("medium", 0.02, 50, 1), Pace("large", 0.1, 50, 1)]
    assert [chosen_of(paces, minutes).preset for minutes in (1.0, 2.0, 3.0, 13.0, 14.0)] == [
        "small",
        "small",
        "medium",
        "medium",
        "large",
    ]
    assert (paces[1].steps(3.0), paces[1].epochs(3.0)) == (9000, 180)


def test_a_wrong_key_is_one_sentence(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"data": {"train": str(data), "label": 1}}))
    error = refusal(capsys, monkeypatch, "train", config)
    assert "unknown key `data.label`; allowed here: train, validation, test" in error


@pytest.mark.parametrize("command", ["info", "eval"])
def test_a_file_that_is_not_a_model_is_one_sentence(
    command: str, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [command, data] if command == "info" else [command, data, data]
    assert "is not a model file" in refusal(capsys, monkeypatch, *arguments)


def test_a_truncated_model_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny_checkpoint(tmp_path / "m.pt")
    path.write_bytes(path.read_bytes()[:-1000])
    assert "truncated or damaged" in refusal(capsys, monkeypatch, "info", path)


def test_a_model_of_a_newer_format_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny_checkpoint(tmp_path / "m.pt")
    contents = torch.load(path, weights_only=True)
    torch.save({**contents, "format_version": 99}, path)
    assert "has checkpoint format 99" in refusal(capsys, monkeypatch, "info", path)


def test_unknown_elements_and_folders_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = refusal(capsys, monkeypatch, "new", "--elements", "Si,Zz", "-o", tmp_path / "m.pt")
    assert "`elements` has ['Zz'], which are not chemical symbols" in error
    error = refusal(capsys, monkeypatch, "new", "--elements", "Si", "-o", tmp_path / "none" / "m.pt")
    assert "there is no folder" in error
