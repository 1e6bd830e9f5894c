"""Who is in the network, and which neighbours it sees, when fixes and commands change both in mid-run.

Whatever happens, energy and forces at the end are those that Python gives for the atoms that are there then; or LAMMPS
stops, with a sentence that says what to do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ase
import numpy as np
import pytest
from runs import TIMEOUT

from hienet.calculator import LoadedModel, load_model
from hienet.errors import HIENetError
from hienet.lammps import run_deck

SYMBOLS = ("Si", "C")
RANKS = [(1, "no"), (1, "yes"), (2, "no"), (4, "yes")]
"""Numbers of ranks, and `resident`."""


@dataclass(frozen=True)
class Scenario:
    """A deck, with the fields `resident`, `model`, and `intra` for the energy of a molecule; atoms whose index is in
    `absent` have no part in the network at the end. `one_rank`: LAMMPS itself refuses more."""

    deck: str
    absent: Sequence[int] = ()
    one_rank: bool = False


@pytest.fixture(scope="module")
def oracle(models) -> LoadedModel:
    return load_model(models["float64"])


@pytest.fixture(scope="module", params=RANKS, ids=lambda case: f"{case[0]} rank(s), resident {case[1]}")
def finals(request, models, oracle, tmp_path_factory) -> tuple[Path, str]:
    """The folder with the final state of every scenario, and what LAMMPS says: one process goes through them all."""
    ranks, resident = request.param
    dimer = oracle.predict(ase.Atoms("SiC", positions=[[0, 0, 0], [1.7, 0, 0]])).energy.item()
    folder = tmp_path_factory.mktemp("neighbors")
    (folder / "bonded.txt").write_text(DIMER)
    (folder / "dimer.txt").write_text(re.sub(r"1 bonds\n|Bonds\n\n.*\n", "", DIMER))
    decks = [
        "clear"
        + scenario.deck.format(resident=resident, model=models["float64"], intra=f"{dimer:.6f}")
        + f"\nprint '$(pe:%.17g)' file {n}.energy\n"
        + f"write_dump all custom {n}.dump id type x y z fx fy fz modify sort id format float %.17g\n"
        for n, scenario in enumerate(SCENARIOS.values())
        if ranks == 1 or not scenario.one_rank
    ]
    return folder, run_deck("\n".join(decks), ranks, timeout=2 * TIMEOUT, cwd=folder)


def atoms_in(dump: Path) -> ase.Atoms:
    """With forces in an array `lammps_forces`."""
    lines = dump.read_text().splitlines()
    bounds = np.array([[float(word) for word in line.split()] for line in lines[5:8]])
    table = np.array([[float(word) for word in line.split()] for line in lines[9:]])
    atoms = ase.Atoms(
        [SYMBOLS[min(int(t), 2) - 1] for t in table[:, 1]],
        positions=table[:, 2:5] - bounds[:, 0],
        cell=np.diag(bounds[:, 1] - bounds[:, 0]),
        pbc=[word[0] == "p" for word in lines[4].split()[3:]],
    )
    atoms.set_array("lammps_forces", table[:, 5:8])
    return atoms


# ----------------------------------------------------------------------
# bonds
# ----------------------------------------------------------------------

BONDED = """
units metal
atom_style {style}
atom_modify map yes
boundary p p {z}
lattice diamond 4.39
region box block 0 2 0 2 0 {height}
region slab block 0 2 0 2 0.01 1.2
create_box 2 box bond/types 1 extra/bond/per/atom 8 extra/special/per/atom 60
mass 1 28.0855
mass 2 12.011
special_bonds lj/coul 0 0 0
molecule dimer bonded.txt
bond_style zero
bond_coeff 1
pair_style hienet resident {resident}
pair_coeff * * {model} Si C
comm_modify cutoff 9.0
timestep 0.0002
thermo_modify lost ignore
"""

DIMER = """# SiC

2 atoms
1 bonds

Coords

1 0 0 0
2 1.7 0 0

Types

1 1
2 2

Bonds

