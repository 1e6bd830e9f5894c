"""Parity with the authors' model: numbers that their program produced, in float64."""

from __future__ import annotations

import json
from pathlib import Path

import ase
import numpy as np
import pytest
import torch

from hienet.calculator import model_of
from hienet.convert.official import convert_official
from hienet.derivatives import to_voigt
from hienet.errors import HIENetError

MODELS = ["paper_small", "paper_small_older_e3nn", "trainyaml_small", "parity_small", "parity_natural"]
STRUCTURES = ["diamond_16", "small_triclinic_2", "cluster_4", "slab_16"]


def relative_error(found: object, expected: object) -> float:
    found, expected = np.asarray(found), np.asarray(expected)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_energies_forces_and_stress_equal_the_authors(reference_folder, name, structure):
    folder = reference_folder / "hienet_official"
    model = model_of(convert_official(folder / f"{name}.pth"))
    expected = json.loads((folder / f"{name}.expected.json").read_text())[structure]
    atoms = ase.Atoms(expected["symbols"], expected["positions"], cell=expected["cell"], pbc=expected["pbc"])
    prediction = model.predict(atoms)
    assert prediction.stress is not None
    assert relative_error(prediction.energy[0], expected["energy"]) < 1e-10
    assert relative_error(prediction.energies, expected["energies"]) < 1e-10
    assert relative_error(prediction.forces, expected["forces"]) < 1e-10
    assert relative_error(to_voigt(prediction.stress)[0], expected["stress_voigt_xx_yy_zz_yz_xz_xy"]) < 1e-10


def test_flipped_wigner_symbols_are_found_and_noted(reference_folder):
    checkpoint = convert_official(reference_folder / "hienet_official" / "paper_small_older_e3nn.pth")
    assert "1-2-2, 1-3-3, 2-1-2, 2-2-1, 3-1-3, 3-3-1" in checkpoint.notes["wigner"]


def test_converted_models_keep_the_jump_at_the_cutoff(reference_folder):
    checkpoint = convert_official(reference_folder / "hienet_official" / "paper_small.pth")
    assert checkpoint.config.model_dump()["smooth_cutoff"] is False


@pytest.fixture
def official(reference_folder) -> dict:
    path = reference_folder / "hienet_official" / "paper_small.pth"
    return torch.load(path, weights_only=True, map_location="cpu")


def saved(contents: dict, folder: Path) -> Path:
    torch.save(contents, folder / "changed.pth")
    return folder / "changed.pth"


@pytest.mark.parametrize(
    ("option", "value"),
    [("use_edge_conv", True), ("use_comf_embedding", True), ("self_connection_type", "nequip")],
)
def test_options_that_this_architecture_lacks_are_refused_by_name(official, tmp_path, option, value):
    official["config"][option] = value
    with pytest.raises(HIENetError, match=f"option `{option}: {value}` is refused, because"):
        convert_official(saved(official, tmp_path))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (
            "act_scalar",
            {"e": "silu", "o": "abs"},
            r"`act_scalar` has `o: abs`, expected `tanh`; an even function makes",
        ),
        ("act_scalar", {"e": "tanh", "o": "tanh"}, r"`act_scalar` has `e: tanh`; only SiLU is supported"),
        ("act_gate", {"e": "abs", "o": "tanh"}, r"`act_gate` has `e: abs`; only SiLU is supported"),
        ("irreps_manual", ["12x0e", "8x1o+16x0e", "16x0e"], r"`8x1o\+16x0e` must have 0e, and scalars in front"),
        ("irreps_manual", ["12x0e", "8x0o+8x1o", "16x0e"], r"`8x0o\+8x1o` must have 0e, and scalars in front"),
    ],
)
def test_what_has_no_equivalent_with_parity_is_refused_by_name(option, value, message, reference_folder, tmp_path):
    contents = torch.load(reference_folder / "hienet_official" / "parity_small.pth", weights_only=True)
    contents["config"][option] = value
    with pytest.raises(HIENetError, match=message):
        convert_official(saved(contents, tmp_path))


def test_an_activation_of_odd_scalars_that_there_are_not_is_no_obstacle(official, tmp_path):
    official["config"]["act_scalar"] = {"e": "silu", "o": "abs"}
    assert convert_official(saved(official, tmp_path)).config.symmetry == "SO(3)"


@pytest.mark.parametrize(
    ("name", "symmetry"), [("paper_small", "SO(3)"), ("parity_small", "O(3)"), ("parity_natural", "O(3)")]
)
def test_the_files_parity_is_kept(reference_folder, name, symmetry):
    config = convert_official(reference_folder / "hienet_official" / f"{name}.pth").config
    assert config.symmetry == symmetry
    if name == "parity_small":
        # In the file 2e stands in front of 2o.
        assert config.model_dump()["equivariant_irreps"][2] == "8x0o+16x0e+8x1o+4x1e+4x2o+4x2e"


def test_an_older_e3nn_is_recognised_with_parity_too(reference_folder, tmp_path):
    """The sign of a symbol and of the weights of all paths that have it, both changed, leave the model as it is."""
    path = reference_folder / "hienet_official" / "parity_small.pth"
    expected = convert_official(path)
    contents = torch.load(path, weights_only=True)
    state = contents["model_state_dict"]
    state["1_convolution.convolution._compiled_main_left_right._w3j_1_1_1"] *= -1.0
    # Of 8x1o: paths to 1o; to 0e, 1e, 2e; to 1o and 2o. The second of the three of 1o x 1o is that to 1e.
    first = 3 * 16 + 8 + 8
    state["1_convolution.weight_nn.layer2.weight"][:, first : first + 8] *= -1.0
    found = convert_official(saved(contents, tmp_path))
    assert found.notes["wigner"].endswith("1-1-1")
    assert all(torch.equal(found.weights[name], expected.weights[name]) for name in expected.weights)


def test_a_wigner_symbol_that_is_neither_sign_is_refused(official, tmp_path):
    name = "1_convolution.convolution._compiled_main_left_right._w3j_1_2_2"
    official["model_state_dict"][name] = official["model_state_dict"][name] * 0.9
    with pytest.raises(HIENetError, match="1-2-2 that is neither e3nn's nor its negative"):
        convert_official(saved(official, tmp_path))


def test_different_denominators_are_refused(official, tmp_path):
    official["model_state_dict"]["1_convolution.denominator"] += 1.0
    with pytest.raises(HIENetError, match="different denominators"):
        convert_official(saved(official, tmp_path))


def test_missing_tensors_are_named(official, tmp_path):
    del official["model_state_dict"]["0_self_interaction_1.linear.weight"]
    with pytest.raises(HIENetError, match=r"0_self_interaction_1\.linear\.weight' is missing"):
        convert_official(saved(official, tmp_path))


def test_a_checkpoint_of_ours_is_not_one_of_theirs(checkpoint_path):
    with pytest.raises(HIENetError, match="not a checkpoint of the HIENet authors"):
        convert_official(checkpoint_path)
