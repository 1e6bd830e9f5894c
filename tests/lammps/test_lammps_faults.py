"""What may happen to a run: killed ranks, signals, no memory, vanished files. Nothing hangs or stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hienet_deploy.export import export
from runs import Setup, run

from hienet.errors import HIENetError
from hienet.lammps import _program, run_deck
from hienet.testing import silicon_carbide

ATOMS = silicon_carbide((2, 1, 1))
PATIENCE = 60.0
"""Seconds; whatever has not ended by then hangs."""


@pytest.fixture
def ranks_below(monkeypatch) -> Callable[[int], list[int]]:
    """Numbers of the processes below one that have loaded the pair style."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    from memory import ranks_below

    return ranks_below


def endless(models: dict[str, Path], folder: Path) -> str:
    """A deck that does not end by itself."""
    setup = Setup(models["float32"])
    setup.write(folder / "data.test", ATOMS)
    return setup.preamble(ATOMS, folder / "data.test") + "thermo 10\nrun 100000000\n"


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE:g} s"
        time.sleep(0.05)


def has_ended(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_killed_rank_ends_the_run_and_the_message_says_so(ranks, models, tmp_path, ranks_below):
    seen: list[int] = []

    def kill_one(line: str) -> None:
        if not seen and line.split()[:1] == ["20"]:
            seen.extend(ranks_below(os.getpid()))
            os.kill(seen[-1], signal.SIGKILL)

    with pytest.raises(
        HIENetError, match=r"killed by SIGKILL; unless somebody did that, the machine ran out of memory"
    ):
        run_deck(endless(models, tmp_path), ranks, timeout=PATIENCE, cwd=tmp_path, echo=kill_one)
    assert len(seen) == ranks
    wait_for(lambda: all(map(has_ended, seen)), "the other ranks end")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_no_rank_outlives_the_python_program_that_started_it(number, models, tmp_path, ranks_below):
    (tmp_path / "in.endless").write_text(endless(models, tmp_path))
    code = "import sys; from hienet.lammps import run_deck; run_deck(sys.argv[1], 2)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "in.endless")], stderr=subprocess.DEVNULL)
    wait_for(lambda: len(ranks_below(process.pid)) == 2, "the ranks begin")
    ranks = ranks_below(process.pid)
    process.send_signal(number)
    assert process.wait(PATIENCE) != 0
    wait_for(lambda: all(map(has_ended, ranks)), "the ranks end")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("ranks", [1, 2])
def test_ctrl_c_ends_molecular_dynamics_on_all_ranks(ranks, number, models, tmp_path, ranks_below):
    """As a terminal does it: the signal goes to all processes of the command."""
    (tmp_path / "in.endless").write_text(endless(models, tmp_path))
    launcher = [_program("mpirun"), "-np", str(ranks)] if ranks > 1 else []
    command = [*launcher, _program("lmp"), "-in", "in.endless", "-log", "none"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_for(lambda: len(ranks_below(process.pid)) == ranks, "the ranks begin")
    found = ranks_below(process.pid)
    os.killpg(process.pid, number)
    assert process.wait(PATIENCE) != 0
    wait_for(lambda: all(map(has_ended, found)), "the ranks end")


MEMORY = """
import resource, sys
from hienet.lammps import create
lammps = create()
lammps.commands_string('''
units metal
lattice diamond 4.39
region box block 0 1 0 1 0 1
create_box 2 box
create_atoms 1 box basis 5 2 basis 6 2 basis 7 2 basis 8 2
mass * 28.0
pair_style hienet {style}
pair_coeff * * {model} Si C
run 0
replicate {repeat} {repeat} {repeat}
''')
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (1024 * used + ({spare} << 20), resource.RLIM_INFINITY))
try:
    lammps.command("run 0")
except Exception as error:
    print(str(error).replace(chr(10), " "))
"""


@pytest.mark.parametrize(("compiled", "repeat", "style"), [(True, 16, ""), (False, 8, ""), (True, 16, "resident yes")])
def test_a_system_that_does_not_fit_the_memory_is_explained(compiled, repeat, style, models, tmp_path):
    model = export(models["checkpoint"], tmp_path / "model.hienet.pt", compiled=compiled).path
    code = MEMORY.format(model=model, repeat=repeat, style=style, spare=100)
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=environment)
    assert process.returncode == 0, process.stderr
    assert "pair_style hienet: " in process.stdout
    assert "not enough memory for the network; use more ranks, a smaller system, or `precision mixed`" in process.stdout
    assert f"{8 * repeat**3} atoms" in process.stdout


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_file_deleted_between_runs_is_not_missed_and_then_not_found(ranks, models, tmp_path):
    """The model is in memory: the file is wanted again by the next pair_coeff only, on the first rank only."""
    model = tmp_path / "model.hienet.pt"
    model.write_bytes(models["float64"].read_bytes())
    setup = Setup(model)
    setup.write(tmp_path / "data.test", ATOMS)
    deck = (
        setup.preamble(ATOMS, tmp_path / "data.test") + f"thermo_style custom step pe\nrun 0\nshell rm {model}\nrun 0\n"
    )
    output = run_deck(deck, ranks, timeout=PATIENCE, cwd=tmp_path)
    lines = output.splitlines()
    energies = [lines[i + 1].split()[1] for i, line in enumerate(lines) if line.split() == ["Step", "PotEng"]]
    assert len(energies) == 2
    assert energies[0] == energies[1]
    model.write_bytes(models["float64"].read_bytes())
    with pytest.raises(
        HIENetError, match=r"cannot open the model file `.*`: No such file or directory; check the name"
    ):
        run_deck(f"{deck}pair_coeff * * {model} C Si\n", ranks, timeout=PATIENCE, cwd=tmp_path)


@pytest.mark.parametrize("distance", [0.0, 1e-9])
@pytest.mark.parametrize("ranks", [1, 2])
def test_atoms_on_top_of_each_other_stop_the_run_by_name(distance, ranks, models, tmp_path):
    atoms = ATOMS.copy()
    atoms.positions[4] = atoms.positions[2] + [distance, 0.0, 0.0]
    with pytest.raises(HIENetError, match=r"atoms [35] and [35] are at the same place at step 0; remove one"):
        run(atoms, Setup(models["float64"]), tmp_path, ranks, steps=0)


def test_a_damaged_weight_stops_all_ranks(models, tmp_path):
    whole = bytearray(models["float64"].read_bytes())
    with zipfile.ZipFile(models["float64"]) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
        contents = archive.read(largest)
    # Records are not compressed.
    whole[whole.index(contents) + len(contents) // 2] ^= 1
    path = tmp_path / "damaged.hienet.pt"
    path.write_bytes(whole)
    with pytest.raises(HIENetError, match=r"is truncated or damaged .*the record `.*` does not match its checksum"):
        run(ATOMS, Setup(path), tmp_path, 2, steps=0)
