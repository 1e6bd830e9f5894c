"""SevenNet and NequIP: options of the layers that HIENet does not use."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hienet_deploy.export import export

from hienet.calculator import load_model
from hienet.errors import HIENetError
from hienet.models.factory import make_config
from hienet.models.sevennet import PRESETS
from hienet.nn.radial import xplor_envelope
from hienet.ops.spline import evaluate_spline, intervals_with_knot, tabulate
from hienet.testing import finite_difference_forces, rotated, silicon_carbide, tiny_model, write_tiny_checkpoint

PARITY = {
    "parity": True,
    "l_max": 2,
    "equivariant_irreps": ("8x0e+4x1o+3x2e", "3x0o+8x0e+4x1o+4x1e+2x2o+3x2e", "6x0e"),
}
"""As NequIP: the second layer puts out every kind of irrep."""


def test_with_parity_the_energy_is_that_of_the_mirror_image():
    model = tiny_model(architecture="sevennet", **PARITY)
    atoms = silicon_carbide()
    expected, found = model.predict(atoms), model.predict(rotated(atoms, -np.eye(3)))
    assert expected.forces.abs().max() > 1e-2
    torch.testing.assert_close(found.energies, expected.energies, rtol=0, atol=1e-11)
    torch.testing.assert_close(found.forces, -expected.forces, rtol=0, atol=1e-11)
    torch.testing.assert_close(found.stress, expected.stress, rtol=0, atol=1e-12)


def test_with_parity_and_xplor_forces_are_minus_the_gradient_of_the_energy():
    model = tiny_model(architecture="sevennet", **PARITY, xplor_onset=3.1)
    atoms = silicon_carbide()
    numeric = finite_difference_forces(lambda a: float(model.predict(a, derivatives=False).energy[0]), atoms)
    # An edge may cross the onset, where the second derivative jumps, within a step.
    np.testing.assert_allclose(model.predict(atoms).forces.numpy(), numeric, atol=1e-6)


def test_nequip_is_a_preset():
    config = make_config("sevennet", "nequip", {"elements": ("C", "Si")})
    assert (config.parity, config.species_self_connection) == (True, True)
    assert PRESETS["nequip"]["equivariant_irreps"] == (
        "64x0e+64x1o+64x2e",
        "64x0e+64x1o+64x1e+64x2o+64x2e",
        "64x0o+64x0e+64x1o+64x1e+64x2o+64x2e",
        "64x0e",
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"xplor_onset": 5.0}, "`xplor_onset` must be below the cutoff 5 Å, got 5"),
        ({"equivariant_irreps": ["8x0e+4x1o", "8x0e"]}, "has odd parity; set `parity: true`"),
        ({"parity": True, "equivariant_irreps": ["8x0e+4x0o", "8x0e"]}, "in the order 0o, 0e, 1o, 1e"),
        ({"parity": True, "equivariant_irreps": ["8x0e", "8x0o+8x0e"]}, "the last of `equivariant_irreps` must be"),
    ],
)
def test_options_that_do_not_fit_are_refused(values, message):
    with pytest.raises(HIENetError) as error:
        make_config("sevennet", None, {"elements": ("Si",), **values})
    assert message in str(error.value)


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize(
    "values",
    [
        PARITY,
        {**PARITY, "species_self_connection": False},
        {"xplor_onset": 3.0},
        {**PARITY, "xplor_onset": 3.0},
        {"xplor_onset": 3.2, "species_self_connection": False},
    ],
    ids=["parity", "parity, one self-connection", "xplor", "parity, xplor", "xplor at 4/5"],
)
def test_compiled_every_option_is_its_source(values, tmp_path):
    source = write_tiny_checkpoint(tmp_path / "m.pt", architecture="sevennet", scale=(40.0, 55.0), **values)
    deployment = export(source, dtype="float64")
    assert "hienet::interaction" in deployment.metadata["operators"]
    if values.get("xplor_onset") == 3.2:
        assert deployment.metadata["tables"]["n_intervals"] % 5 == 0
    atoms = silicon_carbide()
    expected, found = load_model(source).predict(atoms), load_model(deployment.path).predict(atoms)
    assert expected.forces.abs().max() > 1.0
    torch.testing.assert_close(found.energies, expected.energies, rtol=0, atol=1e-7)
    torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=1e-7)
    torch.testing.assert_close(found.stress, expected.stress, rtol=0, atol=1e-8)


def test_with_xplor_a_first_invariant_layer_is_not_tabulated(tmp_path):
    source = write_tiny_checkpoint(tmp_path / "m.pt", architecture="inv_sevennet", xplor_onset=3.0)
    deployment = export(source, dtype="float64")
    operators = deployment.metadata["operators"]
    assert "hienet::edge_network" in operators
    assert "hienet::pair_message_sum" not in operators
    expected, found = (
        load_model(source).predict(silicon_carbide()),
        load_model(deployment.path).predict(silicon_carbide()),
    )
    torch.testing.assert_close(found.energies, expected.energies, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("n", "onset", "expected"), [(64, 4.5, 70), (64, 2.5, 64), (64, 4.37, 64)])
def test_tables_have_a_knot_where_a_derivative_jumps(n, onset, expected):
    assert intervals_with_knot(n, 5.0, onset) == expected


def test_a_kink_on_a_knot_costs_no_accuracy():
    def function(distance):
        return xplor_envelope(distance, 5.0, 4.5).unsqueeze(1)

    distance = torch.linspace(0.0, 4.9999, 2001, dtype=torch.float64)
    errors = [
        (evaluate_spline(tabulate(function, 5.0, 70, kink), distance, 5.0) - function(distance)).abs().max()
        for kink in (None, 4.5)
    ]
    assert errors[0] > 1e-6
    assert errors[1] < 1e-8


@pytest.mark.usefixtures("operators")
def test_tables_are_refined_until_every_structure_agrees(tmp_path, monkeypatch):
    """The first structures may need less than others."""
    source = write_tiny_checkpoint(tmp_path / "m.pt", architecture="sevennet", scale=(40.0, 55.0))
    monkeypatch.setattr(sys.modules["hienet_deploy.export"], "choose_intervals", lambda *arguments: 64)
    deployment = export(source, dtype="float64", tolerance=1e-7)
    assert deployment.metadata["tables"]["n_intervals"] > 64
    assert all(comparison.passed for comparison in deployment.comparisons)
