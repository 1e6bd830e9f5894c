"""What may happen to a program from outside: no memory, a full disc, a kill. Nothing is lost, and the message helps."""

from __future__ import annotations

import io
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import ase
import numpy as np
import pytest
import torch
import yaml
from labelled_frames import tiny_values, write_frames
from rich.console import Console

from hienet.calculator import HIENetCalculator
from hienet.checkpoint import load_checkpoint
from hienet.config import load_config, parse_config
from hienet.errors import HIENetError
from hienet.memory import OutOfMemoryError, keep_freed_memory, memory_explained
from hienet.testing import silicon_carbide, write_tiny_checkpoint
from hienet.train.run import Run

PATIENCE = 120.0
"""Seconds; whatever has not ended by then hangs."""

LIMITS = """
import os, resource, signal, sys
import torch
torch.set_num_threads(1)

def leave_memory(megabytes):
    used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (1024 * used + (megabytes << 20), resource.RLIM_INFINITY))

def leave_disc(size):
    "A limit on the size of files stands for a full disc."
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
"""


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A program of its own, whose limits nobody else suffers from."""
    command = [sys.executable, "-c", LIMITS + code, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=environment, check=False)


# Training

TRAIN = """
import hienet.train.run
from hienet.cli import app
from hienet.console import run_app
hienet.train.run._SECONDS_BETWEEN_SAVES = 0.0
step, count = torch.optim.AdamW.step, 0

def counted(*arguments, **options):
    global count
    count += 1
    result = step(*arguments, **options)
    if count == {when}:
        {what}
    return result

torch.optim.AdamW.step = counted
sys.argv = ["hienet", "train", sys.argv[1]]
run_app(app)
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """Data, and the best weights of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    data = write_frames(folder / "data.extxyz")
    Run(parse_config(tiny_values(data, folder / "run")), False, Console(file=io.StringIO())).train()
    return data, dict(load_checkpoint(folder / "run" / "best.pt").weights)


@pytest.mark.parametrize(
    ("what", "status", "says"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("leave_disc(20000)", 1, "error: cannot write `{folder}/"),
    ],
    ids=["kill", "full disc"],
)
def test_training_goes_on_to_the_same_numbers(what, status, says, uninterrupted, tmp_path):
    data, expected = uninterrupted
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tiny_values(data, tmp_path / "run")))
    process = run_python(TRAIN.format(when=4, what=what), config)
    assert process.returncode == status, process.stderr
    assert says.format(folder=tmp_path / "run") in process.stderr
    assert "Traceback" not in process.stderr
    assert not list((tmp_path / "run").glob(".*")), "nothing half-written remains"
    last = load_checkpoint(tmp_path / "run" / "last.pt")
    assert last.resume is not None
    assert last.resume["trainer"]["loop"]["step"] == 3
    Run(load_config(config), True, Console(file=io.StringIO())).train()
    found = load_checkpoint(tmp_path / "run" / "best.pt").weights
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_batch_that_does_not_fit_the_memory_is_explained(tmp_path):
    data = write_frames(tmp_path / "data.extxyz")
    values = tiny_values(data, tmp_path / "run")
    # Radial networks of this width need gigabytes.
    values["model"] |= {"radial_hidden": [200000]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    code = TRAIN.format(when=-1, what="pass").replace(
        "step, count",
        "run = hienet.train.run.Run.train\n"
        "hienet.train.run.Run.train = lambda self: (leave_memory(300), run(self))[1]\nstep, count",
        1,
    )
    process = run_python(code, tmp_path / "config.yaml")
    assert process.returncode == 1
    assert process.stderr.startswith("error: not enough memory for batches of ")
    assert "go on with --resume and a larger `training.accumulate`, or where there is more memory" in process.stderr
    assert "Traceback" not in process.stderr


# Deploying, predicting


def test_deploying_without_enough_memory_leaves_the_old_file(tmp_path):
    source = write_tiny_checkpoint(tmp_path / "wide.pt", invariant_channels=700)
    output = tmp_path / "wide.hienet.pt"
    output.write_text("old")
    code = """
from hienet.console import run_app
from hienet_deploy.cli import app
import hienet_deploy.export
leave_memory(30)
sys.argv = ["hienet-deploy", *sys.argv[1:]]
run_app(app)
"""
    process = run_python(code, source, "-o", output)
    assert process.returncode == 1
    assert process.stderr.startswith(f"error: not enough memory for deploying `{source}`; keep fewer elements")
    assert "Traceback" not in process.stderr
    assert output.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wide.hienet.pt", "wide.pt"]


def test_a_structure_that_does_not_fit_the_memory_is_explained_and_the_calculator_stays_usable(checkpoint_path):
    code = """
