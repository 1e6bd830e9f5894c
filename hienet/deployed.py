"""Reading deployed files: TorchScript with a JSON description (docs/conventions.md, "The deployed file")."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import hienet
from hienet.archive import check_archive
from hienet.errors import HIENetError
from hienet.memory import is_out_of_memory
from hienet.models.factory import symmetry_of
from hienet.ops.library import compiled_devices, require_operators

FORMAT = "hienet-deployed"
FORMAT_VERSION = 4
"""The newest that is read. Files whose stages return edges are written as 4; of the others, compiled files, which must
be told the elements in use, as 3, and plain ones as 1."""
METADATA_NAME = "hienet.json"


class _Stage(BaseModel):
    name: str
    width: int = Field(ge=0)
    exchanged_width: int = Field(ge=0)


class _Description(BaseModel):
    """Of the metadata, what is used here and has to be of its type."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    format_version: int
    elements: list[str]
    cutoff: float = Field(gt=0)
    dtype: Literal["float32", "float64"]
    stages: list[_Stage]
    operators: list[str] = []


def is_torchscript(path: str | Path) -> bool:
    """Whether the file is a complete TorchScript archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/", 1)[-1] == "constants.pkl" for name in archive.namelist())
    # Numbers that make no sense lead zipfile to every kind of exception.
    except Exception:
        return False


def load_deployed(
    path: str | Path, device: str | torch.device = "cpu"
) -> tuple[torch.jit.ScriptModule, dict[str, Any]]:
    """The module and the metadata of a deployed file.

    Raises:
        HIENetError: no such file, truncated, not deployed by this package, of a newer format, or compiled for another
            device or with operators that are missing.
    """
    path = Path(path)
    if not path.is_file():
        raise HIENetError(f"there is no file `{path}`; check the path")
    metadata = read_metadata(path)
    operators = metadata.get("operators", [])
    if operators:
        require_operators(operators, path)
        kind = torch.device(device).type
        if kind not in compiled_devices():
            raise HIENetError(
                f"`{path}` calls compiled operators, which were built here without kernels for `{kind}`: run "
                "`hienet build` where torch is a CUDA build and `nvcc` is found, deploy with `hienet-deploy "
                "--no-compile`, or use the device `cpu`"
            )
    check_archive(path)
    try:
        module = torch.jit.load(path, map_location=device)
    # Torch's readers of code and of pickles may raise anything.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HIENetError(f"`{path}` cannot be read as a deployed model: {reason}; deploy it again") from error
    return module.eval(), metadata


def symmetry_of_file(metadata: Mapping[str, Any]) -> str:
    """O(3) or SO(3), of the energy of a deployed model; `unknown` where a file neither says nor allows to derive it.

    Files of before this key have the hyperparameters, from which it follows.
    """
    if metadata.get("symmetry") in ("O(3)", "SO(3)"):
        return str(metadata["symmetry"])
    try:
        return symmetry_of(metadata["architecture"], metadata["hyperparameters"])
    except (HIENetError, KeyError, TypeError, ValueError, AttributeError, ArithmeticError):
        return "unknown"


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata of a deployed file. Nothing of the module is loaded, which may need operators that are not there.

    Raises:
        HIENetError: truncated, not deployed by this package, or of a newer format.
    """
    metadata: Any = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.split("/", 1)[-1] == f"extra/{METADATA_NAME}":
                    metadata = json.loads(archive.read(name))
    except (json.JSONDecodeError, UnicodeDecodeError):
        metadata = {}
    # Numbers that make no sense lead zipfile to every kind of exception.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise HIENetError(f"`{path}` cannot be read as a deployed model: {error}; deploy it again") from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise HIENetError(
            f"`{path}` is TorchScript but was not written by hienet-deploy; deploy a checkpoint with `hienet-deploy`"
        )
    version = metadata.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise HIENetError(
            f"`{path}` has deployed format {version}, written by hienet "
            f"{metadata.get('package_version')}; this "
            f"hienet {hienet.__version__} reads up to format {FORMAT_VERSION}: upgrade hienet"
        )
    try:
        _Description.model_validate(metadata)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        problem = f"lacks `{key}`" if first["type"] == "missing" else f"says `{key}: {first['input']!s:.40}`"
        raise HIENetError(f"`{path}` is damaged: its description {problem}; deploy it again") from error
    return metadata
