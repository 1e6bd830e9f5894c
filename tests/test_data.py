"""Frames and labels are read as they were meant, or refused with file and frame."""

from __future__ import annotations

from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from labelled_frames import TINY_MODEL, emt_frames, tiny_values, write_frames

from hienet.config import DataSection, ModelSection, parse_config
from hienet.data.dataset import build_dataset, elements_of
from hienet.data.labels import LabelKeys, read_labels
from hienet.data.prepare import prepare_data
from hienet.data.reader import Frame, read_frames
from hienet.data.split import split_frames
from hienet.data.statistics import fit_reference_energies, mean_number_of_neighbors
from hienet.derivatives import to_voigt
from hienet.errors import HIENetError


def as_frames(structures: list[ase.Atoms]) -> list[Frame]:
    return [Frame(atoms, "data.extxyz", i) for i, atoms in enumerate(structures)]


def structure(**info: object) -> ase.Atoms:
    atoms = ase.Atoms("SiC", positions=[[0, 0, 0], [1.1, 1.1, 1.1]], cell=[4.0, 4.1, 4.2], pbc=True)
    atoms.info.update(info)
    return atoms


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(HIENetError, match=r"there is no file `.*none.extxyz`"):
        read_frames([tmp_path / "none.extxyz"])


def test_an_empty_data_set_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.extxyz"
    empty.write_text("")
    with pytest.raises(HIENetError, match=r"`.*empty.extxyz` is empty; a data set needs at least one frame"):
        read_frames([empty])


def test_a_frame_without_atoms_is_refused(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "data.extxyz", [ase.Atoms(), structure()])
    with pytest.raises(HIENetError, match=r"data.extxyz`, frame 0 has no atoms; remove it"):
        read_frames([path])


def test_a_file_that_ase_cannot_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.extxyz"
    path.write_text("not a number\n\n")
    with pytest.raises(HIENetError, match=r"data.extxyz`, frame 0, line 1: expected the number of atoms, got `not a n"):
        read_frames([path])
    other = tmp_path / "data.traj"
    other.write_text("not a trajectory")
    with pytest.raises(HIENetError, match=r"ASE cannot read `.*data.traj`, frame 0: .*; mend the file, or give extxyz"):
        read_frames([other])


def test_the_order_of_sources_is_key_then_ref_then_calculator_then_alias() -> None:
    atoms = structure(mine=1.0, REF_energy=2.0, dft_energy=4.0)
    atoms.calc = SinglePointCalculator(atoms, energy=3.0)
    frames = as_frames([atoms])

    def energy(key: str | None = None) -> float | None:
        return read_labels(frames, LabelKeys(energy=key))[0][0].energy

    assert energy("mine") == 1.0
    assert energy() == 2.0
    del atoms.info["REF_energy"]
    assert energy() == 3.0
    atoms.calc = None
    assert energy() == 4.0


def test_the_source_and_the_number_of_labels_are_reported() -> None:
    _, report = read_labels(as_frames([structure(REF_energy=1.0), structure()]))
    assert str(report) == "labels: energy from `REF_energy (frame)` in 1 of 2, no forces, no stress"


def test_a_virial_is_minus_volume_times_stress() -> None:
    virial = np.diag([1.0, 2.0, 3.0])
    labels, _ = read_labels(as_frames([structure(virial=virial)]))
    assert labels[0].stress == pytest.approx(-virial / (4.0 * 4.1 * 4.2))


def test_a_virial_of_any_name_can_be_given() -> None:
    labels, _ = read_labels(as_frames([structure(w=np.eye(3))]), LabelKeys(virial="w"))
    assert labels[0].stress == pytest.approx(-np.eye(3) / (4.0 * 4.1 * 4.2))


def test_six_and_nine_components_of_a_stress_agree() -> None:
    six = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    nine = [[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]]
    labels, _ = read_labels(as_frames([structure(stress=six), structure(stress=nine)]))
    assert labels[0].stress == pytest.approx(labels[1].stress)


def test_a_stress_of_a_molecule_is_left_out() -> None:
    atoms = structure(REF_stress=np.zeros(6), REF_energy=1.0)
    atoms.pbc = False
    labels, report = read_labels(as_frames([atoms]))
    assert labels[0].stress is None
    assert report.counts["stress"] == 0


def test_missing_labels_are_refused_with_the_keys_seen() -> None:
    with pytest.raises(
        HIENetError, match=r"no energy, forces or stress found .*keys seen: `enrgy` in 1; name the labels"
    ):
        read_labels(as_frames([structure(enrgy=1.0)]))


