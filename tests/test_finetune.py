"""Fine-tuning: what of a checkpoint is kept, moved to new labels, frozen, and how much is forgotten."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pytest
import torch
import yaml
from ase.calculators.singlepoint import SinglePointCalculator
from labelled_frames import write_frames
from rich.console import Console
from typer.testing import CliRunner

from hienet.calculator import model_of
from hienet.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from hienet.cli import app
from hienet.config import load_config, parse_config
from hienet.convert import convert
from hienet.derivatives import predict
from hienet.errors import HIENetError
from hienet.metrics import compare, errors
from hienet.models.factory import ARCHITECTURES
from hienet.ops.training import FusedTraining
from hienet.species import most_similar, with_elements
from hienet.testing import silicon_carbide, tiny_checkpoint
from hienet.train.loop import StoppedBySignal
from hienet.train.loss import training_loss
from hienet.train.run import Run

REFERENCE = Path(__file__).parent / "reference"
FOREIGN = ["hienet_official/paper_small", "hienet_official/parity_natural", "sevennet/l3i5_small"]
ELEMENTS = ("C", "O", "Si")


def frames_labelled_by(
    checkpoint: Checkpoint, seed: int, offsets: dict[str, float], n_frames: int = 6
) -> list[ase.Atoms]:
    """Rattled SiC, some with an atom too few, with the model's labels but for energies of elements."""
    model, frames = model_of(checkpoint), []
    for i in range(n_frames):
        atoms = silicon_carbide(rattle=0.08, seed=seed + i)
        if i % 2:
            del atoms[i % 8]
        prediction = model.predict(atoms)
        assert prediction.stress is not None
        energy = float(prediction.energy[0]) + sum(offsets.get(symbol, 0.0) for symbol in atoms.get_chemical_symbols())
        atoms.calc = SinglePointCalculator(
            atoms, energy=energy, forces=prediction.forces.numpy(), stress=prediction.stress[0].numpy()
        )
        frames.append(atoms)
    return frames


OFFSETS = {"C": 0.25, "Si": -0.75}


@pytest.fixture
def start(tmp_path: Path) -> Path:
    save_checkpoint(tiny_checkpoint("sevennet", elements=ELEMENTS), tmp_path / "start.pt")
    return tmp_path / "start.pt"


@pytest.fixture
def data(start: Path) -> Path:
    frames = frames_labelled_by(load_checkpoint(start), 1, OFFSETS)
    return write_frames(start.parent / "data.extxyz", frames)


def values(start: Path, path: Path, **sections: Any) -> dict[str, Any]:
    result: dict[str, Any] = {
        "model": {},
        "data": {"train": str(path), "validation": 0.2},
        "training": {"from": str(start), "epochs": 2, "batch_size": 2, "threads": 1, "dtype": "float64"},
        "output": str(path.parent / "run"),
    }
    for name, section in sections.items():
        result[name] = {**result[name], **section}
    return result


def run_of(start: Path, path: Path, resume: bool = False, **sections: Any) -> Run:
    return Run(parse_config(values(start, path, **sections)), resume, Console(file=io.StringIO()))


