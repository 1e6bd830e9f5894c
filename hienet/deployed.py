"""Reading deployed files: TorchScript with a JSON description (docs/conventions.md, "The deployed file")."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

import hienet
from hienet.archive import check_archive
from hienet.errors import HIENetError
from hienet.memory import is_out_of_memory
from hienet.models.factory import symmetry_of
from hienet.ops.library import compiled_devices, require_operators
from hienet.torch_state import torchscript

FORMAT = "hienet-deployed"
FORMAT_VERSION = 4
"""The newest that is read. Files whose stages return edges are written as 4; of the others, compiled files, which must
be told the elements in use, as 3, and plain ones as 1."""
METADATA_NAME = "hienet.json"


class _Stage(BaseModel):
    model_config = ConfigDict(strict=True)

    name: str
    width: int = Field(ge=0)
    exchanged_width: int = Field(ge=0)
    edge_width: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _exchanges_what_it_has(self) -> _Stage:
        if self.exchanged_width > self.width:
            raise ValueError(f"the stage `{self.name}` exchanges more columns than its state has")
        return self


class _Hyperparameters(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    elements: list[str]
    scale: list[float]
    shift: list[float]

    @model_validator(mode="after")
    def _one_for_each_element(self) -> _Hyperparameters:
        if not len(self.elements) == len(self.scale) == len(self.shift):
            raise ValueError("`scale` and `shift` must have one number for each element")
        return self


class _Description(BaseModel):
    """Of the metadata, what is used here or by the pair style, and has to be of its type."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    format_version: int
    architecture: str
    elements: list[str]
    cutoff: float = Field(gt=0)
    dtype: Literal["float32", "float64"]
    n_parameters: int = Field(ge=0)
    edge_width: int = Field(ge=0)
    stages: list[_Stage] = Field(min_length=1)
    operators: list[str] = []
    hyperparameters: _Hyperparameters | None = None
    training: dict[str, Any] | None = None
    verification: list[dict[str, str | int | float | bool | None]] | None = None

    @model_validator(mode="after")
    def _edges_evolve_in_all_stages_or_none(self) -> _Description:
        if len({"edge_width" in stage.model_fields_set for stage in self.stages}) > 1:
            raise ValueError("some stages have `edge_width`, and some have not")
        return self


def is_torchscript(path: str | Path) -> bool:
    """Whether the file is a complete TorchScript archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/", 1)[-1] == "constants.pkl" for name in archive.namelist())
    # Numbers that make no sense lead zipfile to every kind of exception.
    except Exception:
        return False


def read_deployed(path: str | Path) -> bytes:
    """The contents of a deployed file.

    Raises:
        HIENetError: no such file, or it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise HIENetError(f"there is no file `{path}`; check the path")
    try:
        return path.read_bytes()
    except OSError as error:
        raise HIENetError(f"cannot read `{path}`: {error.strerror}; check the permissions") from error


def load_deployed(
    path: str | Path, device: str | torch.device = "cpu", contents: bytes | None = None
) -> tuple[torch.jit.ScriptModule, dict[str, Any]]:
    """The module and the metadata of a deployed file.

    Args:
        path: the file.
        device: of the module.
        contents: of the file; None reads them. Otherwise `path` only says in messages where they are from.

    Raises:
        HIENetError: no such file, truncated, not deployed by this package, of a newer format, or compiled for another
            device or with operators that are missing.
    """
    if contents is None:
        contents = read_deployed(path)
    metadata = read_metadata(path, contents)
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
    check_archive(path, contents)
    try:
        with torchscript():
            module = torch.jit.load(io.BytesIO(contents), map_location=device)
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


def read_metadata(path: str | Path, contents: bytes | None = None) -> dict[str, Any]:
    """The metadata of a deployed file. Nothing of the module is loaded, which may need operators that are not there.

    Args:
        path: the file.
        contents: of the file; None reads as much as is needed.

    Raises:
        HIENetError: truncated, not deployed by this package, or of a newer format.
    """
    metadata: Any = {}
    try:
        with zipfile.ZipFile(path if contents is None else io.BytesIO(contents)) as archive:
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
        problem = f"says `{key}: {first['input']!s:.40}`"
        if first["type"] == "missing":
            problem = f"lacks `{key}`"
        elif first["type"] == "value_error":
            problem = f"contradicts itself ({first['msg'].removeprefix('Value error, ')})"
        raise HIENetError(f"`{path}` is damaged: its description {problem}; deploy it again") from error
    return metadata
