"""Reading deployed files: TorchScript with a JSON description (docs/conventions.md, "The deployed file")."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch

import hienet
from hienet.errors import HIENetError
from hienet.ops.library import require_operators

FORMAT = "hienet-deployed"
FORMAT_VERSION = 4
"""The newest that is read. Files whose stages return edges are written as 4; of the others, compiled files, which must
be told the elements in use, as 3, and plain ones as 1."""
METADATA_NAME = "hienet.json"


def is_torchscript(path: str | Path) -> bool:
    """Whether the file is a complete TorchScript archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/", 1)[-1] == "constants.pkl" for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
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
        if torch.device(device).type != "cpu":
            raise HIENetError(
                f"`{path}` was compiled for the CPU and cannot run on `{device}`; use the device `cpu`, or deploy for "
                "GPUs with `hienet-deploy --no-compile`"
            )
        require_operators(operators, path)
    try:
        module = torch.jit.load(path, map_location=device)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise HIENetError(f"`{path}` cannot be read as a deployed model: {reason}; deploy it again") from error
    return module.eval(), metadata


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
    except (OSError, zipfile.BadZipFile) as error:
        raise HIENetError(f"`{path}` cannot be read as a deployed model: {error}; deploy it again") from error
    except (json.JSONDecodeError, UnicodeDecodeError):
        metadata = {}
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise HIENetError(
            f"`{path}` is TorchScript but was not written by hienet-deploy; deploy a checkpoint with `hienet-deploy`"
        )
    missing = [key for key in ("format_version", "elements", "cutoff", "dtype", "stages") if key not in metadata]
    if missing:
        raise HIENetError(f"`{path}` is damaged: its description lacks `{missing[0]}`; deploy it again")
    if metadata["format_version"] > FORMAT_VERSION:
        raise HIENetError(
            f"`{path}` has deployed format {metadata['format_version']}, written by hienet "
            f"{metadata.get('package_version')}; this "
            f"hienet {hienet.__version__} reads up to format {FORMAT_VERSION}: upgrade hienet"
        )
    return metadata