1 1 1 2
"""

CRYSTAL = """create_atoms 1 region {where} basis 5 2 basis 6 2 basis 7 2 basis 8 2
displace_atoms all random 0.08 0.08 0.08 4928459 units box
"""

BOND_MAKERS = {
    "fix bond/create": (
        "bond",
        CRYSTAL.format(where="box")
        + "fix b all bond/create 1 1 2 2.3 1 iparam 4 1 jparam 4 2\nneigh_modify every 1 delay 0 check no\n"
        "fix move all nve\nrun 4",
    ),
    "fix deposit of molecules with a bond": (
        "full",
        CRYSTAL.format(where="slab")
        + "region d block 2 6 2 6 12 16 units box\nfix d all deposit 2 0 2 1234 region d near 1.0 mol dimer\n"
        "fix move all nve\nrun 6",
    ),
    "fix gcmc of molecules with a bond": (
        "full",
        "create_atoms 0 random 6 4321 NULL mol dimer 1234 overlap 2.0 maxtry 500 units box\n"
        "group gas type 1 2\nfix move all nve\n"
        "fix g gas gcmc 1 6 0 0 29494 1000.0 -1.0 0.5 mol dimer full_energy intra_energy {intra}\nrun 6",
    ),
    "fix widom of molecules with a bond": (
        "full",
        CRYSTAL.format(where="slab")
        + "set group all mol 1\nfix move all nve\nfix w all widom 1 4 0 29494 1000.0 mol dimer full_energy "
        "intra_energy {intra}\nrun 2",
    ),
    "create_bonds between two runs": (
        "bond",
        CRYSTAL.format(where="box") + "neigh_modify every 1 delay 0 check no\nfix move all nve\nrun 1\n"
        "create_bonds many all all 1 1.5 2.1\nrun 2",
    ),
    "create_bonds before a run that does not set up again": (
        "bond",
        CRYSTAL.format(where="box") + "neigh_modify every 1 delay 0 check no\nfix move all nve\nrun 1\n"
        "create_bonds single/bond 1 1 2\nrun 2 pre no",
    ),
    "a command between two runs that sets LAMMPS up without a run": (
        "bond",
        CRYSTAL.format(where="box") + "neigh_modify every 1 delay 0 check no\nfix move all nve\n"
        "create_bonds many all all 1 1.5 2.1\nrun 1\nwrite_data written.data\nrun 2 pre no",
    ),
    "bonds from the start": (
        "bond",
        CRYSTAL.format(where="box") + "create_bonds many all all 1 1.5 2.1\nfix move all nve\nrun 3",
    ),
    "bonds in a minimization": (
        "bond",
        CRYSTAL.format(where="box") + "create_bonds many all all 1 1.5 2.1\nminimize 0 0 3 10",
    ),
}


def bonded(name: str) -> Scenario:
    """Weights of 0 are LAMMPS' default, and what `special_bonds lj/coul 0 0 0` means for other styles."""
    style, commands = BOND_MAKERS[name]
    boundary, height = ("f", 5) if "slab" in commands else ("p", 2)
    fields = {key: "{" + key + "}" for key in ("resident", "model", "intra")}
    return Scenario(
        BONDED.format(style=style, z=boundary, height=height, **fields) + commands, one_rank="widom" in name
    )


ELECTROSTATICS = """
units metal
atom_style full
lattice diamond 4.39
region box block 0 2 0 2 0 2
create_box 2 box bond/types 1 extra/bond/per/atom 8 extra/special/per/atom 60
create_atoms 1 box basis 5 2 basis 6 2 basis 7 2 basis 8 2
displace_atoms all random 0.08 0.08 0.08 4928459 units box
mass * 20
set type 1 charge 0.5
set type 2 charge -0.5
bond_style zero
bond_coeff 1
pair_style zero 6.0
pair_coeff * *
comm_modify cutoff 9.0
special_bonds lj/coul 0 1 1
create_bonds many all all 1 1.5 2.1
special_bonds lj/coul 0 0 0
pair_style hybrid/overlay {pair}
{coeff}
{kspace}
{computes}
fix move all nve
run 0
print "energies $(c_network:%.17g) $(c_other:%.17g) $(elong:%.17g)"
"""

