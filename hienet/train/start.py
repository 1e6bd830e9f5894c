"""Where fine-tuning begins: a checkpoint, what of it the configuration keeps, and which of its weights stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from hienet.checkpoint import Checkpoint, load_checkpoint
from hienet.config import ModelSection, TrainConfig
from hienet.deployed import is_torchscript
from hienet.errors import HIENetError
from hienet.models.factory import find_architecture, shortened

_MAY_DIFFER = ("elements", "dropout", "attention_dropout", "smooth_cutoff", "zbl", "zbl_outer")
"""Arguments of an architecture that change no weight's meaning, or (elements) whose change is known how to make."""


def load_start(path: str) -> Checkpoint:
    """The checkpoint of `training.from`.

    Raises:
        HIENetError: no such file, or not a checkpoint of this package.
    """
    try:
        if is_torchscript(path):
            raise HIENetError(
                f"`{path}` is a deployed model, which cannot be trained; give the checkpoint that it was made from"
            )
        return load_checkpoint(path)
    except HIENetError as error:
        raise HIENetError(f"`training.from`: {error}") from error


def started_from(config: TrainConfig, start: Checkpoint) -> TrainConfig:
    """The configuration with the model of the checkpoint, and what may be changed of that.

    Raises:
        HIENetError: the configuration describes another model.
    """
    section = config.model
    if "architecture" in section.model_fields_set and section.architecture != start.architecture:
        raise HIENetError(
            f"`model.architecture` is `{section.architecture}`, but `training.from` holds a model of `"
            f"{start.architecture}`; remove the key, or give another checkpoint"
        )
    if "preset" in section.model_fields_set and section.preset is not None:
        raise HIENetError(
            f"`model.preset` is `{section.preset}`, but with `training.from` the checkpoint decides on the model; "
            "remove the key"
        )
    allowed = find_architecture(start.architecture).config.model_fields
    theirs = start.config.model_dump(mode="json")
    kept: dict[str, Any] = {}
    for name, value in section.arguments.items():
        if name not in allowed:
            raise HIENetError(f"unknown key `model.{name}`; allowed here: {', '.join(allowed)}")
        given = list(value) if isinstance(value, tuple) else value
        if name in _MAY_DIFFER:
            kept[name] = value
        elif given != theirs[name]:
            raise HIENetError(
                f"`model.{name}` is `{shortened(value)}`, but that of the checkpoint `{config.training.start}` is "
                f"`{shortened(theirs[name])}`; remove the key: only "
                f"{', '.join(f'`{key}`' for key in _MAY_DIFFER if key in allowed)} may differ"
            )
    model = ModelSection.model_validate({"architecture": start.architecture, "preset": None, **kept})
    return config.model_copy(update={"model": model})


def freeze(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Let the parts of a model with these names stay as they are; the names of the weights that do.

    A name is that of a weight, or of a module with all that is in it (`layers.0`).

    Raises:
        HIENetError: there is no such part, or nothing is left to be trained.
    """
    weights = dict(model.named_parameters())
    frozen: set[str] = set()
    for name in names:
        found = {weight for weight in weights if weight == name or weight.startswith(f"{name}.")}
        if not found:
            raise HIENetError(
                f"`training.freeze` names `{name}`, but the model has no such part with weights; its parts are "
                f"{', '.join(parts_of(model))}, and what is in them"
            )
        frozen |= found
    if len(frozen) == len(weights):
        raise HIENetError("`training.freeze` names all parts of the model, so that nothing is left to be trained")
    for weight in frozen:
        weights[weight].requires_grad_(False)
    return sorted(frozen)


def parts_of(model: nn.Module) -> list[str]:
    """Names of the largest parts that have weights, members of lists each by itself."""
    parts: list[str] = []
    for name, child in model.named_children():
        inner = [f"{name}.{i}" for i in range(len(child))] if isinstance(child, nn.ModuleList) else [name]
        parts += [part for part in inner if any(True for _ in model.get_submodule(part).parameters())]
    return parts
