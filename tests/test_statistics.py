"""Statistics are those of ordinary frames; what is unlike them is named; what cannot be found out has a floor."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from labelled_frames import TINY_MODEL, emt_frames, tiny_values, write_frames

from hienet.config import DataSection, ModelSection, parse_config
from hienet.data.composition import least_absolute_deviations
from hienet.data.dataset import Dataset, build_dataset, elements_of
from hienet.data.outliers import find_limits, ordinary_frames
from hienet.data.prepare import PreparedData, prepare_data
from hienet.data.reader import Frame
from hienet.data.statistics import (
    ReferenceEnergies,
    find_scale,
    fit_reference_energies,
    force_rms,
    mean_number_of_neighbors,
)
from hienet.errors import HIENetError


def dataset_of(structures: Sequence[ase.Atoms], cutoff: float = 3.5) -> Dataset:
    frames = [Frame(atoms, "data.extxyz", i) for i, atoms in enumerate(structures)]
    return build_dataset(frames, elements_of(frames), cutoff, torch.float64)


def changed(atoms: ase.Atoms, **results: object) -> ase.Atoms:
    """The frame with other labels; None takes one away."""
    atoms = atoms.copy() if atoms.calc is None else _with(atoms.copy(), atoms.calc.results)
    kept = {k: v for k, v in {**atoms.calc.results, **results}.items() if v is not None}
    return _with(atoms, kept)


def _with(atoms: ase.Atoms, results: dict[str, Any]) -> ase.Atoms:
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def prepared(tmp_path: Path, frames: list[ase.Atoms], **data: Any) -> PreparedData:
    path = write_frames(tmp_path / "data.extxyz", frames)
    section = DataSection.model_validate({"train": str(path), "validation": 0.0, **data})
    return prepare_data(section, ModelSection.model_validate(TINY_MODEL), torch.float64, 0, ("energy", "forces"))


def note(data: PreparedData, *words: str) -> str:
    """The one note that has all of the words."""
    (found,) = [line for line in data.notes if all(word in line for word in words)]
    return found


ABSURD = np.array([[1e5, 0.0, 0.0], [-1e5, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({"energy": 2e4}, r"energy 5e\+03 eV/atom above that of the others"),
        ({"energy": -2e4}, r"energy 5e\+03 eV/atom below that of the others"),
        ({"energy": -40.0}, "energy 10.* eV/atom below that of the others"),
        ({"forces": ABSURD}, r"a force of 1e\+05 eV/Å"),
        ({"forces": 1e-3 * ABSURD}, "a force of 100 eV/Å"),
        ({"stress": np.array([30.0, 0, 0, 0, 0, 0])}, r"a stress of 4.81e\+03 GPa"),
    ],
)
@pytest.mark.parametrize("absurd", [(7,), (0, 7, 21)])
def test_a_few_absurd_frames_change_no_statistic_and_are_named(
    tmp_path: Path, labels: dict[str, Any], reason: str, absurd: tuple[int, ...]
) -> None:
    frames = emt_frames(24)
    without = prepared(tmp_path, [frame for i, frame in enumerate(frames) if i not in absurd]).model
    for i in absurd:
        frames[i] = changed(frames[i], **labels)
    data = prepared(tmp_path, frames)
    assert data.model.scale == pytest.approx(without.scale)
    assert data.model.shift == pytest.approx(without.shift)
    assert data.model.avg_num_neighbors == pytest.approx(without.avg_num_neighbors)
    assert len(data.train) == 24
    text = note(data, "unlike the others")
    assert text.startswith(f"WARNING: {len(absurd)} of 24 training frames")
    for i in absurd:
        assert f"data.extxyz`, frame {i} (" in text

    assert re.search(reason, text)
    assert "weight 0 (`config_weight=0`)" in text


def test_a_collapsed_frame_does_not_decide_the_number_of_neighbors(tmp_path: Path) -> None:
    frames = emt_frames(8)
    collapsed = bulk("Cu", cubic=True, a=0.6)
    frames[3] = _with(collapsed, {"energy": 0.3, "forces": np.zeros((4, 3))})
    data = prepared(tmp_path, frames)
    assert 11.0 < data.model.avg_num_neighbors < 13.0
    assert "frame 3 (" in note(data, "unlike the others", "neighbours of an atom")


def test_ordinary_sets_are_what_they_were(tmp_path: Path) -> None:
    """Least squares, root mean square and mean over all frames, and nothing is said."""
    frames = emt_frames(24)
    data = prepared(tmp_path, frames)
    forces = np.concatenate([frame.get_forces() for frame in frames])
    fractions = np.array([[(frame.symbols == symbol).mean() for symbol in ("Ag", "Cu")] for frame in frames])
    per_atom = np.array([frame.get_potential_energy() / 4 for frame in frames])
    assert data.model.scale[0] == pytest.approx(np.sqrt((forces**2).mean()))
    assert data.model.shift == pytest.approx(np.linalg.lstsq(fractions, per_atom, rcond=None)[0])
    assert not [line for line in data.notes if "WARNING" in line]


def test_many_frames_of_another_kind_are_no_outliers(tmp_path: Path) -> None:
    """A fourth of the set: what is typical is as wide as the set then."""
    frames = emt_frames(24)
    for i in range(0, 24, 4):
        frames[i] = changed(frames[i], energy=frames[i].get_potential_energy() + 12.0)
    assert not [line for line in prepared(tmp_path, frames).notes if "unlike" in line]


def test_of_two_frames_the_absurd_one_is_named(tmp_path: Path) -> None:
    frames = emt_frames(2)
    frames[1] = changed(frames[1], forces=ABSURD)
    assert "frame 1" in note(prepared(tmp_path, frames), "unlike the others")


def test_outliers_of_validation_and_test_sets_are_named_by_the_limits_of_training(tmp_path: Path) -> None:
    other = emt_frames(3, seed=4)
    other[1] = changed(other[1], energy=3e3)
    path = write_frames(tmp_path / "other.extxyz", other)
    data = prepared(tmp_path, emt_frames(12), validation=str(path))
    text = note(data, "unlike the others")
    assert text.startswith("WARNING: 1 of 3 validation frames is unlike")
    assert "other.extxyz`, frame 1 (" in text


def test_a_frame_of_weight_zero_is_in_no_statistic_and_is_not_named(tmp_path: Path) -> None:
    frames = emt_frames(12)
    ordinary = prepared(tmp_path, frames[:-1]).model
    frames[-1] = changed(frames[-1], energy=1e4, forces=ABSURD)
    frames[-1].info["config_weight"] = 0.0
    data = prepared(tmp_path, frames)
    assert data.model.scale == pytest.approx(ordinary.scale)
    assert data.model.shift == pytest.approx(ordinary.shift)
    assert not [line for line in data.notes if "unlike" in line]
    assert "1 of weight 0 count neither in the loss" in note(data, "weights of frames")


def test_isolated_atoms_that_give_reference_energies_are_no_outliers(tmp_path: Path) -> None:
    atoms = [_with(ase.Atoms(symbol, cell=[20.0] * 3), {"energy": e}) for symbol, e in (("Cu", 3.5), ("Ag", 2.9))]
    data = prepared(tmp_path, [*emt_frames(12), *atoms])
    assert data.model.shift == (2.9, 3.5)
    assert not [line for line in data.notes if "unlike" in line]


# Scale


def eos(**labels: object) -> list[ase.Atoms]:
    """Energy-volume curves of perfect crystals, whose forces vanish by symmetry."""
    frames = []
    for factor in np.linspace(0.94, 1.08, 6):
        atoms = bulk("Cu", cubic=True, a=3.6 * factor)
        atoms.calc = EMT()
        results = {"energy": atoms.get_potential_energy(), "forces": np.zeros((4, 3)), **labels}
        frames.append(_with(atoms, results))
    return frames


@pytest.mark.parametrize("size", [0.0, 1e-15, 1e-5, 1e-3])
def test_vanishing_forces_do_not_make_the_scale_vanish(tmp_path: Path, size: float) -> None:
    frames = eos(forces=np.random.default_rng(0).normal(0, size, (4, 3)))
    energies = np.array([atoms.get_potential_energy() / 4 for atoms in frames])
    data = prepared(tmp_path, frames)
    assert data.model.scale == pytest.approx((0.1 * energies.std(),))
    assert "forces nearly vanish" in note(data, "scale (")


@pytest.mark.parametrize(
    ("labels", "scale", "reason"),
    [
        ({"forces": None}, 1.0, "no training forces"),
        ({"energy": None, "forces": np.zeros((4, 3))}, 1.0, "forces vanish"),
        ({"energy": -4.0, "forces": np.full((4, 3), 1e-15)}, 1.0, "forces vanish"),
        ({"energy": -4.0, "forces": np.full((4, 3), 0.5)}, 0.5, "RMS of training forces"),
        ({"energy": None, "forces": np.full((4, 3), 0.01)}, 0.01, "RMS of training forces"),
    ],
)
@pytest.mark.parametrize("n_frames", [1, 6])
def test_degenerate_labels_have_a_scale(labels: dict[str, Any], scale: float, reason: str, n_frames: int) -> None:
    """Of one frame, or of repeated ones."""
    frames = [changed(bulk_frame(), **labels) for _ in range(n_frames)]
    dataset = dataset_of(frames)
    found = find_scale(dataset, fit_reference_energies(dataset, ("Cu",)), ("Cu",))
    assert found.value == pytest.approx(scale)
    assert reason in found.note


def bulk_frame() -> ase.Atoms:
    return _with(bulk("Cu", cubic=True), {"energy": -4.0, "forces": np.zeros((4, 3))})


def test_masked_atoms_do_not_count_in_the_scale() -> None:
    forces = np.array([[np.nan] * 3, [2.0, 2.0, 2.0], [2.0, 2.0, 2.0], [np.nan, 9.0, 9.0]])
    assert force_rms(dataset_of([changed(bulk_frame(), forces=forces)])) == pytest.approx(2.0)


# Reference energies


def test_least_absolute_deviations_are_not_moved_by_a_fifth_of_absurd_energies() -> None:
    generator = np.random.default_rng(0)
    fractions = generator.dirichlet((1.0, 1.0, 1.0), size=40)
    energies = fractions @ np.array([-3.0, -5.0, -8.0]) + generator.normal(0, 0.02, 40)
    energies[::5] += 10.0 ** generator.uniform(1, 5, 8)
    assert least_absolute_deviations(fractions, energies) == pytest.approx([-3.0, -5.0, -8.0], abs=0.05)


def test_known_reference_energies_are_held_and_the_rest_is_fitted() -> None:
    dataset = dataset_of([changed(frame, energy=float(_sum(frame, Cu=-3.0, Ag=-2.0))) for frame in emt_frames(6)])
    fit = fit_reference_energies(dataset, ("Ag", "Cu"), {"Cu": -3.5, "Au": 1.0})
    counts = np.array([[(f.atoms.symbols == s).sum() for s in ("Ag", "Cu")] for f in dataset.frames])
    having = counts[:, 0] > 0
    left = (counts @ [-2.0, -3.0] - counts[:, 1] * -3.5)[having] / 4
    expected = np.linalg.lstsq(counts[having, :1] / 4, left, rcond=None)[0]
    assert fit.energies == pytest.approx((expected[0], -3.5))
    assert fit.note == f"Cu known, the rest by least squares on {having.sum()} frames"
    assert fit_reference_energies(dataset, ("Ag", "Cu"), {"Cu": 1.0, "Ag": 2.0}).energies == (2.0, 1.0)


def _sum(atoms: ase.Atoms, **energies: float) -> float:
    return sum(energies[symbol] for symbol in atoms.get_chemical_symbols())


def test_an_element_in_fixed_proportion_shares_the_energy_also_beside_an_absurd_frame(tmp_path: Path) -> None:
    frames = [changed(frame, energy=-12.0 + 0.01 * i) for i, frame in enumerate(emt_frames(1) * 10)]
    for frame in frames:
        frame.symbols[:2] = "Ag"
    frames[4] = changed(frames[4], energy=1e6)
    data = prepared(tmp_path, frames)
    assert data.model.shift == pytest.approx((-3.0, -3.0), abs=0.03)
    assert "determine only 1 of 2" in note(data, "reference energies (")
    assert "frame 4" in note(data, "unlike the others")


def test_an_element_that_only_validation_contains_is_named(tmp_path: Path) -> None:
    other = emt_frames(3, seed=2)
    other[2].symbols[0] = "Au"
    path = write_frames(tmp_path / "other.extxyz", [changed(frame) for frame in other])
    model = ModelSection.model_validate({**TINY_MODEL, "elements": ["Ag", "Au", "Cu"]})
    section = DataSection(train=str(write_frames(tmp_path / "data.extxyz")), validation=str(path))  # type: ignore[arg-type]
    data = prepare_data(section, model, torch.float64, 0)
    assert data.model.shift[1] == 0.0
    assert "0 for Au, which no frame with an energy contains" in note(data, "reference energies (")
    text = note(data, "no training frame contains Au")
    assert "1 of the validation frames" in text
    assert "other.extxyz`, frame 2" in text
    assert not [line for line in data.notes if "unlike" in line]


def test_reference_energies_of_other_calculations_are_pointed_out(tmp_path: Path) -> None:
    data = prepared(tmp_path, emt_frames(), reference_energies={"Cu": -1650.0, "Ag": -5000.0})
    assert "leave" in note(data, "WARNING", "eV/atom of the energies of most frames")
    data = prepared(tmp_path, emt_frames(), reference_energies={"Cu": 4.0, "Ag": 3.0})
    assert not [line for line in data.notes if "WARNING" in line]


# Numbers of neighbours


def test_mostly_isolated_atoms_have_at_least_one_neighbor_on_average() -> None:
    atoms = [_with(ase.Atoms("Cu"), {"energy": 3.5}) for _ in range(20)]
    pair = _with(ase.Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.2]]), {"energy": 5.0})
    found = mean_number_of_neighbors(dataset_of([*atoms, pair]), 3.5)
    assert found.value == 1.0
    assert "most atoms have no neighbour" in found.note


# Sets of one


@pytest.mark.parametrize(
    "frame",
    [
        emt_frames(1)[0],
        changed(emt_frames(1)[0], energy=None),
        changed(emt_frames(1)[0], forces=None),
        changed(emt_frames(1)[0], energy=None, forces=None),
        _with(bulk("Cu"), {"energy": -3.0, "forces": np.zeros((1, 3)), "stress": np.zeros(6)}),
    ],
    ids=["all labels", "no energy", "no forces", "only stress", "one atom"],
)
def test_one_frame_has_statistics_and_is_no_outlier(tmp_path: Path, frame: ase.Atoms) -> None:
    data = prepared(tmp_path, [frame])
    assert np.isfinite([*data.model.scale, *data.model.shift, data.model.avg_num_neighbors]).all()
    assert data.model.scale[0] > 1e-4
    assert not [line for line in data.notes if "unlike" in line]


def test_limits_are_found_without_any_energy_or_force() -> None:
    stress = np.arange(6.0) * 1e-3
    dataset = dataset_of([_with(bulk("Cu", cubic=True), {"stress": stress}) for _ in range(3)])
    assert find_limits(dataset, ("Cu",)).outliers(dataset) == []
    ordinary, notes = ordinary_frames({"train": dataset}, ("Cu",))
    assert (len(ordinary), notes) == (3, [])
    assert find_scale(ordinary, ReferenceEnergies((0.0,), ""), ("Cu",)).value == 1.0


# Weights


@pytest.mark.parametrize("weight", ["heavy", -1.0, float("nan"), float("inf")])
def test_a_bad_weight_is_named_with_file_and_frame(tmp_path: Path, weight: object) -> None:
    frames = emt_frames(4)
    frames[2].info["config_weight"] = weight
    with pytest.raises(HIENetError, match=r"data.extxyz`, frame 2: its weight `config_weight` is `.*`; give a number"):
        prepared(tmp_path, frames)


def test_weights_of_any_name_are_read_and_those_that_are_not_are_pointed_out(tmp_path: Path) -> None:
    frames = emt_frames(4)
    frames[1].info["weight"] = 3.0
    frames[2].info["config_energy_weight"] = 0.5
    data = prepared(tmp_path, frames)
    assert data.train.weights().tolist() == [[1, 1, 1], [1, 1, 1], [0.5, 1, 1], [1, 1, 1]]
    assert "set `data.weight_key: weight`" in note(data, "WARNING", "1 frames have `weight`")
    data = prepared(tmp_path, frames, weight_key="weight")
    assert data.train.weights().tolist() == [[1, 1, 1], [3, 3, 3], [0.5, 1, 1], [1, 1, 1]]
    assert not [line for line in data.notes if "WARNING" in line]
    assert prepared(tmp_path, frames, weight_key=None).train.weights().min() == 1.0
    with pytest.raises(HIENetError, match=r"`data.weight_key` is `w`, which no frame .* has; entries seen: .*`weight`"):
        prepared(tmp_path, frames, weight_key="w")


def test_weights_are_part_of_what_a_resumed_run_must_find_unchanged(tmp_path: Path) -> None:
    frames = emt_frames(4)
    before = prepared(tmp_path, frames).fingerprint
    frames[1].info["config_weight"] = 1.0
    assert prepared(tmp_path, frames).fingerprint == before
    frames[1].info["config_weight"] = 2.0
    assert prepared(tmp_path, frames).fingerprint != before


def test_given_statistics_are_said_to_be_given(tmp_path: Path) -> None:
    values = tiny_values(write_frames(tmp_path / "data.extxyz"), tmp_path)
    values["model"] |= {"elements": ["Ag", "Cu"], "scale": [2.0, 2.0]}
    config = parse_config(values)
    data = prepare_data(config.data, config.model, torch.float64, 0)
    assert "scale (given as `model.scale`): 2" in data.notes
