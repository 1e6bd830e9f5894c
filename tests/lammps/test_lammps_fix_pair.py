"""`fix pair` and `compute pair` show the last evaluation that moved atoms, however many there were at its time step."""

from __future__ import annotations

import re
from pathlib import Path

import ase
import numpy as np
import pytest
from analytic import WALK_STAGES, Walks, write_deployed
from conftest import with_velocities
from runs import TIMEOUT, Setup, lammps_cell

from hienet.calculator import force_deviation, load_model
from hienet.errors import HIENetError
from hienet.lammps import run_deck
from hienet.testing import silicon_carbide

ATOMS = with_velocities(silicon_carbide((2, 1, 1)))
FIX = "fix d all pair 1 hienet force_deviation 1"
READERS = f"""
{FIX}
compute m all reduce max f_d
thermo 1
thermo_style custom step pe c_m c_counts[4]
thermo_modify line yaml format float %.17g
"""
DISPLACED = "displace_atoms all random 0.1 0.1 0.1 49 units box\n"


@pytest.fixture(scope="module")
def committee(models, tmp_path_factory) -> list[Path]:
    """Two models of known answers that differ in their cutoff."""
    short = tmp_path_factory.mktemp("committee") / "short.hienet.pt"
    return [models["walks"], write_deployed(Walks(3.2), short, WALK_STAGES, cutoff=3.2)]


def rows_of(output: str) -> np.ndarray:
    """Step, energy, greatest value of `fix pair` and of `compute pair` of each line of thermo output."""
    rows = re.findall(r"^ +- \[(.*?),? ?\]$", output, re.MULTILINE)
    return np.array([[float(x) for x in row.split(",")][:4] for row in rows])


def deck_of(committee: list[Path], folder: Path, commands: str, style: str = "committee first") -> str:
    """A deck that ends with a dump of what the fix shows. `fix numdiff` wants a map of the atoms."""
    pair = f"pair_style hienet {style}\npair_coeff * * {committee[0]} {committee[1]} C Si"
    setup = Setup(committee[0], pair=pair, before_box="atom_modify map yes")
    setup.write(folder / "data.test", ATOMS)
    dump = "write_dump all custom dump.last id type x y z f_d modify sort id format float %.17g"
    return f"{setup.preamble(ATOMS, folder / 'data.test')}\n{READERS}\n{commands}\n{dump}\n"