from hienet.calculator import HIENetCalculator
from hienet.testing import silicon_carbide
calculator = HIENetCalculator(sys.argv[1])
small, large = silicon_carbide(), silicon_carbide(10)
before = calculator.get_potential_energy(small)
leave_memory(100)
try:
    calculator.get_potential_energy(large)
except Exception as error:
    print(type(error).__name__, error)
small.positions += 0
assert calculator.get_potential_energy(small) == before
"""
    process = run_python(code, checkpoint_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("OutOfMemoryError not enough memory for ")
    assert "8000 atoms" in process.stdout
    assert (
        "use a smaller structure, `float32`, a compiled file (`hienet-deploy`), or LAMMPS on several ranks"
        in process.stdout
    )


def test_only_exhausted_memory_is_explained_as_such():
    with pytest.raises(RuntimeError, match="another reason"), memory_explained("it", "do that"):
        raise RuntimeError("another reason")
    for error in (
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ):
        with (
            pytest.raises(OutOfMemoryError, match="not enough memory for it; do that"),
            memory_explained("it", "do that"),
        ):
            raise error
    outer = memory_explained("all of it", "do this")
    with pytest.raises(OutOfMemoryError, match="for all of it; do this"), outer, memory_explained("it", "do that"):
        raise MemoryError


@pytest.mark.parametrize("distance", [0.0, 1e-9])
def test_atoms_on_top_of_each_other_are_named_by_the_calculator(distance, checkpoint_path):
    atoms = silicon_carbide()
    atoms.positions[4] = atoms.positions[2] + [distance, 0.0, 0.0]
    atoms.calc = HIENetCalculator(checkpoint_path)
    with pytest.raises(HIENetError, match=r"atoms [24] and [24] are .* Å apart; remove duplicate atoms"):
        atoms.get_forces()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_positions_that_are_not_numbers_are_refused_by_the_calculator(value, checkpoint_path):
    atoms = ase.Atoms("Si2", positions=[[0, 0, 0], [0, 0, 2.3]], calculator=HIENetCalculator(checkpoint_path))
    atoms.positions[1, 0] = value
    with pytest.raises(HIENetError, match=r"contain NaN or infinity; check the structure, or the time step"):
        atoms.get_forces()


@pytest.mark.parametrize("factor", [0.1, 1e-3])
def test_a_cell_that_no_atoms_fit_in_is_refused_at_once(factor, checkpoint_path):
    """Lengths in nm, and a collapsed cell: hundreds of thousands of neighbours, or more than any memory holds."""
    atoms = silicon_carbide()
    atoms.set_cell(factor * atoms.cell.array, scale_atoms=True)
    atoms.calc = HIENetCalculator(checkpoint_path)
    with pytest.raises(HIENetError, match=r"8 atom\(s\) in a cell of .* are more than 50 for each Å\^3; .*not in nm"):
        atoms.get_forces()


# The demo

DEMO = """
import sys, time
sys.path.insert(0, sys.argv[1])
import run
import signal
signal.signal(signal.SIGTERM, run.leave)
print("ready", flush=True)
run.command("python", "-c", sys.argv[2])
"""


def test_the_demo_ends_what_it_started_when_it_is_terminated(tmp_path):
    """`hienet train` saves its state on SIGTERM; here a program that says so stands in its place."""
    child = (
        "import signal, sys, time, pathlib; "
        f"signal.signal(signal.SIGTERM, lambda *a: (pathlib.Path({str(tmp_path / 'saved')!r}).touch(), sys.exit())); "
        f"pathlib.Path({str(tmp_path / 'began')!r}).touch(); time.sleep(60)"
    )
    demo = Path(__file__).resolve().parent.parent / "demo"
    process = subprocess.Popen([sys.executable, "-c", DEMO, str(demo), child], stderr=subprocess.PIPE, text=True)
    for _ in range(1200):
        if (tmp_path / "began").exists():
            break
        try:
            process.wait(0.05)
            break
        except subprocess.TimeoutExpired:
            continue
    process.terminate()
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "stopped; `make demo` goes on from here" in stderr
    assert (tmp_path / "saved").exists()


def test_freed_memory_is_kept_where_the_c_library_can(monkeypatch):
    """In a process of its own: it is for good."""
    code = (
        "import resource; from hienet.memory import keep_freed_memory; kept = keep_freed_memory(); import numpy\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "numpy.ones(10**7); before = faults(); numpy.ones(10**7); print(kept, faults() - before < 1000)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == (["True", "True"] if platform.libc_ver()[0] == "glibc" else ["False", "False"])
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()
