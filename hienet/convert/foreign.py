"""The format of checkpoints that the HIENet authors and SevenNet share, and what their translations have in common."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from e3nn import o3
from torch import Tensor, nn

from hienet.checkpoint import read_archive
from hienet.errors import HIENetError
from hienet.nn.convolution import CouplingPath
from hienet.nn.equivariant import EquivariantLayer
from hienet.nn.radial import RadialNetwork


def read_foreign(path: str | Path) -> dict[str, Any]:
    """`model_state_dict` and `config` of a file in the format that both programs share, loaded without executing code.

    Raises:
        HIENetError: not such a file.
    """
    numbers = [type(np.dtype(name)) for name in ("bool", "int32", "int64", "float32", "float64")]
    # SevenNet's configurations hold arrays, which name these, some of them under the module that numpy 1 had.
    plain: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [codecs.encode, np.ndarray, np.dtype, *numbers]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        plain += [(_rebuild_array, f"{module}._reconstruct"), (_rebuild_number, f"{module}.scalar")]
    try:
        with torch.serialization.safe_globals(plain):
            contents = read_archive(path)
    except (TypeError, AttributeError, LookupError, MemoryError) as error:
        raise HIENetError(f"`{path}` is damaged: {error}; copy it again") from error
    if not isinstance(contents.get("model_state_dict"), dict) or not isinstance(contents.get("config"), dict):
        raise HIENetError(
            f"`{path}` is not a checkpoint of the HIENet authors or of SevenNet: "
            "no `model_state_dict` and `config` in it"
        )
    return contents


def _rebuild_array(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """numpy's `_reconstruct`: an empty array, which the state that follows in the file fills."""
    if kind is not np.ndarray or tuple(shape) != (0,):
        raise ValueError("an array is described in an unknown way")
    return np.empty((0,), np.dtype(code.decode("ascii")))


def _rebuild_number(kind: np.dtype, data: bytes) -> Any:
    """numpy's `scalar`."""
    return np.frombuffer(data, kind)[0]


def state_in_float64(contents: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of `read_foreign`."""
    return {name: value.double() for name, value in contents["model_state_dict"].items()}


def common_denominator(state: Mapping[str, Tensor], n_layers: int) -> float:
    """What all convolutions divide their sums by.

    Raises:
        HIENetError: they differ.
    """
    denominators = {float(state[f"{layer}_convolution.denominator"]) for layer in range(n_layers)}
    if len(denominators) != 1:
        raise HIENetError(
            f"the convolutions have different denominators {sorted(denominators)} (`train_denominator`), expected one; "
            "such a model cannot be converted"
        )
    return denominators.pop()


def match_wigner_signs(
    path: str | Path, model: nn.Module, n_invariant: int, state: Mapping[str, Tensor], weights: dict[str, Tensor]
) -> list[str]:
    """Change the sign of the radial weights of paths whose Wigner 3j symbol in the file is the negative of today's.

    Older e3nn versions had the opposite sign for some. Returns the symbols that were flipped, like `1-2-2`.

    Args:
        path: of the file, for the message.
        model: ours, with the architecture of the file.
        n_invariant: number of layers in front of the equivariant ones.
        state: the file's tensors.
        weights: ours, changed in place.

    Raises:
        HIENetError: a symbol that is neither today's nor its negative.
    """
    flipped: set[str] = set()
    for name, symbol in state.items():
        match = re.fullmatch(r"(\d+)_convolution\.convolution\._compiled_main_left_right\._w3j_(\d+)_(\d+)_(\d+)", name)
        if match is None:
            continue
        layer, l_feature, l_harmonic, l_out = (int(number) for number in match.groups())
        today = o3.wigner_3j(l_feature, l_harmonic, l_out, dtype=torch.float64)
        if torch.allclose(symbol, today, atol=1e-6):
            continue
        if not torch.allclose(symbol, -today, atol=1e-6):
            raise HIENetError(
                f"`{path}` was trained with a Wigner 3j symbol {l_feature}-{l_harmonic}-{l_out} "
                "that is neither e3nn's nor its negative; it cannot be converted"
            )
        flipped.add(f"{l_feature}-{l_harmonic}-{l_out}")
        equivariant = cast(EquivariantLayer, cast(nn.ModuleList, model.layers)[n_invariant + layer])
        columns = _columns_of_symbol(equivariant.convolution.paths, (l_feature, l_harmonic, l_out))
        n_radial_layers = len(cast(RadialNetwork, equivariant.radial_network).weights)
        last = f"layers.{n_invariant + layer}.radial_network.weights.{n_radial_layers - 1}"
        weights[last] = torch.where(columns, -weights[last], weights[last])
    return sorted(flipped)


def _columns_of_symbol(paths: list[CouplingPath], symbol: tuple[int, int, int]) -> Tensor:
    """Mask `[n_weights]` of the path weights that multiply one Wigner 3j symbol: columns of the last radial layer."""
    chosen = [(path.l_feature, path.l_harmonic, path.l) == symbol for path in paths]
    return torch.repeat_interleave(torch.tensor(chosen), torch.tensor([path.channels for path in paths]))
