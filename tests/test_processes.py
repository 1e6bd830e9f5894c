"""Several processes train the model that one process trains, stop together, and say once what is wrong."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ase.calculators.singlepoint import SinglePointCalculator
from labelled_frames import emt_frames, tiny_values, write_frames
from rich.console import Console

from hienet.checkpoint import load_checkpoint
from hienet.config import parse_config
from hienet.errors import HIENetError
from hienet.processes import Launch, device_of_process, find_launch, first_host, unused_tasks
from hienet.train.run import Run

TIMEOUT = 120
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def configuration(folder: Path, **training: Any) -> Path:
    """Without dropout, so that random numbers do not matter."""
    data = folder / "data.extxyz"
    if not data.exists():
        frames = emt_frames(11)
        del frames[3].calc.results["stress"]
        frames[4] = frames[4] * (2, 1, 1)
        frames[4].calc = SinglePointCalculator(frames[4], energy=1.0)
        write_frames(data, frames)
    values = tiny_values(data, folder / "run", **{"dtype": "float64", "batch_size": 4, **training})
    values["model"] |= {"dropout": 0.0, "attention_dropout": 0.0}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def environment_of(rank: int, number: int, port: int, slurm: bool) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name not in LAUNCHERS and not name.startswith("SLURM")}
    own |= {"OMP_NUM_THREADS": "1"}
    if number == 1:
        return own
    if slurm:
        return own | {
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank),
            "SLURM_STEP_NUM_TASKS": str(number),
            "SLURM_STEP_NODELIST": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number)}
    return own | ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


class Training:
    """`hienet train` in so many processes."""

    def __init__(self, folders: list[Path], *options: str, slurm: bool = False) -> None:
        port = free_port()
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "hienet", "train", "config.yaml", *options],
                cwd=folder,
                env=environment_of(rank, len(folders), port, slurm),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, folder in enumerate(folders)
        ]

    def end(self) -> list[tuple[int, str, str]]:
        """Exit status and both outputs of each."""
        try:
            found = [process.communicate(timeout=TIMEOUT) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [(process.returncode, *out) for process, out in zip(self.processes, found, strict=True)]


def history(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]


def assert_same_curves(one: Path, other: Path) -> None:
    rows, expected = history(one), history(other)
    assert len(rows) == len(expected)
    for row, reference in zip(rows, expected, strict=True):
        for name, value in reference.items():
            if name != "seconds":
                assert row[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


def run_alone(folder: Path, **training: Any) -> Path:
    """One process, this one."""
    folder.mkdir()
    values = yaml.safe_load(configuration(folder, **training).read_text())
    Run(parse_config(values), False, Console(file=io.StringIO())).train()
    return folder


def assert_finished(results: list[tuple[int, str, str]]) -> None:
    """The first process says where the model is, the others nothing."""
    for rank, (status, out, error) in enumerate(results):
        assert status == 0, error
        assert ("best.pt" in out) == (rank == 0)
        assert rank == 0 or (out, error) == ("", "")


@pytest.mark.parametrize(
    "training",
    [{"gradient_clip": 0.1, "reflect": True}, {"batch_edges": 700, "accumulate": 2}],
    ids=["frames", "edges"],
)
def test_two_processes_have_the_loss_curve_of_one(tmp_path: Path, training: dict[str, Any]) -> None:
    """Of frames with different labels and sizes; also with parts one after the other, and if SLURM starts them."""
    # Whether fused steps read radial networks from tables depends on the edges of a part.
    one = run_alone(tmp_path / "one", **{**training, "accumulate": 1, "engine": "plain"})
    two = tmp_path / "two"
    two.mkdir()
    configuration(two, **training, engine="plain")
    assert_finished(Training([two] * 2, slurm="accumulate" in training).end())
    assert_same_curves(two, one)
    errors = [json.loads((folder / "run" / "results.json").read_text())["errors"] for folder in (one, two)]
    for name, found in errors[0].items():
        assert errors[1][name] == pytest.approx(found, rel=1e-7), name
    log = (two / "run" / "train.log").read_text()
    assert f"2 process(es), {training.get('accumulate', 1)} part(s) each" in log


@pytest.mark.slow
def test_sigterm_to_one_of_two_stops_both_and_the_run_goes_on_exactly(tmp_path: Path) -> None:
    """Dropout included, whose random numbers differ between the processes; on another number it says what changes."""
    whole, stopped = folders = [tmp_path / name for name in ("whole", "stopped")]
    for folder in folders:
        folder.mkdir()
        path = configuration(folder, epochs=30, batch_size=2)
        path.write_text(path.read_text().replace("dropout: 0.0", "dropout: 0.1"))
    training = Training([stopped] * 2)
    log = stopped / "run" / "log.jsonl"
    begin = time.monotonic()
    while time.monotonic() - begin < TIMEOUT and not (log.exists() and log.read_text()):
        time.sleep(0.01)
    training.processes[1].send_signal(signal.SIGTERM)
    first, second = training.end()
    assert (first[0], second[0]) == (130, 130), (first, second)
    assert re.search(r"stopped by SIGTERM in epoch \d+; go on with: hienet train config.yaml --resume", first[2])
    assert second[1:] == ("", "")
    state = load_checkpoint(stopped / "run" / "last.pt").resume
    assert state is not None
    assert 0 < state["trainer"]["loop"]["step"] < 150
    shutil.copytree(stopped, tmp_path / "alone")

    assert_finished(Training([stopped] * 2, "--resume").end())
    assert_finished(Training([whole] * 2).end())
    weights = [load_checkpoint(folder / "run" / "last.pt").weights for folder in folders]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    ((status, out, _),) = Training([tmp_path / "alone"], "--resume").end()
    assert status == 0
    assert "1 process(es) in place of 2: steps consist of the same frames" in out


def test_processes_with_other_files_are_refused(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("here", "there")]
    for folder in folders:
        folder.mkdir()
        configuration(folder)
    other = emt_frames(11, seed=5)
    write_frames(folders[1] / "data.extxyz", other)
    for folder in folders:
        text = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(re.sub(r"train: .*", "train: data.extxyz", text))
    first, second = Training(folders).end()
    assert (first[0], second[0]) == (1, 1)
    assert re.search(r"error: the data of process 1 \(on `\S+`\) differ from those of process 0", first[2])
    assert second[1:] == ("", "")
    assert not (folders[0] / "run" / "last.pt").exists()


TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
SRUN = {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[03-04],login",
    "SLURM_JOB_ID": "7",
}


def test_torchrun_and_srun_are_understood() -> None:
    assert find_launch({}) is None
    assert find_launch({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None
    assert unused_tasks({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) == 4
    assert find_launch(TORCHRUN) == Launch(3, 4, 1, "a", 1)
    assert find_launch(SRUN) == Launch(5, 8, 1, "gpu03", 20_217)
    assert find_launch(SRUN | TORCHRUN) == Launch(3, 4, 1, "a", 1)
    assert [first_host(nodes) for nodes in ("n1", "n1,n2", "a[7,9-12]-ib,b")] == ["n1", "n1", "a7-ib"]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"OMPI_COMM_WORLD_SIZE": "2"},
            r"2 processes were started \(`OMPI_COMM_WORLD_SIZE`\).*start them with `torchrun",
        ),
        ({"PMI_SIZE": "3"}, r"each would train a model of its own; start them with"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, r"are set, but MASTER_ADDR and MASTER_PORT not"),
        (SRUN | {"SLURM_PROCID": "x"}, r"`SLURM_PROCID` is `x` in the environment, expected a number"),
    ],
)
def test_processes_that_cannot_find_each_other_are_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(HIENetError, match=message):
        find_launch(environment)


def test_every_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of_process("cuda", TORCHRUN) == "cuda:1"
    assert device_of_process("cuda:1", {}) == "cuda:1"
    with pytest.raises(HIENetError, match=r"`training.device` is `cuda:0`, one GPU for 4 processes; give `cuda`"):
        device_of_process("cuda:0", TORCHRUN)
    with pytest.raises(HIENetError, match=r"process 3 is number 2 on its machine \(from 0\), which has 2 GPU\(s\)"):
        device_of_process("cuda", TORCHRUN | {"LOCAL_RANK": "2"})