def test_a_given_key_that_is_not_there_is_refused_with_the_keys_seen() -> None:
    with pytest.raises(
        HIENetError, match=r"`data.forces_key` is `f`, which no frame .* has; keys seen: `REF_energy` in 1"
    ):
        read_labels(as_frames([structure(REF_energy=1.0)]), LabelKeys(forces="f"))


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"REF_energy": float("nan")}, r"frame 1: `REF_energy` contains NaN or infinity"),
        ({"REF_stress": [1, 2, 3, 4, 5, float("inf")]}, r"frame 1: `REF_stress` contains NaN or infinity"),
        ({"REF_energy": [1.0, 2.0]}, r"frame 1: `REF_energy` cannot be read: expected one number"),
        ({"REF_energy": "n/a"}, r"frame 1: `REF_energy` cannot be read: could not convert"),
        ({"REF_stress": [1.0, 2.0]}, r"frame 1: `REF_stress` cannot be read: expected 6 components"),
    ],
)
def test_a_bad_label_is_named_with_file_and_frame(info: dict[str, object], message: str) -> None:
    with pytest.raises(HIENetError, match=f"`data.extxyz`, {message}"):
        read_labels(as_frames([structure(REF_energy=1.0), structure(**info)]))


def test_a_nan_force_is_named_with_file_and_frame() -> None:
    atoms = structure()
    atoms.arrays["REF_forces"] = np.full((2, 3), np.nan)
    with pytest.raises(HIENetError, match=r"`data.extxyz`, frame 0: `REF_forces` contains NaN"):
        read_labels(as_frames([atoms]))


def test_nan_forces_on_some_atoms_leave_these_atoms_out() -> None:
    """A component that is NaN takes the others of its atom with it; infinity is never meant."""
    atoms = structure(REF_energy=1.0)
    atoms.arrays["REF_forces"] = np.array([[1.0, np.nan, 3.0], [4.0, 5.0, 6.0]])
    dataset = build_dataset(as_frames([structure(REF_energy=1.0), atoms]), ("C", "Si"), 3.0, torch.float64)
    assert dataset.targets[1].forces.isnan().tolist() == [[True] * 3, [False] * 3]
    assert dataset.report.counts["forces"] == dataset.subset([0, 1]).report.counts["forces"] == 1
    assert dataset.describe_masked_atoms() == [
        "forces of 1 atoms in 1 frames are NaN and do not count (first: `data.extxyz`, frame 1)"
    ]
    atoms.arrays["REF_forces"][1, 1] = np.inf
    with pytest.raises(HIENetError, match=r"`data.extxyz`, frame 0: `REF_forces` contains NaN or infinity"):
        read_labels(as_frames([atoms]))


