"""Models deployed with compiled operators are their sources, in every physical respect."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ase.data
import numpy as np
import pytest
import torch
from hienet_deploy.cli import app
from hienet_deploy.export import export
from typer.testing import CliRunner

from hienet.calculator import LoadedModel, load_model, model_of
from hienet.deployed import load_deployed, read_metadata
from hienet.derivatives import predict
from hienet.errors import HIENetError
from hienet.graph import graph_from_atoms
from hienet.ops.compile import compile_model
from hienet.plugin import OPERATORS_NAME, STAMP_NAME, plugin_directory
from hienet.testing import (
    finite_difference_forces,
    finite_difference_stress,
    random_rotation,
    rotated,
    silicon_carbide,
    tiny_checkpoint,
    write_tiny_checkpoint,
)

pytestmark = pytest.mark.usefixtures("operators")

OPERATORS = [
    "hienet::edge_geometry",
    "hienet::gate",
    "hienet::interaction",
    "hienet::irreps_linear",
    "hienet::pair_message_sum",
]


def compiled(checkpoint, n_intervals: int = 128, dtype: torch.dtype = torch.float64) -> LoadedModel:
    """The checkpoint in operators, in memory."""
    model = model_of(checkpoint)
    compile_model(model.module, n_intervals)
    return replace(model, module=model.module.to(dtype), dtype=dtype)


def assert_same(found, expected, tolerance: float) -> None:
    for quantity in ("energies", "forces", "stress"):
        torch.testing.assert_close(
            getattr(found, quantity).double(), getattr(expected, quantity), rtol=0, atol=tolerance, msg=quantity
        )


@pytest.fixture(scope="module")
def files(operators, checkpoint_path, tmp_path_factory) -> dict[str, Path]:
    """The same model in three deployed files."""
    folder = tmp_path_factory.mktemp("compiled")
    settings = {"float64": ("float64", True), "float32": ("float32", True), "plain": ("float64", False)}
    return {
        name: export(checkpoint_path, folder / f"{name}.hienet.pt", dtype=dtype, compiled=compiled).path
        for name, (dtype, compiled) in settings.items()
    }


@pytest.mark.parametrize(("name", "tolerance"), [("float64", 1e-8), ("float32", 1e-5)])
def test_a_compiled_model_is_its_source(name, tolerance, files, checkpoint_path, instruction_set):
    atoms = silicon_carbide()
    assert_same(load_model(files[name]).predict(atoms), load_model(checkpoint_path).predict(atoms), tolerance)


@pytest.mark.parametrize(
    "values",
    [
        {"n_invariant_layers": 0},
        {"n_invariant_layers": 2},
        {"n_invariant_layers": 2, "layer_order": "invariant_last"},
        {"smooth_cutoff": False},
        {"equivariant_irreps": ("6x0e",)},
        {"elements": ("C", "O", "Si"), "invariant_channels": 17},
    ],
    ids=str,
)
def test_every_kind_of_model_compiles(values):
    checkpoint = tiny_checkpoint(**values)
    atoms = silicon_carbide()
    assert_same(compiled(checkpoint, 256).predict(atoms), model_of(checkpoint).predict(atoms), 1e-8)


@pytest.mark.parametrize(
    ("architecture", "values"),
    [
        *(
            ("geodite", values)
            for values in (
                {"edge_network": "linear", "edge_gate": "tanh"},
                {"edge_gate": "identity", "rejection": False, "zbl": False},
                {"n_heads": 4, "channels": 20, "l_max": 1, "distance_weighting": False},
                {"n_heads": 1, "l_max": 3, "n_layers": 1},
            )
        ),
        *(
            ("nemp", values)
            for values in (
                {"l_max": 0, "l_max_density": 0, "n_blocks": 0},
                {"n_iterations": 1, "layers_per_block": 3, "normalize_features": False},
                {"zbl": True, "smooth_coordination": False, "channels": 17, "edge_hidden": 40},
            )
        ),
        ("invnet", {"n_layers": 2, "channels": 40, "n_radial": 3, "smooth_cutoff": False}),
        ("botnet", {"gates": True, "natural_parity": False}),
    ],
    ids=str,
)
def test_every_kind_of_another_architecture_compiles(architecture, values):
    checkpoint, atoms = tiny_checkpoint(architecture, **values), silicon_carbide()
    assert_same(compiled(checkpoint, 256).predict(atoms), model_of(checkpoint).predict(atoms), 1e-8)


def test_finer_tables_are_closer():
    """Forces are the derivatives of splines of sixth order."""
    checkpoint, atoms = tiny_checkpoint(), silicon_carbide()
    expected = model_of(checkpoint).predict(atoms).forces
    errors = [float((compiled(checkpoint, n).predict(atoms).forces - expected).abs().max()) for n in (16, 32, 64)]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_forces_and_stress_are_derivatives_of_the_tabulated_energy():
    """With tables so coarse that the model is another one: it is conservative all the same."""
    checkpoint, atoms = tiny_checkpoint(), silicon_carbide()[:5]
    model = compiled(checkpoint, 12)
    found = model.predict(atoms)
    assert (found.forces - model_of(checkpoint).predict(atoms).forces).abs().max() > 1e-5

    def energy(structure: ase.Atoms) -> float:
        return float(model.predict(structure, derivatives=False).energy[0])

    np.testing.assert_allclose(found.forces.numpy(), finite_difference_forces(energy, atoms), atol=1e-8)
    np.testing.assert_allclose(found.stress[0].numpy(), finite_difference_stress(energy, atoms), atol=1e-8)


def test_a_compiled_model_is_equivariant():
    atoms, rotation = silicon_carbide(), random_rotation()
    model = compiled(tiny_checkpoint(), 32)
    before, after = model.predict(atoms), model.predict(rotated(atoms, rotation))
    torch.testing.assert_close(after.energies, before.energies, rtol=0, atol=1e-12)
    torch.testing.assert_close(after.forces, before.forces @ torch.tensor(rotation).T, rtol=0, atol=1e-12)


def test_energy_and_forces_are_continuous_at_the_cutoff():
    model = compiled(tiny_checkpoint(), 32)

    def pair(distance: float):
        found = model.predict(ase.Atoms("SiC", positions=[[0, 0, 0], [distance, 0, 0]]))
        return float(found.energy[0]), float(found.forces.abs().max())

    for (energy, force), (other_energy, other_force) in [(pair(4.0 - 1e-5), pair(4.0 + 1e-5))]:
        assert energy == pytest.approx(other_energy, abs=1e-9)
        assert force == pytest.approx(other_force, abs=1e-9)


def test_energy_and_forces_are_continuous_across_knots():
    model = compiled(tiny_checkpoint(), 16)
    for knot in (8, 9, 15):
        found = [
            model.predict(ase.Atoms("SiC", positions=[[0, 0, 0], [4.0 * knot / 16 + step, 0, 0]]))
            for step in (-1e-7, 1e-7)
        ]
        torch.testing.assert_close(found[0].energy, found[1].energy, rtol=0, atol=1e-6)
        torch.testing.assert_close(found[0].forces, found[1].forces, rtol=0, atol=1e-5)


@pytest.mark.parametrize("distance", [0.01, 0.3, 0.8])
def test_overlapping_atoms_have_the_energy_of_the_source(distance):
    """The tables begin at zero."""
    checkpoint = tiny_checkpoint()
    atoms = ase.Atoms("SiCSi", positions=[[0, 0, 0], [distance, 0, 0], [0, 1.5, 0]])
    model = compiled(checkpoint, 256)
    found, expected = model.predict(atoms), model_of(checkpoint).predict(atoms)
    torch.testing.assert_close(found.energies, expected.energies, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=1e-7)


def test_tables_follow_the_elements_in_use(files):
    """One file serves any elements of the model; what was loaded stays."""
    model = load_model(files["float64"])
    carbon = ase.Atoms("C2", positions=[[0, 0, 0], [1.5, 0, 0]])
    graph = graph_from_atoms(carbon, model.elements, model.cutoff, model.dtype)
    with pytest.raises(RuntimeError, match=r"no table for the species 0 and 0; call `load_elements`"):
        predict(model.module, graph)
    alone = model.predict(carbon)
    model.predict(silicon_carbide())
    torch.testing.assert_close(model.predict(carbon).forces, alone.forces, rtol=0, atol=1e-15)


def test_a_file_of_many_elements_is_verified_with_the_tables_of_a_few(tmp_path, monkeypatch):
    """All elements, in groups of eight, without the tables of all their pairs."""
    elements = tuple(ase.data.chemical_symbols[1:18])
    source = write_tiny_checkpoint(tmp_path / "m.pt", elements=elements)
    tabulated: list[set[int]] = []
    load_elements = LoadedModel.load_elements

    def recorded(model: LoadedModel, species: torch.Tensor) -> None:
        load_elements(model, species)
        if isinstance(model.module, torch.jit.ScriptModule):
            tabulated.append(set(model._loaded))

    monkeypatch.setattr(LoadedModel, "load_elements", recorded)
    deployment = export(source)
    assert max(map(len, tabulated)) == 8
    assert set.union(*tabulated) == set(range(17))
    crystals = [row.name for row in deployment.comparisons if row.name.startswith("crystal")]
    assert crystals == ["crystal H..O", "crystal F..S", "crystal Cl"]
    assert all(row.passed for row in deployment.comparisons)


@pytest.mark.parametrize(("tolerance", "n_intervals"), [(1e-4, 64), (1e-9, 256)])
def test_tables_are_as_fine_as_the_tolerance_asks(tolerance, n_intervals, checkpoint_path, tmp_path):
    deployment = export(checkpoint_path, tmp_path / "m.hienet.pt", dtype="float64", tolerance=tolerance)
    tables = deployment.metadata["tables"]
    assert (tables["n_intervals"], tables["tolerance"]) == (n_intervals, tolerance)
    assert max(comparison.forces for comparison in deployment.comparisons) <= tolerance


def test_a_tolerance_that_no_table_meets_is_refused(checkpoint_path, tmp_path):
    with pytest.raises(HIENetError, match=r"tables of 768 intervals give force errors of .* eV/Å, more than a third"):
        export(checkpoint_path, tmp_path / "m.hienet.pt", dtype="float64", tolerance=1e-14)
    with pytest.raises(HIENetError, match=r"the tolerance must be a positive force error in eV/Å, got -1"):
        export(checkpoint_path, tmp_path / "m.hienet.pt", tolerance=-1.0)
    assert list(tmp_path.iterdir()) == []


def test_an_atom_without_neighbours_has_an_energy_and_no_forces(files, checkpoint_path):
    atoms = silicon_carbide()[:1]
    atoms.pbc = False
    expected = load_model(checkpoint_path).predict(atoms)
    found = load_model(files["float64"]).predict(atoms)
    torch.testing.assert_close(found.energies, expected.energies, rtol=0, atol=1e-8)
    assert found.forces.abs().max() == 0


def test_a_file_says_which_operators_it_needs(files):
    compiled = read_metadata(files["float64"])
    assert (compiled["format_version"], compiled["operators"]) == (3, OPERATORS)
    plain = read_metadata(files["plain"])
    assert (plain["format_version"], plain["operators"], plain["tables"]) == (1, [], None)
    tables = compiled["tables"]
    assert (tables["n_intervals"], tables["tolerance"]) == (192, 1e-8)
    # One block of 16 columns for the 8 channels of the first layer.
    assert tables["bytes_for_each_pair"] == 192 * 6 * 16 * 8
    assert tables["bytes"] % tables["bytes_for_each_pair"] == 0
    assert tables["bytes"] > 0
    assert compiled["n_parameters"] == plain["n_parameters"] > 1000


def test_the_command_compiles_unless_told_not_to(checkpoint_path, tmp_path):
    path = tmp_path / "m.hienet.pt"
    result = CliRunner().invoke(app, [str(checkpoint_path), "-o", str(path)])
    assert result.exit_code == 0, result.output
    assert "compiled; on a GPU it needs the operators' CUDA kernels (docs/gpu.md)" in result.output
    assert "splines of 64 intervals, for a tolerance of 1e-05 eV/Å" in result.output
    result = CliRunner().invoke(app, [str(checkpoint_path), "-o", str(path), "--no-compile"])
    assert result.exit_code == 0, result.output
    assert "compiled" not in result.output
    assert read_metadata(path)["operators"] == []


def test_training_a_compiled_model_is_refused(files):
    model = load_model(files["float64"])
    graph = graph_from_atoms(silicon_carbide(), model.elements, model.cutoff, model.dtype)
    model.predict_graph(graph)
    with pytest.raises(RuntimeError, match="can be differentiated once only"):
        predict(model.module, graph, training=True).forces.square().sum().backward()


def test_a_compiled_file_refuses_a_gpu(files):
    with pytest.raises(HIENetError, match=r"built here without kernels for `cuda`: run `hienet build` .* --no-compile"):
        load_deployed(files["float64"], "cuda:0")


def in_a_new_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, env=variables
    )


def test_without_the_library_only_plain_files_work(files, checkpoint_path, tmp_path):
    code = f"""
