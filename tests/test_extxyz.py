"""Files are read as they were meant, whatever their names and dialects, or refused with frame and line."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import ase
import ase.db
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io.trajectory import Trajectory
from labelled_frames import emt_frames, write_frames
from vasp_files import write_outcar, write_vasprun

from hienet.data.labels import LabelKeys, Labels, read_labels
from hienet.data.reader import read_frames
from hienet.errors import HIENetError

LATTICE = 'Lattice="4 0 0 0 4 0 0 0 4"'
COLUMNS = "Properties=species:S:1:pos:R:3:forces:R:3"
ROWS = "Cu 0 0 0 0.1 0 0\nCu 2 2 2 -0.1 0 0\n"
FRAME = f'2\n{LATTICE} {COLUMNS} energy=-1.0 pbc="T T T"\n{ROWS}'


def with_comment(comment: str) -> str:
    return f"2\n{comment}\n{ROWS}"


def read(path: Path, text: str | None = None) -> list[Labels]:
    if text is not None:
        path.write_text(text, encoding="utf-8")
    return read_labels(read_frames([path]))[0]


NAMES = [
    *("run@300K.extxyz", "run@0.extxyz", "run@:.xyz", "a@b@-1.extxyz", "[1-3]*?.extxyz", "-", "-.extxyz"),
    *("postgresql_run.extxyz", "mysql.extxyz", "mariadb.xyz", "OUTCAR.extxyz", "my_POSCAR.xyz", "CONFIG.extxyz"),
    *("vasprun.xml.extxyz", "XDATCAR.xyz", "größe Å.extxyz", "two words.extxyz", "RUN.EXTXYZ", "data"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_that_of_one_file_whatever_is_in_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for other in (name.split("@")[0], name.rsplit("@", 1)[0]):
        Path(other).write_text(FRAME.replace("-1.0", "-99.0"))
    Path(name).write_text(FRAME)
    assert [label.energy for label in read(Path(name))] == [-1.0]


@pytest.mark.parametrize("name", ["run@2.traj", "run@2.db", "run@2.json", "postgres.traj", "vasp@1.xml", "OUTCAR@1"])
def test_neither_do_names_of_other_formats_mean_anything(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if name.startswith("vasp"):
        write_vasprun(Path(name), [3, 3])
    elif name.startswith("OUTCAR"):
        write_outcar(Path(name), [3, 3])
    elif name.endswith((".db", ".json")):
        with ase.db.connect(name) as database:
            for atoms in emt_frames(2):
                database.write(atoms)
    else:
        with Trajectory(name, "w") as trajectory:
            for atoms in emt_frames(2):
                trajectory.write(atoms)
    assert len(read(Path(name))) == 2


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("no_such/*.extxyz", r"no file matches `no_such/\*.extxyz`; check the pattern, which is relative to"),
        ("file.traj@0:10", r"nothing after an `@` chooses frames"),
        ("postgresql://user@host/name", r"databases of a server are not read"),
        ("-", r"there is no file `-`"),
        (".", r"`.` is a folder in which no file has the name of a known format; name the files in it"),
    ],
)
def test_what_is_no_file_is_refused_with_a_hint(
    name: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HIENetError, match=hint):
        read_frames([name])


DIALECTS = {
    "no pbc": f"{LATTICE} {COLUMNS} energy=-1",
    "pbc of numbers": f'{LATTICE} {COLUMNS} energy=-1 pbc="1 1 1"',
    "pbc of words": f'{LATTICE} {COLUMNS} energy=-1 pbc="true True TRUE"',
    "pbc of lower case": f'{LATTICE} {COLUMNS} energy=-1 pbc="t t t"',
    "pbc of LAMMPS": f'{LATTICE} {COLUMNS} energy=-1 pbc="p p p"',
    "pbc with commas": f'{LATTICE} {COLUMNS} energy=-1 pbc="T,T,T"',
    "one pbc": f"{LATTICE} {COLUMNS} energy=-1 pbc=T",
    "lower-case names": f'lattice="4 0 0 0 4 0 0 0 4" {COLUMNS.lower()[0]}{COLUMNS[1:]} energy=-1 PBC="T T T"',
    "upper-case names": f'LATTICE="4 0 0 0 4 0 0 0 4" {COLUMNS.replace("Prop", "PROP")} energy=-1',
    "text with label names": f'{LATTICE} {COLUMNS} energy=-1 comment="energy = 3 stress= none"',
    "six components of a stress": f'{LATTICE} {COLUMNS} energy=-1 stress="0.01 0.02 0.03 0.004 0.005 0.006"',
    "nine components": f'{LATTICE} {COLUMNS} energy=-1 stress="0.01 0.006 0.005 0.006 0.02 0.004 0.005 0.004 0.03"',
    "six of a virial": f'{LATTICE} {COLUMNS} energy=-1 virial="-0.64 -1.28 -1.92 -0.256 -0.32 -0.384"',
    "in brackets": f"{LATTICE} {COLUMNS} energy=-1 stress=[0.01, 0.02, 0.03, 0.004, 0.005, 0.006]",
    "REF_virial": f'{LATTICE} {COLUMNS} energy=-1 REF_virial="-0.64 -1.28 -1.92 -0.256 -0.32 -0.384"',
    "JSON": f'{LATTICE} {COLUMNS} energy=-1 stress="_JSON [0.01, 0.02, 0.03, 0.004, 0.005, 0.006]"',
}
STRESS = [[0.01, 0.006, 0.005], [0.006, 0.02, 0.004], [0.005, 0.004, 0.03]]


@pytest.mark.parametrize("comment", DIALECTS.values(), ids=DIALECTS.keys())
def test_dialects_are_understood(comment: str, tmp_path: Path) -> None:
    path = tmp_path / "data.extxyz"
    labels = read(path, with_comment(comment))[0]
    atoms = read_frames([path])[0].atoms
    assert labels.energy == -1.0
    assert labels.forces == pytest.approx(np.array([[0.1, 0, 0], [-0.1, 0, 0]]))
    assert atoms.pbc.all()
    assert atoms.cell.array == pytest.approx(4 * np.eye(3))
    if "stress=" in comment.replace("stress= ", "") or "virial" in comment:
        assert labels.stress == pytest.approx(np.array(STRESS))


def test_a_tilted_lattice_is_read_alike_in_any_case(tmp_path: Path) -> None:
    expected = [[4, 0, 0], [1, 4, 0], [0, 2, 4]]
    for i, name in enumerate(("Lattice", "lattice")):
        path = tmp_path / f"{i}.extxyz"
        path.write_text(with_comment(f'{name}="4 0 0 1 4 0 0 2 4" {COLUMNS} energy=-1'))
        assert read_frames([path])[0].atoms.cell.array == pytest.approx(np.array(expected))


@pytest.mark.parametrize("pbc", ["F F F", "f f f", "0 0 0", "false False FALSE", "F"])
def test_absent_periodicity_is_understood(pbc: str, tmp_path: Path) -> None:
    path = tmp_path / "data.extxyz"
    path.write_text(with_comment(f'{LATTICE} {COLUMNS} energy=-1 pbc="{pbc}"'))
    assert not read_frames([path])[0].atoms.pbc.any()


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (FRAME + "\n" + FRAME, 2),
        (FRAME + "\n  \n\n" + FRAME + "\n\n", 2),
        ("\n" + FRAME, 1),
        ("\ufeff" + FRAME, 1),
        (FRAME.replace("\n", "\r\n") * 2, 2),
        (FRAME.rstrip("\n"), 1),
        (FRAME + "2\n\nCu 0 0 0\nCu 0 0 2\n", 2),
    ],
    ids=["blank line", "blank lines", "first blank", "byte order mark", "Windows", "no last newline", "blank comment"],
)
def test_all_frames_are_read_whatever_stands_between_them(text: str, count: int, tmp_path: Path) -> None:
    path = tmp_path / "data.extxyz"
    path.write_bytes(text.encode())
    assert len(read_frames([path])) == count


def test_a_compressed_file_is_read_and_a_truncated_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.extxyz.gz"
    whole = gzip.compress(b"".join(FRAME.replace("0.1", f"0.{i}").encode() for i in range(1, 200)))
    path.write_bytes(whole)
    assert len(read(path)) == 199
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(HIENetError, match=r"data.extxyz.gz` cannot be read after line \d+: .*the file is damaged"):
        read_frames([path])


DAMAGED = {
    "truncated": (FRAME.splitlines(keepends=True)[:3], r"frame 3, line 15: the file ends after 1 of 2 atoms"),
    "only a number": (["2\n"], r"frame 3, line 13: the file ends after 0 of 2 atoms"),
    "a bad number": ([FRAME.replace("0.1", "0.x")], r"frame 3, line 15: `0.x` is not a number, in the column of `for"),
    "Fortran's exponent": ([FRAME.replace("0.1", "1.0D-1")], r"line 15: `1.0D-1` is not a number"),
    "stars": ([FRAME.replace("0.1", "*****")], r"line 15: `\*\*\*\*\*` is not a number"),
    "a label at the element": ([FRAME.replace("Cu 2", "Cu1 2")], r"line 16: `Cu1` is not a chemical symbol"),
    "a column less": (
        [FRAME.replace("-0.1 0 0", "-0.1 0")],
        r"frame 3, line 16: expected the 7 values of `Properties=",
    ),
    "a column more": ([FRAME.replace("-0.1 0 0", "-0.1 0 0 5")], r"line 16: expected the 7 values .*, got 8"),
    "too few atoms said": ([FRAME.replace("2\n", "1\n", 1)], r"frame 4, line 16: expected the number of atoms, got `C"),
    "too many atoms said": ([FRAME.replace("2\n", "3\n", 1), FRAME], r"frame 3, line 17: expected the 7 values"),
    "garbage at the end": (["# end\n"], r"frame 3, line 13: expected the number of atoms, got `# end`"),
    "a negative number": (["-2\n", "\n"], r"frame 3, line 13: expected the number of atoms, got `-2`"),
    "a number with a comma": (["2.0\n", "\n"], r"line 13: expected the number of atoms, got `2.0`"),
    "no columns described": ([with_comment(f"{LATTICE} energy=-1")], r"line 15: the comment line has no `Properties`"),
    "no element": ([with_comment(f"{LATTICE} Properties=pos:R:3:forces:R:4")], r"line 14: .* no column for elements"),
    "no positions": ([with_comment(f"{LATTICE} Properties=species:S:1:forces:R:6")], r"line 14: .* for positions"),
    "an unknown type": (
        [with_comment(f"{LATTICE} Properties=species:S:1:pos:Q:6")],
        r"line 14: the comment line canno",
    ),
    "half a lattice": ([with_comment(f'Lattice="4 4 4" {COLUMNS}')], r"line 14: .*`?Lattice"),
    "a stress of one number": ([with_comment(f"{LATTICE} {COLUMNS} stress=1.0")], r"line 14: .*`stress` has 1 number"),
    "no stress": ([with_comment(f"{LATTICE} {COLUMNS} stress=None")], r"line 14: .*`stress` is not numbers, got `None"),
    "two energies": ([with_comment(f"{LATTICE} {COLUMNS} energy=1 energy=2")], r"line 14: .*`energy` is given twice"),
    "two of pbc": (
        [with_comment(f'{LATTICE} {COLUMNS} pbc="T T"')],
        r"line 14: .*`pbc` is .*expected three of T and F",
    ),
    "pbc of nonsense": ([with_comment(f"{LATTICE} {COLUMNS} pbc=None")], r"line 14: .*`pbc` is `None`"),
    "no atoms": (["0\n", f"{LATTICE}\n"], r"frame 3 has no atoms; remove it"),
    "no lattice": ([with_comment(f'{COLUMNS} pbc="T T T"')], r"frame 3 is periodic along .*; give independent lattice"),
    "a flat lattice": ([with_comment(f'Lattice="4 0 0 4 0 0 0 0 4" {COLUMNS}')], r"frame 3 is periodic along"),
    "a dummy atom": ([FRAME.replace("Cu 2", "X 2")], r"frame 3: atom 1 is of no element"),
}


@pytest.mark.parametrize(("end", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_frame_is_named_with_its_line(end: list[str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "data.extxyz"
    path.write_text(FRAME * 3 + "".join(end))
    with pytest.raises(HIENetError, match=message):
        read_frames([path])


def test_a_file_of_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.extxyz"
    path.write_bytes(FRAME.encode() + with_comment(f'{LATTICE} {COLUMNS} comment="1 Å"').encode("latin-1"))
    with pytest.raises(HIENetError, match=r"data.extxyz` is not UTF-8 after line \d+: .*; convert it to UTF-8"):
        read_frames([path])


@pytest.mark.parametrize("name", ["frames.txt", "frames.xyz.bak", "frames.EXTXYZ.GZ", "frames.extxyz.zst"])
def test_a_name_of_no_known_format_is_refused_with_the_remedy(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FRAME)
    with pytest.raises(
        HIENetError, match=rf"{name}` is of no known format, .*; give the file the ending of what it is"
    ):
        read_frames([tmp_path / name])


def test_an_energy_without_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HIENetError, match=r"frame 0: `energy` cannot be read: it is true or false, not a number"):
        read(tmp_path / "data.extxyz", with_comment(f"{LATTICE} {COLUMNS} energy"))


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data.extxyz")
    with pytest.raises(HIENetError, match=r"data.extxyz` is a pipe or a device, which cannot be read twice"):
        read_frames([tmp_path / "data.extxyz"])


@pytest.mark.parametrize(
    "column",
    ["momenta:R:3", "magmoms:R:1", "magmoms:R:3", "initial_magmoms:R:1", "masses:R:1", "tags:I:1", "charge:R:1"],
)
def test_other_columns_change_no_label(column: str, tmp_path: Path) -> None:
    numbers = " 1" * int(column[-1])
    rows = "".join(f"{row}{numbers}\n" for row in ROWS.splitlines())
    labels = read(tmp_path / "data.extxyz", f"2\n{LATTICE} {COLUMNS}:{column} energy=-1.0\n{rows}")[0]
    assert labels.energy == -1.0
    assert labels.forces == pytest.approx(np.array([[0.1, 0, 0], [-0.1, 0, 0]]))


def test_pseudo_atoms_are_lattice_vectors(tmp_path: Path) -> None:
    path = tmp_path / "data.xyz"
    text = "1\ncomment\nCu 0 0 0\nVEC1 4 0 0\nVEC2 0 4 0\nVEC3 0 0 4\n"
    path.write_text(text * 2)
    frames = read_frames([path])
    assert [len(frame.atoms) for frame in frames] == [1, 1]
    assert frames[1].atoms.cell.array == pytest.approx(4 * np.eye(3))


def test_frames_are_those_of_ase(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "data.extxyz")
    for frame, atoms in zip(read_frames([path]), ase.io.read(path, index=":"), strict=True):
        assert frame.atoms == atoms
        assert frame.atoms.info == atoms.info
        assert frame.atoms.calc.results.keys() == atoms.calc.results.keys()
        assert frame.atoms.get_stress() == pytest.approx(atoms.get_stress())


@pytest.mark.parametrize("ending", ["extxyz", "traj", "db", "json"])
def test_forces_on_fixed_atoms_are_not_set_to_zero(ending: str, tmp_path: Path) -> None:
    atoms = emt_frames(1)[0]
    forces = atoms.calc.results["forces"].copy()
    atoms.set_constraint(FixAtoms([0, 1]))
    ase.io.write(tmp_path / f"data.{ending}", atoms)
    frames = read_frames([tmp_path / f"data.{ending}"])
    assert len(frames[0].atoms.constraints) == 1
    assert read_labels(frames)[0][0].forces == pytest.approx(forces, abs=1e-8)


@pytest.mark.parametrize("ending", ["db", "json"])
def test_labels_of_a_database_may_be_key_value_pairs_and_data(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"data.{ending}"
    with ase.db.connect(path) as database:
        for i, atoms in enumerate(emt_frames(2)):
            forces = atoms.get_forces()
            atoms.calc = None
            database.write(
                atoms,
                key_value_pairs={"dft_energy": -1.0 - i, "config_type": "bulk", "mine": 5.0},
                data={"dft_forces": forces, "virial": np.eye(3), "kind": {"nested": [1, 2]}},
            )
    frames = read_frames([path])
    labels, report = read_labels(frames)
    assert [label.energy for label in labels] == [-1.0, -2.0]
    assert labels[1].forces == pytest.approx(emt_frames(2)[1].get_forces())
    assert labels[0].stress == pytest.approx(-np.eye(3) / frames[0].atoms.cell.volume)
    assert frames[0].group("config_type") == "bulk"
    assert "energy from `dft_energy (frame)` in 2 of 2" in str(report)
    assert read_labels(frames, LabelKeys(energy="mine"))[0][0].energy == 5.0


def test_a_damaged_trajectory_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.traj"
    ase.io.write(path, emt_frames(3))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(HIENetError, match=r"ASE cannot read `.*data.traj`, frame \d: .*; mend the file"):
        read_frames([path])


def test_a_calculator_and_info_may_hold_the_same_names(tmp_path: Path) -> None:
    atoms = emt_frames(1)[0]
    atoms.calc = SinglePointCalculator(atoms, energy=-3.0, forces=np.zeros((4, 3)))
    atoms.info.update(energy=-4.0, stress=np.zeros(6), text="a\nb")
    path = tmp_path / "data.traj"
    ase.io.write(path, atoms)
    assert read(path)[0].energy == -3.0
