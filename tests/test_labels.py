"""Under which names labels are found, file by file, and what is said and done where they are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase.calculators.singlepoint import SinglePointCalculator
from labelled_frames import emt_frames, tiny_values, write_frames
from typer.testing import CliRunner

from hienet.cli import app
from hienet.config import load_config, parse_config
from hienet.data.dataset import build_dataset
from hienet.data.labels import LabelKeys, read_labels
from hienet.data.prepare import PreparedData, prepare_data
from hienet.data.reader import Frame, read_frames
from hienet.data.split import split_frames
from hienet.data.writer import write_frames as write_dataset
from hienet.errors import HIENetError

NAMES = {"energy": "REF_energy", "forces": "REF_forces", "stress": "REF_stress"}


def renamed(frames: list[ase.Atoms], **names: str | None) -> list[ase.Atoms]:
    """Frames with labels in `info` and `arrays` under these names; without those whose name is None."""
    found = []
    for atoms in frames:
        results = dict(atoms.calc.results)
        atoms = atoms.copy()
        for quantity, usual in NAMES.items():
            name = names.get(quantity, usual)
            if name is not None:
                (atoms.arrays if quantity == "forces" else atoms.info)[name] = results[quantity]
        found.append(atoms)
    return found


def prepared(values: dict[str, Any]) -> PreparedData:
    config = parse_config(values)
    return prepare_data(config.data, config.model, torch.float64, 0)


def values_of(tmp_path: Path, train: list[ase.Atoms], validation: list[ase.Atoms], **data: Any) -> dict[str, Any]:
    values = tiny_values(write_frames(tmp_path / "train.extxyz", train), tmp_path / "run")
    values["data"] |= {"validation": str(write_frames(tmp_path / "validation.extxyz", validation)), **data}
    return values


OTHER_NAMES = [
    ({"energy": "Energy", "forces": "Force", "stress": "stress"}, {}),
    ({"energy": "dft_energy", "forces": "dft_forces", "stress": "dft_stress"}, {}),
    ({}, {"energy": "vasp_energy", "forces": "force", "stress": "pbe_stress"}),
]


@pytest.mark.parametrize(("train", "validation"), OTHER_NAMES)
def test_each_file_has_names_of_its_own(train: dict[str, str], validation: dict[str, str], tmp_path: Path) -> None:
    first, second = emt_frames(6), emt_frames(3, seed=5)
    data = prepared(values_of(tmp_path, renamed(first, **train), renamed(second, **validation)))
    assert data.validation is not None
    assert data.train.label_counts() == {"energy": 6, "forces": 6, "stress": 6}
    assert data.validation.label_counts() == {"energy": 3, "forces": 3, "stress": 3}
    assert data.train.energies() == pytest.approx([atoms.get_potential_energy() for atoms in first])
    assert data.validation.energies() == pytest.approx([atoms.get_potential_energy() for atoms in second])
    report = next(note for note in data.notes if note.startswith("labels: "))
    assert f"`{train.get('energy', 'REF_energy')} (frame)` in 6 of 6 and `" in report


def test_files_of_one_set_have_names_of_their_own(tmp_path: Path) -> None:
    files = [write_frames(tmp_path / "a.extxyz", emt_frames(4))]
    files.append(write_frames(tmp_path / "b.extxyz", renamed(emt_frames(4, seed=1), energy="dft_energy")))
    labels, report = read_labels(read_frames(files))
    assert all(label.energy is not None and label.forces is not None for label in labels)
    assert str(report).startswith(
        "labels: energy from `energy (calculator)` in 4 of 4 and `dft_energy (frame)` in 4 of"
    )


MISSING = [
    (
        "train",
        {"energy": "TotEnergy"},
        r"train.extxyz` has an energy under a known name, but `TotEnergy` \(in 6\) look",
    ),
    (
        "train",
        {"energy": "potential_energy"},
        r"`potential_energy` \(in 6\) looks like it; if it is, set `energy_key: p",
    ),
    (
        "train",
        {"forces": "DFT_F"},
        r"train.extxyz` has any forces under a known name, but `DFT_F` \(in 6\) looks like it",
    ),
    (
        "validation",
        {"energy": "E"},
        r"validation.extxyz` has an energy under a known name, but `E` \(in 3\) looks like",
    ),
    ("validation", {"forces": "my_forces"}, r"`my_forces` \(in 3\) .* set `forces_key: my_forces` in `data`"),
    (
        "train",
        {"energy": None},
        r"train.extxyz` has an energy .*; keys seen: .*`REF_forces` in 6.*allow_missing: \[ener",
    ),
    ("validation", {"energy": None}, r"validation.extxyz` has an energy .*`training.energy_weight: 0` for all files"),
    ("train", {"forces": None}, r"train.extxyz` has any forces .*`data.allow_missing: \[forces\]`"),
    ("validation", {"forces": None}, r"validation.extxyz` has any forces .*`training.forces_weight: 0`"),
]


@pytest.mark.parametrize(("where", "names", "message"), MISSING)
def test_energies_or_forces_that_a_file_lacks_stop_the_run(
    where: str, names: dict[str, str | None], message: str, tmp_path: Path
) -> None:
    sets = {"train": emt_frames(6), "validation": emt_frames(3, seed=5)}
    frames = {name: renamed(part, **(names if name == where else {})) for name, part in sets.items()}
    with pytest.raises(HIENetError, match=message):
        prepared(values_of(tmp_path, frames["train"], frames["validation"]))


@pytest.mark.parametrize("quantity", ["energy", "forces"])
def test_the_user_may_train_without(quantity: str, tmp_path: Path) -> None:
    frames = renamed(emt_frames(6), **{quantity: None})
    values = values_of(tmp_path, frames, renamed(emt_frames(3, seed=5)), allow_missing=[quantity])
    assert prepared(values).train.label_counts()[quantity] == 0
    values["data"]["allow_missing"] = quantity
    assert prepared(values).train.label_counts()[quantity] == 0
    values["data"].pop("allow_missing")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    config = load_config(tmp_path / "config.yaml")
    data = prepare_data(config.data, config.model, torch.float64, 0, unneeded=[quantity])
    assert data.train.label_counts()[quantity] == 0


def test_hienet_train_stops_and_goes_on_with_a_weight_of_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = values_of(tmp_path, renamed(emt_frames(6), energy="TotEnergy"), renamed(emt_frames(3, seed=5)))
    values["training"]["epochs"] = 1
    Path("config.yaml").write_text(yaml.safe_dump(values))
    result = CliRunner().invoke(app, ["train", "config.yaml"])
    assert isinstance(result.exception, HIENetError)
    assert "but `TotEnergy` (in 6) looks like it" in str(result.exception)
    values["training"]["energy_weight"] = 0.0
    Path("config.yaml").write_text(yaml.safe_dump(values))
    result = CliRunner().invoke(app, ["train", "config.yaml"])
    assert result.exit_code == 0, result.exception
    assert "WARNING: no frame of `" in result.output


def test_a_name_that_was_given_must_be_in_every_file(tmp_path: Path) -> None:
    frames = renamed(emt_frames(6), energy="mine")
    values = values_of(tmp_path, frames, renamed(emt_frames(3, seed=5)), energy_key="mine")
    with pytest.raises(
        HIENetError, match=r"no frame of `.*validation.extxyz` has an energy named `mine`, but `REF_energy`"
    ):
        prepared(values)


def test_energies_of_a_few_frames_may_not_all_go_to_validation(tmp_path: Path) -> None:
    frames = renamed(emt_frames(8), energy=None)
    values = tiny_values(tmp_path / "data.extxyz", tmp_path / "run")
    for energetic in range(8):
        for i, atoms in enumerate(frames):
            atoms.info.pop("REF_energy", None)
            if i == energetic:
                atoms.info["REF_energy"] = -1.0
        write_frames(tmp_path / "data.extxyz", frames)
        split = split_frames(["first"] * 4 + ["second"] * 4, 0.25, 0.0, 0)
        if energetic in split.train:
            assert prepared(values).train.label_counts()["energy"] == 1
        else:
            with pytest.raises(HIENetError, match=r"no frame of the training set has an energy: the few that have wen"):
                prepared(values)


def test_a_file_of_single_atoms_needs_no_forces(tmp_path: Path) -> None:
    atom = ase.Atoms("Cu", info={"REF_energy": -1.0})
    data = prepared(values_of(tmp_path, [*renamed(emt_frames(6)), atom], [atom.copy()]))
    assert data.train.label_counts() == {"energy": 7, "forces": 6, "stress": 6}


LOOKALIKES = {
    "TotEnergy": ("energy", "energy_key: TotEnergy"),
    "potential_energy": ("energy", "energy_key: potential_energy"),
    "E_tot": ("energy", "energy_key: E_tot"),
    "TOTEN": ("energy", "energy_key: TOTEN"),
    "GAP_forces": ("forces", "forces_key: GAP_forces"),
    "Stress": ("stress", "stress_key: Stress"),
    "Virial": ("stress", "virial_key: Virial"),
    "qm_virial": ("stress", "virial_key: qm_virial"),
}


@pytest.mark.parametrize(("name", "expected"), LOOKALIKES.items())
def test_init_warns_of_an_entry_that_looks_like_a_label(
    name: str, expected: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quantity, setting = expected
    write_frames(Path("data.extxyz"), renamed(emt_frames(4), **{quantity: name}))
    result = CliRunner().invoke(app, ["init", "data.extxyz"])
    assert result.exit_code == 0, result.exception
    line = next(line for line in result.output.splitlines() if "looks like it" in line)
    assert line.startswith("WARNING: no frame of `data.extxyz` has")
    assert f"`{name}` (in 4) looks like it" in line
    assert f"`{setting}`" in line
    stops = f"WARNING: `hienet train` will stop for want of {quantity}" in result.output
    assert stops == (quantity != "stress")
    assert f"# {line}" in Path("config.yaml").read_text()
    key, value = setting.split(": ")
    option = f"--{key.replace('_', '-')}"
    result = CliRunner().invoke(app, ["init", "data.extxyz", "-f", option, value])
    assert result.exit_code == 0, result.exception
    assert "WARNING" not in result.output
    assert f"{setting}" in Path("config.yaml").read_text()


@pytest.mark.parametrize(
    "name", ["energy_weight", "kinetic_energy", "energy_sigma", "force_mask", "virial_error", "name", "time"]
)
def test_nothing_else_looks_like_a_label(name: str) -> None:
    atoms = renamed(emt_frames(1), energy=None)[0]
    atoms.info[name] = 1.0
    report = read_labels([Frame(atoms, "data.extxyz", 0)])[1]
    assert report.lines()[1] == "WARNING: no frame of `data.extxyz` has an energy under a known name"


def test_files_of_which_the_same_is_to_be_said_are_named_together() -> None:
    frames = [Frame(renamed(emt_frames(1), energy=None)[0], f"{i}.extxyz", 0) for i in range(9)]
    assert read_labels(frames)[1].lines()[1:] == [
        "WARNING: no frame of `0.extxyz`, `1.extxyz`, `2.extxyz` and 6 more files has an energy under a known name"
    ]


def test_a_stress_without_a_volume_is_said_to_be_ignored() -> None:
    frames = renamed(emt_frames(2))
    frames[0].pbc = (True, True, False)
    lines = read_labels([Frame(atoms, "data.extxyz", i) for i, atoms in enumerate(frames)])[1].lines()
    assert lines[1] == (
        "note: the stress of frames of `data.extxyz` that are not periodic in three directions is ignored"
    )


@pytest.mark.parametrize("free_in_all", [True, False])
def test_the_free_energy_is_taken_where_all_frames_have_it(free_in_all: bool) -> None:
    frames = emt_frames(3)
    for i, atoms in enumerate(frames):
        atoms.calc = SinglePointCalculator(atoms, energy=-7.0, forces=np.zeros((4, 3)))
        if i or free_in_all:
            atoms.calc.results["free_energy"] = -7.4
    labels = read_labels([Frame(atoms, "data.extxyz", i) for i, atoms in enumerate(frames)])[0]
    assert [label.energy for label in labels] == [-7.4 if free_in_all else -7.0] * 3
    labels = read_labels([Frame(atoms, "a", i) for i, atoms in enumerate(frames)], LabelKeys(energy="energy"))[0]
    assert [label.energy for label in labels] == [-7.0] * 3


def test_what_is_written_back_are_the_labels_that_were_read(tmp_path: Path) -> None:
    frames = renamed(emt_frames(3), energy="mine")
    for i, atoms in enumerate(frames):
        atoms.calc = SinglePointCalculator(atoms, energy=99.0, free_energy=98.0, magmom=1.0)
        atoms.info |= {"energy": 97.0, "text": 'two\nlines = \\ "quoted"', "number": i, "pbc": "no", "empty": ""}
        atoms.info |= {
            "thing": object(),
            "list": [1, {"a": 2}],
            "a key": 1,
            "Lattice": 3,
            "virial": np.eye(3),
            "ü": "é",
        }
        atoms.arrays["tensor"] = np.zeros((4, 3, 3))
        atoms.arrays["energies"] = np.zeros(4)
    source = [Frame(atoms, str(tmp_path / "a b.extxyz"), i) for i, atoms in enumerate(frames)]
    dataset = build_dataset(source, ("Ag", "Cu"), 3.0, torch.float64, LabelKeys(energy="mine"))
    write_dataset(dataset, tmp_path / "written.extxyz")
    again = read_frames([tmp_path / "written.extxyz"])
    labels, report = read_labels(again)
    assert [line for line in report.lines() if "WARNING" in line] == []
    for before, after, frame, twin in zip(dataset.labels, labels, source, again, strict=True):
        assert after.energy == pytest.approx(before.energy)
        assert after.forces == pytest.approx(before.forces, abs=1e-7)
        assert after.stress == pytest.approx(before.stress)
        assert twin.atoms.positions == pytest.approx(frame.atoms.positions, abs=1e-7)
        assert twin.group("config_type") == frame.group("config_type")
        assert twin.atoms.info["number"] == frame.index
        assert twin.atoms.info["source_frame"] == frame.index
