"""Files from strangers: reading one executes no code, and a damaged one is refused or harmless."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from fuzz import HARMLESS, campaign, damaged, intact_files
from hienet_deploy.export import export

from hienet.calculator import HIENetCalculator, load_model
from hienet.checkpoint import load_checkpoint
from hienet.config import load_config
from hienet.convert import convert
from hienet.deployed import METADATA_NAME
from hienet.errors import HIENetError
from hienet.info import describe_file


class Payload:
    """Unpickled without care, it creates the folder `executed`."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.witness),))


READERS = {
    "checkpoint": load_checkpoint,
    "calculator": HIENetCalculator,
    "info": describe_file,
    "deploy": export,
    "convert": convert,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("key", ["weights", "hyperparameters", "model_state_dict", "config", "resume"])
def test_a_pickle_that_would_execute_code_is_refused(reader, key, tmp_path):
    witness = tmp_path / "executed"
    contents = {"format": "hienet-checkpoint", "format_version": 1, "model_state_dict": {}, "config": {}}
    torch.save({**contents, key: Payload(witness)}, tmp_path / "evil.pt")
    with pytest.raises(HIENetError, match=r"cannot be read as a checkpoint: .*write it anew"):
        READERS[reader](tmp_path / "evil.pt")
    assert not witness.exists()
    # The payload works where nobody takes care.
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert witness.exists()


@pytest.mark.parametrize("reader", READERS)
def test_a_bare_pickle_is_no_model_file(reader, tmp_path):
    witness = tmp_path / "executed"
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Payload(witness)))
    with pytest.raises(HIENetError, match="is not a model file"):
        READERS[reader](tmp_path / "evil.pt")
    assert not witness.exists()


def rewritten(source: Path, target: Path, changes: dict[str, bytes]) -> Path:
    """A copy of an archive with other contents of some records, named without their folder; the checksums are right."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        names = {name.split("/", 1)[1]: name for name in old.namelist()}
        assert changes.keys() <= names.keys()
        for short, name in names.items():
            new.writestr(name, changes.get(short, old.read(name)))
    return target


def test_a_deployed_file_with_pickles_that_would_execute_code_is_refused(checkpoint_path, tmp_path):
    witness = tmp_path / "executed"
    deployed = export(checkpoint_path, tmp_path / "plain.hienet.pt", compiled=False).path
    for record in ("data.pkl", "constants.pkl"):
        evil = rewritten(deployed, tmp_path / "evil.hienet.pt", {record: pickle.dumps(Payload(witness), protocol=2)})
        with pytest.raises(HIENetError, match=r"cannot be read as a deployed model: .*deploy it again"):
            load_model(evil)
        assert not witness.exists()


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:builtins.open [{witness}, w]",
        "data: !!python/object/apply:builtins.open [{witness}, w]",
        "data: !!python/object/new:builtins.open [{witness}, w]",
        "data: {{train: !!python/name:os.system }}",
        "data: {{train: !!python/module:os }}",
    ],
)
def test_yaml_that_would_make_python_objects_is_refused(text, tmp_path):
    witness = tmp_path / "executed"
    (tmp_path / "evil.yaml").write_text(text.format(witness=witness) + "\n")
    with pytest.raises(HIENetError, match=r"is not valid YAML .*could not determine a constructor for the tag"):
        load_config(tmp_path / "evil.yaml")
    assert not witness.exists()


def test_yaml_that_grows_when_it_is_printed_is_refused_at_once(tmp_path):
    """Nine levels of nine references each: short in memory, 400 million words when written out."""
    lines = ["a0: &a0 [" + ", ".join(["lol"] * 9) + "]"]
    lines += [f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 9) + "]" for i in range(1, 9)]
    (tmp_path / "evil.yaml").write_text("\n".join(lines) + "\ndata: {train: *a8}\n")
    with pytest.raises(HIENetError) as failure:
        load_config(tmp_path / "evil.yaml")
    assert len(str(failure.value)) < 2000


def test_a_changed_weight_is_noticed_though_torch_does_not_look(checkpoint_path, tmp_path):
    whole = checkpoint_path.read_bytes()
    with zipfile.ZipFile(checkpoint_path) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
        contents = archive.read(largest)
    place = whole.index(contents) + len(contents) // 2
    path = tmp_path / "changed.pt"
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
    one = torch.load(checkpoint_path, weights_only=True)["weights"]
    other = torch.load(path, weights_only=True)["weights"]
    assert any(not torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(HIENetError, match=r"truncated or damaged .*Bad CRC-32|does not match its checksum"):
        load_checkpoint(path)


def test_a_deployed_file_whose_description_makes_no_sense_is_refused(checkpoint_path, tmp_path):
    deployed = export(checkpoint_path, tmp_path / "plain.hienet.pt", compiled=False)
    for key, value in {"elements": 3, "cutoff": "far", "dtype": "float16", "stages": [1], "operators": None}.items():
        description = json.dumps({**deployed.metadata, key: value}).encode()
        path = rewritten(deployed.path, tmp_path / "bad.hienet.pt", {f"extra/{METADATA_NAME}": description})
        with pytest.raises(HIENetError, match=f"is damaged: its description says `{key}.*deploy it again"):
            load_model(path)


@pytest.fixture(scope="module")
def intact(tmp_path_factory, operators) -> dict[str, Path]:
    return intact_files(tmp_path_factory.mktemp("intact"))


def test_damage_is_the_same_every_time_and_is_damage(intact):
    whole = intact["checkpoint"].read_bytes()
    files = [damaged(whole, number, seed=0) for number in range(20)]
    assert files == [damaged(whole, number, seed=0) for number in range(20)]
    assert all(file != whole for file in files)
    assert len(set(files)) == 20


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["checkpoint", "foreign", "compiled", pytest.param("lammps", marks=pytest.mark.lammps)]
)
def test_damaged_files_are_refused_or_harmless(kind, intact, tmp_path):
    """A small sample of what tests/fuzz.py does."""
    whole = tmp_path / "whole.hienet.pt"
    whole.write_bytes(intact[kind].read_bytes())
    results = campaign(kind, whole, 0, 25, seed=0, batch=25)
    assert [result for result in results if result[1] not in HARMLESS] == []
    assert [number for number, _, _ in results] == list(range(25))
    assert sum(outcome == "refused" for _, outcome, _ in results) > 15


@pytest.mark.slow
def test_files_made_by_somebody_who_means_harm_do_not_crash_the_reader(intact, tmp_path):
    """Their checksums are right, their contents are not. Numbers may differ: these are other models."""
    whole = tmp_path / "whole.pt"
    whole.write_bytes(intact["checkpoint"].read_bytes())
    results = campaign("checkpoint", whole, 0, 25, seed=0, batch=25, valid_checksums=True)
    assert [result for result in results if result[1] not in (*HARMLESS, "different")] == []


def test_damage_at_the_end_of_the_file_is_noticed(intact, tmp_path):
    whole = intact["compiled"].read_bytes()
    with zipfile.ZipFile(intact["compiled"]) as archive:
        last = max(archive.infolist(), key=lambda record: record.header_offset)
        place = whole.rindex(archive.read(last))
    path = tmp_path / "end.hienet.pt"
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(HIENetError, match="truncated or damaged"):
        load_model(path)
