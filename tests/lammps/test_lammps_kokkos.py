"""`hienet/kk` gives the numbers of `hienet`, in a LAMMPS with KOKKOS that `tests/kokkos/build_lammps.sh` has built."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import runs
from conftest import with_velocities
from hienet_deploy.export import export
from runs import TIMEOUT, Setup, Snapshot
from test_lammps_ranks import REBUILD_ALWAYS, assert_same, system

import hienet.lammps
from hienet.errors import HIENetError
from hienet.lammps import run_deck
from hienet.plugin import source_directory
from hienet.testing import awkward_structures, write_tiny_checkpoint

BUILD = os.environ.get("HIENET_KOKKOS_LAMMPS", "")
"""The build folder of that LAMMPS."""

pytestmark = pytest.mark.skipif(
    not BUILD,
    reason="set HIENET_KOKKOS_LAMMPS to the build folder of a LAMMPS with KOKKOS (tests/kokkos/build_lammps.sh)",
)

KOKKOS = ("-k", "on", "t", "1", "-sf", "kk")


def _succeed(command: list[str]) -> None:
    answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert answer.returncode == 0, answer.stdout[-3000:]


@pytest.fixture(scope="session")
def kokkos_plugin() -> Path:
    """The plugin with `hienet/kk`, compiled for that LAMMPS beside it."""
    folder = Path(BUILD).resolve() / "hienet"
    python = f"-DPython_EXECUTABLE={sys.executable}"
    _succeed(["cmake", "-S", str(source_directory()), "-B", str(folder), python, f"-DHIENET_LAMMPS_BUILD={BUILD}"])
    _succeed(["cmake", "--build", str(folder), "--parallel", "2"])
    return folder / "hienetplugin.so"


@pytest.fixture
def lmp(kokkos_plugin, monkeypatch) -> partial[str]:
    """`run_deck` with that LAMMPS and plugin."""
    found = hienet.lammps._program
    binary = str(Path(BUILD).resolve() / "lmp")
    monkeypatch.setattr(hienet.lammps, "_program", lambda name: binary if name == "lmp" else found(name))
    return partial(run_deck, timeout=TIMEOUT, environment={"LAMMPS_PLUGIN_PATH": str(kokkos_plugin.parent)})


@pytest.fixture
def run(lmp, monkeypatch, tmp_path) -> Callable[..., list[Snapshot]]:
    """`runs.run` with that LAMMPS and the given arguments."""

    def result(atoms, setup: Setup, ranks: int = 1, arguments=KOKKOS, **options) -> list[Snapshot]:
        def run_deck_there(deck, ranks, *, environment=None, **options):
            variables = {**lmp.keywords["environment"], **(environment or {})}
            return lmp(deck, ranks, arguments=arguments, environment=variables, **options)

        monkeypatch.setattr(runs, "run_deck", run_deck_there)
        return runs.run(atoms, setup, tmp_path, ranks, **options)

    return result


def test_the_style_is_the_one_of_kokkos(run, models):
    """Negative control of all that follows: `hienet/kk` is what `-sf kk` makes of `hienet`."""
    output = run(system("bulk"), Setup(models["float64"], commands="info styles pair"), steps=0)[0].output
    assert re.search(r"\(1\) pair hienet/kk, perpetual\s+attributes: full, newton on, kokkos_device", output)
    assert "KOKKOS mode" in output
    assert "the atoms stay where KOKKOS has them" in output
    plain = run(system("bulk"), Setup(models["float64"]), arguments=(), steps=0)[0].output
    assert "kokkos_device" not in plain


@pytest.mark.parametrize("rebuild", ["", REBUILD_ALWAYS])
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("name", ["bulk", "tilt -", "slab", "cluster", "thin", "half empty"])
def test_kokkos_agrees_with_the_plain_style(name, ranks, rebuild, models, run):
    """Energy, forces, pressures and stresses per atom, at the first step and after twenty."""
    setup = Setup(models["float64"], commands=rebuild)
    expected = run(system(name), setup, arguments=())
    grid = f"processors {ranks} 1 1" if name == "half empty" else ""
    assert_same(run(system(name), replace(setup, before_box=grid), ranks), expected)


@pytest.mark.parametrize("name", ["one-atom cell", "isolated atom", "two far atoms", "small cell"])
def test_small_systems(name, models, run):
    setup = Setup(models["float64"])
    assert_same(
        run(awkward_structures()[name], setup, steps=0), run(awkward_structures()[name], setup, arguments=(), steps=0)
    )


def test_threads_of_kokkos(models, run):
    setup = Setup(models["float64"])
    found = run(system("bulk"), setup, arguments=("-k", "on", "t", "2", "-sf", "kk"))
    assert_same(found, run(system("bulk"), setup, arguments=()))


@pytest.mark.parametrize("comm", ["host", "device"])
def test_ways_of_communication(comm, models, run):
    setup = Setup(models["float64"])
    arguments = (*KOKKOS, "-pk", "kokkos", "comm", comm)
    assert_same(run(system("bulk"), setup, 2, arguments=arguments), run(system("bulk"), setup, arguments=()))


def test_host_style(models, run):
    """By its own name."""
    setup = Setup(models["float64"])
    found = run(system("bulk"), replace(setup, style_name="hienet/kk/host"))
    assert_same(found, run(system("bulk"), setup, arguments=()))


def test_tiled_decomposition(models, run):
    setup = Setup(models["float64"])
    tiled = replace(setup, before_box="comm_style tiled", commands="balance 1.0 rcb\nfix b all balance 5 1.0 rcb")
    assert_same(run(system("half empty"), tiled, 3), run(system("half empty"), setup, arguments=()))


@pytest.mark.parametrize("ranks", [1, 2])
def test_npt(ranks, models, run):
    """The box moves by the virial, and the list is rebuilt."""
    commands = "unfix nve\nfix n all npt temp 300 300 0.1 tri 5000 5000 0.1"
    setup = Setup(models["float64"], commands=REBUILD_ALWAYS)
    expected, found = (
        run(system("tilt +"), replace(setup, commands=f"{REBUILD_ALWAYS}\n{commands}".replace("unfix nve\n", "")), r, a)
        for r, a in ((1, ()), (ranks, KOKKOS))
    )
    assert_same(found, expected)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("driver", ["mean", "first"])
def test_committee(driver, ranks, models, run, tmp_path):
    """And the deviation of its forces, of which a vector comes back to the host."""
    other = export(
        write_tiny_checkpoint(tmp_path / "b.pt", seed=7, scale=(40.0, 55.0)), tmp_path / "b.hienet.pt", dtype="float64"
    ).path
    commands = "fix deviation all pair 1 hienet force_deviation 1"
    pair = f"pair_style hienet committee {driver}\npair_coeff * * {models['float64']} {other} C Si\n"
    setup = Setup(models["float64"], pair=pair, commands=commands)
    expected = run(system("bulk"), setup, arguments=(), steps=5)
    found = run(system("bulk"), setup, ranks, steps=5)
    assert_same(found, expected)


def test_types_of_another_style(models, run):
    """`pair_style hybrid/overlay`, on the list of KOKKOS that skips the pairs of a type."""
    pair = f"pair_style hybrid/overlay hienet lj/cut 3.0\npair_coeff * * hienet {models['float64']} C NULL\n"
    setup = Setup(models["float64"], pair=pair + "pair_coeff * 2 lj/cut 0.01 2.0\n")
    for ranks in (1, 2):
        assert_same(run(system("bulk"), setup, ranks), run(system("bulk"), setup, arguments=()))


def test_atoms_that_are_switched_off(models, run):
    """Groups are read on the host."""
    commands = "group off id 1:5\nneigh_modify exclude group off all"
    setup = Setup(models["float64"], commands=commands)
    assert_same(run(system("bulk"), setup, steps=5), run(system("bulk"), setup, arguments=(), steps=5))


def test_minimize(models, lmp, tmp_path):
    """With the minimizer of KOKKOS: the same minimum."""
    setup = Setup(models["float64"])
    atoms = with_velocities(awkward_structures()["bulk"], 0.0)
    setup.write(tmp_path / "data.test", atoms)
    deck = setup.preamble(atoms, tmp_path / "data.test") + '\nminimize 0 1e-5 50 500\nprint "energy: $(pe:%.12g)"\n'
    energies = [
        float(lmp(deck, arguments=arguments, cwd=tmp_path).split("energy: ")[-1].split()[0])
        for arguments in ((), KOKKOS)
    ]
    assert energies[1] == pytest.approx(energies[0], abs=1e-4)


def test_single_precision(models, run):
    setup = Setup(models["float32"])
    found, expected = (run(system("bulk"), setup, arguments=arguments) for arguments in (KOKKOS, ()))
    assert_same(found, expected, energy=1e-3, forces=1e-3)


@pytest.mark.parametrize(
    ("style", "arguments", "says"),
    [
        ("device cuda", KOKKOS, "`device cuda` was asked for, but KOKKOS keeps the atoms on the device `cpu`"),
        ("resident no", KOKKOS, "`resident no` is not for hienet/kk"),
    ],
)
def test_settings_that_contradict_kokkos(style, arguments, says, models, run):
    with pytest.raises(HIENetError, match=re.escape(says)):
        run(system("bulk"), Setup(models["float64"], style=style), arguments=arguments, steps=0)


def test_without_kokkos_switched_on(models, run):
    setup = Setup(models["float64"], style_name="hienet/kk")
    with pytest.raises(HIENetError, match=r"Cannot use KOKKOS styles without enabling KOKKOS"):
        run(system("bulk"), setup, arguments=(), steps=0)


@pytest.mark.parametrize("ranks", [1, 2])
def test_positions_that_are_not_numbers_stop_the_run(ranks, models, run):
    commands = "variable bad atom 1e308*10\nset atom 3 vx v_bad\nneigh_modify every 10 delay 10 check no"
    with pytest.raises(HIENetError, match=r"the position of atom .* is not finite at step 1; use a shorter timestep"):
        run(system("bulk"), Setup(models["float64"], commands=commands), ranks, steps=2)


def test_coincident_atoms(models, run):
    atoms = awkward_structures()["cluster"]
    atoms.positions[4] = atoms.positions[2]
    with pytest.raises(HIENetError, match=r"atoms \d+ and \d+ are at the same place at step 0"):
        run(atoms, Setup(models["float64"]), steps=0)
