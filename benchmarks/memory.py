"""Resident memory of this process and of ranks that it started, as Linux counts it. Only the standard library."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Callable
from pathlib import Path


def peak_growth(work: Callable[[], object], warm_up: Callable[[], object]) -> float:
    """Bytes by which the peak resident set of the process exceeds what it held before.

    `warm_up`, the same work on a small system, comes first: it loads libraries, starts threads, compiles and builds
    tables, none of which belongs to a step. What it left in the allocator is given back before the count begins.
    `work` then runs twice, and the higher peak counts.
    """
    warm_up()
    ctypes.CDLL(None).malloc_trim(0)
    # 5 resets the peak (VmHWM) to what is resident now; see proc(5).
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    work()
    work()
    return _status("VmHWM") - before


def resident_bytes_of_ranks() -> list[int]:
    """Resident memory of each rank of LAMMPS below this process."""
    sizes = []
    for process in ranks_below(os.getpid()):
        # It may end while it is looked at.
        with contextlib.suppress(OSError):
            sizes.append(int(_status("VmRSS", process)))
    return sizes


def ranks_below(ancestor: int) -> list[int]:
    """Processes below one that have loaded the pair style, in the order of their numbers."""
    ranks = []
    for process in sorted(_descendants(ancestor) - {ancestor}):
        with contextlib.suppress(OSError):
            if "hienetplugin" in Path(f"/proc/{process}/maps").read_text():
                ranks.append(process)
    return ranks


def _descendants(ancestor: int) -> set[int]:
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                # The name of the program, in parentheses, may contain anything.
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found, new = set(), {ancestor}
    while new:
        new = {process for process, parent in parents.items() if parent in new} - found
        found |= new
    return found


def _status(key: str, process: int | str = "self") -> float:
    found = re.search(rf"^{key}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    if found is None:
        raise ProcessLookupError(f"process {process} has no {key}: it has ended")
    return 1024.0 * int(found[1])
