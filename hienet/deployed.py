"""Reading deployed files: TorchScript with a JSON description (docs/conventions.md, "The deployed file")."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch

import hienet
from hienet.errors import HIENetError

FORMAT = "hienet-deployed"
FORMAT_VERSION = 1
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
        HIENetError: no such file, truncated, not deployed by this package, or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise HIENetError(f"there is no file `{path}`; check the path")
    extra = {METADATA_NAME: ""}
    try:
        module = torch.jit.load(path, map_location=device, _extra_files=extra)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise HIENetError(f"`{path}` cannot be read as a deployed model: {reason}; deploy it again") from error
    try:
        metadata = json.loads(extra[METADATA_NAME])
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
    return module.eval(), metadata
