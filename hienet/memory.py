"""Memory: exhausted, as one sentence with a remedy, whoever asked for it; and kept. Needs only the standard library."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from hienet.errors import HIENetError

_SIGNS = ("allocate memory", "out of memory", "bad_alloc", "STATUS_ALLOC_FAILED")
"""In messages of torch: its allocators, of the host and of GPUs, what the interpreter of TorchScript makes of an
exception in C++, and CUDA's libraries."""


class OutOfMemoryError(HIENetError):
    """There is not enough memory for what was asked."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, of Python or of torch, means that memory is exhausted."""
    return isinstance(error, (MemoryError, OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
    )


@contextmanager
def memory_explained(what: str, remedy: str) -> Iterator[None]:
    """Where memory is exhausted within, say for `what` it was needed and the `remedy`; the outermost one is heard.

    Raises:
        OutOfMemoryError: in place of Python's MemoryError and of torch's RuntimeErrors.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OutOfMemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"not enough memory for {what}; {remedy}") from error


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed until the process ends; False where it does not take such wishes.

    The steps of a training free and allocate the same large blocks again and again. glibc gives them back to the
    system, which then clears their pages anew at every step: a sixth of the time of a training, against two per cent
    more memory.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD; 1 means that a wish was taken.
    wishes = {-1: 2**31 - 1, -2: 2**26, -3: 2**31 - 1}
    return all(mallopt(parameter, value) == 1 for parameter, value in wishes.items())
