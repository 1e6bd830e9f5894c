"""Any number of ranks gives the numbers of one rank: energy, forces by id, six stresses, per-atom stress."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import ase
import numpy as np
import pytest
from conftest import with_velocities
from runs import TIMEOUT, Setup, Snapshot, run

from hienet.calculator import load_model
from hienet.errors import HIENetError
from hienet.lammps import run_deck
from hienet.testing import awkward_structures, silicon_carbide

REBUILD_ALWAYS = "neigh_modify every 1 delay 0 check no"


def assert_same(found: list[Snapshot], expected: list[Snapshot], energy: float = 1e-8, forces: float = 1e-7) -> None:
    """At every snapshot, within absolute tolerances (eV, eV/Å)."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.energy == pytest.approx(b.energy, abs=energy)
        np.testing.assert_allclose(a.energies, b.energies, atol=energy)
        np.testing.assert_allclose(a.forces, b.forces, atol=forces)
        np.testing.assert_allclose(a.stress, b.stress, atol=forces)
        # bar Å^3: 1.6e6 of them are one eV
        np.testing.assert_allclose(a.stresses, b.stresses, atol=forces * 1.6e7)
        np.testing.assert_allclose(a.atom_stress, b.atom_stress, atol=forces * 1.6e7)
        np.testing.assert_allclose(a.centroid_stress, b.centroid_stress, atol=forces * 1.6e7)
        assert a.edges == b.edges


@cache
def system(name: str) -> ase.Atoms:
    """Structures with velocities, made so that each strains one thing."""
    if name == "thin":
        return with_velocities(silicon_carbide(1))
    if name == "half empty":
        # All atoms in the first half of a box, moving as one.
        atoms = silicon_carbide(1)
        atoms.set_cell(np.diag([24.0, 12.0, 12.0]), scale_atoms=False)
        atoms.positions += [2.0, 3.0, 3.0]
        atoms.pbc = False
        return with_velocities(atoms)
    if name == "leaving":
        # The whole cluster crosses x = 12 within 20 steps of 1 fs: 500 Å/ps are 10 Å.
        atoms = system("half empty").copy()
        atoms.positions[:, 0] += 2.0
        atoms.arrays["velocities"][:, 0] = 500.0
        return atoms
    return with_velocities(awkward_structures()[name])


@pytest.fixture(scope="session")
def serial(models, tmp_path_factory):
    """The run on one rank, once for each system and setup."""

    @cache
    def result(name: str, setup: Setup) -> list[Snapshot]:
        return run(system(name), setup, tmp_path_factory.mktemp("serial"))

    return result


# The grids that are not 1 in a direction cut it; "thin" has 4.4 Å, less than two cutoffs of 4 Å, in each.
CASES = [
    ("bulk", 2, "2 1 1", REBUILD_ALWAYS, "direct"),
    ("bulk", 3, "1 3 1", "", "host"),
    ("bulk", 4, "2 1 2", "", "auto"),
    ("tilt -", 2, "1 1 2", REBUILD_ALWAYS, "host"),
    ("tilt +", 4, "2 2 1", "", "direct"),
    ("slab", 3, "3 1 1", "", "direct"),
    ("thin", 2, "1 2 1", "", "staged"),
    ("thin", 3, "3 1 1", REBUILD_ALWAYS, "direct"),
    ("thin", 4, "1 1 4", "", "direct"),
    ("half empty", 2, "2 1 1", "", "direct"),
    ("half empty", 4, "4 1 1", REBUILD_ALWAYS, "host"),
    ("leaving", 2, "2 1 1", "", "direct"),
    ("bulk", 8, "2 2 2", REBUILD_ALWAYS, "direct"),
]


@pytest.mark.parametrize(("name", "ranks", "grid", "rebuild", "exchange"), CASES)
def test_ranks_agree_with_one_rank(name, ranks, grid, rebuild, exchange, models, serial, tmp_path):
    """At the first step and after twenty."""
    setup = Setup(models["float64"])
    several = replace(setup, before_box=f"processors {grid}", commands=rebuild, style=f"exchange {exchange}")
    found = run(system(name), several, tmp_path, ranks)
    assert_same(found, serial(name, setup))
    # `staged` is what `host` was called.
    taken = {"auto": "direct", "staged": "host"}.get(exchange, exchange)
    assert f"\n  exchange between ranks: {taken}\n" in found[0].output
    stages = 5
    assert [s.exchanges for s in found] == [2 * (stages - 1)] * 2
    assert found[0].ghosts > 0 or name in ("half empty", "leaving")


def test_tiled_decomposition(models, serial, tmp_path):
    """`comm_style tiled` with recursive bisection, on atoms that fill a part of the box."""
    setup = Setup(models["float64"])
    tiled = replace(setup, before_box="comm_style tiled", commands="balance 1.0 rcb\nfix b all balance 5 1.0 rcb")
    assert_same(run(system("half empty"), tiled, tmp_path, 3), serial("half empty", setup))


