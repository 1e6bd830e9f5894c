"""Libraries of the extra `properties`: imported where they are needed, and asked for in a sentence where they lack."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from hienet.errors import HIENetError


def require(module: str, purpose: str) -> Any:
    """A module of the extra `properties`.

    Args:
        module: its name.
        purpose: what it is needed for.

    Raises:
        HIENetError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise HIENetError(
            f"{purpose} needs the package `{package}`, which is not installed here; install it with "
            "`pip install 'hienet[properties]'`"
        ) from error
