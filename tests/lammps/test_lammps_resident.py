"""`resident yes`: the graph built on the device of the model gives the numbers of the one built on the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import ase
import numpy as np
import pytest
import torch
from analytic import LJ_STAGES, WALK_STAGES, Recorder, Walks, write_deployed
from conftest import with_velocities
from runs import COLUMNS, TIMEOUT, Setup, Snapshot, evaluate, run
from test_lammps_ranks import system
from test_lammps_timing import SEVERAL_RANKS, TABLE, output_of, rows_of

from hienet.errors import HIENetError
from hienet.lammps import run_deck
from hienet.testing import awkward_structures, silicon_carbide

STRUCTURES = awkward_structures()


def assert_equal(found: Snapshot, expected: Snapshot, tolerance: float = 1e-13) -> None:
    """Within rounding: the edges are the same, and only sums are added in another order."""
    assert found.edges == expected.edges
    for name in ("energy", "forces", "stress", "energies", "stresses", "atom_stress", "centroid_stress"):
        one, other = np.asarray(getattr(found, name)), np.asarray(getattr(expected, name))
        scale = max(1.0, np.abs(other).max())
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale, err_msg=name)


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_network_receives_the_same_edges_in_the_same_order(name, tmp_path):
    """To the last bit, in cells smaller than the cutoff too, and where there are no edges."""
    records = []
    for resident in ("no", "yes"):
        record = tmp_path / f"{resident}.pt"
        model = write_deployed(Recorder(str(record)), tmp_path / f"{resident}.hienet.pt", LJ_STAGES)
        evaluate(STRUCTURES[name], Setup(model, style=f"resident {resident}"), tmp_path)
        records.append(torch.load(record))
    for host, device in zip(*records, strict=True):
        assert torch.equal(host, device)


@pytest.mark.parametrize("model", ["float64", "float32"])
@pytest.mark.parametrize("name", ["tilt +", "slab", "isolated atom"])
def test_energy_forces_and_all_stresses_of_one_step(name, model, models, tmp_path):
    host, device = (
        evaluate(STRUCTURES[name], Setup(models[model], style=f"resident {resident}"), tmp_path)
        for resident in ("no", "yes")
    )
    assert_equal(device, host)
    assert (device.exchanges, device.ghosts) == (0, 0)


@dataclass(frozen=True)
class Scenario:
    """What happens to a system, and who computes it."""

    system: str
    commands: str
    skin: float = 1.0
    pair: str = "pair_style hienet resident {resident}\npair_coeff * * {walks} C Si\n"
    columns: str = ""
    ranks: tuple[int, ...] = (1,)


COMMITTEE = (
    "pair_style hienet committee {driver} resident {{resident}}\npair_coeff * * {{walks}} {{short}} {{lj}} C Si\n"
)
DEVIATION = "fix deviation all pair 1 hienet force_deviation 1\nrun 4"
SCENARIOS = {
    "rebuilt in every step": Scenario("tilt -", "neigh_modify every 1 delay 0 check no\nrun 6"),
    "rebuilt now and then": Scenario("thin", "neigh_modify every 5 delay 10\nrun 12", skin=3.0, ranks=(1, 2)),
    "never rebuilt": Scenario("thin", "neigh_modify every 100 delay 100 check no\nrun 6\nrun 6 pre no", skin=3.0),
    "atoms leave their rank, which is empty then": Scenario("leaving", "run 20", ranks=(1, 2, 4)),
    "one atom": Scenario("one-atom cell", "run 4", ranks=(1, 4)),
    "no edges": Scenario("two far atoms", "run 4"),
    "another cell in every step": Scenario("thin", "unfix nve\nfix n all npt temp 300 300 0.1 aniso 0 0 1\nrun 6"),
    "deposited atoms": Scenario(
        "half empty",
        "region d block 13 20 2 10 2 10 units box\nfix d all deposit 3 1 1 1234 region d near 1.0 units box\nrun 4",
        ranks=(1, 2),
    ),
    "evaporated atoms": Scenario(
        "half empty", "region e block 0 24 0 12 0 12 units box\nfix e all evaporate 1 2 e 49892\nrun 3",
        ranks=(1, 2),
    ),
    "swapped types": Scenario("thin", "fix s all atom/swap 1 10 29494 3000.0 ke no types 1 2\nrun 3", ranks=(1, 2)),
    "another type between rebuilds": Scenario(
        "thin",
        "neigh_modify every 100 delay 100 check no\nrun 1\nset atom 2 type 2\nrun 2 pre no",
        ranks=(1, 2, 4),
    ),
    "groups left out, one of them between rebuilds": Scenario(
        "thin",
        "neigh_modify delay 100 every 100 check no\ngroup away id 2 7\nneigh_modify exclude group away all\n"
        "run 2\ngroup away id 4\nrun 2 pre no\nneigh_modify exclude none\nrun 2",
        ranks=(1, 2, 4),
    ),
    "a type of another style": Scenario(
        "half empty",
        "run 6",
        pair="pair_style hybrid/overlay hienet resident {resident} lj/cut 3.5\n"
        "pair_coeff * * hienet {walks} C NULL\npair_coeff * 2 lj/cut 0.01 1.5\n",
        ranks=(1, 2),
    ),
    "mean of a committee": Scenario(
        "tilt +", DEVIATION, pair=COMMITTEE.format(driver="mean"), columns="f_deviation", ranks=(1, 2, 4)
    ),
    "first of a committee": Scenario(
        "thin",
        "variable half equal 0.5\nfix half all adapt 1 pair hienet scale * * v_half\n" + DEVIATION,
        pair=COMMITTEE.format(driver="first"),
        columns="f_deviation",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def files(models, tmp_path_factory) -> dict[str, Path]:
    short = tmp_path_factory.mktemp("short") / "short.hienet.pt"
    write_deployed(Walks(3.2), short, WALK_STAGES, cutoff=3.2)
    return {"walks": models["walks"], "lj": models["lj"], "short": short}


def deck_of(scenario: Scenario, resident: str, files: dict[str, Path], out: Path) -> str:
    """From `clear` to the files of the final state."""
    atoms = system(scenario.system)
    if "velocities" not in atoms.arrays:
        atoms = with_velocities(atoms)
    pair = scenario.pair.format(resident=resident, **files)
    setup = Setup(files["walks"], pair=pair, skin=scenario.skin, before_box="processors * 1 1")
    setup.write(out.with_suffix(".data"), atoms)
    values = " ".join(f"$({column}:%.17g)" for column in COLUMNS if not column.startswith("c_counts"))
    return f"""clear
{setup.preamble(atoms, out.with_suffix(".data"))}
thermo_style custom step {" ".join(COLUMNS)}
thermo_modify lost ignore
timestep 0.0005
{scenario.commands}
print "{values} $(c_counts[2])" file {out}.values
write_dump all custom {out}.dump id type x y z fx fy fz c_atom_energy c_atom_stress[*] c_atom_centroid[*] &
  {scenario.columns} modify sort id format float %.17g
