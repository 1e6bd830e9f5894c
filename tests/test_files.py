"""Checkpoints, deployed files and the calculator: what goes in comes out, and what is wrong is said."""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pytest
import torch
from ase.calculators.calculator import PropertyNotImplementedError
from hienet_deploy.cli import app
from hienet_deploy.export import deployed_path, export
from typer.testing import CliRunner

from hienet.calculator import HIENetCalculator, load_model
from hienet.checkpoint import load_checkpoint, save_checkpoint
from hienet.console import make_console
from hienet.deployed import METADATA_NAME, load_deployed
from hienet.errors import HIENetError
from hienet.files import atomic_path
from hienet.graph import graph_from_atoms
from hienet.info import describe_file
from hienet.metrics import Errors
from hienet.tables import print_description
from hienet.testing import silicon_carbide, tiny_checkpoint, write_tiny_checkpoint


@pytest.fixture(scope="module")
def deployed(checkpoint_path, tmp_path_factory) -> Path:
    return export(checkpoint_path, tmp_path_factory.mktemp("deployed") / "tiny.hienet.pt", dtype="float64").path


def truncated(path: Path, folder: Path) -> Path:
    result = folder / "truncated.pt"
    result.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return result


# --- checkpoints


def test_a_checkpoint_keeps_everything(checkpoint_path):
    original, loaded = tiny_checkpoint(), load_checkpoint(checkpoint_path)
    assert loaded.config == original.config
    assert loaded.weights.keys() == original.weights.keys()
    assert all(torch.equal(loaded.weights[name], original.weights[name]) for name in original.weights)


def test_a_newer_checkpoint_format_is_refused(checkpoint_path, tmp_path):
    contents = torch.load(checkpoint_path, weights_only=True)
    torch.save({**contents, "format_version": 99}, tmp_path / "newer.pt")
    with pytest.raises(HIENetError, match=r"has checkpoint format 99.*reads up to format 1: upgrade hienet"):
        load_checkpoint(tmp_path / "newer.pt")


@pytest.mark.parametrize("key", ["format_version", "architecture", "hyperparameters", "weights", "training"])
def test_an_incomplete_checkpoint_is_refused(checkpoint_path, tmp_path, key):
    contents = torch.load(checkpoint_path, weights_only=True)
    del contents[key]
    torch.save(contents, tmp_path / "incomplete.pt")
    with pytest.raises(HIENetError, match=r"is damaged: .*write it anew"):
        load_checkpoint(tmp_path / "incomplete.pt")


def test_weights_of_another_model_are_refused_by_name(checkpoint_path, tmp_path):
    contents = torch.load(checkpoint_path, weights_only=True)
    contents["weights"]["species_embedding.weight"] = torch.zeros(7, 8)
    torch.save(contents, tmp_path / "other.pt")
    with pytest.raises(HIENetError, match=r"1 of its weights do not fit .* `species_embedding.weight` among them"):
        load_model(tmp_path / "other.pt")


def test_a_truncated_checkpoint_is_refused(checkpoint_path, tmp_path):
    with pytest.raises(HIENetError, match="is truncated or damaged; copy it again"):
        load_checkpoint(truncated(checkpoint_path, tmp_path))


def test_a_file_that_is_not_a_model_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("not a model\n")
    with pytest.raises(HIENetError, match="is not a model file"):
        load_checkpoint(tmp_path / "notes.txt")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(HIENetError, match="there is no file"):
        load_checkpoint(tmp_path / "absent.pt")


def test_the_authors_files_are_refused_with_the_remedy(reference_folder):
    with pytest.raises(HIENetError, match="run `hienet convert` on it first"):
        load_checkpoint(reference_folder / "hienet_official" / "paper_small.pth")


class _Payload:
    def __reduce__(self):
        return (print, ("code was executed",))


def test_loading_a_checkpoint_executes_no_code(tmp_path, capsys):
    torch.save({"format": "hienet-checkpoint", "weights": _Payload()}, tmp_path / "evil.pt")
    with pytest.raises(HIENetError, match="cannot be read as a checkpoint"):
        load_checkpoint(tmp_path / "evil.pt")
    assert "executed" not in capsys.readouterr().out


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "kept.pt"
    path.write_text("old")

    def interrupted() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_writing_into_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(HIENetError, match="there is no folder"):
        save_checkpoint(tiny_checkpoint(), tmp_path / "absent" / "model.pt")