def emptied(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def log_of(data: Path) -> str:
    return (data.parent / "run" / "train.log").read_text()


# Elements


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_elements_that_stay_are_predicted_as_before_and_new_ones_begin_as_similar_ones(name):
    before = tiny_checkpoint(name, elements=("C", "O", "Ti"))
    other = with_elements(before, ("Zr", "C"))
    assert (other.kept, other.dropped, dict(other.added)) == (("C",), ("O", "Ti"), {"Zr": "Ti"})
    assert other.checkpoint.config.shift == (before.config.shift[2], before.config.shift[0])
    carbon = silicon_carbide()
    carbon.symbols[:] = "C"
    one, same = (model_of(checkpoint).predict(carbon) for checkpoint in (before, other.checkpoint))
    assert float(one.energy - same.energy) == pytest.approx(0.0, abs=1e-10)
    assert torch.allclose(one.forces, same.forces, atol=1e-10)


def test_all_elements_in_their_order_are_the_same_model(start):
    before = load_checkpoint(start)
    assert with_elements(before, ELEMENTS).checkpoint is before


@pytest.mark.parametrize(
    ("symbol", "known", "similar"),
    [
        ("Si", "B C Ge", "C"),
        ("Ag", "Pd Cu Cd", "Cu"),
        ("Na", "H Mg Ne", "H"),
        ("Gd", "Y La", "La"),
        ("Fe", "C Ga", "Ga"),
    ],
)
def test_the_most_similar_element_is_of_the_same_group_if_there_is_one(symbol, known, similar):
    assert most_similar(symbol, known.split()) == similar


# Reference energies and the model that training begins with


@pytest.mark.parametrize("elements", [["Si", "C"], ["C", "O", "Si"], None])
def test_a_model_that_is_right_but_for_reference_energies_is_right_before_training(start, data, elements):
    sections = {"model": {"elements": elements}} if elements else {}
    run = run_of(start, data, **sections)
    config = run.data.model
    assert config.elements == tuple(elements or ELEMENTS)
    old = dict(zip(ELEMENTS, load_checkpoint(start).config.shift, strict=True))
    for symbol, shift in zip(config.elements, config.shift, strict=True):
        assert shift == pytest.approx(old[symbol] + OFFSETS.get(symbol, 0.0), abs=1e-9)
    result = run.train()
    assert result.errors_before.keys() == {"train", "validation"}
    for found in result.errors_before.values():
        assert found.energy_mae == pytest.approx(0.0, abs=1e-4)
        assert found.forces_mae == pytest.approx(0.0, abs=1e-4)
    log = log_of(data)
    moved = f"  C        {old['C']:13.5f} {old['C'] + 0.25:13.5f}     +0.25000"
    assert moved in log
    assert ("kept Si, C, 1 others dropped" if elements == ["Si", "C"] else "all 3 kept") in log


def test_one_composition_changes_no_more_than_it_must(start, data):
    whole = [atoms for atoms in frames_labelled_by(load_checkpoint(start), 1, {"C": 0.5}) if len(atoms) == 8]
    run = run_of(start, write_frames(data, whole))
    old = load_checkpoint(start).config.shift
    changes = [new - before for new, before in zip(run.data.model.shift, old, strict=True)]
    assert changes == pytest.approx([0.25, 0.0, 0.25], abs=1e-9)
    assert "determine only 1 of 2, so the smallest change is taken" in log_of(data)


def test_frames_of_which_the_model_knows_nothing_do_not_move_the_reference_energies(start, data):
    frames = frames_labelled_by(load_checkpoint(start), 1, OFFSETS)
    for atoms in frames[::6]:
        atoms.calc.results["energy"] += 0.5 * len(atoms)
    run = run_of(start, write_frames(data, frames))
    old = load_checkpoint(start).config.shift
    changes = [new - before for new, before in zip(run.data.model.shift, old, strict=True)]
    assert changes == pytest.approx([OFFSETS.get(symbol, 0.0) for symbol in run.data.model.elements], abs=1e-3)


def test_given_and_kept_reference_energies(start, data):
    run = run_of(start, data, data={"reference_energies": {"C": -7.0}})
    old = load_checkpoint(start).config.shift
    assert run.data.model.shift == (-7.0, old[1], old[2])
    emptied(run.folder)
    write_frames(data, frames_labelled_by(load_checkpoint(start), 1, {"C": 0.5}))
    assert run_of(start, data, data={"reference_energies": "keep"}).data.model.shift == old


def test_energies_of_another_kind_are_pointed_out_and_refused_where_the_old_ones_are_to_be_kept(start, data):
    write_frames(data, frames_labelled_by(load_checkpoint(start), 1, {"C": -1000.0, "Si": -7000.0}))
    with pytest.raises(HIENetError, match=r"`keep`, but the labels are of another kind of energy .* off by -40\d\d eV"):
        run_of(start, data, data={"reference_energies": "keep"})
    (data.parent / "run").rmdir()
    run_of(start, data)
    assert "WARNING: the labels are of another kind of energy than the checkpoint's" in log_of(data)


# Training


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_architecture_is_trained_further(name, tmp_path):
    before = tiny_checkpoint(name, elements=ELEMENTS)
    save_checkpoint(before, tmp_path / "start.pt")
    data = write_frames(tmp_path / "data.extxyz", frames_labelled_by(before, 1, OFFSETS))
    result = run_of(tmp_path / "start.pt", data, model={"elements": ["C", "Si"]}).train()
    after = load_checkpoint(result.best)
    assert (after.architecture, after.config.elements) == (name, ("C", "Si"))
    assert after.training is not None
    assert after.training["settings"]["from"] == str(tmp_path / "start.pt")
    # Labels are the old model's, so that the errors are how far it has moved.
    assert result.errors_before["train"].forces_mae == pytest.approx(0.0, abs=1e-4)
    assert result.errors["train"].forces_mae > 1e-3


@pytest.mark.parametrize("name", FOREIGN)
def test_converted_files_are_trained_further(name, tmp_path):
    before = convert(REFERENCE / f"{name}.pth")
    save_checkpoint(before, tmp_path / "start.pt")
    data = write_frames(tmp_path / "data.extxyz", frames_labelled_by(before, 1, OFFSETS))
    result = run_of(tmp_path / "start.pt", data, training={"epochs": 1, "reflect": True}).train()
    assert result.errors_before["train"].energy_mae == pytest.approx(0.0, abs=1e-4)
    assert load_checkpoint(result.best).config.parity == before.config.parity  # type: ignore[attr-defined]


@pytest.mark.parametrize("engine", ["fused", "plain"])
def test_frozen_parts_stay_as_they_are_and_all_others_move(engine, start, data):
    names = ("species_embedding", "layers.0", "layers.1.radial_network.weights.0")
    run = run_of(start, data, training={"freeze": list(names), "engine": engine})
    before = {name: tensor.clone() for name, tensor in run.trainer.model.state_dict().items()}
    result = run.train()
    for name, tensor in load_checkpoint(result.best).weights.items():
        assert torch.equal(tensor, before[name]) == name.startswith(names), name
    assert "frozen: " in log_of(data)


def test_both_engines_have_the_same_gradients_and_none_of_frozen_weights(start, data):
    write_frames(data, frames_labelled_by(tiny_checkpoint("sevennet", elements=ELEMENTS, seed=1), 1, {}))
    run = run_of(start, data, training={"freeze": ["layers.0", "energy_readout"]})
    model, (graph, targets) = run.trainer.model, run.data.train.batch([0, 1])
    found = []
    for energy in (run.trainer.energy, model):
        model.zero_grad(set_to_none=True)
        training_loss(predict(energy, graph, training=True), targets, run.trainer.loss_settings).total.backward()
        found.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert isinstance(run.trainer.energy, FusedTraining)
    assert found[0].keys() == found[1].keys()
    assert not any(name.startswith(("layers.0.", "energy_readout.")) for name in found[0])
    for name, gradient in found[1].items():
        assert torch.allclose(found[0][name], gradient, atol=1e-5 * float(gradient.abs().max())), name


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(start, data, tmp_path):
    sections: dict[str, Any] = {"training": {"freeze": ["species_embedding"]}, "model": {"elements": ["C", "Si"]}}
    whole = run_of(start, data, **sections)
    whole.train()
    emptied(whole.folder)
    run = run_of(start, data, **sections)
    with pytest.raises(StoppedBySignal):
        run.trainer.run(should_stop=lambda: True)
    run.save_last()
    start.rename(tmp_path / "elsewhere.pt")
    resumed = run_of(start, data, resume=True, **sections)
    resumed.train()
    for name, tensor in whole.trainer.model.state_dict().items():
        assert torch.equal(tensor, resumed.trainer.model.state_dict()[name]), name
    save_checkpoint(tiny_checkpoint("sevennet", elements=ELEMENTS, seed=1), run.folder / "start.pt")
    with pytest.raises(HIENetError, match=r"the data, or `start.pt`, are not those with which"):
        run_of(start, data, resume=True, **sections)


# Replay


def old_frames(start: Path, labelled: bool = True) -> Path:
    frames = frames_labelled_by(load_checkpoint(start), 100, {}, n_frames=10)
    if not labelled:
        for atoms in frames:
            atoms.calc = None
    return write_frames(start.parent / "old.extxyz", frames)


@pytest.mark.parametrize("labels", ["file", "model"])
def test_old_frames_have_energies_of_the_new_kind_whoever_labels_them(labels, start, data):
    old = old_frames(start, labelled=labels == "file")
    run = run_of(start, data, data={"replay": str(old), "replay_labels": labels, "replay_weight": 0.5})
    replay = run.data.replay
    assert replay is not None
    assert (len(replay.train), len(replay.held_out)) == (8, 2)
    assert len(run.trainer.train) == len(run.data.train) + 8
    assert (replay.train.weights() == 0.5).all()
    old_energies = [
        float(model_of(load_checkpoint(start)).predict(frame.atoms).energy[0]) for frame in replay.train.frames
    ]
    change = replay.train.compositions(0, 8) @ np.array([0.25, 0.0, -0.75])
    assert replay.train.energies() - old_energies == pytest.approx(change, abs=1e-8)
    result = run.train()
    assert result.errors_before["replay"].energy_mae == pytest.approx(0.0, abs=1e-4)
    assert result.errors_before["replay"].forces_mae == pytest.approx(0.0, abs=1e-4)
    results = json.loads((run.folder / "results.json").read_text())
    assert results["errors_before"].keys() == results["errors"].keys() == {"train", "validation", "replay"}


def test_replay_keeps_a_model_nearer_to_what_it_was(start, data):
    wrong = tiny_checkpoint("sevennet", elements=ELEMENTS, seed=1)
    write_frames(data, frames_labelled_by(wrong, 1, {}))
    old, found = old_frames(start), []
    for weight in (1e-6, 10.0):
        training = {"epochs": 6, "learning_rate": 0.01}
        run = run_of(start, data, data={"replay": str(old), "replay_weight": weight}, training=training)
        run.trainer.run()
        assert run.data.replay is not None
        forgotten = compare(run.trainer.model.eval(), run.data.replay.held_out)
        found.append(errors(forgotten).forces_mae)
        emptied(run.folder)
    assert found[1] < 0.7 * found[0]


# Wrong input


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"model": {"architecture": "nemp"}},
            r"`model.architecture` is `nemp`, but `training.from` holds a .*`sevennet`",
        ),
        ({"model": {"preset": "l3i5"}}, r"`model.preset` is `l3i5`, but with `training.from` the checkpoint decides"),
        (
            {"model": {"cutoff": 6.0}},
            r"`model.cutoff` is `6.0`, but that of the checkpoint .* is `4.0`; remove",
        ),
        ({"model": {"cutof": 6.0}}, r"unknown key `model.cutof`; allowed here: elements, cutoff"),
        (
            {"model": {"elements": ["C", "Si", "Xe"]}},
            r"`model.elements` names Xe, which neither the data nor the checkpoint have; the data have C, Si",
        ),
        ({"model": {"elements": ["C", "Zz"]}}, r"`elements` has \['Zz'\], which are not chemical symbols"),
        ({"model": {"elements": ["C"]}}, r"the structure contains Si, but the model knows only C"),
        (
            {"training": {"freeze": ["layers.9"]}},
            r"`training.freeze` names `layers.9`, .* its parts are edge_embedding, species_embedding, layers.0, ",
        ),
        (
            {"training": {"freeze": ["edge_embedding", "species_embedding", "layers", "energy_readout"]}},
            r"names all parts of the model, so that nothing is left to be trained",
        ),
        ({"training": {"from": "nothing.pt"}}, r"`training.from`: there is no file `nothing.pt`"),
        ({"data": {"replay": "nothing.extxyz"}}, r"there is no file `nothing.extxyz`"),
        ({"data": {"shift_to_mean": True}}, r"`data.shift_to_mean` is for new models"),
    ],
)
def test_mistakes_are_named(sections, message, start, data):
    with pytest.raises(HIENetError, match=message):
        run_of(start, data, **sections)


