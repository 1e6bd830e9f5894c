"""Several models in one pair_coeff: the mean or the first moves the atoms, the deviation of their forces is known."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ase
import numpy as np
import pytest
from analytic import LJ_STAGES, WALK_STAGES, LennardJones, Walks, write_deployed
from conftest import with_velocities
from runs import TIMEOUT, Array, Setup, Snapshot, _blocks, evaluate, run

from hienet.calculator import force_deviation
from hienet.errors import HIENetError
from hienet.lammps import run_deck
from hienet.testing import awkward_structures, silicon_carbide

ATOMS = with_velocities(awkward_structures()["tilt +"])
DEVIATION = "fix deviation all pair 1 hienet force_deviation 1"


@pytest.fixture(scope="module")
def members(models, tmp_path_factory) -> list[Path]:
    """Models that differ in what a model can: stages, cutoff, order of the elements, network and precision."""
    folder = tmp_path_factory.mktemp("members")
    short = write_deployed(Walks(3.2), folder / "short.hienet.pt", WALK_STAGES, cutoff=3.2)
    swapped = write_deployed(Walks(), folder / "swapped.hienet.pt", WALK_STAGES, elements=["Si", "C"])
    return [models["walks"], short, swapped, models["lj"], models["float32"]]


def committee(files: Sequence[Path], style: str = "", symbols: str = "C Si", **changes: str) -> Setup:
    """The setup of one or several models."""
    pair = f"pair_style hienet {style}\npair_coeff * * {' '.join(map(str, files))} {symbols}"
    return Setup(files[0], pair=pair, **changes)


@pytest.fixture(scope="module")
def alone(members, tmp_path_factory) -> list[Snapshot]:
    """Each model by itself, on one rank."""
    folder = tmp_path_factory.mktemp("alone")
    return [evaluate(ATOMS, committee([file]), folder) for file in members]


def assert_mean(found: Snapshot, of: Sequence[Snapshot], tolerance: float = 1e-9) -> None:
    """`found` is the mean of snapshots in all that LAMMPS is given."""
    for name in ("energy", "forces", "stress", "energies", "atom_stress", "centroid_stress"):
        expected = np.mean([getattr(each, name) for each in of], axis=0)
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(getattr(found, name), expected, rtol=0, atol=tolerance * scale, err_msg=name)


@dataclass(frozen=True)
class Deviations:
    """What `fix pair` and `compute pair` say at one step: of each atom, greatest and mean; and the exchanges."""

    of_atoms: Array
    greatest: float
    mean: float
    exchanges: float


def deviations(
    atoms: ase.Atoms, setup: Setup, folder: Path, ranks: int = 1, steps: int = 0, types: Sequence[int] | None = None
) -> list[Deviations]:
    """At every step of a run."""
    setup.write(folder / "data.test", atoms, types)
    deck = (
        replace(setup, commands=f"{setup.commands}\n{DEVIATION}").preamble(atoms, folder / "data.test")
        + f"""
