"""What a model file says of itself, `hienet info`, and what models there are, `hienet models`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hienet.checkpoint import load_checkpoint
from hienet.deployed import is_torchscript, read_metadata, symmetry_of_file
from hienet.elements import MPTRJ_ELEMENTS
from hienet.models.factory import ARCHITECTURES, build_model, make_config


def describe_file(path: str | Path) -> dict[str, Any]:
    """Plain values that describe a checkpoint or a deployed file.

    `parameters` are the trainable ones; `parameters_with_constants` adds scale and reference energy of each element and
    the mean number of neighbours.

    Raises:
        HIENetError: the file cannot be read.
    """
    return _describe_deployed(path) if is_torchscript(path) else _describe_checkpoint(path)


def _describe_checkpoint(path: str | Path) -> dict[str, Any]:
    checkpoint = load_checkpoint(path)
    model = build_model(checkpoint.architecture, checkpoint.config, seed=0)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    config = checkpoint.config
    return {
        "file": str(path),
        "kind": "state of a training run" if checkpoint.resume else "checkpoint",
        "architecture": checkpoint.architecture,
        "elements": list(config.elements),
        "cutoff": config.cutoff,
        "symmetry": config.symmetry,
        "dtype": _dtype_name(checkpoint.weights.values()),
        "parameters": parameters,
        "parameters_with_constants": parameters + 2 * len(config.elements) + 1,
        "stages": [stage.as_dict() for stage in model.stages()],  # type: ignore[operator]
        "hyperparameters": config.model_dump(mode="json"),
        "training": checkpoint.training,
        "notes": checkpoint.notes,
    }


def _dtype_name(tensors: Any) -> str:
    return ", ".join(
        sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors if tensor.is_floating_point()})
    )


def _describe_deployed(path: str | Path) -> dict[str, Any]:
    metadata = read_metadata(path)
    return {
        "file": str(path),
        "kind": "deployed model",
        "architecture": metadata["architecture"],
        "elements": metadata["elements"],
        "cutoff": metadata["cutoff"],
        "symmetry": symmetry_of_file(metadata),
        "dtype": metadata["dtype"],
        "parameters": metadata["n_parameters"],
        "parameters_with_constants": metadata["n_parameters"] + 2 * len(metadata["elements"]) + 1,
        **{
            key: metadata.get(key)
            for key in (
                "stages",
                "smooth_cutoff",
                "operators",
                "reference_energies",
                "package_version",
                "torch_version",
                "created",
                "content_hash",
                "license",
                "hyperparameters",
                "training",
                "verification",
            )
        },
    }


def describe_architectures() -> list[dict[str, Any]]:
    """Name, summary and presets of every architecture.

    `symmetry` is that of a preset's energy; `parameters` are its trainable ones with the 89 elements of MPtrj;
    `exchanged` are the numbers per atom that ranks send each other before each stage but the first; as many gradients
    travel back.
    """
    return [
        {
            "architecture": name,
            "summary": family.summary,
            "presets": [_describe_preset(name, preset) for preset in family.presets],
        }
        for name, family in ARCHITECTURES.items()
    ]


def _describe_preset(architecture: str, preset: str) -> dict[str, Any]:
    config = make_config(architecture, preset, {"elements": MPTRJ_ELEMENTS})
    model = build_model(architecture, config, seed=0)
    stages = model.stages()  # type: ignore[operator]
    return {
        "preset": preset,
        "symmetry": config.symmetry,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "n_elements": len(config.elements),
        "cutoff": config.cutoff,
        "exchanged": [stage.exchanged_width for stage in stages[1:]],
    }