OTHERS = {
    "coul/long": ("coul/long 6.0", "", "kspace_style pppm 1e-6"),
    "coul/cut": ("coul/cut 6.0", "", ""),
    "lj/cut": ("lj/cut 5.0", "0.01 2.5", ""),
    "coul/dsf": ("coul/dsf 0.2 6.0", "", ""),
}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("other", OTHERS)
def test_the_weights_of_other_styles_are_kept(other, ranks, models, oracle, tmp_path):
    """Next to the network another style has, with a weight of 0, what it has by itself."""
    settings, coefficients, kspace = OTHERS[other]
    style = settings.split()[0]

    def energies(with_network: bool) -> list[float]:
        network = f"hienet {settings}" if with_network else settings
        coeff = f"pair_coeff * * {style} {coefficients}\n"
        coeff += f"pair_coeff * * hienet {models['float64']} Si C" if with_network else ""
        computes = f"compute other all pair {style}\n"
        computes += f"compute network all pair {'hienet' if with_network else style}\n"
        computes += "thermo_style custom step c_network c_other pe elong"
        deck = ELECTROSTATICS.format(pair=network, coeff=coeff, kspace=kspace, computes=computes)
        deck += "write_dump all custom final.dump id type x y z modify sort id format float %.17g\n"
        output = run_deck(deck, ranks, timeout=TIMEOUT, cwd=tmp_path)
        (found,) = re.findall(r"^energies (.*)$", output, re.MULTILINE)
        return [float(word) for word in found.split()]

    alone, both = energies(False), energies(True)
    assert both[1:] == pytest.approx(alone[1:], abs=1e-9)
    table = np.loadtxt(tmp_path / "final.dump", skiprows=9)
    symbols = [SYMBOLS[int(t) - 1] for t in table[:, 1]]
    atoms = ase.Atoms(symbols, positions=table[:, 2:5], cell=np.eye(3) * 8.78, pbc=True)
    assert both[0] == pytest.approx(oracle.predict(atoms).energy.item(), abs=1e-7)


# ----------------------------------------------------------------------
# pairs of types
# ----------------------------------------------------------------------

TYPES = """
units metal
atom_style {style}
atom_modify map yes
lattice diamond 4.39
region box block 0 2 0 2 0 2
create_box 3 box
create_atoms 1 box basis 5 2 basis 6 2 basis 7 2 basis 8 2
mass 1 28.0855
mass 2*3 12.011
displace_atoms all random 0.08 0.08 0.08 4928459 units box
timestep 0.0002
fix move all nve
{pair}
{commands}
"""


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("styles", "coeff", "message"),
    [
        ("hybrid hienet lj/cut 5.0", "1 2 lj/cut 0.0 1.0", r"types 1 \(Si\) and 2 \(C\) .*hybrid/overlay.*NULL"),
        ("hybrid hienet lj/cut 5.0", "1 1 lj/cut 0.0 1.0", r"types 1 \(Si\) and 1 \(Si\) .*hybrid/overlay.*NULL"),
        ("hybrid hienet lj/cut 5.0", "2 3 lj/cut 0.0 1.0", r"types 2 \(C\) and 3 \(C\) .*hybrid/overlay.*NULL"),
        (
            "hybrid hienet lj/cut 5.0",
            "3 3 lj/cut 0.0 1.0\npair_coeff 1 2 none",
            r"types 1 \(Si\) and 2 \(C\) .*hybrid/overlay.*NULL",
        ),
    ],
)
def test_a_pair_of_types_that_hybrid_takes_away_is_named(styles, coeff, message, ranks, models, tmp_path):
    pair = f"pair_style {styles}\npair_coeff * * hienet {models['float64']} Si C C\npair_coeff {coeff}"
    deck = TYPES.format(style="atomic", pair=pair, commands="run 0")
    with pytest.raises(HIENetError, match=message):
        run_deck(deck, ranks, timeout=TIMEOUT, cwd=tmp_path)


@pytest.mark.parametrize("styles", ["hybrid", "hybrid/overlay"])
def test_types_that_the_network_does_not_know_may_go_to_others(styles, models, oracle, tmp_path):
    pair = f"pair_style {styles} hienet lj/cut 5.0\npair_coeff * * hienet {models['float64']} Si C NULL\n"
    pair += "pair_coeff * 3 lj/cut 0.0 1.0"
    deck = TYPES.format(style="atomic", pair=pair, commands="set atom 1*8 type 3\nrun 2")
    deck += "print '$(pe:%.17g)' file energy\n"
    run_deck(
        deck + "write_dump all custom dump id type x y z fx fy fz modify sort id format float %.17g\n",
        2,
        timeout=TIMEOUT,
        cwd=tmp_path,
    )
    seen = atoms_in(tmp_path / "dump")[8:]
    assert float((tmp_path / "energy").read_text()) == pytest.approx(oracle.predict(seen).energy.item(), abs=1e-7)