def shown_and_right(committee: list[Path], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """What the fix shows of each atom of the last dump, and what Python finds for its positions."""
    cell, _ = lammps_cell(ATOMS)
    dump = np.loadtxt(folder / "dump.last", skiprows=9)
    atoms = ase.Atoms([("C", "Si")[int(t) - 1] for t in dump[:, 1]], positions=dump[:, 2:5], cell=cell, pbc=True)
    forces = [load_model(file).predict(atoms).forces.numpy() for file in committee]
    return dump[:, 5], force_deviation(np.array(forces))


SEVERAL = {
    "a line search": "min_style cg\nminimize 0 0 4 20",
    "steepest descent": "min_style sd\nminimize 0 0 4 20",
    "fire": "min_style fire\nminimize 0 0 6 20",
    "quickmin": "min_style quickmin\nminimize 0 0 6 20",
    "two minimizations": f"minimize 0 0 2 8\n{DISPLACED}reset_timestep 0\nminimize 0 0 3 8",
    "a second run 0": f"run 0\n{DISPLACED}run 0",
    "a third after no setup": f"run 0\n{DISPLACED}run 0 pre no\n{DISPLACED}run 0",
    "types between runs": "run 0\nset atom 1 type 2\nset atom 6 type 1\nrun 0",
    "steps after a minimization": "minimize 0 0 2 8\nrun 3",
    "Monte Carlo moves": "fix s all atom/swap 1 6 27 90000.0 types 1 2\nrun 4",
    "r-RESPA": "run_style respa 2 2 pair 2\nrun 3",
    "r-RESPA of the inner level": "run_style respa 2 2 pair 1\nrun 3",
    "a rerun": "dump t all atom 1 dump.t\ndump_modify t scale no\nrun 3\nundump t\nrerun dump.t dump x y z",
    "trials of compute fep": "variable x equal -0.5\ncompute fep all fep 300 pair hienet scale * * v_x\n"
    "thermo_style custom step c_fep[1] c_m c_counts[4]\nthermo_modify line yaml format float %.17g\nrun 2",
    "trials of fix numdiff": "fix n all numdiff 1 0.01\nrun 2",
    "trials of compute born/matrix": "compute b all born/matrix numdiff 0.01 virial\n"
    "thermo_style custom step c_b[1] c_m c_counts[4]\nthermo_modify line yaml format float %.17g\nrun 2",
}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("case", SEVERAL)
def test_the_deviation_is_that_of_the_last_positions(case, ranks, committee, tmp_path):
    commands = SEVERAL[case]
    if case == "trials of compute born/matrix":
        commands = (
            f"compute virial_of_run all pressure NULL virial\n{commands.replace('0.01 virial', '0.01 virial_of_run')}"
        )
    output = run_deck(deck_of(committee, tmp_path, commands), ranks, timeout=TIMEOUT, cwd=tmp_path)
    rows = rows_of(output)
    assert len(rows) >= 2, output
    np.testing.assert_allclose(rows[:, 2], rows[:, 3], rtol=0, atol=1e-10)
    shown, right = shown_and_right(committee, tmp_path)
    assert right.max() > 0.01
    np.testing.assert_allclose(shown, right, rtol=0, atol=1e-8)
    assert rows[-1, 3] == pytest.approx(right.max(), abs=1e-8)


def test_one_model_has_none_and_several_fixes_are_served(committee, tmp_path):
    """A fix of two columns, and one that reads every other step."""
    commands = f"""
fix two all pair 1 hienet force_deviation 1 force_deviation 1
fix even all pair 2 hienet force_deviation 1
run 3
{DISPLACED}
reset_timestep 0
run 2
{DISPLACED}
run 0
write_dump all custom dump.more id f_two[1] f_two[2] f_even modify sort id format float %.17g
"""
    run_deck(deck_of(committee, tmp_path, commands), timeout=TIMEOUT, cwd=tmp_path)
    shown, right = shown_and_right(committee, tmp_path)
    np.testing.assert_allclose(shown, right, rtol=0, atol=1e-8)
    for column in np.loadtxt(tmp_path / "dump.more", skiprows=9)[:, 1:].T:
        np.testing.assert_array_equal(column, shown)


def test_two_committees_under_hybrid_show_their_own(committee, tmp_path):
    """`fix pair` names the second by a number."""
    first, second = committee
    pair = f"pair_style hybrid/overlay hienet hienet\npair_coeff * * hienet 1 {first} {second} C Si\n"
    pair += f"pair_coeff * * hienet 2 {first} {first} C Si"
    commands = "fix d all pair 1 hienet:1 force_deviation 1\nfix e all pair 1 hienet:2 force_deviation 1"
    setup = Setup(first, pair=pair, commands=commands)
    setup.write(tmp_path / "data.test", ATOMS)
    deck = setup.preamble(ATOMS, tmp_path / "data.test").replace("compute counts all pair hienet\n", "")
    deck += f"""
run 0
{DISPLACED}
run 0
write_dump all custom dump.last id type x y z f_d f_e modify sort id format float %.17g
"""
    run_deck(deck, timeout=TIMEOUT, cwd=tmp_path)
    shown, right = shown_and_right(committee, tmp_path)
    np.testing.assert_allclose(shown, right, rtol=0, atol=1e-8)
    np.testing.assert_allclose(np.loadtxt(tmp_path / "dump.last", skiprows=9)[:, 6], 0.0, atol=1e-12)


@pytest.mark.parametrize("more", ["", FIX.replace("fix d", "fix other")])
def test_a_fix_that_does_not_trigger_is_refused(more, committee, tmp_path):
    """Whether or not another fix does."""
    commands = (
        f"unfix d\nuncompute m\nthermo_style custom step pe\n{more}\nfix d all pair 1 hienet force_deviation 0\nrun 1"
    )
    with pytest.raises(HIENetError, match=r"does not trigger the deviation would show old numbers; write `force_dev"):
        run_deck(deck_of(committee, tmp_path, commands), timeout=TIMEOUT, cwd=tmp_path)


def test_a_fix_of_a_style_that_is_gone_is_refused(committee, tmp_path):
    """It keeps the address of the trigger for life, and showed what the old style has found."""
    again = "pair_style hybrid/overlay hienet zero 4.0\npair_coeff * * zero\n"
    again += f"pair_coeff * * hienet {committee[0]} {committee[1]} C Si\n"
    commands = f"run 0\n{again}{again}{DISPLACED}run 0"
    with pytest.raises(HIENetError, match=r"`fix d pair` was made for a pair style that has been replaced since; give"):
        run_deck(deck_of(committee, tmp_path, commands), timeout=TIMEOUT, cwd=tmp_path)


def test_nothing_is_added_to_a_run_that_nobody_reads(committee, tmp_path):
    """The fix that tells evaluations apart is there only where it is needed, and goes with the style."""
    deck = deck_of(
        committee, tmp_path, "unfix d\nuncompute m\nuncompute counts\nthermo_style one\n" + "run 0\ninfo fixes\n"
    )
    assert "HIENET_EVALUATION" not in run_deck(deck.split("write_dump")[0], timeout=TIMEOUT, cwd=tmp_path)
    deck = deck_of(
        committee,
        tmp_path,
        "run 0\ninfo fixes\nprint between\nunfix d\npair_style zero 4.0\npair_coeff * *\ninfo fixes\n",
    )
    before, after = run_deck(deck.split("write_dump")[0], timeout=TIMEOUT, cwd=tmp_path).split("\nbetween")
    assert "HIENET_EVALUATION" in before
    assert "HIENET_EVALUATION" not in after
