"""The library of compiled operators: found beside the LAMMPS plugin, loaded once."""

from __future__ import annotations

import json

import torch

from hienet.errors import HIENetError
from hienet.plugin import OPERATORS_NAME, STAMP_NAME, installed_version, plugin_directory


def load_operators() -> None:
    """Make `torch.ops.hienet.*` known to torch; does nothing the second time.

    Raises:
        HIENetError: the library is not compiled, or for another version of torch.
    """
    if _is_loaded():
        return
    folder = plugin_directory()
    path = folder / OPERATORS_NAME
    if not path.is_file():
        raise HIENetError(f"the compiled operators are missing (there is no {path}); run `hienet build`")
    try:
        compiled_for = json.loads((folder / STAMP_NAME).read_text()).get("torch")
    except (OSError, ValueError):
        compiled_for = None
    installed = installed_version("torch")
    if compiled_for != installed:
        raise HIENetError(
            f"the compiled operators in {folder} are for torch {compiled_for}, but {installed} is installed; "
            "run `hienet build`"
        )
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise HIENetError(f"the compiled operators cannot be loaded ({error}); run `hienet build`") from error


def require_operators(names: list[str], path: object) -> None:
    """Load the library for the file `path`, which needs these operators (`hienet::name`).

    Raises:
        HIENetError: the library is missing, or lacks an operator.
    """
    load_operators()
    missing = [name for name in names if not _has_operator(name)]
    if missing:
        raise HIENetError(
            f"`{path}` needs the operators {', '.join(missing)}, which this hienet does not have: upgrade hienet and "
            "run `hienet build`"
        )


def load_training_operators() -> None:
    """Load the library for training steps.

    Raises:
        HIENetError: it is missing, or was compiled from sources that had no such operators.
    """
    load_operators()
    needed = ("edge_geometry_tangents", "forces_and_stress", "network_panels", "table_places", "training_interaction")
    if not all(_has_operator(f"hienet::{name}") for name in needed):
        raise HIENetError("the compiled operators are older than this hienet; run `hienet build`")


def compiled_devices() -> list[str]:
    """The kinds of devices for which the loaded library has kernels: `cpu`, and `cuda` where it was built with them."""
    return list(torch.ops.hienet.devices())


def _is_loaded() -> bool:
    return _has_operator("hienet::interaction")


def _has_operator(name: str) -> bool:
    namespace, _, operator = name.partition("::")
    return hasattr(getattr(torch.ops, namespace), operator)