@pytest.mark.parametrize(
    ("name", "value"),
    [("training.freeze", ["layers.0"]), ("data.replay", "a.extxyz"), ("data.reference_energies", "keep")],
)
def test_keys_for_fine_tuning_need_a_checkpoint(name, value):
    section, key = name.split(".")
    sections: dict[str, Any] = {"data": {"train": "a.extxyz"}}
    sections[section] = {**sections.get(section, {}), key: value}
    with pytest.raises(HIENetError, match=rf"`{name}.*` is for fine-tuning; name the checkpoint .* as `training.from`"):
        parse_config(sections)


def test_replay_frames_without_labels_or_with_labels_of_another_kind_are_refused(start, data):
    replay = {"data": {"replay": str(old_frames(start, labelled=False))}}
    with pytest.raises(
        HIENetError, match=r"10 of 10 frames of `data.replay` have no label .* `data.replay_labels: model`"
    ):
        run_of(start, data, **replay)
    write_frames(start.parent / "old.extxyz", frames_labelled_by(load_checkpoint(start), 5, {"Si": -5000.0}))
    with pytest.raises(HIENetError, match=r"of `data.replay` are of another kind .* `data.replay_labels: model`"):
        run_of(start, data, **replay)


def test_files_that_are_no_checkpoints_are_refused_by_what_they_are(start, data, tmp_path):
    foreign = REFERENCE / "sevennet" / "l3i5_small.pth"
    with pytest.raises(HIENetError, match=r"`training.from`: .*run `hienet convert` on it first"):
        run_of(foreign, data)
    contents = torch.load(start, weights_only=True)
    torch.save({**contents, "format_version": 99}, tmp_path / "newer.pt")
    with pytest.raises(HIENetError, match=r"`training.from`: .* has checkpoint format 99, .*: upgrade hienet"):
        run_of(tmp_path / "newer.pt", data)
    module = torch.jit.script(torch.nn.Linear(1, 1))
    module.save(tmp_path / "deployed.hienet.pt")
    with pytest.raises(HIENetError, match=r"is a deployed model, which cannot be trained; give the checkpoint"):
        run_of(tmp_path / "deployed.hienet.pt", data)


