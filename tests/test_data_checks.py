"""What is suspicious about data is said, and what is not is not."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from labelled_frames import TINY_MODEL, emt_frames, tiny_values, write_frames
from vasp_files import write_outcar, write_vasprun

from hienet.config import DataSection, ModelSection, parse_config
from hienet.data.checks import check_frames
from hienet.data.isolated import is_isolated, isolated_atoms
from hienet.data.labels import read_labels
from hienet.data.prepare import PreparedData, prepare_data
from hienet.data.reader import Frame, read_frames
from hienet.data.repeats import first_equals
from hienet.errors import HIENetError
from hienet.units import EV_PER_CUBIC_ANGSTROM_IN_GPA, EV_PER_CUBIC_ANGSTROM_IN_KBAR

GPA, KBAR = EV_PER_CUBIC_ANGSTROM_IN_GPA, EV_PER_CUBIC_ANGSTROM_IN_KBAR


def as_frames(structures: list[ase.Atoms]) -> list[Frame]:
    return [Frame(atoms, "data.extxyz", i) for i, atoms in enumerate(structures)]


def remarks(frames: list[Frame]) -> list[str]:
    return check_frames(frames, *read_labels(frames))


def labelled(atoms: ase.Atoms) -> ase.Atoms:
    """With EMT's energy, forces and stress."""
    atoms.calc = EMT()
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": atoms.get_stress()}
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def energy_volume_curve() -> list[ase.Atoms]:
    return [labelled(bulk("Cu", a=a, cubic=True)) for a in np.linspace(3.4, 3.9, 11)]


def strained_and_rattled() -> list[ase.Atoms]:
    generator, frames = np.random.default_rng(3), []
    for _ in range(15):
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell @ (np.eye(3) + generator.normal(0, 0.03, (3, 3))), scale_atoms=True)
        atoms.positions += generator.normal(0, 0.05, (4, 3))
        frames.append(labelled(atoms))
    return frames


UNITS: dict[str, Callable[[ase.Atoms], float]] = {
    "eV/Å^3, compression positive": lambda atoms: -1.0,
    "GPa, tension positive": lambda atoms: GPA,
    "GPa, compression positive": lambda atoms: -GPA,
    "kbar, tension positive": lambda atoms: KBAR,
    "kbar, compression positive": lambda atoms: -KBAR,
    "eV (a virial)": lambda atoms: -atoms.cell.volume,
    "eV (a stress times the volume)": lambda atoms: atoms.cell.volume,
}


@pytest.mark.parametrize("frames", [energy_volume_curve, strained_and_rattled])
@pytest.mark.parametrize("unit", UNITS)
def test_the_unit_and_the_sign_of_stresses_are_found_out(unit: str, frames: Callable[[], list[ase.Atoms]]) -> None:
    structures = frames()
    assert remarks(as_frames(structures)) == []
    for atoms in structures:
        atoms.calc.results["stress"] = atoms.calc.results["stress"] * UNITS[unit](atoms)
    found = remarks(as_frames(structures))
    assert len(found) == 1
    assert found[0].startswith("WARNING: the stresses of `data.extxyz` do not fit its energies in eV/Å^3, tension")
    assert f"but do in {unit}, judged by" in found[0]


def test_a_virial_of_the_wrong_sign_is_found_out() -> None:
    structures = energy_volume_curve()
    for atoms in structures:
        atoms.info["virial"] = ase.stress.voigt_6_to_full_3x3_stress(atoms.get_stress()) * atoms.cell.volume
        del atoms.calc.results["stress"]
    assert "but do in eV/Å^3, compression positive" in remarks(as_frames(structures))[0]
    for atoms in structures:
        atoms.info["virial"] *= -1
    assert remarks(as_frames(structures)) == []


def test_stresses_that_nothing_can_be_compared_with_are_judged_by_their_size() -> None:
    structures = emt_frames(3)
    for atoms in structures:
        atoms.calc.results["stress"] = np.full(6, 35.0)
    found = remarks(as_frames(structures))
    assert len(found) == 1
    assert "are typically 35 eV/Å^3, which is 5.61e+03 GPa; if the numbers are in kbar or GPa, convert" in found[0]


