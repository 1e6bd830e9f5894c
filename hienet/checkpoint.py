"""Checkpoints: architecture, hyperparameters and weights in a torch archive that loads without executing code."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hienet
from hienet.archive import check_archive
from hienet.errors import HIENetError
from hienet.files import atomic_path
from hienet.memory import is_out_of_memory
from hienet.models.config import ModelConfig
from hienet.models.factory import build_model, make_config
from hienet.torch_state import own_torch_state

FORMAT = "hienet-checkpoint"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A model at rest.

    Attributes:
        architecture: name of the architecture.
        config: its hyperparameters.
        weights: state of the module, by name.
        training: summary of training set and errors, plain values only; None for an untrained model.
        resume: what the training loop needs to go on exactly where it stopped; None in a finished model.
        notes: free text: source, licence, warnings.
    """

    architecture: str
    config: ModelConfig
    weights: Mapping[str, Tensor]
    training: dict[str, Any] | None = None
    resume: dict[str, Any] | None = None
    notes: dict[str, str] = field(default_factory=dict)

    @own_torch_state()
    def build(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """The module with these weights, on the CPU, in evaluation mode.

        Raises:
            HIENetError: the weights are not those of the architecture.
        """
        # A seed, so that weights that are replaced at once take none of the caller's random numbers.
        model = build_model(self.architecture, self.config, seed=0)
        expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
        found = {name: tensor.shape for name, tensor in self.weights.items()}
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if wrong:
            raise HIENetError(
                f"the file is damaged: {len(wrong)} of its weights do not fit the model that it describes, "
                f"`{wrong[0]}` among them; write it anew"
            )
        model.load_state_dict(self.weights)
        return model.to(dtype).eval()


@own_torch_state()
def save_checkpoint(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write a checkpoint; an existing file is replaced only by a complete one."""
    contents = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "package_version": hienet.__version__,
        "architecture": checkpoint.architecture,
        "hyperparameters": checkpoint.config.model_dump(mode="json"),
        "weights": {name: tensor.detach().cpu().clone() for name, tensor in checkpoint.weights.items()},
        "training": checkpoint.training,
        "resume": checkpoint.resume,
        "notes": checkpoint.notes,
    }
    # By way of memory: torch's archive writer aborts the process when the disc is full.
    archive = io.BytesIO()
    torch.save(contents, archive)
    with atomic_path(path) as temporary:
        temporary.write_bytes(archive.getbuffer())


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        HIENetError: no such file, truncated, not a checkpoint of this package, or of a newer format.
    """
    contents = read_archive(path)
    if contents.get("format") != FORMAT:
        hint = (
            "; it looks like a file of the authors' or of SevenNet: run `hienet convert` on it first"
            if "model_state_dict" in contents
            else ""
        )
        raise HIENetError(
            f"`{path}` is a torch file but not a hienet checkpoint{hint or '; give a file that hienet wrote'}"
        )
    version = contents.get("format_version")
    if not isinstance(version, int):
        raise HIENetError(f"`{path}` is damaged: its format version is {version!r}; write it anew")
    if version > FORMAT_VERSION:
        raise HIENetError(
            f"`{path}` has checkpoint format {version}, written by hienet "
            f"{contents.get('package_version')}; this hienet "
            f"{hienet.__version__} reads up to format {FORMAT_VERSION}: upgrade hienet"
        )
    try:
        _check_types(contents)
        config = make_config(contents["architecture"], None, contents["hyperparameters"])
        return Checkpoint(
            architecture=contents["architecture"],
            config=config,
            weights=contents["weights"],
            training=contents["training"],
            resume=contents["resume"],
            notes=contents["notes"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise HIENetError(f"`{path}` is damaged: {error} is missing or of a wrong type; write it anew") from error
    except HIENetError as error:
        raise HIENetError(f"`{path}`: {error}") from error


_TYPES: dict[str, tuple[type, ...]] = {
    "architecture": (str,),
    "hyperparameters": (dict,),
    "weights": (dict,),
    "training": (dict, type(None)),
    "resume": (dict, type(None)),
    "notes": (dict,),
}


def _check_types(contents: Mapping[str, Any]) -> None:
    for key, types in _TYPES.items():
        if not isinstance(contents[key], types):
            raise HIENetError(f"the file is damaged: its `{key}` is a {type(contents[key]).__name__}; write it anew")
    for name, tensor in contents["weights"].items():
        if not (isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout == torch.strided):
            raise HIENetError(f"the file is damaged: its weight `{name}` is not a dense tensor; write it anew")


@own_torch_state()
def read_archive(path: str | Path) -> dict[str, Any]:
    """The dictionary in a torch archive, on the CPU, loaded without executing code.

    Raises:
        HIENetError: no such file, truncated, or not a torch archive of plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise HIENetError(f"there is no file `{path}`; check the path")
    if path.stat().st_size == 0 or not zipfile.is_zipfile(path):
        if path.read_bytes()[:2] == b"PK":
            raise HIENetError(f"`{path}` is truncated or damaged; copy it again, or write it anew")
        raise HIENetError(f"`{path}` is not a model file; give a checkpoint (.pt) or a deployed model (.hienet.pt)")
    check_archive(path)
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    # What torch's restricted unpickler does with nonsense is not documented; it may raise anything.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HIENetError(
            f"`{path}` cannot be read as a checkpoint: {reason}; copy it again, or write it anew"
        ) from error
    if not isinstance(contents, dict):
        raise HIENetError(f"`{path}` is a torch file but not a checkpoint; give a file that hienet wrote")
    return contents
