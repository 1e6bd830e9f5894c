"""Who claims O(3) gives a structure and its mirror image the same energy, and the others do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from e3nn import o3
from hienet_deploy.cli import app as deploy
from labelled_frames import write_frames
from torch import nn
from typer.testing import CliRunner

from hienet.calculator import LoadedModel, load_model, model_of
from hienet.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from hienet.cli import app
from hienet.config import load_config
from hienet.deployed import read_metadata, symmetry_of_file
from hienet.models.factory import ARCHITECTURES, build_model, make_config
from hienet.ops.compile import compile_model
from hienet.testing import BOTH_PARITIES, NATURAL, random_rotation, rotated, silicon_carbide, tiny_checkpoint

PRESETS = [(name, preset) for name, family in ARCHITECTURES.items() for preset in family.presets]
INVERSION = -np.eye(3)
MIRROR = random_rotation(3) @ np.diag([1.0, 1.0, -1.0]) @ random_rotation(3).T
"""Behind a plane in no special direction."""


def in_operators(model: LoadedModel) -> LoadedModel:
    """Compiled, with tables so coarse that they are made at once: they have the symmetry all the same."""
    compile_model(model.module, 12)
    return replace(model)


def changes_by(model: LoadedModel, operation: np.ndarray) -> tuple[float, float, float]:
    """Largest change of energies of atoms, forces and stress when the structure is reflected and they are turned back,
    over the largest force or so."""
    atoms = silicon_carbide()
    before, after = model.predict(atoms), model.predict(rotated(atoms, operation))
    back = torch.tensor(operation)
    scale = max(1.0, float(before.forces.abs().max()))
    return (
        float((after.energies - before.energies).abs().max()) / scale,
        float((after.forces @ back - before.forces).abs().max()) / scale,
        float((back.T @ after.stress[0] @ back - before.stress[0]).abs().max()) / scale,
    )


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize("operation", [INVERSION, MIRROR], ids=["inversion", "mirror"])
@pytest.mark.parametrize(("architecture", "preset"), PRESETS)
def test_every_preset_has_the_symmetry_that_it_claims(architecture, preset, operation):
    config = make_config(architecture, preset, {"elements": ("C", "Si")})
    checkpoint = Checkpoint(architecture, config, build_model(architecture, config, 0).state_dict())
    for model in (model_of(checkpoint), in_operators(model_of(checkpoint))):
        largest = max(changes_by(model, operation))
        assert (largest < 1e-11) == (config.symmetry == "O(3)"), largest


@pytest.mark.parametrize("operation", [INVERSION, MIRROR], ids=["inversion", "mirror"])
@pytest.mark.parametrize("values", [NATURAL, BOTH_PARITIES, {}], ids=["natural", "both parities", "none"])
@pytest.mark.parametrize("architecture", ["hienet", "eqvnet", "sevennet", "inv_sevennet"])
def test_the_option_decides_it(architecture, values, operation):
    model = loud(model_of(tiny_checkpoint(architecture, **values)))
    assert (max(changes_by(model, operation)) < 1e-11) == (model.info["symmetry"] == "O(3)") == bool(values)


def loud(model: LoadedModel) -> LoadedModel:
    """The model with messages of order one. With weights as they are drawn irreps of unnatural parity, which are made
    of products of products, change energies in the tenth digit, and mistakes in them would not be seen."""
    for layer in model.module.layers:
        if hasattr(layer, "linear_out"):
            layer.linear_out.weight.data *= 30.0
    return model


@pytest.mark.parametrize("architecture", ["hienet", "eqvnet", "sevennet", "inv_sevennet"])
def test_odd_scalars_and_unnatural_irreps_matter_and_keep_the_symmetry(architecture):
    model, atoms = loud(model_of(tiny_checkpoint(architecture, **BOTH_PARITIES))), silicon_carbide()
    assert max(changes_by(model, MIRROR)) < 1e-11
    before = model.predict(atoms).energies
    layer = [one for one in model.module.layers if hasattr(one, "linear_out")][2]
    for irrep in ("0o", "1e", "1o"):
        weights = layer.linear_out.weight.data.clone()
        _silence(layer, o3.Irrep(irrep))
        assert float((model.predict(atoms).energies - before).abs().max()) > 1e-4
        layer.linear_out.weight.data.copy_(weights)
    assert torch.equal(model.predict(atoms).energies, before)


def _silence(layer: nn.Module, silenced: o3.Irrep) -> None:
    """Have no message of that irrep arrive."""
    for (_, fan_in, _, fan_out, first), (_, irrep) in zip(layer.linear_out.columns, layer.gate.irreps_in, strict=True):
        if irrep == silenced:
            layer.linear_out.weight.data[first : first + fan_in * fan_out] = 0.0


def test_a_checkpoint_without_the_key_has_todays_form(tmp_path):
    """As all that were written before there was one."""
    checkpoint = tiny_checkpoint()
    expected = model_of(checkpoint).predict(silicon_carbide())
    save_checkpoint(checkpoint, tmp_path / "m.pt")
    contents = torch.load(tmp_path / "m.pt", weights_only=True)
    del contents["hyperparameters"]["parity"]
    torch.save(contents, tmp_path / "old.pt")
    assert load_checkpoint(tmp_path / "old.pt").config.symmetry == "SO(3)"
    found = load_model(tmp_path / "old.pt").predict(silicon_carbide())
    assert torch.equal(found.forces, expected.forces)


def described(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


O3 = "symmetry O(3): a structure and its mirror image have the same energy"
SO3 = "symmetry SO(3): a structure and its mirror image may have different energies"


@pytest.mark.parametrize(("values", "said"), [(NATURAL, O3), ({}, SO3)], ids=["O(3)", "SO(3)"])
def test_files_say_which_they_are(values, said, tmp_path):
    save_checkpoint(tiny_checkpoint(**values), tmp_path / "m.pt")
    assert said in described("info", tmp_path / "m.pt")
    result = CliRunner().invoke(deploy, [str(tmp_path / "m.pt"), "--no-compile"], catch_exceptions=False)
    assert said in " ".join(result.output.split())
    assert said in described("info", tmp_path / "m.hienet.pt")
    assert read_metadata(tmp_path / "m.hienet.pt")["symmetry"] == said.split()[1].rstrip(":")
    assert load_model(tmp_path / "m.hienet.pt").info["symmetry"] == said.split()[1].rstrip(":")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, "SO(3)"), ({"architecture": "another"}, "unknown"), ({"hyperparameters": None}, "unknown")],
)
def test_of_a_deployed_file_without_the_entry_it_is_derived_where_that_is_possible(changes, expected):
    checkpoint = tiny_checkpoint()
    metadata = {
        "architecture": checkpoint.architecture,
        "hyperparameters": checkpoint.config.model_dump(mode="json"),
        **changes,
    }
    if metadata["hyperparameters"]:
        del metadata["hyperparameters"]["parity"]
    assert symmetry_of_file(metadata) == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_configuration_of_init_describes_a_model_with_o3_symmetry(architecture, tmp_path):
    data = write_frames(tmp_path / "data.extxyz")
    described("init", data, "--architecture", architecture, "-o", tmp_path / "config.yaml")
    section = load_config(tmp_path / "config.yaml").model
    assert section.hyperparameters({"elements": ("Ag", "Cu")}).symmetry == "O(3)"
    if architecture in ("hienet", "eqvnet", "sevennet", "inv_sevennet"):
        assert "  # parity: true\n" in (tmp_path / "config.yaml").read_text()


def test_a_new_model_is_o3_and_says_so(tmp_path):
    said = described("new", "--elements", "Si", "-o", tmp_path / "m.pt")
    assert "symmetry O(3), random weights" in said
    said = described("new", "--elements", "Si", "--preset", "published", "-o", tmp_path / "p.pt")
    assert "symmetry SO(3), random weights" in said
    assert all(
        f"{preset} {symmetry}" in described("models") for preset, symmetry in [("paper", "SO(3)"), ("paper-o3", "O(3)")]
    )