"""


CASES = [(ranks, name) for ranks in (1, 2, 4) for name in SCENARIOS if ranks in SCENARIOS[name].ranks]


@pytest.fixture(scope="module")
def finals(files, tmp_path_factory) -> Callable[[int], Path]:
    """The folder with the final state of every scenario, with and without: for each number of ranks one process goes
    through them all."""

    @cache
    def folder(ranks: int) -> Path:
        folder = tmp_path_factory.mktemp("resident")
        decks = [
            deck_of(SCENARIOS[name], resident, files, folder / f"{list(SCENARIOS).index(name)}_{resident}")
            for n, name in CASES
            for resident in ("no", "yes")
            if n == ranks
        ]
        run_deck("\n".join(decks), ranks, timeout=2 * TIMEOUT, cwd=folder)
        return folder

    return folder


@pytest.mark.parametrize(("ranks", "name"), CASES)
def test_the_final_state_of_a_run_is_the_same(ranks, name, finals):
    """Positions, forces, energies and stresses of all atoms, energy, virial and number of edges."""
    stem = finals(ranks) / str(list(SCENARIOS).index(name))
    host, device = (
        [np.loadtxt(f"{stem}_{resident}.values"), np.loadtxt(f"{stem}_{resident}.dump", skiprows=9, ndmin=2)]
        for resident in ("no", "yes")
    )
    assert device[0][-1] == host[0][-1], "edges"
    scale = np.maximum(1.0, np.abs(host[0]).max())
    np.testing.assert_allclose(device[0] / scale, host[0] / scale, rtol=0, atol=1e-11)
    assert device[1].shape == host[1].shape
    np.testing.assert_array_equal(device[1][:, :2], host[1][:, :2])
    scale = np.maximum(1.0, np.abs(host[1]).max(0))
    np.testing.assert_allclose(device[1] / scale, host[1] / scale, rtol=0, atol=1e-11)


def test_a_run_gives_the_same_bits_again_and_on_more_threads(models, tmp_path):
    """Sums of forces and virials are those of sorted edges, whoever adds them."""
    setups = [Setup(models["lj"], style=f"resident yes threads {threads}") for threads in (1, 1, 2)]
    runs = [evaluate(STRUCTURES["bulk"], setup, tmp_path) for setup in setups]
    for other in runs[1:]:
        np.testing.assert_array_equal(other.forces, runs[0].forces)
        np.testing.assert_array_equal(other.stresses, runs[0].stresses)


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_table_of_times_and_the_report_at_the_start(ranks, models, tmp_path):
    """One row for each part, as on the host."""
    setup = Setup(models["walks"], style="resident yes", before_box="processors * 1 1")
    output = output_of(setup, "neigh_modify every 2 delay 0 check no\nrun 5", tmp_path, ranks)
    assert "  the graph is built on the device, from positions alone\n" in output
    (table,) = TABLE.finditer(output)
    rows = rows_of(table)
    assert set(rows) == {name for name in SEVERAL_RANKS if ranks > 1 or not name.startswith(("Exchange", "Agreement"))}
    assert all(rows[name][1] > 0.0 for name in rows)
    assert 0.1 < float(table["buffers"]) < 100.0
    assert "built on the device" not in output_of(Setup(models["walks"]), "run 0", tmp_path)


@pytest.mark.parametrize("ranks", [1, 2])
def test_coincident_atoms_stop_the_run_by_name(ranks, models, tmp_path):
    atoms = silicon_carbide((2, 1, 1))
    atoms.positions[4] = atoms.positions[2] + [1e-9, 0.0, 0.0]
    with pytest.raises(HIENetError, match=r"atoms [35] and [35] are at the same place at step 0; remove one"):
        run(atoms, Setup(models["walks"], style="resident yes"), tmp_path, ranks, steps=0)


@pytest.mark.parametrize("alone", [False, True])
def test_positions_that_are_not_numbers_stop_the_run(alone, models, tmp_path):
    """Of an atom in a crystal, and of one without any neighbour."""
    atoms = ase.Atoms("C", cell=np.eye(3) * 20.0, positions=[[10, 10, 10]]) if alone else silicon_carbide(1)
    commands = "variable bad atom 1e308*10\nset atom 1 vx v_bad\nneigh_modify every 10 delay 10 check no"
    with pytest.raises(
        HIENetError, match=r"the position of atom 1 or of its neighbor 1? ?.*is not finite at step 1; use a"
    ):
        run(atoms, Setup(models["walks"], style="resident yes", commands=commands), tmp_path, steps=3)