def test_a_label_too_large_for_the_precision_is_named_and_not_taken_for_a_missing_one() -> None:
    atoms = structure(REF_energy=1.0)
    atoms.arrays["REF_forces"] = np.array([[1e39, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert build_dataset(as_frames([atoms]), ("C", "Si"), 3.0, torch.float64).targets[0].forces[0, 0] == 1e39
    with pytest.raises(HIENetError, match=r"frame 0: .* its forces is 1e\+39, more than torch.float32 holds"):
        build_dataset(as_frames([atoms]), ("C", "Si"), 3.0)


def test_an_unknown_element_is_named_with_file_and_frame() -> None:
    with pytest.raises(HIENetError, match=r"frame 0: the structure contains C, but the model knows only Si"):
        build_dataset(as_frames([structure(REF_energy=1.0)]), ("Si",), 3.0)


def test_partial_labels_are_nan_in_the_targets() -> None:
    atoms = structure(REF_energy=1.0)
    atoms.arrays["REF_forces"] = np.ones((2, 3))
    frames = as_frames([atoms, structure(REF_energy=2.0), structure(REF_stress=np.arange(6.0))])
    dataset = build_dataset(frames, ("C", "Si"), 3.0, torch.float64)
    _, targets = dataset.batch([0, 1, 2])
    assert targets.energy.isfinite().tolist() == [True, True, False]
    assert targets.forces.isfinite().all(dim=1).tolist() == [True, True, False, False, False, False]
    assert targets.stress.isfinite().all(dim=1).tolist() == [False, False, True]
    assert dataset.report.counts == dataset.label_counts() == {"energy": 2, "forces": 1, "stress": 1}
    assert dataset.subset([2]).label_counts() == {"energy": 0, "forces": 0, "stress": 1}


def test_targets_are_in_the_order_of_the_atoms_and_of_voigt() -> None:
    frames = as_frames(emt_frames(3))
    dataset = build_dataset(frames, elements_of(frames), 3.5, torch.float64)
    graph, targets = dataset.batch([2, 0])
    expected = np.concatenate([frames[2].atoms.get_forces(), frames[0].atoms.get_forces()])
    assert targets.forces.numpy() == pytest.approx(expected)
    assert targets.stress[1].numpy() == pytest.approx(frames[0].atoms.get_stress())
    assert targets.energy[0].item() == pytest.approx(frames[2].atoms.get_potential_energy())
    assert graph.structure.tolist() == [0] * 4 + [1] * 4
    assert to_voigt(torch.eye(3)).tolist() == [1, 1, 1, 0, 0, 0]


def test_least_squares_recovers_known_reference_energies() -> None:
    known = {"C": -3.5, "Si": -1.25}
    structures = [ase.Atoms("C2Si"), ase.Atoms("CSi"), ase.Atoms("Si3")]
    for atoms in structures:
        atoms.positions += np.arange(len(atoms))[:, None]
        atoms.info["energy"] = sum(known[symbol] for symbol in atoms.get_chemical_symbols())
    dataset = build_dataset(as_frames(structures), ("C", "Si"), 3.0)
    fit = fit_reference_energies(dataset, ("C", "Si"))
    assert fit.energies == pytest.approx((-3.5, -1.25))
    assert fit.note == "least squares on 3 frames"


def test_indistinguishable_elements_share_the_energy_and_it_is_said() -> None:
    dataset = build_dataset(as_frames([structure(energy=-8.0)] * 3), ("C", "Si"), 3.0)
    fit = fit_reference_energies(dataset, ("C", "Si"))
    assert fit.energies == pytest.approx((-4.0, -4.0))
    assert "determine only 1 of 2 reference energies" in fit.note


def test_given_reference_energies_are_used_and_a_missing_one_is_named(tmp_path: Path) -> None:
    data = write_frames(tmp_path / "data.extxyz")
    section = DataSection(train=str(data), reference_energies={"Cu": -1.0, "Ag": 2.0})  # type: ignore[arg-type]
    model = ModelSection.model_validate(TINY_MODEL)
    assert prepare_data(section, model, torch.float32, 0).model.shift == (2.0, -1.0)
    section = DataSection(train=str(data), reference_energies={"Cu": -1.0})  # type: ignore[arg-type]
    with pytest.raises(HIENetError, match=r"`data.reference_energies` has no energy for Ag, got Cu"):
        prepare_data(section, model, torch.float32, 0)


def test_shifted_to_the_mean_reference_energies_leave_nothing_on_average(tmp_path: Path) -> None:
    frames = emt_frames()
    data = write_frames(tmp_path / "data.extxyz", frames)
    energies = {"Cu": -1.0, "Ag": 2.0}
    section = DataSection(train=str(data), validation=0.0, reference_energies=energies, shift_to_mean=True)  # type: ignore[arg-type]
    prepared = prepare_data(section, ModelSection.model_validate(TINY_MODEL), torch.float64, 0)
    silver, copper = prepared.model.shift
    assert silver - copper == pytest.approx(3.0)
    left = [
        (atoms.get_potential_energy() - sum({"Cu": copper, "Ag": silver}[symbol] for symbol in atoms.symbols)) / 4
        for atoms in frames
    ]
    assert float(np.mean(left)) == pytest.approx(0.0, abs=1e-6)
    assert any("to the mean energy per atom" in note for note in prepared.notes)
    for atoms in frames:
        atoms.calc = SinglePointCalculator(atoms, forces=atoms.get_forces())
    without = write_frames(tmp_path / "forces.extxyz", frames)
    section = DataSection(train=str(without), shift_to_mean=True, allow_missing="energy")  # type: ignore[arg-type]
    with pytest.raises(HIENetError, match=r"`data.shift_to_mean` needs energies, but no training frame has one"):
        prepare_data(section, ModelSection.model_validate(TINY_MODEL), torch.float64, 0)


def test_statistics_are_those_of_the_training_frames(tmp_path: Path) -> None:
    data = write_frames(tmp_path / "data.extxyz")
    config = parse_config(tiny_values(data, tmp_path))
    prepared = prepare_data(config.data, config.model, torch.float64, 0)
    forces = np.concatenate([frame.atoms.get_forces().ravel() for frame in prepared.train.frames])
    assert prepared.model.elements == ("Ag", "Cu")
    assert prepared.model.scale == pytest.approx((np.sqrt(np.mean(forces**2)),) * 2)
    n_edges = sum(len(graph.center) for graph in prepared.train.graphs)
    assert prepared.model.avg_num_neighbors == pytest.approx(n_edges / (4 * len(prepared.train)))
    assert len(prepared.train) == 6
    assert prepared.validation is not None
    assert len(prepared.validation) == 2


def unlabelled(n: int) -> list[ase.Atoms]:
    frames = emt_frames(n, seed=5)
    for atoms in frames:
        atoms.calc = None
    return frames


def test_frames_without_any_label_are_left_out_of_all_sets_and_counted(tmp_path: Path) -> None:
    data = write_frames(tmp_path / "data.extxyz", [*unlabelled(3), *emt_frames(6)])
    config = parse_config(tiny_values(data, tmp_path))
    prepared = prepare_data(config.data, config.model, torch.float64, 0)
    assert prepared.validation is not None
    assert len(prepared.train) + len(prepared.validation) == 6
    assert min(prepared.split.train + prepared.split.validation) == 3
    assert prepared.notes[-1] == "frames without any label, left out: 3"


def test_a_validation_set_without_labels_is_refused(tmp_path: Path) -> None:
    values = tiny_values(write_frames(tmp_path / "data.extxyz"), tmp_path)
    values["data"]["validation"] = str(write_frames(tmp_path / "validation.extxyz", unlabelled(2)))
    config = parse_config(values)
    with pytest.raises(HIENetError, match=r"no frame of `.*validation.extxyz` has an energy under a known name; keys"):
        prepare_data(config.data, config.model, torch.float64, 0)


def test_no_neighbor_within_the_cutoff_is_refused() -> None:
    dataset = build_dataset(as_frames([structure(energy=-8.0)]), ("C", "Si"), 0.5)
    with pytest.raises(HIENetError, match=r"has a neighbour within the cutoff of 0.5 Å; raise `model.cutoff`"):
        mean_number_of_neighbors(dataset, 0.5)


def test_given_statistics_are_kept(tmp_path: Path) -> None:
    data = write_frames(tmp_path / "data.extxyz")
    given = {"elements": ["Cu", "Ag", "Au"], "avg_num_neighbors": 5.0, "scale": [1, 2, 3], "shift": [4, 5, 6]}
    model = ModelSection.model_validate({**TINY_MODEL, **given})
    config = prepare_data(DataSection(train=str(data)), model, torch.float32, 0).model  # type: ignore[arg-type]
    assert config.elements == ("Cu", "Ag", "Au")
    assert config.avg_num_neighbors == 5.0
    assert (config.scale, config.shift) == ((1, 2, 3), (4, 5, 6))


def test_a_split_is_disjoint_complete_reproducible_and_in_proportion() -> None:
    groups = ["a"] * 70 + ["b"] * 30
    split = split_frames(groups, 0.1, 0.2, seed=3)
    assert sorted([*split.train, *split.validation, *split.test]) == list(range(100))
    assert (len(split.train), len(split.validation), len(split.test)) == (70, 10, 20)
    assert sum(i < 70 for i in split.test) == 14
    assert split == split_frames(groups, 0.1, 0.2, seed=3)
    assert split != split_frames(groups, 0.1, 0.2, seed=4)


def test_too_few_frames_for_a_split_are_refused() -> None:
    with pytest.raises(HIENetError, match=r"1 frame\(s\) are too few to set 0.1 of them apart for `data.validation`"):
        split_frames(["a"], 0.1, 0.0, seed=0)


def test_validation_files_are_read_with_the_same_keys(tmp_path: Path) -> None:
    data, other = write_frames(tmp_path / "a.extxyz"), write_frames(tmp_path / "b.extxyz", emt_frames(2, seed=5))
    section = DataSection(train=str(data), validation=str(other), test=[str(other)])  # type: ignore[arg-type]
    prepared = prepare_data(section, ModelSection.model_validate(TINY_MODEL), torch.float32, 0)
    assert prepared.validation is not None
    assert prepared.test is not None
    assert (len(prepared.train), len(prepared.validation), len(prepared.test)) == (8, 2, 2)


def test_frames_whose_only_label_has_another_name_are_pointed_out() -> None:
    frames = [structure(REF_energy=-8.0), structure(dft_energy=-8.1), structure(dft_energy=-8.2)]
    labels, report = read_labels(as_frames(frames))
    assert [label.energy for label in labels] == [-8.0, None, None]
    assert report.lines()[1].startswith(
        "WARNING: 2 frames of `data.extxyz` have only `dft_energy (frame)`, which is not used; set `energy_key`"
    )