# ----------------------------------------------------------------------
# what ghosts are
# ----------------------------------------------------------------------

ALONE = "pair_style hienet resident {resident}\npair_coeff * * {model} Si C C"
BESIDE = """pair_style hybrid/overlay hienet resident {resident} lj/cut 5.0
pair_coeff * * hienet {model} Si C NULL
pair_coeff * 3 lj/cut 0.0 1.0"""
NO_REBUILD = "neigh_modify every 100 delay 100 check no\n"
CHANGES = {
    "other types": (ALONE, NO_REBUILD + "run 0\nset atom 1*8 type 2\nrun 1 pre no", ()),
    "other types twice": (
        ALONE,
        NO_REBUILD + "run 0\nset atom 1*8 type 2\nrun 1 pre no\nset atom 1*40 type 1\nrun 2 pre no",
        (),
    ),
    "other types, and the list is renewed": (
        ALONE,
        "neigh_modify every 1 delay 0 check no\nrun 0\nset atom 1*8 type 2\nrun 2 pre no",
        (),
    ),
    "types unknown to the network": (BESIDE, NO_REBUILD + "run 0\nset atom 1*8 type 3\nrun 1 pre no", range(8)),
    "a group that is left out": (
        ALONE,
        NO_REBUILD + "group away id 64\nneigh_modify exclude group away all\nrun 0\ngroup away id 1:8\nrun 1 pre no",
        [*range(8), 63],
    ),
    "a group is left out after the set-up": (
        ALONE,
        NO_REBUILD + "group away id 1:8\nrun 0\nneigh_modify exclude group away all\nrun 1 pre no",
        range(8),
    ),
}


def changed(name: str) -> Scenario:
    """Nobody renews ghosts behind these commands. LAMMPS' manual forbids `pre no` here; the numbers are right all the
    same."""
    pair, commands, absent = CHANGES[name]
    return Scenario(TYPES.format(style="atomic", pair=pair, commands=commands), absent)


REFUSED = {
    "a command that sets LAMMPS up": (
        ALONE,
        NO_REBUILD + "run 1\nwrite_data written.data\nrun 1 pre no",
        r"set LAMMPS up again since the neighbor list was built, .*`write_data`",
    ),
    "another cell": (
        ALONE,
        NO_REBUILD + "run 0\nchange_box all x scale 0.99 y scale 1.01 remap\nrun 1 pre no",
        r"and has \d+ and 0 at step 1; .*`run ... pre no` behind a command that .* changes the box",
    ),
    "displaced atoms": (
        ALONE,
        NO_REBUILD + "run 0\ndisplace_atoms all random 0.1 0.1 0.1 77 units box\nrun 1 pre no",
        r"and has \d+ and 0 at step 1; .*`run ... pre no` behind a command that creates, deletes, displaces or",
    ),
    "other ids": (
        ALONE,
        NO_REBUILD + "run 0\nreset_atoms id\nrun 1 pre no",
        r"`run ... pre no` behind `write_data`, `reset_atoms`|and has \d+ and \d+ at step 1; .*pre no",
    ),
    "atoms are created": (
        ALONE,
        NO_REBUILD + "run 0\ncreate_atoms 1 single 1.1 1.2 1.3\nrun 1 pre no",
        r"when the neighbor list was built, and has .* no `run ... pre no` behind a command that creates",
    ),
    "atoms are deleted": (
        ALONE,
        NO_REBUILD + "run 0\ngroup gone id 5\ndelete_atoms group gone\nrun 1 pre no",
        r"when the neighbor list was built, and has .* no `run ... pre no` behind a command that creates",
    ),
    "an atom comes in by its type": (
        BESIDE,
        NO_REBUILD + "set atom 1*8 type 3\nrun 0\nset atom 3 type 1\nrun 1 pre no",
        r"atom 3 has come into the network, .* no `run ... pre no` behind `set`",
    ),
    "atoms come back from a group": (
        ALONE,
        NO_REBUILD + "group away id 3\nneigh_modify exclude group away all\nrun 0\ngroup away clear\nrun 1 pre no",
        r"atom 3 has come into the network, by its type or an excluded group",
    ),
    "an exclusion is lifted": (
        ALONE,
        NO_REBUILD + "group away id 3\nneigh_modify exclude group away all\nrun 0\nneigh_modify exclude none\n"
        "run 1 pre no",
        r"atom 3 has come into the network, .* `neigh_modify`",
    ),
    "an exclusion of some pairs": (
        ALONE,
        "neigh_modify every 1 delay 0 check no\nrun 0\nneigh_modify exclude type 1 2\nrun 2 pre no",
        r"`neigh_modify exclude` takes neighbors away",
    ),
    "an exclusion in mid-run": (
        ALONE,
        "neigh_modify every 1 delay 0 check no\nrun 4 every 2 'neigh_modify exclude type 1 2'",
        r"`neigh_modify exclude` takes neighbors away",
    ),
}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", REFUSED)
def test_what_only_a_new_list_can_follow_is_refused(name, ranks, models, tmp_path):
    pair, commands, message = REFUSED[name]
    pair = pair.format(resident="no", model=models["float64"])
    with pytest.raises(HIENetError, match=message):
        run_deck(TYPES.format(style="atomic", pair=pair, commands=commands), ranks, timeout=TIMEOUT, cwd=tmp_path)


