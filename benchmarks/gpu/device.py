"""The device that is measured: waiting for it, its memory, and what it could reach. The CPU is one, so that all of this
runs anywhere."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from common import multiplication_rate, triad_bandwidth
from memory import peak_growth

PEAKS = {"H200": (67.0, 4.8)}
"""TFLOP/s in float32 without tensor cores and TB/s, as the manufacturer states them, by a part of the device's name."""


def synchronize(device: torch.device) -> None:
    """Wait until all work is done; on a CPU it is."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def waited_for(work: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The work, over when its results are there, as a step of dynamics is."""

    def whole() -> object:
        result = work()
        synchronize(device)
        return result

    return whole


def release_memory(device: torch.device) -> None:
    """Give back what nothing uses any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_memory(work: Callable[[], object], warm_up: Callable[[], object], device: torch.device) -> float:
    """Bytes by which `work` raises the memory in use, over model and graph: allocated on a GPU, resident on a CPU.

    `warm_up` is the same on a small system.
    """
    if device.type != "cuda":
        return peak_growth(work, warm_up)
    warm_up()
    synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    synchronize(device)
    return float(torch.cuda.max_memory_allocated(device) - before)


def device_memory_in_use(device: torch.device) -> int:
    """Bytes of a GPU that anybody uses; 0 for a CPU."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def peaks(device: torch.device, tflops: float | None, terabytes: float | None) -> tuple[float, float]:
    """TFLOP/s and TB/s: what was given, else what is known of a GPU, else what is measured on a CPU.

    Raises:
        SystemExit: nothing is known of this GPU.
    """
    if tflops is not None and terabytes is not None:
        return tflops, terabytes
    if device.type == "cpu":
        known = 1e-3 * multiplication_rate(), 1e-3 * triad_bandwidth()
    else:
        name = torch.cuda.get_device_name(device)
        found = [values for part, values in PEAKS.items() if part in name]
        if not found:
            raise SystemExit(f"the peaks of `{name}` are not known here: give --peak-tflops and --peak-bandwidth")
        known = found[0]
    return tflops or known[0], terabytes or known[1]


def describe_device(device: torch.device) -> dict[str, object]:
    """What it is, and what drives it."""
    if device.type != "cuda":
        return {"type": device.type}
    properties = torch.cuda.get_device_properties(device)
    return {
        "type": device.type,
        "name": properties.name,
        "memory_gb": properties.total_memory / 1e9,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "used_before_gb": device_memory_in_use(device) / 1e9,
    }
