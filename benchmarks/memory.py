"""Resident memory of this process, as Linux counts it. Needs only the standard library."""

from __future__ import annotations

import ctypes
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


def _status(key: str) -> float:
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024.0 * int(found[1])
