"""Parity with SevenNet: numbers that its program produced, in float64, for small random models and the trained ones."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path

import ase
import numpy as np
import pytest
import torch
from hienet_deploy.export import export
from typer.testing import CliRunner

from hienet.calculator import LoadedModel, model_of
from hienet.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from hienet.cli import app
from hienet.convert import convert
from hienet.derivatives import predict, to_voigt
from hienet.elements import MPTRJ_ELEMENTS
from hienet.errors import HIENetError
from hienet.graph import graph_from_atoms
from hienet.models.factory import build_model, make_config
from hienet.ops.training import FusedTraining

FOLDER = Path(__file__).parent / "reference" / "sevennet"
TRAINED = {
    "trained_l3i5": "SevenNet_l3i5/checkpoint_l3i5.pth",
    "trained_sevennet0_11Jul2024": "SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth",
    "trained_mf0": "SevenNet_MF_0/checkpoint_sevennet_mf_0.pth",
}
SINGLE = ["l3i5_small", "sevennet0_small", "trained_l3i5", "trained_sevennet0_11Jul2024"]
MODAL = ["modal_small", "modal_parity_small", "trained_mf0"]


def expected_of(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.expected.json").read_text())


CASES = [(name, None, structure) for name in SINGLE for structure in expected_of(name)]
CASES += [
    (name, modality, structure)
    for name in MODAL
    for modality, structures in expected_of(name).items()
    for structure in structures
]


@cache
def converted(name: str, modality: str | None = None) -> tuple[Checkpoint, LoadedModel]:
    if name not in TRAINED:
        path = FOLDER / f"{name}.pth"
    else:
        found = importlib.util.find_spec("sevenn")
        path = Path(found.origin).parent / "pretrained_potentials" / TRAINED[name] if found and found.origin else None
        if path is None or not path.is_file():
            pytest.skip("the trained potentials come with the package sevenn: pip install 'hienet[sevennet]'")
    checkpoint = convert(path, modality)
    return checkpoint, model_of(checkpoint)


def relative_error(found: object, expected: object) -> float:
    found, expected = np.asarray(found), np.asarray(expected)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(("name", "modality", "structure"), CASES)
def test_energies_forces_and_stress_equal_sevennets(name, modality, structure):
    _, model = converted(name, modality)
    expected = expected_of(name)[structure] if modality is None else expected_of(name)[modality][structure]
    atoms = ase.Atoms(expected["symbols"], expected["positions"], cell=expected["cell"], pbc=expected["pbc"])
    prediction = model.predict(atoms)
    assert prediction.stress is not None
    assert relative_error(prediction.energy[0], expected["energy"]) < 1e-9
    assert relative_error(prediction.energies, expected["energies"]) < 1e-9
    assert relative_error(prediction.forces, expected["forces"]) < 1e-9
    assert relative_error(to_voigt(prediction.stress)[0], expected["stress_voigt_xx_yy_zz_yz_xz_xy"]) < 1e-9


def test_the_options_of_the_small_models_are_read():
    l3i5, sevennet_0 = (converted(name)[0].config.model_dump() for name in ("l3i5_small", "sevennet0_small"))
    assert (l3i5["parity"], l3i5["species_self_connection"], l3i5["xplor_onset"]) == (False, False, None)
    assert (sevennet_0["parity"], sevennet_0["species_self_connection"], sevennet_0["xplor_onset"]) == (True, True, 4.5)
    assert sevennet_0["equivariant_irreps"][1] == "8x0e+8x1o+8x1e+8x2o+8x2e"


def test_the_trained_potential_has_the_hyperparameters_of_the_preset():
    checkpoint, _ = converted("trained_l3i5")
    preset = make_config("sevennet", "l3i5", {"elements": MPTRJ_ELEMENTS}).model_dump()
    found = checkpoint.config.model_dump()
    assert {key for key in preset if preset[key] != found[key]} == {"avg_num_neighbors", "scale", "shift"}
    assert "1-2-2, 1-3-3, 2-1-2, 2-2-1, 3-1-3, 3-3-1" in checkpoint.notes["wigner"]


def test_sevennet_l3i5_has_its_number_of_parameters():
    """1,171,327 with scale and reference energy of 89 elements and the denominators of five convolutions."""
    config = make_config("sevennet", "l3i5", {"elements": MPTRJ_ELEMENTS})
    parameters = sum(parameter.numel() for parameter in build_model("sevennet", config).parameters())
    assert parameters + 2 * 89 + 5 == 1_171_327


def test_the_command_converts_and_says_what_from(tmp_path):
    path = tmp_path / "m.pt"
    result = CliRunner().invoke(app, ["convert", str(FOLDER / "sevennet0_small.pth"), "-o", str(path)])
    assert result.exit_code == 0, result.output
    assert "sevennet, 2 elements, cutoff 5 Å" in result.output
    assert "source: converted from sevennet0_small.pth, a checkpoint of SevenNet 0.13.0" in result.output
    assert load_checkpoint(path).config == converted("sevennet0_small")[0].config


@pytest.mark.parametrize("name", ["modal_small", "modal_parity_small"])
def test_one_modality_deploys_and_is_trained_further_as_any_model(name, tmp_path):
    modality = next(iter(expected_of(name)))
    checkpoint, _ = converted(name, modality)
    assert checkpoint.config.scalar_constants
    save_checkpoint(checkpoint, tmp_path / "m.pt")
    deployment = export(tmp_path / "m.pt", dtype="float64")
    assert deployment.metadata["operators"]
    model = checkpoint.build()
    atoms = ase.Atoms("SiCSi", [[0, 0, 0], [1.7, 0, 0.2], [0.1, 1.9, 0]], cell=[4.0, 4.2, 4.4], pbc=True)
    graph = graph_from_atoms(atoms, checkpoint.config.elements, checkpoint.config.cutoff)
    gradients = []
    for energy in (model, FusedTraining(model, exactly=True)):
        model.zero_grad(set_to_none=True)
        prediction = predict(energy, graph, training=True)
        (prediction.energy.sum() + prediction.forces.square().sum()).backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert "layers.1.constants.weight" in gradients[0]
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradients[1][name], gradient, atol=1e-9 * float(gradient.abs().max())), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["modal_small.pth"], "trained on data of several kinds; choose one with --modal: R2SCAN, PBE, SCAN"),
        (["modal_small.pth", "--modal", "pbe"], "has no modality `pbe`; give one of its own as --modal: R2SCAN, PBE"),
        (["l3i5_small.pth", "--modal", "PBE"], "has no modalities, but --modal is `PBE`; leave it out"),
        (["../hienet_official/paper_small.pth", "--modal", "PBE"], "is of HIENet, which has no modalities"),
    ],
)
def test_a_wrong_choice_of_the_modality_is_named(arguments, message, tmp_path):
    file, *options = arguments
    result = CliRunner().invoke(app, ["convert", str(FOLDER / file), "-o", str(tmp_path / "m.pt"), *options])
    assert message in str(result.exception)


def test_the_command_says_which_modality_it_took(tmp_path):
    arguments = ["convert", str(FOLDER / "modal_small.pth"), "--modal", "PBE", "-o", str(tmp_path / "m.pt")]
    result = CliRunner().invoke(app, arguments)
    assert "modality: PBE, of R2SCAN, PBE, SCAN" in result.output


@pytest.fixture
def contents() -> dict:
    return torch.load(FOLDER / "l3i5_small.pth", weights_only=True, map_location="cpu")


def saved(contents: dict, folder: Path) -> Path:
    torch.save(contents, folder / "changed.pth")
    return folder / "changed.pth"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("_normalize_sph", False, "its option `_normalize_sph: False` is refused"),
        ("readout_as_fcn", True, "only a linear readout is supported"),
        ("act_radial", "ssp", "only SiLU is supported in the radial networks"),
        ("cuequivariance_config", {"use": True}, "it was saved for cuEquivariance"),
        ("radial_basis", {"radial_basis_name": "gauss"}, "its radial basis is `gauss`, expected `bessel`"),
        ("cutoff_function", {"cutoff_function_name": "step"}, "its cutoff function is `step`, expected `poly_cut`"),
        ("self_connection_type", ["none", "linear", "linear"], "its self-connections are ['linear', 'none']"),
        ("version", "unknown", "the checkpoint has no version of SevenNet, but `unknown`"),
        (
            "irreps_manual",
            ["16x0e", "8x1e+16x0e", "16x0e", "16x0e"],
            "its irreps `8x1e+16x0e` must have 0e, and scalars in front of all others",
        ),
    ],
)
def test_what_has_no_equivalent_is_refused_by_name(key, value, message, contents, tmp_path):
    contents["config"][key] = value
    with pytest.raises(HIENetError) as error:
        convert(saved(contents, tmp_path))
    assert message in str(error.value)


def test_missing_tensors_are_named(contents, tmp_path):
    del contents["model_state_dict"]["1_self_interaction_1.linear.weight"]
    with pytest.raises(HIENetError, match=r"has not the tensors .*'1_self_interaction_1.linear.weight' is missing"):
        convert(saved(contents, tmp_path))


def test_a_modality_without_its_weights_is_named(tmp_path):
    contents = torch.load(FOLDER / "modal_small.pth", weights_only=True)
    weights = contents["model_state_dict"]
    weights["1_self_interaction_1.linear.weight"] = weights["1_self_interaction_1.linear.weight"][:-1]
    with pytest.raises(HIENetError, match=r"a linear map has \d+ weights, expected \d+ with the modality"):
        convert(saved(contents, tmp_path), "PBE")


def test_denominators_that_differ_are_refused(contents, tmp_path):
    contents["model_state_dict"]["1_convolution.denominator"] += 1.0
    with pytest.raises(HIENetError, match=r"the convolutions have different denominators .* cannot be converted"):
        convert(saved(contents, tmp_path))


def test_a_file_of_neither_program_is_refused(tmp_path):
    torch.save({"weights": {}}, tmp_path / "other.pth")
    with pytest.raises(HIENetError, match=r"is not a checkpoint of the HIENet authors or of SevenNet"):
        convert(tmp_path / "other.pth")
    torch.save({"model_state_dict": {}, "config": {"cutoff": 5.0}}, tmp_path / "other.pth")
    with pytest.raises(HIENetError, match=r"is not a checkpoint of SevenNet: its `config` has no `cutoff_function`"):
        convert(tmp_path / "other.pth")


class Malicious:
    """What a pickle may ask for."""

    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_in_a_file_is_executed(contents, tmp_path, capsys):
    contents["config"]["shift"] = Malicious()
    with pytest.raises(HIENetError, match=r"cannot be read as a checkpoint"):
        convert(saved(contents, tmp_path))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("array", [np.arange(3.0), np.float64(0.5), np.array([1, 2], dtype=np.int32)])
def test_arrays_in_the_configuration_are_read(array, contents, tmp_path):
    """As in files that SevenNet wrote with numpy 1 or 2."""
    contents["config"]["shift"] = array
    assert convert(saved(contents, tmp_path)).config == converted("l3i5_small")[0].config
