"""Making the next things in threads while the present one is worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

_THREADS = 2
_AHEAD = 4


def prefetched(
    jobs: Iterable[Job], make: Callable[[Job], Result], threads: int = _THREADS, ahead: int = _AHEAD
) -> Generator[Result, None, None]:
    """`make(job)` for each job, in their order, of which up to `ahead` are made before they are asked for.

    An exception of `make` is raised where its result is asked for. When the iterator is closed nothing more is begun.

    Args:
        jobs: may be an endless iterator; it is advanced in the caller's thread.
        make: called in other threads; 0 threads: in the caller's, when the result is asked for.
        threads: how many.
        ahead: how many results wait at most.
    """
    if threads == 0:
        yield from map(make, jobs)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="prefetch") as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(make, job))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
