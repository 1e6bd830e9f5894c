"""Reading the HIENet authors' checkpoints. Their names live in this file and nowhere else.

The file format is a torch archive with `model_state_dict`, `config` and `epoch`; only facts about it are used here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols
from e3nn import o3
from torch import Tensor

from hienet.checkpoint import Checkpoint
from hienet.convert.foreign import common_denominator, match_wigner_signs, read_foreign, state_in_float64
from hienet.convert.layers import ForeignLayer, check_order_of_irreps
from hienet.errors import HIENetError
from hienet.models.factory import build_model, make_config
from hienet.nn.irreps import sorted_irreps

_INVARIANT_NAMES = {
    "query": "linear_query",
    "key": "linear_key",
    "value": "linear_value",
    "edge": "linear_edge",
    "key_network.first": "key_update.0",
    "key_network.second": "key_update.2",
    "message_network.first": "msg_update.0",
    "message_network.second": "msg_update.2",
    "attention_norm": "bn_att",
    "output": "linear_concate",
    "output_norm": "bn",
    "reset": "linear_reset",
    "update": "linear_update",
}
"""Ours to theirs, in an invariant layer; each has `.weight` and `.bias`."""

_REFUSED_OPTIONS: dict[str, tuple[Any, str]] = {
    "use_edge_conv": (False, "edge features made of angles to the cell vectors depend on the choice of the cell"),
    "use_cgcnn_embedding": (False, "the CGCNN embedding is not supported"),
    "use_comf_embedding": (
        False,
        "the ComFormer embedding, made of angles to the cell vectors, depends on the choice of the cell",
    ),
    "self_connection_type": ("linear", "only linear self-connections are supported"),
    "readout_as_fcn": (False, "only a linear readout is supported"),
    "use_bias_in_linear": (False, "biases in the equivariant linear maps are not supported"),
    "_normalize_sph": (True, "spherical harmonics of unnormalised vectors are not supported"),
    "act_radial": ("silu", "only SiLU is supported in the radial networks"),
}
"""Options of theirs that this architecture does not have: the value it corresponds to, and why another is refused."""


def convert_official(path: str | Path) -> Checkpoint:
    """The authors' checkpoint as one of ours, in float64.

    Such models have `smooth_cutoff: false`, because their energy jumps where a neighbour crosses the cutoff.

    Raises:
        HIENetError: not such a file, an option that this architecture does not have, or Wigner 3j symbols that are
            neither today's nor those of older e3nn versions.
    """
    contents = read_foreign(path)
    official = contents["config"]
    if "num_invariant_conv" not in official:
        raise HIENetError(
            f"`{path}` is not a checkpoint of the HIENet authors: its `config` has no `num_invariant_conv`"
        )
    _refuse_other_options(path, official)
    try:
        state = state_in_float64(contents)
        config = make_config("hienet", None, _hyperparameters(official, state))
        model = build_model("hienet", config, seed=0)
        weights = dict(_translated_weights(official, state))
        flipped = match_wigner_signs(path, model, official["num_invariant_conv"], state, weights)
        model.load_state_dict(weights)
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if isinstance(error, RuntimeError) else f"{error} is missing"
        raise HIENetError(f"`{path}` has not the tensors that its `config` describes: {reason}") from error
    notes = {"source": f"converted from {Path(path).name}, a checkpoint of the HIENet authors"}
    if flipped:
        notes["wigner"] = f"trained with an older e3nn; sign changed for Wigner 3j symbols {', '.join(flipped)}"
    return Checkpoint("hienet", config, weights, notes=notes)


def _refuse_other_options(path: str | Path, official: Mapping[str, Any]) -> None:
    for name, (expected, reason) in _REFUSED_OPTIONS.items():
        if official.get(name, expected) != expected:
            raise HIENetError(
                f"`{path}` cannot be converted: its option `{name}: {official[name]}` is refused, because {reason}"
            )
    for name in ("act_scalar", "act_gate"):
        even = official.get(name, {}).get("e", "silu")
        if even != "silu":
            raise HIENetError(
                f"`{path}` cannot be converted: its option `{name}` has `e: {even}`; only SiLU is supported for even "
                "scalars"
            )
    odd = official.get("act_scalar", {}).get("o", "tanh")
    if official.get("is_parity", False) and odd != "tanh":
        raise HIENetError(
            f"`{path}` cannot be converted: its option `act_scalar` has `o: {odd}`, expected `tanh`; an even function "
            "makes even scalars of odd ones"
        )
    if not official.get("irreps_manual"):
        raise HIENetError(
            f"`{path}` cannot be converted: its option `irreps_manual` is not set, expected one irreps for each layer"
        )
    check_order_of_irreps(path, official["irreps_manual"])
    basis = official["radial_basis"].get("radial_basis_name", "bessel")
    if basis != "bessel":
        raise HIENetError(f"`{path}` cannot be converted: its radial basis is `{basis}`, expected `bessel`")
    cutoff_function = official["cutoff_function"].get("cutoff_function_name", "poly_cut")
    if cutoff_function != "poly_cut":
        raise HIENetError(
            f"`{path}` cannot be converted: its cutoff function is `{cutoff_function}`, expected `poly_cut`"
        )


def _hyperparameters(official: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    atomic_numbers = sorted(official["_type_map"], key=lambda number: official["_type_map"][number])
    elements = [chemical_symbols[int(number)] for number in atomic_numbers]
    irreps = [str(sorted_irreps(text)) for text in official["irreps_manual"]]
    n_elements = len(elements)
    return {
        "elements": elements,
        "cutoff": official["cutoff"],
        "avg_num_neighbors": common_denominator(state, len(irreps) - 1),
        "scale": state["rescale_atomic_energy.scale"].expand(n_elements).tolist(),
        "shift": state["rescale_atomic_energy.shift"].expand(n_elements).tolist(),
        "invariant_channels": o3.Irreps(irreps[0]).dim,
        "n_invariant_layers": official["num_invariant_conv"],
        "equivariant_irreps": irreps[1:],
        "parity": official.get("is_parity", False),
        "l_max": _harmonics(official).lmax,
        "n_radial": official["radial_basis"]["bessel_basis_num"],
        "envelope_power": official["cutoff_function"]["poly_cut_p_value"],
        "radial_hidden": official["weight_nn_hidden_neurons"],
        "readout_channels": o3.Irreps(irreps[-1]).dim // 2,
        "dropout": official.get("dropout", 0.0),
        "attention_dropout": official.get("dropout_attn", 0.0),
        "smooth_cutoff": False,
    }


def _harmonics(official: Mapping[str, Any]) -> o3.Irreps:
    l_max = official["lmax"] if official["lmax_edge"] < 0 else official["lmax_edge"]
    return o3.Irreps.spherical_harmonics(l_max, p=-1 if official.get("is_parity", False) else 1)


def _translated_weights(official: Mapping[str, Any], state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    n_invariant = official["num_invariant_conv"]
    n_species = len(official["_type_map"])
    yield "edge_embedding.basis.frequencies", state["edge_embedding.basis_module.coeffs"]
    yield "species_embedding.weight", state["onehot_to_feature_x.linear.0.weight"].view(n_species, -1)
    for i in range(n_invariant):
        for ours, theirs in _INVARIANT_NAMES.items():
            for part in ("weight", "bias"):
                yield f"layers.{i}.{ours}.{part}", state[f"{i}_invariant_convolution.{theirs}.{part}"]
    # `num_convolution_layer` of their configuration is not kept up to date when `irreps_manual` is given.
    irreps = [o3.Irreps(text) for text in official["irreps_manual"]]
    n_layers, n_hidden = len(irreps) - 1, len(official["weight_nn_hidden_neurons"])
    for i in range(n_layers):
        layer = f"layers.{n_invariant + i}"
        # The last layer makes even scalars only.
        odd_messages = official.get("is_parity", False) and i < n_layers - 1
        foreign = ForeignLayer(irreps[i], irreps[i + 1], _harmonics(official), odd_messages)
        yield f"{layer}.linear_skip.weight", foreign.linear_skip(state[f"{i}_self_connection_intro.linear.weight"])
        yield f"{layer}.linear_in.weight", foreign.linear_in(state[f"{i}_self_interaction_1.linear.weight"])
        yield f"{layer}.linear_out.weight", foreign.linear_out(state[f"{i}_self_interaction_2.linear.weight"])
        for j in range(n_hidden + 1):
            weight = state[f"{i}_convolution.weight_nn.layer{j}.weight"]
            yield f"{layer}.radial_network.weights.{j}", foreign.path_weights(weight) if j == n_hidden else weight
    yield "energy_readout.hidden.weight", state["reduce_input_to_hidden.linear.0.weight"]
    yield "energy_readout.energy.weight", state["reduce_hidden_to_energy.linear.weight"]
