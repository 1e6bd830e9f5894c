"""Structures into LAMMPS and results out of it, in the frame and with the signs of ASE."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ase
import numpy as np
from numpy.typing import NDArray

from hienet.lammps import create, run_deck
from hienet.units import EV_PER_CUBIC_ANGSTROM_IN_BAR_OF_LAMMPS as BAR_IN_LAMMPS

TIMEOUT = 120.0
"""Seconds for one run; a deadlock ends here."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Snapshot:
    """One step of a run: forces and stress as ASE has them (positive = tension).

    `stresses` are the six columns of `stress/atom` and the nine of `centroid/stress/atom` of each atom; `atom_stress`
    and `centroid_stress` are LAMMPS' sums of them over the atoms (bar Å^3, in LAMMPS' frame).
    """

    energy: float
    forces: Array
    stress: Array
    energies: Array
    stresses: Array
    atom_stress: Array
    centroid_stress: Array
    exchanges: float
    edges: float
    ghosts: float
    output: str = ""


def lammps_cell(atoms: ase.Atoms) -> tuple[Array, Array]:
    """The restricted triclinic cell `[3, 3]` of LAMMPS and the rotation Q with `vector_ase = vector_lammps @ Q`."""
    q, r = np.linalg.qr(atoms.cell.array.T)
    signs = np.sign(np.diag(r))
    assert np.linalg.det(q * signs) > 0, "give a right-handed cell"
    return (r * signs[:, None]).T, (q * signs).T


def write_data(path: Path, atoms: ase.Atoms, types: Sequence[int], n_types: int, atom_style: str = "atomic") -> Array:
    """A data file of `atom_style` atomic or bond, with velocities (Å/ps) if there are any; returns the rotation."""
    cell, rotation = lammps_cell(atoms)
    positions = atoms.positions @ rotation.T
    lines = ["test", "", f"{len(atoms)} atoms", f"{n_types} atom types", ""]
    lines += [f"0.0 {cell[i, i]:.17g} {axis}lo {axis}hi" for i, axis in enumerate("xyz")]
    tilt = (cell[1, 0], cell[2, 0], cell[2, 1])
    if np.abs(tilt).max() > 1e-12:
        lines.append("{:.17g} {:.17g} {:.17g} xy xz yz".format(*tilt))
    lines += ["", "Masses", "", *(f"{i + 1} 28.0" for i in range(n_types)), "", f"Atoms # {atom_style}", ""]
    molecule = "1 " if atom_style == "bond" else ""
    lines += [f"{i + 1} {molecule}{types[i]} {x:.17g} {y:.17g} {z:.17g}" for i, (x, y, z) in enumerate(positions)]
    if "velocities" in atoms.arrays:
        velocities = atoms.arrays["velocities"] @ rotation.T
        lines += ["", "Velocities", "", *(f"{i + 1} {x} {y} {z}" for i, (x, y, z) in enumerate(velocities))]
    path.write_text("\n".join(lines) + "\n")
    return rotation


def types_of(atoms: ase.Atoms, type_symbols: Sequence[str]) -> list[int]:
    """The type of each atom; where several types are one element, the atoms take turns."""
    choices = {s: [i + 1 for i, t in enumerate(type_symbols) if t == s] for s in set(atoms.symbols)}
    return [choices[s][i % len(choices[s])] for i, s in enumerate(atoms.symbols)]


COLUMNS = [
    "pe",
    *(f"c_virial[{i}]" for i in (1, 2, 3, 6, 5, 4)),
    *(f"c_sum_stress[{i + 1}]" for i in range(6)),
    *(f"c_sum_centroid[{i + 1}]" for i in range(9)),
    *("c_counts[1]", "c_counts[2]", "c_counts[3]"),
    "c_sum_energy",
]
"""What `thermo_style` prints; naming a compute there also makes LAMMPS tally what it needs."""


