"""Modes of torch that a caller may have switched, and on which results would depend: set aside, and put back."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

_AUTOCAST_DEVICES = ("cpu", "cuda")


@contextmanager
def own_torch_state() -> Iterator[None]:
    """Within, torch computes as in a fresh process; afterwards the caller's modes are as they were.

    Set aside are `no_grad` and `inference_mode`, autocast, a default device, and the permission to compute products of
    float32 numbers in fewer digits. What says how the same numbers are computed stays the caller's: threads,
    deterministic algorithms, anomaly detection. So does the default dtype, on which nothing in this package depends:
    all threads share it.

    Also a decorator, but not of generators, which run when somebody asks for their next value.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in _AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        # Asked by what it does: there are several ways to choose a default device.
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if _full_precision.is_needed():
            stack.enter_context(_full_precision.chosen())
        yield


class _FullPrecision:
    """All digits in products of float32 numbers.

    Torch has one setting for all threads: the first that comes chooses it, the last that leaves restores the caller's.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.n_within = 0
        self.before: list[str] = []
        candidates = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None))
        self.backends: list[Any] = [each for each in candidates if hasattr(each, "fp32_precision")]

    def is_needed(self) -> bool:
        """Whether the caller allows fewer digits, or another thread's choice must be kept up."""
        if self.backends:
            return self.n_within > 0 or any(each.fp32_precision in ("tf32", "bf16") for each in self.backends)
        return self.n_within > 0 or torch.get_float32_matmul_precision() != "highest"

    @contextmanager
    def chosen(self) -> Iterator[None]:
        with self.lock:
            if self.n_within == 0:
                self.before = self._read()
                self._write(["ieee"] * len(self.backends) or ["highest"])
            self.n_within += 1
        try:
            yield
        finally:
            with self.lock:
                self.n_within -= 1
                if self.n_within == 0:
                    self._write(self.before)

    def _read(self) -> list[str]:
        return [each.fp32_precision for each in self.backends] or [torch.get_float32_matmul_precision()]

    def _write(self, values: list[str]) -> None:
        for each, value in zip(self.backends, values, strict=False):
            each.fp32_precision = value
        # Torch up to 2.8 has one setting for all backends.
        if not self.backends:
            torch.set_float32_matmul_precision(values[0])


_full_precision = _FullPrecision()


@contextmanager
def number_of_threads(number: int | None) -> Iterator[None]:
    """Within, torch computes with so many threads; None leaves the number as it is."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        if number is not None:
            torch.set_num_threads(before)


def ordinary(tensor: Tensor) -> Tensor:
    """The tensor, or a copy if it was made in inference mode and can therefore not be differentiated with."""
    return tensor.clone() if tensor.is_inference() else tensor


_filters = threading.RLock()
"""Held while Python's filters of warnings, which all threads share, are not as the caller has them."""


@contextmanager
def torchscript() -> Iterator[None]:
    """Without torch's warnings that `torch.jit` is deprecated; all others are shown.

    Of any category: it differs between versions of torch.
    """
    with _filters, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`?torch\.jit\.\w+`? is deprecated")
        yield