GAS = """
units metal
atom_style full
atom_modify map yes
region box block 0 14 0 14 0 14
create_box 2 box
mass 1 28.0855
mass 2 12.011
molecule dimer dimer.txt
create_atoms 0 random 8 4321 NULL mol dimer 1234 overlap 2.0 maxtry 500 units box
pair_style hienet resident {{resident}}
pair_coeff * * {{model}} Si C
group gas type 1 2
fix move all nve
fix g gas gcmc 1 6 {moves} 0 29494 1000.0 -1.0 0.5 mol dimer full_energy intra_energy {{intra}}
thermo_style custom step atoms pe f_g[4] f_g[6]
run 4
run 4
variable moved equal f_g[4]+f_g[6]
print "molecules that came or went: ${{{{moved}}}}"
"""

SCENARIOS = {
    **{name: bonded(name) for name in BOND_MAKERS},
    **{name: changed(name) for name in CHANGES},
    # While `fix gcmc` tries to delete a molecule, its atoms are out of the network; they may lie on two ranks.
    "molecules come and go": Scenario(GAS.format(moves=0)),
    "molecules come, go, move and turn": Scenario(GAS.format(moves=4), one_rank=True),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_network_sees_the_atoms_that_are_there(name, finals, oracle):
    folder, output = finals
    if SCENARIOS[name].one_rank and not (folder / f"{list(SCENARIOS).index(name)}.dump").exists():
        pytest.skip("LAMMPS has it on one rank only")
    stem = folder / str(list(SCENARIOS).index(name))
    atoms = atoms_in(stem.with_suffix(".dump"))
    seen = atoms[[i for i in range(len(atoms)) if i not in SCENARIOS[name].absent]]
    expected = oracle.predict(seen)
    np.testing.assert_allclose(seen.arrays["lammps_forces"], expected.forces.numpy(), atol=1e-6)
    assert float(stem.with_suffix(".energy").read_text()) == pytest.approx(expected.energy.item(), abs=1e-7)
    assert "WARNING: pair_style hienet" not in output
    moved = [float(word) for word in re.findall(r"^molecules that came or went: (\S+)$", output, re.MULTILINE)]
    assert moved
    assert min(moved) > 0


# ----------------------------------------------------------------------
# lists that are too old
# ----------------------------------------------------------------------


@pytest.mark.parametrize(("ranks", "resident"), RANKS)
def test_a_list_that_is_used_for_too_long_is_told_at_the_end(ranks, resident, models, tmp_path):
    pair = ALONE.format(resident=resident, model=models["float64"])
    hot = "neighbor 0.2 bin\nvelocity all create 20000 1234\nvelocity all scale 20000\nrun 45"
    deck = TYPES.format(style="atomic", pair=pair, commands=NO_REBUILD + hot)
    output = run_deck(deck, ranks, timeout=TIMEOUT, cwd=tmp_path)
    (warning,) = re.findall(r"^WARNING: pair_style hienet: (.*)$", output, re.MULTILINE)
    number = re.search(
        r"atoms \d+ and \d+ are (\S+) Angstrom apart at step \d+, .*too old to say so.*`neigh_mod", warning
    )
    assert number, warning
    assert float(number[1]) < 4.0
    renewed = deck.replace(NO_REBUILD, "neigh_modify every 1 delay 0 check yes\n")
    assert "WARNING: pair_style hienet" not in run_deck(renewed, ranks, timeout=TIMEOUT, cwd=tmp_path)
