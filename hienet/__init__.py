"""HIENet: a hybrid invariant-equivariant machine-learned interatomic potential, for LAMMPS and ASE."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hienet.calculator import HIENetCalculator, load_model
    from hienet.errors import HIENetError

__version__ = "0.2.0"
__all__ = ["HIENetCalculator", "HIENetError", "__version__", "load_model"]

_HOMES = {
    "HIENetCalculator": "hienet.calculator",
    "HIENetError": "hienet.errors",
    "load_model": "hienet.calculator",
}


def __getattr__(name: str) -> Any:
    """What `__all__` names, imported when it is first asked for: torch takes long, and `hienet --help` needs none."""
    if name not in _HOMES:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    return getattr(importlib.import_module(_HOMES[name]), name)