@dataclass(frozen=True)
class Setup:
    """What a deck says besides the structure."""

    model: Path
    type_symbols: Sequence[str] = ("C", "Si")
    style: str = ""
    before_box: str = ""
    commands: str = ""
    pair: str | None = None
    """In place of `pair_style` and `pair_coeff`."""
    style_name: str = "hienet"
    skin: float = 1.0
    read_options: str = ""
    atom_style: str = "atomic"

    def write(self, path: Path, atoms: ase.Atoms, types: Sequence[int] | None = None) -> Array:
        """The data file of a structure; returns the rotation of `lammps_cell`."""
        types = types or types_of(atoms, self.type_symbols)
        return write_data(path, atoms, types, len(self.type_symbols), self.atom_style)

    def preamble(self, atoms: ase.Atoms, data: Path) -> str:
        """Everything before `run`."""
        boundary = " ".join("p" if periodic else "f" for periodic in atoms.pbc)
        symbols = " ".join(self.type_symbols)
        pair = self.pair or f"pair_style {self.style_name} {self.style}\npair_coeff * * {self.model} {symbols}"
        return f"""
units metal
atom_style {self.atom_style}
boundary {boundary}
{self.before_box}
read_data {data} {self.read_options}
{pair}
neighbor {self.skin} bin
timestep 0.001
{self.commands}
compute atom_energy all pe/atom
compute atom_stress all stress/atom NULL virial
compute atom_centroid all centroid/stress/atom NULL virial
compute sum_stress all reduce sum c_atom_stress[*]
compute sum_centroid all reduce sum c_atom_centroid[*]
compute sum_energy all reduce sum c_atom_energy
compute counts all pair {self.style_name}
compute virial all pressure NULL virial
fix nve all nve
"""


def _snapshot(
    values: Sequence[float], forces: Array, energies: Array, stresses: Array, rotation: Array, output: str = ""
) -> Snapshot:
    xx, yy, zz, yz, xz, xy = values[1:7]
    pressure = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    return Snapshot(
        energy=values[0],
        forces=forces @ rotation,
        stress=-rotation.T @ pressure @ rotation / BAR_IN_LAMMPS,
        energies=energies,
        stresses=stresses,
        atom_stress=np.array(values[7:13]),
        centroid_stress=np.array(values[13:22]),
        exchanges=values[22],
        edges=values[23],
        ghosts=values[24],
        output=output,
    )


def evaluate(atoms: ase.Atoms, setup: Setup, folder: Path, types: Sequence[int] | None = None) -> Snapshot:
    """One evaluation on one rank, in this process."""
    data = folder / "data.test"
    rotation = setup.write(data, atoms, types)
    lammps = create()
    try:
        lammps.commands_string(setup.preamble(atoms, data))
        lammps.commands_string(f"thermo_style custom step {' '.join(COLUMNS)}\nrun 0")
        values = [lammps.get_thermo("pe")]
        virial = lammps.numpy.extract_compute("virial", 0, 1)
        values += [virial[i] for i in (0, 1, 2, 5, 4, 3)]
        for name in ("sum_stress", "sum_centroid", "counts"):
            values += list(lammps.numpy.extract_compute(name, 0, 1))
        n = lammps.extract_global("nlocal")
        order = np.argsort(lammps.numpy.extract_atom("id")[:n])
        forces = np.array(lammps.numpy.extract_atom("f")[:n])[order]
        energies = np.array(lammps.numpy.extract_compute("atom_energy", 1, 1)[:n])[order]
        stresses = [lammps.numpy.extract_compute(name, 1, 2)[:n] for name in ("atom_stress", "atom_centroid")]
        stresses = np.concatenate(stresses, 1)[order]
    finally:
        lammps.close()
    return _snapshot(values, forces, energies, stresses, rotation)


def run(
    atoms: ase.Atoms,
    setup: Setup,
    folder: Path,
    ranks: int = 1,
    steps: int = 20,
    types: Sequence[int] | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[Snapshot]:
    """NVE in a process of its own on several ranks: the first and the last step."""
    data = folder / "data.test"
    rotation = setup.write(data, atoms, types)
    dump = folder / "dump.test"
    dump.unlink(missing_ok=True)
    deck = (
        setup.preamble(atoms, data)
        + f"""
thermo_style custom step {" ".join(COLUMNS)}
thermo_modify line yaml format float %.17g norm no
thermo {max(steps, 1)}
dump 1 all custom {max(steps, 1)} {dump} id fx fy fz c_atom_energy c_atom_stress[*] c_atom_centroid[*]
dump_modify 1 sort id format float %.17g
run {steps}
"""
    )
    output = run_deck(deck, ranks, timeout=TIMEOUT, cwd=folder, environment=environment)
    rows = [[float(x) for x in row.split(",")] for row in re.findall(r"^ +- \[(.*?),? ?\]$", output, re.MULTILINE)]
    tables = [np.array(block) for block in _blocks(dump)]
    assert len(rows) == len(tables) >= 1, output
    return [
        _snapshot(row[1:], table[:, 1:4], table[:, 4], table[:, 5:], rotation, output)
        for row, table in zip(rows, tables, strict=True)
    ]


def _blocks(dump: Path) -> list[list[list[float]]]:
    blocks: list[list[list[float]]] = []
    inside = False
    for line in dump.read_text().splitlines():
        if line.startswith("ITEM:"):
            inside = line.startswith("ITEM: ATOMS")
            if inside:
                blocks.append([])
        elif inside:
            blocks[-1].append([float(x) for x in line.split()])
    return blocks