@pytest.mark.parametrize("seed", range(5))
def test_random_labels_raise_no_alarm(seed: int) -> None:
    generator, structures = np.random.default_rng(seed), strained_and_rattled()
    for atoms in structures:
        atoms.calc.results = {
            "energy": float(generator.normal()),
            "forces": generator.normal(size=(4, 3)),
            "stress": generator.normal(0, 0.1, 6),
        }
    assert remarks(as_frames(structures)) == []


CONTRADICTIONS = {
    "sign": (1.0, r"stress and virial contradict each other in 2 frame\(s\), .*: the virial has the opposite sign"),
    "unit": (-GPA, r"stress and virial contradict each other in 2 frame\(s\), `stress` and -`virial`/volume by"),
}


@pytest.mark.parametrize(("factor", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
@pytest.mark.parametrize("name", ["virial", "REF_virial", "dft_virial"])
def test_a_stress_and_a_virial_that_disagree_are_pointed_out(factor: float, message: str, name: str) -> None:
    frames = as_frames(emt_frames(3))
    for frame in frames:
        tensor = ase.stress.voigt_6_to_full_3x3_stress(frame.atoms.get_stress())
        frame.atoms.info[name] = -np.round(tensor * frame.atoms.cell.volume, 4)
    assert remarks(frames) == []
    for frame in frames[1:]:
        frame.atoms.info[name] *= -factor
    found = remarks(frames)
    assert len(found) == 1
    assert np.any([found[0].startswith("WARNING: ")])
    with pytest.raises(AssertionError, match=message.replace("`virial`", f"`{name}`")):
        raise AssertionError(found[0])
    assert found[0].endswith("`data.extxyz`, frame 1; `data.extxyz`, frame 2")


@pytest.mark.parametrize("name", ["stress", "REF_stress", "virial", "dft_virial"])
def test_nine_components_that_are_no_stress_are_pointed_out(name: str) -> None:
    frames = as_frames(emt_frames(3))
    for frame in frames:
        tensor = ase.stress.voigt_6_to_full_3x3_stress(frame.atoms.calc.results.pop("stress"))
        factor = 1.0 if "stress" in name else -frame.atoms.cell.volume
        frame.atoms.info[name] = factor * (tensor + np.diag([0.1, 0.2, 0.3]))
    assert remarks(frames) == []
    frames[1].atoms.info[name] = frames[1].atoms.info[name].ravel()[[0, 4, 8, 5, 2, 1, 3, 6, 7]].reshape(3, 3)
    (found,) = remarks(frames)
    assert found.startswith("WARNING: the nine components of the stress or virial of 1 frame(s) are not symmetric")
    assert found.endswith("`data.extxyz`, frame 1")


def test_repeated_frames_are_counted_and_contradicting_energies_named() -> None:
    structures = emt_frames(4)
    frames = as_frames([*structures, structures[0].copy(), structures[2].copy()])
    for i, energy in ((4, structures[0].get_potential_energy()), (5, structures[2].get_potential_energy() + 4.0)):
        frames[i].atoms.calc = SinglePointCalculator(frames[i].atoms, energy=energy)
    assert remarks(frames) == [
        "note: 2 frame(s) repeat the structure of another: `data.extxyz`, frame 4; `data.extxyz`, frame 5",
        "WARNING: 1 of them have another energy than the same structure before, by up to 1e+03 meV/atom "
        "(`data.extxyz`, frame 5 and `data.extxyz`, frame 2); keep only one of them",
    ]


def test_equal_structures_are_found_behind_rounding_and_lattice_vectors() -> None:
    structures = [*emt_frames(3), molecule("H2O")]
    changed = [atoms.copy() for atoms in structures]
    generator = np.random.default_rng(0)
    for atoms in changed:
        atoms.positions += generator.integers(-2, 3, (len(atoms), 3)) @ atoms.cell.array
        atoms.positions += generator.uniform(-5e-6, 5e-6, atoms.positions.shape)
    assert first_equals(as_frames([*structures, *changed])) == [0, 1, 2, 3, 0, 1, 2, 3]
    for atoms in changed:
        atoms.positions[0, 0] += 1e-3
    assert first_equals(as_frames([*structures, *changed])) == list(range(8))
    changed = [atoms.copy() for atoms in structures]
    changed[0].cell[0, 0] += 1e-3
    changed[1].pbc = False
    changed[2].symbols[0] = "Au"
    changed[3].symbols = "OHF"
    assert first_equals(as_frames([*structures, *changed])) == list(range(8))


def test_frames_in_two_sets_are_named(tmp_path: Path) -> None:
    frames = emt_frames(6)
    values = tiny_values(write_frames(tmp_path / "train.extxyz", frames), tmp_path / "run")
    other = emt_frames(2, seed=9)
    values["data"]["validation"] = str(write_frames(tmp_path / "validation.extxyz", [other[0], frames[3]]))
    values["data"]["test"] = str(write_frames(tmp_path / "test.extxyz", [other[0], other[1]]))
    config = parse_config(values)
    found = [note for note in prepare_data(config.data, config.model, torch.float64, 0).notes if "are also in" in note]
    assert len(found) == 2
    assert found[0].startswith("WARNING: 1 of the 2 frames of the validation set are also in the training set")
    assert "validation.extxyz`, frame 1 is `" in found[0]
    assert "train.extxyz`, frame 3)" in found[0]
    assert found[1].startswith("WARNING: 1 of the 2 frames of the test set are also in the validation set")


def test_repeated_frames_that_a_split_parts_are_named(tmp_path: Path) -> None:
    values = tiny_values(write_frames(tmp_path / "data.extxyz", [emt_frames(1)[0]] * 8), tmp_path / "run")
    config = parse_config(values)
    notes = prepare_data(config.data, config.model, torch.float64, 0).notes
    assert any(note.startswith("note: 7 frame(s) repeat the structure of another") for note in notes)
    assert any(note.startswith("WARNING: 2 of the 2 frames of the validation set are also in") for note in notes)


@pytest.mark.parametrize(("name", "wrong"), [("energy", 3.0), ("stress", np.eye(3)), ("forces", np.ones((4, 3)))])
def test_a_label_that_stands_twice_with_different_values_is_pointed_out(name: str, wrong: object) -> None:
    atoms = emt_frames(1)[0]
    entries = atoms.arrays if name == "forces" else atoms.info
    entries[name] = np.array(atoms.calc.results[name])
    assert remarks(as_frames([atoms])) == []
    entries[name] = wrong
    found = remarks(as_frames([atoms]))
    assert len(found) == 1
    assert found[0].startswith(f"WARNING: `{name}` stands in 1 frame(s) twice with different values, as a result of")


def test_labels_of_two_calculations_are_pointed_out() -> None:
    atoms = emt_frames(1)[0]
    atoms.info["REF_energy"] = float(atoms.calc.results["energy"])
    assert remarks(as_frames([atoms])) == []
    atoms.info["REF_energy"] += 3.0
    assert remarks(as_frames([atoms]))[0].startswith(
        "WARNING: in 1 frame(s) labels seem to be of two calculations: `REF_energy (frame)` differs from the energy of"
    )
    atoms.arrays["REF_forces"] = np.ones((4, 3))
    assert remarks(as_frames([atoms])) == []
    del atoms.info["REF_energy"]
    assert "`REF_forces (frame)` differs from the forces of the calculator" in remarks(as_frames([atoms]))[0]


def test_forces_that_a_constraint_removed_are_pointed_out() -> None:
    atoms = emt_frames(1)[0]
    atoms.set_constraint(FixAtoms([0, 2]))
    assert remarks(as_frames([atoms])) == []
    atoms.calc.results["forces"][[0, 2]] = 0.0
    assert remarks(as_frames([atoms]))[0].startswith("WARNING: in 1 frame(s) the forces on all fixed atoms, and on no")


WRITERS = {"vasprun.xml": write_vasprun, "OUTCAR": write_outcar}


def prepared(path: Path, **data: object) -> PreparedData:
    section = DataSection(train=str(path), validation=0.0, **data)  # type: ignore[arg-type]
    return prepare_data(section, ModelSection.model_validate(TINY_MODEL), torch.float64, 0)


@pytest.mark.parametrize("name", WRITERS)
def test_labels_of_vasp_are_in_our_units_and_the_energy_is_the_free_one(name: str, tmp_path: Path) -> None:
    frames = read_frames([WRITERS[name](tmp_path / name, [5, 7])])
    labels, report = read_labels(frames)
    assert [label.energy for label in labels] == [-7.0, -7.0]
    assert labels[0].forces == pytest.approx(np.array([[0.1, 0, 0], [-0.1, 0, 0]]))
    assert labels[0].stress == pytest.approx(np.diag([-0.01, 0, 0]), abs=1e-6)
    assert "energy from `free_energy (calculator)` in 2 of 2" in str(report)
    assert remarks(frames) == [
        "note: energies are free energies, of which forces are the derivatives; energies extrapolated to zero "
        "broadening differ by up to 50 meV/atom, and `energy_key: energy` takes those"
    ]
    assert prepared(tmp_path / name, energy_key="energy").train.energies() == pytest.approx([-6.9, -6.9])


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("counts", [[5, 60, 7, 60], [60, 59, 60, 1]])
def test_ionic_steps_without_convergence_are_named_and_left_out(name: str, counts: list[int], tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path / name, counts, zero=-7.0)
    bad = [i for i, count in enumerate(counts) if count == 60]
    frames = read_frames([path])
    assert [not frame.converged for frame in frames] == [count == 60 for count in counts]
    found = remarks(frames)[0]
    assert found.startswith("WARNING: the electronic steps of 2 frame(s) ended at their largest number (NELM) without")
    assert found.endswith(f"`{path}`, frame {bad[0]}; `{path}`, frame {bad[1]}")
    data = prepared(path)
    assert [frame.index for frame in data.train.frames] == [i for i in range(4) if i not in bad]
    assert data.split.train == [i for i in range(4) if i not in bad]
    assert found in data.notes
    assert "left out (`data.keep_unconverged: true` uses them): 2" in data.notes[-1]
    data = prepared(path, keep_unconverged=True)
    assert len(data.train) == 4
    assert "used all the same (`keep_unconverged`): 2" in data.notes[-1]


@pytest.mark.parametrize("name", WRITERS)
def test_a_calculation_without_any_converged_step_is_refused(name: str, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path / name, [60, 60])
    with pytest.raises(HIENetError, match=r"no frame of `data.train` is converged; set `data.keep_unconverged: true`"):
        prepared(path)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("rest", [0.72, 0.85, 0.99])
def test_a_calculation_that_was_killed_is_read_to_its_last_whole_step(name: str, rest: float, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path / name, [5, 6, 7])
    text = path.read_text()
    start = text.rindex("Iteration" if name == "OUTCAR" else "<calculation>")
    end = text.rindex("FREE ENERGIE" if name == "OUTCAR" else "</calculation>")
    path.write_text(text[: int(start + 20 + rest * (end - start - 150))])
    frames = read_frames([path])
    assert len(frames) == 2
    assert f"WARNING: `{path}` ends in the middle of ionic step 2 (from 0), which is left out" in remarks(frames)


def test_a_convergence_message_of_vasp_counts(tmp_path: Path) -> None:
    path = write_outcar(tmp_path / "OUTCAR", [5, 6])
    text = path.read_text().replace(
        "in kB", "------ aborting loop EDIFF was not reached (unconverged) ------\n  in kB", 1
    )
    path.write_text(text)
    assert [frame.converged for frame in read_frames([path])] == [False, True]


def test_free_energies_beside_energies_of_unknown_kind_are_pointed_out(tmp_path: Path) -> None:
    files = [write_vasprun(tmp_path / "vasprun.xml", [5]), write_frames(tmp_path / "other.extxyz", emt_frames(2))]
    found = remarks(read_frames(files))
    assert len(found) == 1
    assert "differ from its energies at zero broadening by up to 50 meV/atom, but `" in found[0]
    assert "other.extxyz` has only one energy" in found[0]


def test_an_atom_is_isolated_without_images_or_with_distant_ones() -> None:
    assert is_isolated(ase.Atoms("Cu"))
    assert is_isolated(ase.Atoms("Cu", cell=[12, 13, 14], pbc=True))
    assert is_isolated(bulk("Cu", a=20.0))
    assert is_isolated(ase.Atoms("Cu", cell=[0, 0, 9], pbc=[False, False, True]))
    assert not is_isolated(bulk("Cu"))
    assert not is_isolated(bulk("Cs"))
    assert not is_isolated(ase.Atoms("Cu", cell=[12, 13, 4], pbc=True))
    # Long vectors of a cell whose shortest is their difference.
    assert not is_isolated(ase.Atoms("Cu", cell=[[12, 0, 0], [12, 3, 0], [0, 0, 12]], pbc=True))
    assert not is_isolated(molecule("H2"))


def isolated(symbol: str, energy: float) -> ase.Atoms:
    atoms = ase.Atoms(symbol, cell=[12, 12, 12], pbc=True)
    atoms.calc = SinglePointCalculator(atoms, energy=energy)
    return atoms


def test_isolated_atoms_give_reference_energies_and_the_rest_is_fitted(tmp_path: Path) -> None:
    frames = emt_frames(6)
    path = write_frames(tmp_path / "data.extxyz", [*frames, isolated("Cu", -0.25), isolated("Cu", -0.125)])
    data = prepared(path)
    silver, copper = data.model.shift
    assert copper == -0.25
    left = [atoms.get_potential_energy() + 0.25 * np.sum(atoms.symbols == "Cu") for atoms in frames]
    counts = np.array([np.sum(atoms.symbols == "Ag") for atoms in frames])
    assert silver == pytest.approx(np.dot(counts, left) / np.dot(counts, counts), abs=1e-6)
    note = next(note for note in data.notes if note.startswith("reference energies"))
    assert f"isolated atoms: Cu -0.2500 eV (`{path}`, frame 6, the lowest of 2 up to -0.1250)" in note
    assert prepared(path, reference_energies="least_squares").model.shift[1] != -0.25
    assert prepared(path, reference_energies={"Cu": 1.0, "Ag": 2.0}).model.shift == (2.0, 1.0)


def test_isolated_atoms_of_all_elements_leave_nothing_to_fit(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "data.extxyz", [*emt_frames(6), isolated("Cu", -0.25), isolated("Ag", -0.5)])
    assert prepared(path).model.shift == (-0.5, -0.25)


def test_isolated_atoms_without_energies_say_nothing() -> None:
    frames = as_frames([*emt_frames(1), ase.Atoms("Cu")])
    found = isolated_atoms(frames, read_labels(frames)[0])
    assert (found.energies, found.note) == ({}, "")


def test_ordinary_frames_raise_no_remark() -> None:
    frames = as_frames(emt_frames(8))
    assert remarks(frames) == []
    assert remarks([replace(frame, remark="odd") for frame in frames[:1]]) == ["WARNING: odd"]


@pytest.mark.parametrize(
    ("energy", "force", "unit"),
    [
        (1.0, 1.0, None),
        (1.0, -1.0, "forces of the opposite sign"),
        (1 / 27.211386, 0.529177 / 27.211386, "energies in Hartree and forces in Hartree/Bohr"),
        (1 / 27.211386, 1.0, "energies in Hartree beside forces in eV/Å"),
        (1.0, 23.0605, r"forces in kcal/\(mol Å\) beside energies in eV"),
    ],
)
def test_energies_and_forces_in_other_units_are_found_by_the_work_of_the_forces(
    energy: float, force: float, unit: str | None
) -> None:
    generator = np.random.default_rng(1)
    parent, frames = emt_frames(1)[0], []
    for _ in range(8):
        parent.positions += generator.normal(0, 0.03, (4, 3))
        atoms = parent.copy()
        atoms.calc = EMT()
        results = {"energy": energy * atoms.get_potential_energy(), "forces": force * atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    found = [remark for remark in remarks(as_frames(frames)) if "do not fit its energies in eV/Å and eV" in remark]
    assert len(found) == (unit is not None)
    assert unit is None or re.search(f"WARNING: .*as if it had {unit}.*; convert them to eV and eV/Å", found[0])
