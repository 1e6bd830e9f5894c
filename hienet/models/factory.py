"""From the name of an architecture to its configuration and its module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import Repr

import torch
from pydantic import ValidationError
from torch import nn

from hienet.errors import HIENetError
from hienet.models import botnet, eqvnet, geodite, hienet, inv_sevennet, invnet, nemp, sevennet
from hienet.models.config import ModelConfig, Symmetry
from hienet.nn.zbl import ZBLRepulsion
from hienet.torch_state import own_torch_state


@dataclass(frozen=True)
class Architecture:
    """One architecture of the package.

    Attributes:
        config: what defines a model of it, apart from the weights.
        module: called with the configuration, makes the untrained module, a `StagedModel`.
        presets: named values of the configuration; `small`, for a few elements on a laptop, is among them.
        summary: one line for a person.
    """

    config: type[ModelConfig]
    module: type[nn.Module]
    presets: Mapping[str, Mapping[str, object]]
    summary: str


_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 100, 100

ARCHITECTURES: dict[str, Architecture] = {
    "hienet": Architecture(
        hienet.HIENetConfig,
        hienet.HIENet,
        hienet.PRESETS,
        "invariant layers first, equivariant layers after",
    ),
    "invnet": Architecture(invnet.InvNetConfig, invnet.InvNet, invnet.PRESETS, "HIENet's invariant layers alone"),
    "eqvnet": Architecture(eqvnet.EqvNetConfig, eqvnet.EqvNet, eqvnet.PRESETS, "HIENet's equivariant layers alone"),
    "sevennet": Architecture(
        sevennet.SevenNetConfig,
        sevennet.SevenNet,
        sevennet.PRESETS,
        "equivariant layers of the NequIP family; reads SevenNet's potentials",
    ),
    "inv_sevennet": Architecture(
        inv_sevennet.InvSevNetConfig,
        inv_sevennet.InvSevNet,
        inv_sevennet.PRESETS,
        "an invariant layer in front of SevenNet",
    ),
    "nemp": Architecture(
        nemp.NEMPConfig,
        nemp.NEMP,
        nemp.PRESETS,
        "tensor products on atoms instead of edges; ranks exchange little",
    ),
    "geodite": Architecture(
        geodite.GeoditeConfig,
        geodite.Geodite,
        geodite.PRESETS,
        "attention without tensor products, with physical priors",
    ),
    "botnet": Architecture(
        botnet.BOTNetConfig,
        botnet.BOTNet,
        botnet.PRESETS,
        "linear updates and a readout at each layer; NequIP by its options",
    ),
}

DEFAULT_PRESET = "small"
"""Every architecture has it."""


def find_architecture(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        HIENetError: there is none.
    """
    if name not in ARCHITECTURES:
        raise HIENetError(f"unknown architecture `{name}`; expected one of: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def make_config(architecture: str, preset: str | None, values: Mapping[str, object]) -> ModelConfig:
    """A model's configuration: the preset's values (or the defaults), overridden by `values`.

    Raises:
        HIENetError: unknown architecture, preset or key, or a value that is not allowed; the message names the key.
    """
    family = find_architecture(architecture)
    if preset is not None and preset not in family.presets:
        raise HIENetError(
            f"unknown preset `{preset}` of `{architecture}`; expected one of: {', '.join(family.presets)}"
        )
    merged = {**(family.presets[preset] if preset else {}), **values}
    try:
        return family.config.model_validate(merged)
    except ValidationError as error:
        raise HIENetError(describe_validation_error(error, family.config, "model")) from error


def symmetry_of(architecture: str, hyperparameters: Mapping[str, object]) -> Symmetry:
    """O(3) or SO(3): of the energy of a model with these hyperparameters.

    Raises:
        HIENetError: they are not those of the architecture.
    """
    return make_config(architecture, None, hyperparameters).symmetry


@own_torch_state()
def build_model(architecture: str, config: ModelConfig, seed: int | None = None) -> nn.Module:
    """The untrained module, in float64 and in evaluation mode.

    Modules are built in float64 so that their constants (Wigner 3j symbols) are exact; convert with `.to(dtype)`
    afterwards.

    Args:
        architecture: its name.
        config: its configuration.
        seed: of the initial weights; None draws from torch's global generator.

    Raises:
        HIENetError: unknown architecture, or one without the repulsion that the configuration asks for.
    """
    family = find_architecture(architecture)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = family.module(config).eval()
    if config.zbl and not any(isinstance(part, ZBLRepulsion) for part in model.modules()):
        raise HIENetError(
            f"the architecture `{architecture}` has no ZBL repulsion; remove `zbl` from its configuration"
        )
    return model


def describe_validation_error(error: ValidationError, schema: type, where: str) -> str:
    """One sentence for the first mistake in a configuration: the key, what was given, what is allowed."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in (where, *first["loc"]) if part != "")
    if first["type"] == "extra_forbidden":
        parent = _schema_at(schema, first["loc"][:-1])
        allowed = (
            ", ".join(info.alias or name for name, info in parent.model_fields.items())
            if parent is not None
            else "see the documentation"
        )
        return f"unknown key `{key}`; allowed here: {allowed}"
    if first["type"] == "missing":
        return f"key `{key}` is missing: {first['msg'].lower()}"
    message = first["msg"].removeprefix("Value error, ")
    more = len(error.errors()) - 1
    given = "" if isinstance(first["input"], dict) else f" (given: `{shortened(first['input'])}`)"
    return f"key `{key}`: {message}{given}" + (f"; and {more} more mistakes" if more else "")


def shortened(value: object) -> str:
    """A value of the input for a message, however large it is; YAML can name a list many times over in few words."""
    return value if isinstance(value, str) and len(value) < 500 else _SHORT.repr(value)


def _schema_at(schema: type, location: tuple[int | str, ...]) -> type[ModelConfig] | None:
    for part in location:
        fields = {info.alias or name: info for name, info in getattr(schema, "model_fields", {}).items()}
        if part not in fields:
            return None
        schema = fields[part].annotation
    return schema if hasattr(schema, "model_fields") else None
