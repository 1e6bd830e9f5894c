"""Published file formats are read with the labels, units and signs that they define."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from labelled_frames import emt_frames, write_frames

from hienet.data.json_structures import pymatgen_structure
from hienet.data.labels import LabelKeys, read_labels
from hienet.data.reader import Frame, read_frames
from hienet.errors import HIENetError

KBAR = 1602.1766208


def mptrj_entry(atoms: ase.Atoms, material: str) -> dict[str, Any]:
    """A step of the Materials Project's trajectories, with VASP's stress."""
    energy = atoms.get_potential_energy()
    return {
        "structure": pymatgen_structure(atoms),
        "uncorrected_total_energy": energy,
        "corrected_total_energy": energy - 1.0,
        "energy_per_atom": (energy - 1.0) / len(atoms),
        "force": atoms.get_forces().tolist(),
        "stress": (-KBAR * atoms.get_stress(voigt=False)).tolist(),
        "magmom": None,
        "bandgap": 0.0,
        "mp_id": material,
    }


def write_mptrj(path: Path, frames: list[ase.Atoms], steps: int = 2) -> Path:
    """Materials of so many steps each, in the layout of the published file."""
    text = json.dumps(
        {
            f"mp-{first}": {
                f"mp-{first}-0-{i}": mptrj_entry(atoms, f"mp-{first}")
                for i, atoms in enumerate(frames[first : first + steps])
            }
            for first in range(0, len(frames), steps)
        }
    )
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def write_deepmd(folder: Path, frames: list[ase.Atoms], mixed: bool = False) -> Path:
    """A system of two sets; in one of mixed types each frame has its own, and rows are filled up with -1."""
    names = sorted({symbol for atoms in frames for symbol in atoms.get_chemical_symbols()})
    width = max(map(len, frames))
    folder.mkdir()
    (folder / "type_map.raw").write_text("\n".join(names) + "\n")
    types = np.full((len(frames), width), -1)
    for i, atoms in enumerate(frames):
        types[i, : len(atoms)] = [names.index(symbol) for symbol in atoms.get_chemical_symbols()]
    (folder / "type.raw").write_text("".join(f"{0 if mixed else kind}\n" for kind in types[0]))

    def padded(values: np.ndarray) -> np.ndarray:
        return np.pad(values, ((0, width - len(values)), (0, 0))).ravel()

    for number, part in enumerate([part for part in (range(1), range(1, len(frames))) if part]):
        (folder / f"set.{number:03d}").mkdir()
        chosen = [frames[i] for i in part]
        arrays = {
            "coord": [padded(atoms.positions) for atoms in chosen],
            "box": [atoms.cell.array.ravel() for atoms in chosen],
            "energy": [atoms.get_potential_energy() for atoms in chosen],
            "force": [padded(atoms.get_forces()) for atoms in chosen],
            "virial": [(-atoms.cell.volume * atoms.get_stress(voigt=False)).ravel() for atoms in chosen],
        }
        if mixed:
            arrays["real_atom_types"] = [types[i] for i in part]
        for name, values in arrays.items():
            np.save(folder / f"set.{number:03d}" / f"{name}.npy", np.array(values))
    return folder


def assert_labels_of(
    read: list[Frame], frames: list[ase.Atoms], shift: float = 0.0, keys: LabelKeys | None = None
) -> None:
    """Structures and labels are those of `frames`, but for a shift of energies."""
    labels, _ = read_labels(read, keys)
    assert len(read) == len(frames)
    for frame, label, atoms in zip(read, labels, frames, strict=True):
        assert frame.atoms.get_chemical_symbols() == atoms.get_chemical_symbols()
        assert frame.atoms.positions == pytest.approx(atoms.positions, abs=1e-9)
        assert frame.atoms.cell.array == pytest.approx(atoms.cell.array)
        assert label.energy == pytest.approx(atoms.get_potential_energy() + shift)
        assert label.forces == pytest.approx(atoms.get_forces())
        assert label.stress == pytest.approx(atoms.get_stress(voigt=False), abs=1e-12)


@pytest.mark.parametrize("name", ["MPtrj.json", "MPtrj.json.gz"])
def test_trajectories_of_the_materials_project_are_read_in_our_units_and_sign(name: str, tmp_path: Path) -> None:
    frames = emt_frames(4)
    read = read_frames([write_mptrj(tmp_path / name, frames)])
    assert_labels_of(read, frames, shift=-1.0)
    assert_labels_of(read, frames, keys=LabelKeys(energy="uncorrected_total_energy"))
    assert [frame.group("mp_id") for frame in read] == ["mp-0", "mp-0", "mp-2", "mp-2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-40], r"cannot be read as mptrj, frame 2: .*; mend the file"),
        (lambda text: text.replace('"structure"', '"struct"', 1), r"frame 0: `mp-0-0-0` of `mp-0` has no `structure`"),
        (lambda text: text.replace('"occu": 1', '"occu": 0.5', 1), r"frame 0: site 0 is occupied in part"),
        (
            lambda text: text.replace('"abc"', '"xbc"', 1),
            r"frame 0: its structure cannot be understood",
        ),
    ],
)
def test_a_damaged_trajectory_of_the_materials_project_is_named(change: Any, message: str, tmp_path: Path) -> None:
    path = write_mptrj(tmp_path / "MPtrj.json", emt_frames(4))
    path.write_text(change(path.read_text()))
    with pytest.raises(HIENetError, match=message):
        read_frames([path])


def test_mlearns_files_are_recognised_by_their_content(tmp_path: Path) -> None:
    frames = emt_frames(2)
    entries = [
        {
            "structure": pymatgen_structure(atoms),
            "group": "Elastic",
            "outputs": {
                "energy": atoms.get_potential_energy(),
                "forces": atoms.get_forces().tolist(),
                "virial_stress": (-KBAR * atoms.get_stress()[[0, 1, 2, 5, 3, 4]]).tolist(),
            },
        }
        for atoms in frames
    ]
    (tmp_path / "Cu.json").write_text(json.dumps(entries))
    read = read_frames([tmp_path / "Cu.json"])
    assert_labels_of(read, frames)
    assert read[0].group("config_type") == "Elastic"


@pytest.mark.parametrize("mixed", [False, True])
def test_folders_of_deepmd_are_read(mixed: bool, tmp_path: Path) -> None:
    frames = emt_frames(8)
    if mixed:
        smaller = bulk("Ag")
        smaller.calc = SinglePointCalculator(smaller, energy=0.5, forces=np.zeros((1, 3)), stress=np.full(6, 0.01))
        frames = [*frames, smaller]
    else:
        frames = [atoms for atoms in frames if str(atoms.symbols) == str(frames[1].symbols)]
    assert_labels_of(read_frames([write_deepmd(tmp_path / "system", frames, mixed)]), frames)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "type_map.raw").unlink(), r"cannot be read as deepmd.*no `type_map.raw`, which says"),
        (lambda folder: (folder / "type_map.raw").write_text("Cu"), r"frame 0: type 1 is not among the 1 of"),
        (lambda folder: (folder / "type_map.raw").write_text("Cu Qq"), r"names `Qq`, which is no element"),
        (
            lambda folder: (folder / "set.000/box.npy").unlink(),
            r"`set.000` has no `box.npy`, and the folder",
        ),
        (
            lambda folder: np.save(folder / "set.001/force.npy", np.zeros((1, 12))),
            r"frame 1: `set.001/force.npy` has the shape \[1, 12\], expected \[3, 12\]",
        ),
    ],
)
def test_a_damaged_folder_of_deepmd_is_named(damage: Any, message: str, tmp_path: Path) -> None:
    folder = write_deepmd(tmp_path / "system", [emt_frames(2)[1]] * 4)
    damage(folder)
    with pytest.raises(HIENetError, match=message):
        read_frames([folder])


def test_a_folder_and_a_pattern_stand_for_the_files_in_them_by_name(tmp_path: Path) -> None:
    write_deepmd(tmp_path / "c_system", [emt_frames(2)[1]])
    write_frames(tmp_path / "b.extxyz", emt_frames(2))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "first.extxyz.gz").write_bytes(gzip.compress((tmp_path / "b.extxyz").read_bytes()))
    (tmp_path / "notes.txt").write_text("nothing to read")
    found = [Path(frame.file).name for frame in read_frames([tmp_path])]
    assert found == ["first.extxyz.gz"] * 2 + ["b.extxyz"] * 2 + ["c_system"]
    assert len(read_frames([f"{tmp_path}/*.extxyz"])) == 2
    (tmp_path / "b[1].extxyz").write_bytes((tmp_path / "b.extxyz").read_bytes())
    assert len(read_frames([tmp_path / "b[1].extxyz"])) == 2
