"""Decompositions that other pair styles stumble over: whatever a rank holds, the numbers are those of Python."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from conftest import with_velocities
from hienet_deploy.export import export
from runs import TIMEOUT, Setup

from hienet.calculator import load_model
from hienet.lammps import run_deck
from hienet.testing import awkward_structures, silicon_carbide


@dataclass(frozen=True)
class Division:
    """A system, how it is cut, and what happens to it."""

    system: str
    before_box: str = ""
    commands: str = "run 3"
    model: str = "float64"
    boundary: str | None = None
    skin: float = 1.0
    empty: bool = False
    """A rank must have neither atoms nor ghosts at the end: the case is what its name says."""


DIVISIONS = {
    "four slices along x": Division("thin", "processors 4 1 1"),
    "four slices along y": Division("thin", "processors 1 4 1"),
    "slices of a tilted cell": Division("tilt -", "processors 1 1 4"),
    "plain file": Division("bulk", "processors 2 2 1", model="plain64"),
    "float32": Division("bulk", "processors 2 1 2", model="float32"),
    "plain file in float32": Division("thin", "processors 1 2 2", model="plain32"),
    "one atom on four ranks": Division("one-atom cell", "processors 2 2 1"),
    "isolated atom": Division("isolated atom", "processors 4 1 1"),
    "two far atoms": Division("two far atoms", "processors 1 1 4"),
    "slab": Division("slab", "processors 1 1 4"),
    "shrink-wrapped slab": Division("slab", "processors 2 2 1", boundary="p p s"),
    "shrink-wrapped cluster": Division("cluster", "processors 4 1 1", boundary="s s s"),
    "a rank with neither atoms nor ghosts": Division("corner", "processors 4 1 1", empty=True),
    "every atom of a rank leaves": Division(
        "corner", "processors 4 1 1", "velocity all set 200 0 0 units box\nrun 60", skin=0.5
    ),
    "tiled": Division("corner", "comm_style tiled", "balance 1.0 rcb\nfix b all balance 2 1.0 rcb\nrun 6"),
    "tiled, moving": Division(
        "corner",
        "comm_style tiled",
        "fix b all balance 5 1.0 rcb\nvelocity all set 200 0 0 units box\nrun 60",
        skin=0.5,
    ),
    "tiled, tilted": Division(
        "large tilted cell", "comm_style tiled", "balance 1.0 rcb\nfix b all balance 2 1.0 rcb\nrun 6"
    ),
    "balanced by shifts": Division("corner", "processors 4 1 1", "fix b all balance 2 1.0 shift x 10 1.0\nrun 6"),
    "no skin": Division("thin", "processors 2 2 1", "neigh_modify every 1 delay 0 check no\nrun 3", skin=0.0),
    "wide skin": Division("thin", "processors 2 2 1", "neigh_modify every 5 delay 10\nrun 12", skin=3.0),
    "ghosts of a user's reach": Division("thin", "processors 4 1 1", "comm_modify cutoff 9.0\nrun 3"),
    "deposited atoms": Division(
        "corner",
        "processors 4 1 1",
        "region d block 18 22 2 10 2 10 units box\nfix d all deposit 3 1 1 1234 region d near 1.0 units box\nrun 4",
    ),
    "evaporated atoms": Division(
        "corner", "processors 4 1 1", "region e block 0 24 0 12 0 12 units box\nfix e all evaporate 1 2 e 49892\nrun 3"
    ),
    "every atom of a rank deleted": Division(
        "corner",
        "processors 4 1 1",
        "displace_atoms all move 3 0 0 units box\nrun 1\ndelete_atoms region beyond compress no\nrun 2",
    ),
    "swapped atoms": Division(
        "thin", "processors 2 2 1", "fix s all atom/swap 1 10 29494 3000.0 ke no types 1 2\nrun 3\nunfix s\nrun 0"
    ),
    "grand canonical": Division(
        "corner",
        "processors 4 1 1\natom_modify map array",
        "fix g all gcmc 1 6 0 1 29494 30000.0 -3.0 0.1 full_energy overlap_cutoff 1.0\nrun 3\nunfix g\nrun 0",
    ),
    "sorted atoms": Division("thin", "processors 2 2 1", "atom_modify sort 1 2.0\nrun 4"),
    "npt": Division("tilt +", "processors 2 2 1", "unfix nve\nfix n all npt temp 300 300 0.1 tri 0 0 1\nrun 5"),
    "minimize": Division("slab", "processors 2 2 1", "minimize 0 0 4 20\nrun 0"),
    "box/relax": Division(
        "thin", "processors 4 1 1", "fix r all box/relax aniso 0.0\nminimize 0 0 3 10\nunfix r\nrun 0"
    ),
    "run 0 twice": Division("thin", "processors 1 2 2", "run 0\nrun 0"),
    "several runs": Division("thin", "processors 1 2 2", "run 2\nrun 2 pre no\nrun 2"),
    "multiple time steps": Division("thin", "processors 2 2 1", "run_style respa 2 2 bond 1 pair 2\nrun 3"),
}
RANKS = 4


def system(name: str) -> ase.Atoms:
    if name == "thin":
        return with_velocities(silicon_carbide(1))
    if name == "corner":
        atoms = silicon_carbide(1)
        atoms.set_cell(np.diag([24.0, 12.0, 12.0]), scale_atoms=False)
        atoms.positions += [1.0, 3.0, 3.0]
        atoms.pbc = (True, False, False)
        return with_velocities(atoms)
    if name == "large tilted cell":
        # `comm_style tiled` wants cells larger than the reach of ghosts.
        return with_velocities(awkward_structures()["tilt +"].repeat((1, 2, 2)))
    return with_velocities(awkward_structures()[name])


@pytest.fixture(scope="module")
def files(models, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("plain")
    plain = {
        name: export(models["checkpoint"], folder / f"{name}.hienet.pt", dtype=dtype, compiled=False).path
        for name, dtype in (("plain64", "float64"), ("plain32", "float32"))
    }
    return {**models, **plain}


def deck_of(number: int, division: Division, files: dict[str, Path], folder: Path) -> str:
    """One division, from `clear` to a file of its final state."""
    atoms = system(division.system)
    setup = Setup(files[division.model], before_box=division.before_box, skin=division.skin)
    data = folder / f"data.{number}"
    setup.write(data, atoms)
    deck = setup.preamble(atoms, data)
    if division.boundary:
        written = "boundary " + " ".join("p" if periodic else "f" for periodic in atoms.pbc)
        deck = deck.replace(written, f"boundary {division.boundary}")
    return f"""clear
