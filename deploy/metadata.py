"""The JSON description inside a deployed file (docs/conventions.md, "The deployed file")."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import torch
from torch import Tensor, nn

import hienet
from hienet.checkpoint import Checkpoint
from hienet.deployed import FORMAT
from hienet.models.staged import Stage


def describe(checkpoint: Checkpoint, model: nn.Module, dtype: str) -> dict[str, Any]:
    """What a reader needs to know of `model`, in plain torch; `verification` is filled in when the file was checked."""
    config = checkpoint.config
    return {
        "format": FORMAT,
        "package_version": hienet.__version__,
        "torch_version": torch.__version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "architecture": checkpoint.architecture,
        "hyperparameters": config.model_dump(mode="json"),
        "elements": list(config.elements),
        "cutoff": config.cutoff,
        "dtype": dtype,
        "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "operators": [],
        "tables": None,
        "units": {"length": "angstrom", "energy": "eV"},
        "reference_energies": dict(zip(config.elements, config.shift, strict=True)),
        "smooth_cutoff": getattr(config, "smooth_cutoff", True),
        "symmetry": config.symmetry,
        "training": checkpoint.training,
        "verification": None,
        "content_hash": content_hash(checkpoint.weights),
        "license": checkpoint.notes.get("license"),
    }


def describe_stages(model: nn.Module, dtype: torch.dtype, compiled: bool) -> dict[str, Any]:
    """Widths of edge features and states, and the version of the format, of the model as it is written."""
    edge_width = model.embed_edges(torch.ones(1, 3, dtype=dtype)).shape[1]  # type: ignore[operator]
    stages: list[Stage] = model.stages()  # type: ignore[operator]
    edges_evolve = any(stage.edge_width is not None for stage in stages)
    return {
        "format_version": 4 if edges_evolve else 3 if compiled else 1,
        "edge_width": edge_width,
        "stages": [stage.as_dict() for stage in stages],
    }


def content_hash(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of all weights in float64, by name: the same for every dtype and device that holds the same numbers."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().double().contiguous().numpy().tobytes())
    return digest.hexdigest()