def test_the_known_answer_of_an_analytic_model_on_several_ranks(models, serial, tmp_path):
    """Walks of three edges over thin subdomains: against numpy, on as many ranks as LAMMPS will make."""
    atoms = system("thin")
    found = run(atoms, Setup(models["walks"], before_box="processors 4 1 1"), tmp_path, 4, steps=0)[0]
    i, j, d = ase.neighborlist.neighbor_list("ijD", atoms, 4.0)
    w = (1 - (d**2).sum(1) / 16.0) ** 3
    q = np.array([1.0 + (s == "Si") for s in atoms.symbols])

    def neighbours(values):
        return np.array([values[i == k].sum(0) for k in range(len(atoms))])

    rho = neighbours(q[j] * w)
    sigma, v = neighbours(rho[j] * w), neighbours((rho[j] * w)[:, None] * d)
    expected = neighbours(sigma[j] * w + (v[j] * d).sum(1) * w) + 0.1 * rho**2 - 3 * q
    np.testing.assert_allclose(found.energies, expected, rtol=1e-12)
    assert found.exchanges == 4
    assert_same(
        run(atoms, Setup(models["walks"], before_box="processors 1 3 1"), tmp_path, 3, steps=0), [found], forces=1e-6
    )


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_known_answer_of_a_model_whose_edges_evolve(ranks, models, tmp_path):
    """Energies against numpy; forces, whose gradient passes from stage to stage on the edges too, against autograd of
    the whole."""
    atoms = system("thin")
    setup = Setup(models["edge walks"], before_box=f"processors {ranks} 1 1")
    found = run(atoms, setup, tmp_path, ranks, steps=0)[0]
    i, j, d = ase.neighborlist.neighbor_list("ijD", atoms, 4.0)
    w = (1 - (d**2).sum(1) / 16.0) ** 3
    q = np.array([1.0 + (s == "Si") for s in atoms.symbols])
    n = len(atoms)
    rho = np.bincount(i, q[j] * w, n)
    sigma = np.bincount(i, rho[i] * w, n)
    expected = np.bincount(i, sigma[j] * (rho[i] * w + rho[j] * w**2), n) - 3 * q
    np.testing.assert_allclose(found.energies, expected, rtol=1e-12)
    predicted = load_model(models["edge walks"]).predict(atoms)
    largest = float(predicted.forces.abs().max())
    np.testing.assert_allclose(found.forces, predicted.forces.numpy(), atol=1e-12 * largest)
    np.testing.assert_allclose(found.stress, predicted.stress[0].numpy(), atol=1e-11 * largest)


def test_float32_rows(models, serial, tmp_path):
    """The differences are rounding."""
    setup = Setup(models["float32"])
    found = run(system("thin"), replace(setup, before_box="processors 3 1 1"), tmp_path, 3, steps=0)
    expected = run(system("thin"), Setup(models["float64"]), tmp_path, steps=0)
    assert found[0].energy == pytest.approx(expected[0].energy, rel=1e-5)
    np.testing.assert_allclose(found[0].forces, expected[0].forces, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "itemsize", "exchange"), [("walks", 8, "direct"), ("float64", 8, "host"), ("float32", 4, "direct")]
)
def test_only_the_columns_that_neighbours_read_are_sent(model, itemsize, exchange, models, mpi_wrapper, tmp_path):
    """Forwards and backwards, between two ranks one message each."""
    with zipfile.ZipFile(models[model]) as archive:
        name = next(name for name in archive.namelist() if name.endswith("extra/hienet.json"))
        stages = json.loads(archive.read(name))["stages"][1:]
    forwards = [itemsize * stage["exchanged_width"] for stage in stages]
    setup = Setup(models[model], before_box="processors 2 1 1", style=f"exchange {exchange}")
    output = run(system("thin"), setup, tmp_path, 2, steps=0, environment=mpi_wrapper("count"))[0].output
    assert [int(n) for n in re.findall(r"^ROW (\d+)$", output, re.MULTILINE)] == [*forwards, *reversed(forwards)]


HYBRID = """pair_style hybrid/overlay hienet lj/cut 3.5
pair_coeff * * hienet {model} Si NULL C
pair_coeff 1 2 lj/cut 0.01 1.5
pair_coeff 2 2*3 lj/cut 0.01 1.5
"""


def test_hybrid_overlay_with_types_of_another_style(models, tmp_path):
    """One type is NULL for hienet; on two ranks the cut separates it, so that one rank has NULL types only."""
    atoms = system("half empty").copy()
    argon = ase.Atoms("Ar4", positions=[[18 + 1.7 * k, 5.0, 5.0] for k in range(3)] + [[8.0, 5.0, 5.0]])
    argon.set_array("velocities", np.zeros((4, 3)))
    together = atoms + argon
    types = [{"Si": 1, "Ar": 2, "C": 3}[s] for s in together.symbols]
    setup = Setup(models["float64"], type_symbols=("Si", "NULL", "C"), pair=HYBRID.format(model=models["float64"]))
    expected = run(together, setup, tmp_path, types=types)
    found = run(together, replace(setup, before_box="processors 2 1 1"), tmp_path, 2, types=types)
    assert_same(found, expected)
    alone = run(atoms, Setup(models["float64"]), tmp_path, steps=0)
    np.testing.assert_allclose(expected[0].energies[: len(atoms)].sum(), alone[0].energy, atol=0.2)
    assert expected[0].edges == alone[0].edges


