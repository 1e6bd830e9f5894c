"""Reading SevenNet's checkpoints. Its names live in this file and nowhere else."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from ase.data import chemical_symbols
from e3nn import o3
from torch import Tensor

from hienet.checkpoint import Checkpoint
from hienet.convert.foreign import common_denominator, match_wigner_signs, read_foreign, state_in_float64
from hienet.convert.layers import ForeignLayer, check_order_of_irreps, without_modality
from hienet.errors import HIENetError
from hienet.models.factory import build_model, make_config
from hienet.models.sevennet import SevenNetConfig, possible_irreps
from hienet.nn.irreps import sorted_irreps

_DEFAULTS: dict[str, Any] = {
    "irreps_manual": False,
    "lmax": 1,
    "lmax_edge": -1,
    "lmax_node": -1,
    "is_parity": True,
    "num_convolution_layer": 3,
    "weight_nn_hidden_neurons": [64, 64],
    "self_connection_type": "nequip",
}
"""What SevenNet takes for keys that a configuration lacks."""

_REFUSED_OPTIONS: dict[str, tuple[Any, Any, str]] = {
    "interaction_type": ("nequip", "nequip", "only this kind of interaction is known"),
    "readout_as_fcn": (False, False, "only a linear readout is supported"),
    "use_bias_in_linear": (False, False, "biases in the equivariant linear maps are not supported"),
    "_normalize_sph": (True, False, "spherical harmonics of vectors that are not normalised are not supported"),
    "act_radial": ("silu", "silu", "only SiLU is supported in the radial networks"),
    "act_scalar": ({"e": "silu", "o": "tanh"}, {"e": "silu", "o": "tanh"}, "only SiLU and tanh are supported"),
    "act_gate": ({"e": "silu", "o": "tanh"}, {"e": "silu", "o": "tanh"}, "only SiLU and tanh are supported"),
    "optimize_by_reduce": (True, True, "such files are no longer read by SevenNet itself either"),
}
"""Options: the value that ours corresponds to, what SevenNet takes where it is missing, why others are refused."""


def convert_sevennet(path: str | Path, modality: str | None = None) -> Checkpoint:
    """A SevenNet checkpoint as one of ours, in float64.

    A multi-fidelity model, which was trained on data of several kinds at once, has a one-hot modality among its inputs.
    For one modality that comes to constants, so that ours is an ordinary model.

    Args:
        path: of the file.
        modality: of a multi-fidelity model, the one that is wanted.

    Raises:
        HIENetError: not such a file, an option that the architecture `sevennet` does not have, or Wigner 3j symbols
            that are neither today's nor those of older e3nn versions.
    """
    contents = read_foreign(path)
    if "cutoff_function" not in contents["config"] or "_type_map" not in contents["config"]:
        raise HIENetError(
            f"`{path}` is not a checkpoint of SevenNet: its `config` has no `cutoff_function` and `_type_map`"
        )
    theirs = {**_DEFAULTS, **contents["config"]}
    _refuse_other_options(path, contents["config"])
    modalities = _modalities(path, theirs, modality)
    try:
        state = _of_modality(theirs, state_in_float64(contents), modalities)
        config = cast(SevenNetConfig, make_config("sevennet", None, _hyperparameters(theirs, state)))
        model = build_model("sevennet", config, seed=0)
        weights = dict(_translated_weights(theirs, config, state))
        flipped = match_wigner_signs(path, model, 0, state, weights)
        model.load_state_dict(weights)
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if isinstance(error, RuntimeError) else f"{error} is missing"
        raise HIENetError(f"`{path}` has not the tensors that its `config` describes: {reason}") from error
    notes = {
        "source": f"converted from {Path(path).name}, a checkpoint of SevenNet {theirs.get('version', '')}".strip()
    }
    if modalities is not None:
        notes["modality"] = f"{modality}, of {', '.join(modalities.names)}"
    if flipped:
        notes["wigner"] = f"trained with an older e3nn; sign changed for Wigner 3j symbols {', '.join(flipped)}"
    return Checkpoint("sevennet", config, weights, notes=notes)


def _refuse_other_options(path: str | Path, theirs: Mapping[str, Any]) -> None:
    found = {name: theirs.get(name, missing) for name, (_, missing, _) in _REFUSED_OPTIONS.items()}
    for name, (expected, _, reason) in _REFUSED_OPTIONS.items():
        if found[name] != expected:
            raise HIENetError(
                f"`{path}` cannot be converted: its option `{name}: {found[name]}` is refused, because {reason}"
            )
    if (theirs.get("cuequivariance_config") or {}).get("use", False):
        raise HIENetError(
            f"`{path}` cannot be converted: it was saved for cuEquivariance; convert it to e3nn with SevenNet first"
        )
    basis = theirs.get("radial_basis", {}).get("radial_basis_name", "bessel")
    if basis != "bessel":
        raise HIENetError(f"`{path}` cannot be converted: its radial basis is `{basis}`, expected `bessel`")
    check_order_of_irreps(path, theirs.get("irreps_manual") or [])
    cutoff_function = theirs["cutoff_function"].get("cutoff_function_name", "poly_cut")
    if cutoff_function not in ("poly_cut", "XPLOR"):
        raise HIENetError(
            f"`{path}` cannot be converted: its cutoff function is `{cutoff_function}`, expected `poly_cut` or `XPLOR`"
        )
    kinds = theirs.get("self_connection_type", _DEFAULTS["self_connection_type"])
    kinds = {kinds} if isinstance(kinds, str) else set(kinds)
    if kinds not in ({"linear"}, {"nequip"}):
        raise HIENetError(
            f"`{path}` cannot be converted: its self-connections are {sorted(kinds)}, expected `linear` or `nequip` "
            "for all layers"
        )


@dataclass(frozen=True)
class _Modalities:
    """Of a multi-fidelity model: all names, in their order, and the number of the one that is wanted."""

    names: tuple[str, ...]
    wanted: int


def _modalities(path: str | Path, theirs: Mapping[str, Any], wanted: str | None) -> _Modalities | None:
    """None for a model of a single task.

    Raises:
        HIENetError: a modality is to be chosen and is not, or the other way round, or there is none of that name.
    """
    if not theirs.get("use_modality", False):
        if wanted is not None:
            raise HIENetError(f"`{path}` has no modalities, but --modal is `{wanted}`; leave it out")
        return None
    numbers = theirs["_modal_map"]
    names = tuple(sorted(numbers, key=lambda name: numbers[name]))
    default = theirs.get("default_modal")
    listed = ", ".join(names) + (f" (its authors' default is {default})" if default in names else "")
    if wanted is None:
        raise HIENetError(f"`{path}` was trained on data of several kinds; choose one with --modal: {listed}")
    if wanted not in numbers:
        raise HIENetError(f"`{path}` has no modality `{wanted}`; give one of its own as --modal: {listed}")
    return _Modalities(names, names.index(wanted))


def _of_modality(
    theirs: Mapping[str, Any], state: dict[str, Tensor], modalities: _Modalities | None
) -> dict[str, Tensor]:
    """The tensors of the file as those of an ordinary model; constants under the names of `_CONSTANTS`."""
    if modalities is None:
        return state
    n, wanted = len(modalities.names), modalities.wanted
    state = dict(state)

    def fold(name: str, irreps_in: o3.Irreps, irreps_out: o3.Irreps) -> Tensor:
        weight, constants = without_modality(state[name], irreps_in, irreps_out, n, wanted)
        state[name] = weight
        return constants

    irreps = _irreps_of_features(theirs)
    n_species = len(theirs["_type_map"])
    if theirs["use_modal_node_embedding"]:
        name = "onehot_to_feature_x.linear.weight"
        constants = fold(name, o3.Irreps(f"{n_species}x0e"), irreps[0])
        state[name] = (state[name].view(n_species, -1) + constants * math.sqrt(n_species)).flatten()
    for i, layer in enumerate(_foreign_layers(theirs)):
        if theirs["use_modal_self_inter_intro"]:
            name = f"{i}_self_interaction_1.linear.weight"
            state[_CONSTANTS[0].format(i)] = fold(name, irreps[i], irreps[i])
        if theirs["use_modal_self_inter_outro"]:
            name = f"{i}_self_interaction_2.linear.weight"
            state[_CONSTANTS[1].format(i)] = fold(name, layer.irreps_messages, layer.irreps_update)
    shift, scale = state["rescale_atomic_energy.shift"], state["rescale_atomic_energy.scale"]
    shift = shift[wanted] if theirs["use_modal_wise_shift"] else shift
    scale = scale[wanted] if theirs["use_modal_wise_scale"] else scale
    if theirs["use_modal_output_block"]:
        hidden = o3.Irreps(f"{irreps[-1].dim // 2}x0e")
        constants = fold("reduce_input_to_hidden.linear.weight", irreps[-1], hidden)
        # The readout is linear, so that a constant in it is one of the energy.
        of_energy = constants @ state["reduce_hidden_to_energy.linear.weight"] / math.sqrt(hidden.dim)
        shift = shift + scale * of_energy
    state["rescale_atomic_energy.shift"], state["rescale_atomic_energy.scale"] = shift, scale
    return state


_CONSTANTS = ("{}_self_interaction_1.constants", "{}_self_interaction_2.constants")
"""Names for what the modality adds to the even scalars behind these two maps."""


def _foreign_layers(theirs: Mapping[str, Any]) -> list[ForeignLayer]:
    irreps, harmonics = _irreps_of_features(theirs), _harmonics(theirs)
    paths_sorted = not _paths_are_unsorted(str(theirs.get("version", "")))
    last = len(irreps) - 2
    return [
        ForeignLayer(irreps[i], irreps[i + 1], harmonics, theirs["is_parity"] and i < last, paths_sorted)
        for i in range(last + 1)
    ]


def _hyperparameters(theirs: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    atomic_numbers = sorted(theirs["_type_map"], key=lambda number: theirs["_type_map"][number])
    elements = [chemical_symbols[int(number)] for number in atomic_numbers]
    channels, *irreps = (sorted_irreps(one) for one in _irreps_of_features(theirs))
    cutoff_function = theirs["cutoff_function"]
    xplor = cutoff_function.get("cutoff_function_name", "poly_cut") == "XPLOR"
    return {
        "elements": elements,
        "cutoff": theirs["cutoff"],
        "avg_num_neighbors": common_denominator(state, len(irreps)),
        "scale": state["rescale_atomic_energy.scale"].expand(len(elements)).tolist(),
        "shift": state["rescale_atomic_energy.shift"].expand(len(elements)).tolist(),
        "channels": channels.dim,
        "equivariant_irreps": [str(one) for one in irreps],
        "l_max": _harmonics(theirs).lmax,
        "n_radial": theirs.get("radial_basis", {}).get("bessel_basis_num", 8),
        "envelope_power": 6 if xplor else cutoff_function.get("poly_cut_p_value", 6),
        "xplor_onset": cutoff_function["cutoff_on"] if xplor else None,
        "radial_hidden": theirs["weight_nn_hidden_neurons"],
        "readout_channels": irreps[-1].dim // 2,
        "parity": theirs["is_parity"],
        "species_self_connection": "nequip" in theirs["self_connection_type"],
        "scalar_constants": any(name.endswith(".constants") for name in state),
    }


def _irreps_of_features(theirs: Mapping[str, Any]) -> list[o3.Irreps]:
    """Before the first layer, and behind each, in the order of their configuration."""
    if theirs["irreps_manual"]:
        return [o3.Irreps(text) for text in theirs["irreps_manual"]]
    channels = theirs["channel"]
    l_node = theirs["lmax_node"] if theirs["lmax_node"] > 0 else theirs["lmax"]
    layers = possible_irreps(channels, l_node, _harmonics(theirs), theirs["num_convolution_layer"])
    return [o3.Irreps(f"{channels}x0e"), *(o3.Irreps(text) for text in layers)]


def _harmonics(theirs: Mapping[str, Any]) -> o3.Irreps:
    l_max = theirs["lmax_edge"] if theirs["lmax_edge"] > 0 else theirs["lmax"]
    return o3.Irreps.spherical_harmonics(l_max, p=-1 if theirs["is_parity"] else 1)


def _translated_weights(
    theirs: Mapping[str, Any], config: SevenNetConfig, state: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    n_species = len(config.elements)
    yield "edge_embedding.basis.frequencies", state["edge_embedding.basis_function.coeffs"]
    yield "species_embedding.weight", state["onehot_to_feature_x.linear.weight"].view(n_species, -1)
    n_hidden = len(config.radial_hidden)
    for i, foreign in enumerate(_foreign_layers(theirs)):
        layer = f"layers.{i}"
        yield f"{layer}.linear_in.weight", foreign.linear_in(state[f"{i}_self_interaction_1.linear.weight"])
        yield f"{layer}.linear_out.weight", foreign.linear_out(state[f"{i}_self_interaction_2.linear.weight"])
        if config.species_self_connection:
            flat = state[f"{i}_self_connection_intro.fc_tensor_product.weight"]
            yield f"{layer}.linear_skip.weight", foreign.species_skip(flat, n_species)
        else:
            flat = state[f"{i}_self_connection_intro.linear.weight"]
            yield f"{layer}.linear_skip.weight", foreign.linear_skip(flat)
        for j in range(n_hidden + 1):
            weight = state[f"{i}_convolution.weight_nn.layer{j}.weight"]
            yield f"{layer}.radial_network.weights.{j}", foreign.path_weights(weight) if j == n_hidden else weight
        if config.scalar_constants:
            of_sent, of_update = (state.get(name.format(i)) for name in _CONSTANTS)
            n_sent, n_update = foreign.irreps_in.count("0e"), foreign.irreps_update.count("0e")
            yield (
                f"{layer}.constants.weight",
                torch.cat(
                    [
                        torch.zeros(n_sent, dtype=torch.float64) if of_sent is None else of_sent,
                        torch.zeros(n_update, dtype=torch.float64)
                        if of_update is None
                        else foreign.constants_before_gate(of_update),
                    ]
                ),
            )
    yield "energy_readout.hidden.weight", state["reduce_input_to_hidden.linear.weight"]
    yield "energy_readout.energy.weight", state["reduce_hidden_to_energy.linear.weight"]


def _paths_are_unsorted(version: str) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None:
        raise HIENetError(
            f"the checkpoint has no version of SevenNet, but `{version}`, so the order of its weights is "
            "unknown; save it again with SevenNet"
        )
    return tuple(int(number) for number in numbers.groups()) < (0, 11) or version == "0.11.0.dev0"