def test_a_full_disc_loses_nothing(checkpoint_path, tmp_path):
    """A limit on the size of files stands for a full disc."""
    output = tmp_path / "model.hienet.pt"
    output.write_text("old")
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); "
        "from hienet_deploy.cli import main; sys.argv = ['hienet-deploy', *sys.argv[1:]]; main()"
    )
    assert resource.RLIMIT_FSIZE
    command = [sys.executable, "-c", code, str(checkpoint_path), "-o", str(output)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 1
    assert run.stderr.startswith("error: cannot write")
    assert "Traceback" not in run.stderr
    assert output.read_text() == "old"
    assert list(tmp_path.iterdir()) == [output]


# --- deployed files


def test_a_deployed_model_equals_its_source(checkpoint_path, deployed):
    atoms = silicon_carbide()
    expected, found = load_model(checkpoint_path).predict(atoms), load_model(deployed).predict(atoms)
    torch.testing.assert_close(found.energies, expected.energies, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.stress, expected.stress, rtol=0, atol=1e-8)


def test_the_stages_of_a_deployed_model_make_up_its_forward(deployed):
    """Ghost rows hold nothing but what was exchanged."""
    module, metadata = load_deployed(deployed)
    graph = graph_from_atoms(silicon_carbide(), metadata["elements"], metadata["cutoff"])
    n, stages = graph.n_local, metadata["stages"]
    # A second copy of all atoms plays the ghosts: neighbours are read there only.
    species, neighbor = torch.cat([graph.species, graph.species]), graph.neighbor + n
    assert module.load_elements(torch.tensor([0, 1])) > 0
    edges = module.embed_edges(graph.edge_vectors)
    assert edges.shape[1] == metadata["edge_width"]
    state = module.embed_nodes(species)
    for index, stage in enumerate(stages):
        assert state.shape[1] == stage["width"]
        if index > 0:
            ghosts = torch.zeros_like(state)
            ghosts[:, : stage["exchanged_width"]] = state[:, : stage["exchanged_width"]]
            state = torch.cat([state, ghosts])
        state = module.stage(index, state, edges, species, graph.center, neighbor, n)
        assert state.shape[0] == n
    energies = module.readout(state, species[:n])
    expected = module(graph.species, graph.center, graph.neighbor, graph.edge_vectors, n)
    assert energies.dtype == torch.float64
    torch.testing.assert_close(energies, expected, rtol=0, atol=1e-12)


def test_metadata_describe_the_file(deployed):
    metadata = load_deployed(deployed)[1]
    assert metadata["format"] == "hienet-deployed"
    assert metadata["elements"] == ["C", "Si"]
    assert metadata["dtype"] == "float64"
    assert metadata["reference_energies"] == {"C": -2.0, "Si": -3.5}
    assert [stage["exchanged_width"] > 0 for stage in metadata["stages"]] == [False, True, True, True]
    assert all(row["passed"] for row in metadata["verification"])


def test_fewer_elements_in_another_order_change_no_number(tmp_path):
    source = write_tiny_checkpoint(tmp_path / "three.pt", elements=("C", "O", "Si"))
    export(source, dtype="float64", elements=["Si", "C"], compiled=False)
    atoms = silicon_carbide()
    kept = load_model(deployed_path(source))
    assert kept.elements == ("Si", "C")
    torch.testing.assert_close(
        kept.predict(atoms).energies, load_model(source).predict(atoms).energies, rtol=0, atol=1e-12
    )
    with pytest.raises(HIENetError, match="contains O, but the model knows only Si, C"):
        kept.predict(ase.Atoms("O"))


def test_elements_that_the_model_does_not_know_cannot_be_kept(checkpoint_path):
    with pytest.raises(HIENetError, match="does not know Ge; its elements are C, Si"):
        export(checkpoint_path, elements=["Ge"])


def test_keeping_no_element_is_refused(checkpoint_path):
    with pytest.raises(HIENetError, match="no element to keep was named; the model's elements are C, Si"):
        export(checkpoint_path, elements=[])


def test_a_name_with_spaces_is_quoted_for_lammps(checkpoint_path, tmp_path):
    result = CliRunner().invoke(app, [str(checkpoint_path), "-o", str(tmp_path / "my model.hienet.pt")])
    assert 'pair_coeff * * "my model.hienet.pt" C Si' in result.output


def test_a_deployed_model_above_tolerance_is_not_written(checkpoint_path, tmp_path):
    """Rounding to float32 alone is more than this."""
    with pytest.raises(HIENetError, match=r"differs from .* nothing was written: deploy with --dtype float64"):
        export(checkpoint_path, tmp_path / "bad.hienet.pt", compiled=False, tolerance=1e-10)
    assert not list(tmp_path.iterdir())


def test_a_deployed_model_cannot_be_deployed_again(deployed):
    with pytest.raises(HIENetError, match="is already a deployed model"):
        export(deployed)


def test_a_truncated_deployed_file_is_refused(deployed, tmp_path):
    with pytest.raises(HIENetError, match="truncated or damaged"):
        load_model(truncated(deployed, tmp_path))


def test_a_newer_deployed_format_is_refused(deployed, tmp_path):
    module, metadata = load_deployed(deployed)
    extra = {METADATA_NAME: json.dumps({**metadata, "format_version": 99})}
    torch.jit.save(module, str(tmp_path / "newer.hienet.pt"), _extra_files=extra)
    with pytest.raises(HIENetError, match=r"has deployed format 99.*upgrade hienet"):
        load_model(tmp_path / "newer.hienet.pt")


def described(deployed: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The file with another description."""
    module, metadata = load_deployed(deployed)
    change(metadata)
    path = folder / "bad.hienet.pt"
    torch.jit.save(module, str(path), _extra_files={METADATA_NAME: json.dumps(metadata)})
    return path


REQUIRED = ["format_version", "architecture", "elements", "cutoff", "dtype", "n_parameters", "edge_width", "stages"]


@pytest.mark.parametrize("read", [load_model, describe_file])
@pytest.mark.parametrize("key", REQUIRED)
def test_a_deployed_file_with_an_incomplete_description_is_refused(deployed, tmp_path, key, read):
    path = described(deployed, tmp_path, lambda metadata: metadata.pop(key))
    with pytest.raises(HIENetError, match=f"is damaged: its description lacks `{key}`; deploy it again"):
        read(path)


@pytest.mark.parametrize("read", [load_model, describe_file])
@pytest.mark.parametrize("key", ["name", "width", "exchanged_width"])
def test_a_deployed_file_with_an_incomplete_stage_is_refused(deployed, tmp_path, key, read):
    path = described(deployed, tmp_path, lambda metadata: metadata["stages"][1].pop(key))
    with pytest.raises(HIENetError, match=rf"its description lacks `stages\.1\.{key}`; deploy it again"):
        read(path)


def with_edges(metadata: dict[str, Any], *widths: object) -> None:
    for stage, width in zip(metadata["stages"], widths, strict=False):
        stage["edge_width"] = width


CONTRADICTIONS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a name as a width": (lambda m: with_edges(m, "not a number"), r"says `stages\.0\.edge_width: not a number`"),
    "a negative width": (lambda m: with_edges(m, -1), r"says `stages\.0\.edge_width: -1`"),
    "a width as text": (lambda m: m.update(edge_width="8"), "says `edge_width: 8`"),
    "widths of some stages": (lambda m: with_edges(m, 8), "contradicts itself .some stages have `edge_width`"),
    "no stages": (lambda m: m.update(stages=[]), r"says `stages: \[\]`"),
    "more exchanged than there is": (
        lambda m: m["stages"][1].update(exchanged_width=10**6),
        "exchanges more columns than its state has",
    ),
    "parameters as text": (lambda m: m.update(n_parameters="many"), "says `n_parameters: many`"),
    "an architecture as a number": (lambda m: m.update(architecture=3), "says `architecture: 3`"),
    "shifts of other elements": (
        lambda m: m["hyperparameters"].update(shift=[0.0]),
        "`scale` and `shift` must have one number for each element",
    ),
    "no elements in the hyperparameters": (
        lambda m: m["hyperparameters"].pop("elements"),
        r"lacks `hyperparameters\.elements`",
    ),
    "hyperparameters as a list": (lambda m: m.update(hyperparameters=[1]), "says `hyperparameters: "),
    "a verification as text": (lambda m: m.update(verification="fine"), "says `verification: fine`"),
    "a training as text": (lambda m: m.update(training="long"), "says `training: long`"),
}


@pytest.mark.parametrize("read", [load_model, describe_file])
@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_deployed_file_whose_description_cannot_be_true_is_refused(deployed, tmp_path, name, read):
    change, sentence = CONTRADICTIONS[name]
    with pytest.raises(HIENetError, match=f"is damaged: its description .*{sentence}.*; deploy it again"):
        read(described(deployed, tmp_path, change))


def test_the_widths_of_edges_are_shown(tmp_path):
    source = write_tiny_checkpoint(tmp_path / "g.pt", architecture="nemp")
    path = export(source, compiled=False).path
    widths = [stage["edge_width"] for stage in describe_file(path)["stages"]]
    output = io.StringIO()
    print_description(make_console(output), describe_file(path))
    lines = output.getvalue().splitlines()
    first = next(i for i, line in enumerate(lines) if line.rstrip().endswith("columns of edges"))
    assert [int(line.split()[-1]) for line in lines[first + 1 : first + 1 + len(widths)]] == widths


def test_a_damaged_summary_of_the_training_is_one_sentence(deployed, tmp_path):
    path = described(deployed, tmp_path, lambda metadata: metadata.update(training={"epochs": "three"}))
    with pytest.raises(HIENetError, match=r"summary of its training is damaged: it says `epochs: three`.*info --json"):
        print_description(make_console(io.StringIO()), describe_file(path))


def test_a_summary_of_the_training_may_be_short(deployed, tmp_path):
    """Nothing of it is required of a deployed file, nor by the pair style."""
    training = {"epochs": 3, "errors": {"test": {"n_frames": 2, "energy_mae_mev_per_atom": 1.25}}}
    path = described(deployed, tmp_path, lambda metadata: metadata.update(training=training))
    output = io.StringIO()
    print_description(make_console(output), describe_file(path))
    lines = [line.split() for line in output.getvalue().splitlines()]
    assert ["epochs", "3"] in lines
    assert ["test", "2", "1.25", *5 * ["-"]] in lines


def test_errors_are_read_by_name():
    """Whatever order JSON has them in, and whatever a later version adds."""
    found = Errors(1, 2, 3.0, 4.0, 5.0, 6.0, None, 8.0)
    row = {"charges_mae": 9.0, **dict(reversed(found.as_dict().items()))}
    assert Errors.from_dict(row) == found
    assert Errors.from_dict({"n_frames": 1}) == Errors(1, 0, *6 * [None])


def test_foreign_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), str(tmp_path / "foreign.pt"))
    with pytest.raises(HIENetError, match="was not written by hienet-deploy"):
        load_model(tmp_path / "foreign.pt")


def test_the_command_prints_the_lines_to_paste(checkpoint_path, tmp_path):
    result = CliRunner().invoke(app, [str(checkpoint_path), "-o", str(tmp_path / "m.hienet.pt")])
    assert result.exit_code == 0, result.output
    assert "pair_style hienet\npair_coeff * * m.hienet.pt C Si" in result.output
    assert "largest errors against the source model" in result.output
    assert "WARNING" not in result.output


def test_deploying_a_model_whose_energy_jumps_warns_of_the_consequence(tmp_path):
    source = write_tiny_checkpoint(tmp_path / "jump.pt", smooth_cutoff=False)
    result = CliRunner().invoke(app, [str(source)])
    assert result.exit_code == 0, result.output
    assert "does not conserve energy" in result.output


# --- calculator


@pytest.mark.parametrize("kind", ["checkpoint", "deployed"])
def test_the_calculator_gives_all_properties(kind, checkpoint_path, deployed):
    atoms = silicon_carbide()
    atoms.calc = HIENetCalculator(checkpoint_path if kind == "checkpoint" else deployed, device="cpu", dtype="float64")
    expected = load_model(checkpoint_path if kind == "checkpoint" else deployed).predict(atoms)
    assert atoms.get_potential_energy() == pytest.approx(float(expected.energy[0]), abs=1e-12)
    assert atoms.get_potential_energy(force_consistent=True) == pytest.approx(float(expected.energy[0]), abs=1e-12)
    assert atoms.get_potential_energies().sum() == pytest.approx(float(expected.energy[0]), abs=1e-12)
    np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=1e-12)
    np.testing.assert_allclose(atoms.get_stress(voigt=False), expected.stress[0], atol=1e-12)


def test_stress_without_a_cell_is_not_a_number_but_an_error(checkpoint_path):
    atoms = ase.Atoms("Si2", positions=[[0, 0, 0], [0, 0, 2.3]], calculator=HIENetCalculator(checkpoint_path))
    assert np.isfinite(atoms.get_forces()).all()
    with pytest.raises(PropertyNotImplementedError, match="stress"):
        atoms.get_stress()


def test_the_calculator_follows_a_changed_structure(checkpoint_path):
    atoms = silicon_carbide()
    atoms.calc = HIENetCalculator(checkpoint_path)
    before = atoms.get_potential_energy()
    atoms.positions[0] += 0.1
    assert abs(atoms.get_potential_energy() - before) > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "unknown dtype `float16`; expected float32 or float64"),
        ({"device": "gpu"}, "unknown device `gpu`; expected cpu, cuda or cuda:N"),
    ],
)
def test_wrong_options_are_named(checkpoint_path, options, message):
    with pytest.raises(HIENetError, match=message):
        HIENetCalculator(checkpoint_path, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_a_device_that_is_not_there_is_refused(checkpoint_path):
    with pytest.raises(HIENetError, match="sees no CUDA device; use `cpu`"):
        HIENetCalculator(checkpoint_path, device="cuda")