@pytest.fixture(scope="session")
def mpi_wrapper(tmp_path_factory) -> Callable[[str], dict[str, str]]:
    """The environment in which ranks talk to each other through mpi_wrapper.c, and what that shall do."""
    source = Path(__file__).with_name("mpi_wrapper.c")
    output = tmp_path_factory.mktemp("wrapper") / "mpi_wrapper.so"
    # Preloaded into every program, it finds MPI's symbols in those that have MPI.
    command = ["cc", "-fPIC", "-shared", "-Wl,-z,lazy", f"-I{sys.prefix}/include", str(source), "-o", str(output)]
    subprocess.run(command, check=True, timeout=120)
    return lambda what: {"LD_PRELOAD": str(output), "MPI_WRAPPER": what}


def test_without_the_exchange_the_comparison_fails(models, serial, mpi_wrapper, tmp_path):
    """The comparison of ranks would see a missing exchange."""
    setup = Setup(models["float64"])
    control = replace(setup, before_box="processors 2 1 1")
    found = run(system("bulk"), control, tmp_path, 2, environment=mpi_wrapper("silence"))
    with pytest.raises(AssertionError):
        assert_same(found, serial("bulk", setup))
    assert abs(found[0].energy - serial("bulk", setup)[0].energy) > 1e-4
    with pytest.raises(AssertionError):
        assert_same(found[:1], serial("bulk", setup)[:1])


def test_a_transport_that_fails_its_self_test_is_not_taken(models, serial, mpi_wrapper, tmp_path):
    """By itself the exchange is by way of the host then, with the right results; where `direct` is asked for it is an
    error."""
    damaged = mpi_wrapper("damage")
    setup = Setup(models["float64"])
    several = replace(setup, before_box="processors 3 1 1")
    found = run(system("thin"), several, tmp_path, 3, environment=damaged)
    assert_same(found, serial("thin", setup))
    assert "exchange between ranks: host (in a test MPI did not move rows as they were)\n" in found[0].output
    with pytest.raises(
        HIENetError,
        match=r"`exchange direct` was asked for, but in a test MPI did not move rows as they were; use `exchange host",
    ):
        run(system("thin"), replace(several, style="exchange direct"), tmp_path, 3, environment=damaged)


@pytest.mark.parametrize("answer", ["gpu", "nothing"])
def test_mpi_is_asked_whether_it_takes_gpu_memory(answer, plugin, mpi_wrapper):
    """The library that comes with the tests does not."""
    code = f"""
import ctypes
from hienet.lammps import create

lammps = create()
asked = ctypes.CDLL({str(plugin)!r})._ZN6hienet20mpi_takes_gpu_memoryEv
asked.restype = ctypes.c_bool
print("answer:", asked())
"""
    environment = {**os.environ, **mpi_wrapper(answer)}
    output = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, timeout=60)
    assert f"answer: {answer == 'gpu'}" in output.stdout.decode()


def test_an_error_on_one_rank_stops_all(models, tmp_path):
    """Coincident atoms on the second of two ranks: one sentence, and no deadlock."""
    atoms = system("half empty").copy()
    atoms.positions[:, 0] += 11.0
    atoms.positions[1] = atoms.positions[0]
    with pytest.raises(HIENetError, match=r"atoms . and . are at the same place"):
        run(atoms, Setup(models["float64"], before_box="processors 2 1 1"), tmp_path, 2)


def test_partitions_run_different_models(models, tmp_path):
    """Two worlds with different precision and different numbers of ranks."""
    atoms = system("thin")
    Setup(models["walks"]).write(tmp_path / "data.test", atoms)
    deck = (
        f"""
variable model world {models["float64"]} {models["walks"]}
{Setup(Path("$" + "{model}")).preamble(atoms, tmp_path / "data.test")}
run 2
variable e equal pe
print "$e" file energy.$w
""".replace("units metal", "variable w world first second\nunits metal")
        .replace("$w", "${w}")
        .replace("$e", "${e}")
    )
    run_deck(deck, 3, timeout=TIMEOUT, cwd=tmp_path, arguments=["-partition", "1", "2", "-screen", "none"])
    for name, model in (("first", "float64"), ("second", "walks")):
        expected = run(atoms, Setup(models[model]), tmp_path, steps=2)[-1].energy
        assert float((tmp_path / f"energy.{name}").read_text()) == pytest.approx(expected, rel=1e-8)