thermo_style custom step c_counts[4] c_counts[5] c_counts[1]
thermo_modify line yaml format float %.17g
thermo 1
dump 1 all custom 1 dump.test id f_deviation
dump_modify 1 sort id format float %.17g
run {steps}
"""
    )
    output = run_deck(deck, ranks, timeout=TIMEOUT, cwd=folder)
    rows = re.findall(r"^ +- \[\d+, (\S+), (\S+), (\S+), \]$", output, re.MULTILINE)
    blocks = _blocks(folder / "dump.test")
    assert len(rows) == len(blocks) == steps + 1, output
    return [Deviations(np.array(block)[:, 1], *map(float, row)) for row, block in zip(rows, blocks, strict=True)]


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_mean_is_the_mean_of_runs_with_each_model(ranks, members, alone, tmp_path):
    """Of energy, forces, virial and all per-atom quantities, on one rank and on several."""
    setup = committee(members, "committee mean", before_box="processors 1 3 1" if ranks == 3 else "")
    found = evaluate(ATOMS, setup, tmp_path) if ranks == 1 else run(ATOMS, setup, tmp_path, ranks, steps=0)[0]
    # Rounding of the float32 model differs from one number of ranks to another.
    assert_mean(found, alone, 1e-9 if ranks == 1 else 1e-6)
    assert found.edges == max(each.edges for each in alone)
    assert np.ptp([each.energy for each in alone]) > 1.0


def test_the_mean_is_the_default_and_follows_the_scale_of_fix_adapt(members, alone, tmp_path):
    setup = committee(
        members[:3], commands="variable half equal 0.5\nfix half all adapt 1 pair hienet scale * * v_half"
    )
    found = evaluate(ATOMS, setup, tmp_path)
    expected = np.mean([each.forces for each in alone[:3]], axis=0)
    np.testing.assert_allclose(found.forces, 0.5 * expected, atol=1e-9)
    (deviation,) = deviations(ATOMS, setup, tmp_path)
    np.testing.assert_allclose(
        deviation.of_atoms, 0.5 * force_deviation(np.array([each.forces for each in alone[:3]])), atol=1e-9
    )


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_first_alone_moves_the_atoms(ranks, members, tmp_path):
    """The others are evaluated, or not, without a trace in the trajectory."""
    before_box = "processors 1 3 1" if ranks == 3 else ""
    expected = run(ATOMS, committee(members[:1], before_box=before_box), tmp_path, ranks, steps=5)
    for commands in ("", DEVIATION):
        setup = committee(members[:3], "committee first", before_box=before_box, commands=commands)
        for found, one in zip(run(ATOMS, setup, tmp_path, ranks, steps=5), expected, strict=True):
            assert_mean(found, [one], 1e-12)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("driver", ["mean", "first"])
def test_the_deviation_is_that_of_the_forces_of_separate_runs(driver, ranks, members, alone, tmp_path):
    setup = committee(members, f"committee {driver}", before_box="processors 3 1 1" if ranks == 3 else "")
    found = deviations(ATOMS, setup, tmp_path, ranks, steps=2)
    expected = force_deviation(np.array([each.forces for each in alone]))
    assert expected.min() > 0.01
    np.testing.assert_allclose(found[0].of_atoms, expected, atol=1e-4)
    for step in found:
        assert step.greatest == pytest.approx(step.of_atoms.max(), abs=1e-12)
        assert step.mean == pytest.approx(step.of_atoms.mean(), abs=1e-12)
    assert not np.allclose(found[2].of_atoms, found[0].of_atoms, atol=1e-4)
    # 2, 2, 2, 0 and 4 stages after an exchange, there and back, and the forces once.
    assert {step.exchanges for step in found} == {0.0 if ranks == 1 else 21.0}


def test_other_models_are_evaluated_only_where_the_deviation_is_wanted(members, tmp_path):
    """Exchanges count them: 4 for each of the models, and one for their forces."""
    setup = committee(members[:3], "committee first", before_box="processors 3 1 1")
    setup.write(tmp_path / "data.test", ATOMS)
    deck = (
        setup.preamble(ATOMS, tmp_path / "data.test")
        + """
