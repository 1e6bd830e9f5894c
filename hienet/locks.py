"""A lock for what threads share, which can be a part of objects that are pickled and copied."""

from __future__ import annotations

import threading
from types import TracebackType


class SharedLock:
    """As `threading.RLock`, but a pickle or a copy of it is a new lock that nobody holds."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[SharedLock], tuple[()]]:
        return type(self), ()
