"""The table of where the time went: once for each run, with every part of an evaluation, adding up to LAMMPS' own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import with_velocities
from runs import TIMEOUT, Setup

from hienet.lammps import run_deck
from hienet.testing import awkward_structures

ATOMS = with_velocities(awkward_structures()["bulk"])
STAGES = ["first", "second", "third"]
ONE_RANK = [
    "Graph",
    "Edges",
    *(f"Forward {name}" for name in STAGES),
    "Readout",
    *(f"Backward {name}" for name in reversed(STAGES)),
    "Backward edges",
    "Scatter",
    "Other",
    "Total",
]
SEVERAL_RANKS = [
    *ONE_RANK[:-2],
    "Exchange plan",
    "Exchange copies",
    "Exchange forward",
    "Exchange backward",
    "Agreement",
    *ONE_RANK[-2:],
]
TABLE = re.compile(
    r"^HIENet timing breakdown \((?P<file>.*), (?P<evaluations>\d+) evaluations\):\n"
    r"Section +\|  min time  \|  avg time  \|  max time  \| %pair\n-+\n(?P<rows>(?:.*\|.*\n)+)"
    r"Buffers of the pair style: (?P<buffers>\S+) kB/atom; peak memory of a process: (?P<peak>\S+) Mbytes$",
    re.MULTILINE,
)


def output_of(setup: Setup, commands: str, folder: Path, ranks: int = 1) -> str:
    """What LAMMPS prints for `commands` after the preamble of the setup."""
    setup.write(folder / "data.test", ATOMS)
    deck = setup.preamble(ATOMS, folder / "data.test") + commands + "\n"
    return run_deck(deck, ranks, timeout=TIMEOUT, cwd=folder)


def rows_of(table: re.Match[str]) -> dict[str, list[float]]:
    """Least, mean, greatest seconds and percent of each row."""
    rows = [line.split("|") for line in table["rows"].splitlines()]
    return {name.strip(): [float(x) for x in numbers] for name, *numbers in rows}


@pytest.mark.parametrize("command", ["run 20", "minimize 0 0 20 40"])
@pytest.mark.parametrize("ranks", [1, 3])
def test_each_run_ends_with_one_table_that_adds_up_to_the_time_of_lammps(command, ranks, models, tmp_path):
    """Two runs, so that the second must have begun with nothing."""
    setup = Setup(models["walks"], commands="neigh_modify every 5 delay 0 check no")
    output = output_of(setup, f"{command}\n{command}", tmp_path, ranks)
    tables = list(TABLE.finditer(output))
    pair_times = [float(x) for x in re.findall(r"^Pair +\| \S+ +\| (\S+)", output, re.MULTILINE)]
    steps = [int(x) for x in re.findall(r"^Loop time of .* for (\d+) steps", output, re.MULTILINE)]
    assert len(tables) == len(pair_times) == len(steps) == 2
    for table, pair_time, n in zip(tables, pair_times, steps, strict=True):
        rows = rows_of(table)
        assert list(rows) == (ONE_RANK if ranks == 1 else SEVERAL_RANKS)
        parts = {name: row for name, row in rows.items() if name != "Total"}
        assert rows["Total"][1] == pytest.approx(pair_time, rel=0.2, abs=0.005)
        assert sum(row[1] for row in parts.values()) == pytest.approx(rows["Total"][1], rel=1e-3)
        assert sum(row[3] for row in parts.values()) == pytest.approx(100.0, abs=0.2)
        assert all(0.0 <= least <= mean * 1.0001 <= greatest * 1.0002 for least, mean, greatest, _ in rows.values())
        assert all(rows[name][1] > 0.0 for name in rows)
        assert table["file"] == str(models["walks"])
        assert int(table["evaluations"]) == n if command.startswith("run") else int(table["evaluations"]) >= n
        # Each atom has some dozen neighbours of some tens of bytes, and ghosts, tens of them where atoms are so few; a
        # process has torch.
        assert 0.1 < float(table["buffers"]) < 200.0
        assert 30.0 < float(table["peak"]) < 10000.0


@pytest.mark.parametrize("commands", ["run 0", "timer off\nrun 3", "timer loop\nrun 3"])
def test_no_table_without_steps_or_when_timers_are_off(commands, models, tmp_path):
    output = output_of(Setup(models["walks"]), commands, tmp_path)
    assert "Total wall time" in output
    assert "timing breakdown (" not in output


def test_a_style_under_hybrid_has_its_table(models, tmp_path):
    pair = (
        f"pair_style hybrid/overlay zero 3.0 hienet\npair_coeff * * zero\npair_coeff * * hienet {models['walks']} C Si"
    )
    output = output_of(Setup(models["walks"], pair=pair), "run 5", tmp_path)
    assert [table["evaluations"] for table in TABLE.finditer(output)] == ["5"]


def test_the_memory_that_lammps_reports_counts_edges_and_weights(models, tmp_path):
    """A model with weights takes more than one without, on the same atoms."""

    def megabytes(model: Path) -> float:
        output = output_of(Setup(model), "run 0\nrun 0", tmp_path)
        return float(re.findall(r"Per MPI rank memory allocation .* = (\S+) \|", output)[-1])

    weights = models["float64"].stat().st_size / 2**20
    assert megabytes(models["float64"]) - megabytes(models["walks"]) > 0.3 * weights
