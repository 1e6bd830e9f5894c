"""Several processes that train one model: who they are, how they were started, and what they tell each other.

`torchrun` says so in the environment, and so does SLURM's `srun`. Every process computes its share of the frames of a
step; gradients are added up, so that all have the same weights without sending any.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hienet.errors import HIENetError

Value = TypeVar("Value")

_TIMEOUT = timedelta(hours=2)
"""Longest time that processes wait for each other, as while the first one counts the neighbours of a large data set."""

_OTHER_LAUNCHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "MPI_LOCALNRANKS")
"""Variables in which launchers of MPI say how many processes they have started."""

_HOW_TO_START = (
    "start them with `torchrun --nproc-per-node N -m hienet train CONFIG.yaml`, or with SLURM's "
    "`srun hienet train CONFIG.yaml`, or start one process"
)


class OtherProcessError(HIENetError):
    """Another process has failed, and the first one says why."""


class BrokenConnectionError(HIENetError):
    """Other processes no longer answer."""


@dataclass(frozen=True)
class Launch:
    """How a process was started.

    Attributes:
        rank: its number, from 0.
        number: of all processes.
        local_rank: its number on this machine.
        address, port: where the first process waits for the others.
    """

    rank: int
    number: int
    local_rank: int
    address: str
    port: int


def find_launch(environment: Mapping[str, str]) -> Launch | None:
    """What the environment says of other processes; None if this is the only one.

    Raises:
        HIENetError: there are several, but they cannot find each other.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environment]
        if missing:
            raise HIENetError(f"`RANK` and `WORLD_SIZE` are set, but {' and '.join(missing)} not; {_HOW_TO_START}")
        return Launch(
            _number(environment, "RANK"),
            _number(environment, "WORLD_SIZE"),
            int(environment.get("LOCAL_RANK", 0)),
            environment["MASTER_ADDR"],
            _number(environment, "MASTER_PORT"),
        )
    # These are of a step that srun has started; a script of sbatch that starts nothing has only SLURM_NTASKS.
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return Launch(
            _number(environment, "SLURM_PROCID"),
            _number(environment, "SLURM_STEP_NUM_TASKS"),
            _number(environment, "SLURM_LOCALID"),
            environment.get("MASTER_ADDR")
            or first_host(environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]),
            int(environment.get("MASTER_PORT") or _port_of_job(environment)),
        )
    for name in _OTHER_LAUNCHERS:
        if environment.get(name, "1").isdigit() and int(environment.get(name, "1")) > 1:
            raise HIENetError(
                f"{environment[name]} processes were started (`{name}`), but nothing says how they find each other, so "
                f"that each would train a model of its own; {_HOW_TO_START}"
            )
    return None


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not value.isdigit():
        raise HIENetError(f"`{name}` is `{value}` in the environment, expected a number; {_HOW_TO_START}")
    return int(value)


def _port_of_job(environment: Mapping[str, str]) -> int:
    """The same on all machines, and another for every step of every job."""
    job, step = (environment.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return 20_000 + (int(job if job.isdigit() else 0) * 31 + int(step if step.isdigit() else 0)) % 20_000


def first_host(nodes: str) -> str:
    """The first of a list of SLURM's, such as `gpu[03-05,9],login1`."""
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^,]*))?", nodes)
    if match is None:
        raise HIENetError(f"`SLURM_STEP_NODELIST` is `{nodes}`, expected names of machines; set `MASTER_ADDR`")
    return "".join(part or "" for part in match.groups())


def unused_tasks(environment: Mapping[str, str]) -> int:
    """How many tasks a job of SLURM has, if this process is not a step of it and the others stay idle; else 0."""
    tasks = environment.get("SLURM_NTASKS", "1")
    alone = "SLURM_STEP_ID" not in environment and "RANK" not in environment
    return int(tasks) if alone and tasks.isdigit() and int(tasks) > 1 else 0