from hienet.calculator import load_model
from hienet.errors import HIENetError
from hienet_deploy.export import export
load_model({str(files["plain"])!r})
for attempt in (lambda: load_model({str(files["float64"])!r}), lambda: export({str(checkpoint_path)!r})):
    try:
        attempt()
    except HIENetError as error:
        print(error)
"""
    answer = in_a_new_process(code, HIENET_PLUGIN_DIR=str(tmp_path / "nowhere"))
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("the compiled operators are missing") == 2
    assert answer.stdout.count("run `hienet build`") == 2


def test_a_library_for_another_torch_is_refused(tmp_path):
    shutil.copy(plugin_directory() / OPERATORS_NAME, tmp_path)
    (tmp_path / STAMP_NAME).write_text('{"torch": "0.1"}')
    code = "from hienet.ops.library import load_operators; load_operators()"
    answer = in_a_new_process(code, HIENET_PLUGIN_DIR=str(tmp_path))
    assert "are for torch 0.1, but" in answer.stderr


def test_a_file_that_needs_unknown_operators_is_refused(checkpoint_path, tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys.modules["hienet_deploy.export"],
        "compile_model",
        lambda *arguments: [*compile_model(*arguments), "hienet::levitation"],
    )
    with pytest.raises(HIENetError, match=r"needs the operators hienet::levitation.*upgrade hienet"):
        export(checkpoint_path, tmp_path / "m.hienet.pt")