uncompute counts
thermo_style custom step pe
fix deviation all pair 4 hienet force_deviation 1
thermo 1
run 4
"""
    )
    output = run_deck(deck, 3, timeout=TIMEOUT, cwd=tmp_path)
    cells = [[cell.strip() for cell in line.split("|")] for line in output.splitlines() if line.count("|") == 4]
    rows = {name: float(average) for name, _, average, *_ in cells if name in ("Deviation", "Forward second")}
    assert set(rows) == {"Deviation", "Forward second"}
    assert "HIENet committee of 3 models; energy, forces and virial of the first" in output
    assert re.search(r"HIENet timing breakdown \(committee of 3: \S+ \S+ \S+, 4 evaluations\)", output)


def test_under_hybrid_the_deviation_is_of_this_style_alone(members, tmp_path):
    """Types of another style have none, and its forces do not count."""
    atoms = silicon_carbide(1) + ase.Atoms("Ar", positions=[[1.0, 1.2, 1.1]])
    types = [{"C": 1, "Si": 2, "Ar": 3}[s] for s in atoms.symbols]
    files = " ".join(map(str, members[:2]))
    pair = f"pair_style hybrid/overlay hienet lj/cut 3.5\npair_coeff * * hienet {files} C Si NULL\n"
    pair += "pair_coeff * 3 lj/cut 0.1 1.5\npair_coeff 1 1 lj/cut 0.2 1.5"
    setup = Setup(members[0], type_symbols=("C", "Si", "NULL"), pair=pair)
    cell = silicon_carbide(1)
    forces = [evaluate(cell, committee([file]), tmp_path).forces for file in members[:2]]
    for ranks in (1, 2):
        (found,) = deviations(atoms, setup, tmp_path, ranks, types=types)
        np.testing.assert_allclose(found.of_atoms[:-1], force_deviation(np.array(forces)), atol=1e-9)
        assert found.of_atoms[-1] == 0.0
        assert found.mean == pytest.approx(found.of_atoms[:-1].mean())


@pytest.mark.parametrize("ranks", [1, 2])
def test_one_model_deviates_from_nothing(ranks, members, alone, tmp_path):
    setup = committee(members[:1], "committee mean")
    found = deviations(ATOMS, setup, tmp_path, ranks, steps=1)
    for step in found:
        assert not step.of_atoms.any()
        assert step.greatest == step.mean == 0.0
        assert step.exchanges == (4.0 if ranks == 2 else 0.0), "no exchange of its own"


def test_real_units(members, alone, tmp_path):
    """kcal/mol/Å."""
    setup = committee(members[:3])
    setup.write(tmp_path / "data.test", ATOMS)
    deck = setup.preamble(ATOMS, tmp_path / "data.test").replace("units metal", "units real")
    deck += "thermo_style custom step c_counts[4]\nthermo_modify line yaml format float %.17g\nrun 0\n"
    (found,) = re.findall(r"^ +- \[0, (\S+), \]$", run_deck(deck, timeout=TIMEOUT, cwd=tmp_path), re.MULTILINE)
    expected = force_deviation(np.array([each.forces for each in alone[:3]])).max()
    assert float(found) == pytest.approx(23.060549 * expected, rel=1e-6)


def test_a_deviation_that_was_not_asked_for_is_an_error_and_not_an_old_number(members, tmp_path):
    setup = committee(members[:2])
    setup.write(tmp_path / "data.test", ATOMS)
    commands = "uncompute counts\nthermo_style custom step pe\nfix d all pair 1 hienet force_deviation 0\nrun 1\n"
    with pytest.raises(HIENetError, match=r"`fix pair` that does not trigger the deviation would show old numbers"):
        run_deck(setup.preamble(ATOMS, tmp_path / "data.test") + commands, timeout=TIMEOUT, cwd=tmp_path)


WRONG = {
    "unknown driver": ("committee all", "{a} {b} C Si", r"`committee all` is not known; use mean or first"),
    "driver without value": ("committee", "{a} {b} C Si", r"keyword `committee` has no value"),
    "too few symbols": (
        "",
        "{a} {b} C",
        r"names 2 file\(s\) and gives 1 element symbol\(s\), but there are 2 atom type\(s\)",
    ),
    "too many symbols": ("", "{a} {b} C Si Si", r"names 2 file\(s\) and gives 3 element symbol\(s\), but there are 2"),
    "no symbols": ("", "{a} {b} {a}", r"names 3 file\(s\) and gives 0 element symbol\(s\), but there are 2"),
    "a symbol before a file": ("", "{a} C {b} Si", r"names 1 file\(s\) and gives 3 element symbol\(s\)"),
    "no second file": ("", "{a} nowhere.hienet.pt C Si", r"cannot open the model file `nowhere.hienet.pt`"),
    "other elements": ("", "{a} {germanium} C Si", r"element `C` of type 1 is not in the model `.*ge.hienet.pt`"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_explained(case, members, tmp_path):
    style, words, says = WRONG[case]
    germanium = write_deployed(LennardJones(), tmp_path / "ge.hienet.pt", LJ_STAGES, elements=["Ge", "Si"])
    words = words.format(a=members[0], b=members[1], germanium=germanium)
    setup = Setup(members[0], pair=f"pair_style hienet {style}\npair_coeff * * {words}")
    with pytest.raises(Exception, match=says):
        evaluate(ATOMS, setup, tmp_path)


def test_a_model_named_twice_is_warned_about(members, tmp_path):
    output = run(ATOMS, committee([members[0], members[1], members[0]]), tmp_path, steps=0)[0].output
    assert re.search(r"WARNING: pair_coeff names the model \S+walks.hienet.pt twice", output)