class Processes:
    """The processes of a training; without a group this one alone, for which everything here is free.

    Attributes:
        rank: number of this process, from 0; the first prints and writes.
        number: of all processes.
    """

    def __init__(self, rank: int = 0, number: int = 1) -> None:
        self.rank, self.number = rank, number

    @property
    def is_first(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.rank == 0

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes, by rank, for all of them."""
        if self.number == 1:
            return [value]
        values: list[Any] = [None] * self.number
        with _connection_explained():
            dist.all_gather_object(values, value)
        return values

    def agree(self, make: Callable[[], Value]) -> Value:
        """`make()` in every process; if it fails in one, all of them stop, and the first says why.

        Raises:
            HIENetError: in the first process, the sentence of the first that failed.
            OtherProcessError: in all others.
        """
        if self.number == 1:
            return make()
        result: list[Value] = []
        failure: str | None = None
        try:
            result.append(make())
        except HIENetError as error:
            failure = str(error)
        failures = [failed for failed in enumerate(self.gather(failure)) if failed[1] is not None]
        if not failures:
            return result[0]
        rank, sentence = failures[0]
        if not self.is_first:
            raise OtherProcessError(f"process {rank} has failed")
        where = "" if len(failures) == self.number else f"in process {rank} of {self.number}: "
        raise HIENetError(f"{where}{sentence}")

    def first_does(self, make: Callable[[], object]) -> None:
        """`make()` in the first process, for which the others wait.

        Raises:
            HIENetError, OtherProcessError: it failed, see `agree`.
        """
        self.agree(make if self.is_first else lambda: None)

    def require_equal(self, values: Mapping[str, str]) -> None:
        """Refuse processes that hold different things.

        Args:
            values: by what they are, in words.

        Raises:
            HIENetError: in the first process, with the machines; OtherProcessError in the others.
        """
        if self.number == 1:
            return
        everywhere = self.gather((socket.gethostname(), dict(values)))

        def compare() -> None:
            first_host_name, first = everywhere[0]
            for rank, (host, there) in enumerate(everywhere):
                for name, value in first.items():
                    if there.get(name) != value:
                        raise HIENetError(
                            f"{name} of process {rank} (on `{host}`) differ from those of process 0 (on "
                            f"`{first_host_name}`); give all of them the same files, in a folder that all machines see"
                        )

        self.agree(compare)

    def largest(self, *values: float) -> tuple[float, ...]:
        """The largest of each value over the processes."""
        if self.number == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        with _connection_explained():
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tuple(tensor.tolist())

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes; `values` is on the CPU."""
        if self.number == 1:
            return values
        with _connection_explained():
            dist.all_reduce(values)
        return values

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their sum over the processes, by one message of all of them.

        A parameter that has none in any process, as nothing depends on it, gets zeros.
        """
        if self.number == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in trained])
        with _connection_explained():
            dist.all_reduce(flat)
        for parameter, part in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
            parameter.grad = part.view_as(parameter)


ALONE = Processes()
"""No others."""


@contextmanager
def _connection_explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BrokenConnectionError(
            f"the connection to the other processes is broken ({reason}); one of them has ended, and its message says "
            "why; go on with --resume"
        ) from error


@contextmanager
def process_group(environment: Mapping[str, str] | None = None) -> Iterator[Processes]:
    """The processes that were started together with this one, connected: gloo between CPUs, NCCL between GPUs.

    Raises:
        HIENetError: they cannot find each other.
    """
    launch = find_launch(os.environ if environment is None else environment)
    if launch is None:
        yield ALONE
        return
    on_gpu = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        dist.init_process_group(
            backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            init_method=f"tcp://{launch.address}:{launch.port}",
            rank=launch.rank,
            world_size=launch.number,
            timeout=_TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        raise HIENetError(
            f"process {launch.rank} of {launch.number} cannot find the others at {launch.address}:{launch.port}: "
            f"{str(error).splitlines()[0]}; set `MASTER_ADDR` and `MASTER_PORT` to the first machine and a free port"
        ) from error
    try:
        yield Processes(launch.rank, launch.number)
    finally:
        dist.destroy_process_group()


def device_of_process(device: str, environment: Mapping[str, str] | None = None) -> str:
    """The GPU of this process: `cuda` is that of its number on its machine.

    Raises:
        HIENetError: one GPU was named for several processes, or there are fewer GPUs than processes.
    """
    launch = find_launch(os.environ if environment is None else environment)
    if launch is None or launch.number == 1 or not device.startswith("cuda"):
        return device
    if device != "cuda":
        raise HIENetError(
            f"`training.device` is `{device}`, one GPU for {launch.number} processes; give `cuda`, which takes one for "
            "each"
        )
    available = torch.cuda.device_count()
    if launch.local_rank >= available:
        raise HIENetError(
            f"process {launch.rank} is number {launch.local_rank} on its machine (from 0), which has {available} "
            "GPU(s); start as many processes on a machine as it has GPUs"
        )
    return f"cuda:{launch.local_rank}"