# The command


def hienet(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_writes_a_configuration_with_which_training_prints_both_models(start, data, monkeypatch):
    monkeypatch.chdir(start.parent)
    old = old_frames(start, labelled=False)
    text = hienet("finetune", "start.pt", data, "--replay", old, "--replay-labels", "model", "-o", "c.yaml")
    assert "model: sevennet of start.pt; elements of the checkpoint: kept C, Si, 1 others dropped" in text
    assert "wrote c.yaml; look it over, then run: hienet train c.yaml" in text
    written = yaml.safe_load((start.parent / "c.yaml").read_text())
    assert written["model"] == {"elements": ["C", "Si"]}
    assert written["data"]["replay_labels"] == "model"
    assert list(written["training"])[:2] == ["from", "freeze"]
    written["training"] |= {"epochs": 1, "threads": 1}
    (start.parent / "c.yaml").write_text(yaml.safe_dump(written))
    shown = hienet("train", "c.yaml")
    for row in ("train, before", "validation, after", "replay (old frames), before", "replay (old frames), after"):
        assert row in shown
    # What the run says of itself is a configuration, too.
    assert load_config(start.parent / "c_run" / "config.yaml").training.start == "start.pt"


def test_all_elements_and_the_strength_can_be_chosen(start, data):
    config = start.parent / "c.yaml"
    hienet("finetune", start, data, "--keep-elements", "--strength", "gentle", "-o", config)
    written = yaml.safe_load(config.read_text())
    assert written["model"]["elements"] == list(ELEMENTS)
    assert written["training"]["learning_rate"] == 3e-4
    result = CliRunner().invoke(app, ["finetune", str(start), str(data), "-o", str(config)])
    assert "add --force to replace it" in str(result.exception)
    result = CliRunner().invoke(app, ["finetune", str(start), str(data), "-f", "--strength", "much", "-o", str(config)])
    assert "unknown --strength `much`; expected one of: gentle, standard, strong" in str(result.exception)


def test_the_example_of_a_damaged_checkpoint_is_refused(start, data):
    damaged = load_checkpoint(start)
    save_checkpoint(replace(damaged, weights={**damaged.weights, "layers.9.weight": torch.zeros(1)}), start)
    with pytest.raises(HIENetError, match=r"the file is damaged: 1 of its weights do not fit the model"):
        run_of(start, data)