print "division {number}:"
{deck}
region beyond block 6 100 -100 100 -100 100 units box
thermo_modify lost ignore
timestep 0.0005
{division.commands}
write_dump all custom {folder}/dump.{number} id element x y z fx fy fz modify sort id format float %.17g element C Si
variable energy equal pe
print "${{energy}}" file {folder}/energy.{number}
"""


@pytest.fixture(scope="module")
def finals(files, tmp_path_factory) -> Path:
    """The folder with the final state of every division: one process of four ranks goes through them all."""
    folder = tmp_path_factory.mktemp("divisions")
    decks = [deck_of(number, division, files, folder) for number, division in enumerate(DIVISIONS.values())]
    (folder / "output").write_text(run_deck("\n".join(decks), RANKS, timeout=2 * TIMEOUT, cwd=folder))
    return folder


@pytest.mark.parametrize("name", DIVISIONS)
def test_the_final_state_on_four_ranks_is_evaluated_as_python_does(name, files, finals):
    number, division = list(DIVISIONS).index(name), DIVISIONS[name]
    atoms = ase.io.read(finals / f"dump.{number}", format="lammps-dump-text")
    expected = load_model(files[division.model]).predict(atoms)
    single = division.model.endswith("32")
    energy = float((finals / f"energy.{number}").read_text())
    assert energy == pytest.approx(float(expected.energy), rel=1e-5 if single else 0, abs=0 if single else 1e-8)
    np.testing.assert_allclose(atoms.get_forces(), expected.forces.numpy(), atol=1e-4 if single else 1e-7)
    if division.empty:
        printed = re.findall(rf"^division {number}:$(.*?)^division", (finals / "output").read_text(), re.M | re.S)[-1]
        for count in ("Nlocal", "Nghost"):
            assert re.findall(rf"{count}: .* (\S+) min", printed)[-1] == "0"
