"""BOTNet and NequIP: what sets them apart from other architectures; the sentences about all of them are elsewhere."""

from __future__ import annotations

import itertools

import ase
import numpy as np
import pytest
import torch
from e3nn import o3
from hienet_deploy.export import export

from hienet.calculator import LoadedModel, load_model
from hienet.deployed import read_metadata
from hienet.graph import graph_from_atoms
from hienet.models.botnet import features_of_layers
from hienet.models.factory import build_model, make_config
from hienet.nn.equivariant import EquivariantLayer
from hienet.testing import (
    VARIANTS,
    finite_difference_forces,
    random_rotation,
    rotated,
    silicon_carbide,
    tiny_checkpoint,
    tiny_model,
    write_tiny_checkpoint,
)

NEQUIP = VARIANTS["nequip"][1]

OPTIONS: dict[str, dict[str, object]] = {
    "l up to 2": {"l_max": 2},
    "natural parity": {"natural_parity": True, "l_max": 2},
    "element-dependent radial maps": {"element_dependent_radial": True},
    "gates": {"gates": True},
    "self-connection in the first layer": {"first_self_connection": True},
    "one readout": {"readout_every_layer": False},
    "linear readout": {"readout_hidden": ()},
    "unused irreps": {"unused_irreps": True},
    "one layer": {"n_layers": 1},
    "NequIP with element-dependent radial maps": {**NEQUIP, "element_dependent_radial": True},
    "NequIP with unused irreps, odd scalars among them": {**NEQUIP, "unused_irreps": True},
}


def botnet(**values: object) -> LoadedModel:
    return tiny_model(architecture="botnet", **values)


def energy_of(model: LoadedModel, atoms: ase.Atoms) -> float:
    return float(model.predict(atoms, derivatives=False).energy[0])


@pytest.mark.parametrize(
    ("natural_parity", "paths", "total"),
    [(False, [4, 34, 64, 68, 68], 3_760_024), (True, [4, 23, 23, 23, 23], 1_772_184)],
    ids=["both parities", "natural parity"],
)
def test_it_has_the_published_number_of_weights(natural_parity, paths, total):
    """80 channels, l up to 3, five layers, four elements, as counted from the authors' architecture; they do not train
    the eight frequencies of the Bessel functions, which are in `total`."""
    values = {"elements": ("H", "C", "N", "O"), "natural_parity": natural_parity, "unused_irreps": True}
    model = build_model("botnet", make_config("botnet", "paper", values), seed=0)
    convolutions = [layer.layer.convolution for layer in model.layers]
    assert [len(convolution.paths) for convolution in convolutions] == paths
    assert [convolution.n_weights for convolution in convolutions] == [80 * n for n in paths]
    assert sum(parameter.numel() for parameter in model.parameters()) == total
    if not natural_parity:
        weights = [sum(parameter.numel() for parameter in layer.parameters()) for layer in model.layers]
        assert weights == pytest.approx([0.164e6, 0.528e6, 0.970e6, 1.048e6, 1.049e6], abs=0.0005e6)


def test_ranks_exchange_what_layers_put_out_and_no_energies():
    stages = build_model("botnet", make_config("botnet", "paper", {"elements": ("Si",)}), seed=0).stages()
    assert [stage.exchanged_width for stage in stages] == [0, 1280, 2480, 2480, 1280]
    # Behind what is exchanged: the self-connection (80 scalars in the last layer) and the energy so far.
    assert [stage.width - stage.exchanged_width for stage in stages[1:]] == [2481, 2481, 1281, 81]


def test_layers_put_out_the_irreps_on_which_the_energy_depends_and_no_others():
    checkpoint = tiny_checkpoint("botnet", unused_irreps=True)
    harmonics = o3.Irreps.spherical_harmonics(checkpoint.config.l_max)
    found = features_of_layers(checkpoint.config, harmonics)
    kept = features_of_layers(checkpoint.config.model_copy(update={"unused_irreps": False}), harmonics)
    assert [len(irreps) for irreps in found] == [2, 3, 4, 4]
    assert [len(irreps) for irreps in kept] == [2, 3, 2, 1]
    module = checkpoint.build(torch.float64)
    graph = graph_from_atoms(silicon_carbide(), checkpoint.config.elements, checkpoint.config.cutoff)
    module(graph.species, graph.center, graph.neighbor, graph.edge_vectors, graph.n_local).sum().backward()
    for layer, irreps, expected in zip(module.layers, found, kept, strict=True):
        out = layer.layer.linear_out
        gradients = [
            float(out.weight.grad[first : first + fan_in * fan_out].abs().max())
            for _, fan_in, _, fan_out, first in out.columns
        ]
        used = [irrep for gradient, (_, irrep) in zip(gradients, irreps, strict=True) if gradient > 1e-9]
        assert used == [irrep for _, irrep in expected]


@pytest.mark.parametrize("option", list(OPTIONS))
def test_every_option_is_equivariant_and_conservative(option):
    model, atoms = botnet(**OPTIONS[option]), silicon_carbide()[:4]
    atoms.set_pbc(False)
    reflection = -random_rotation()
    found, mirrored = model.predict(atoms), model.predict(rotated(atoms, reflection))
    torch.testing.assert_close(mirrored.energies, found.energies, rtol=0, atol=1e-11)
    torch.testing.assert_close(mirrored.forces, found.forces @ torch.tensor(reflection.T), rtol=0, atol=1e-11)
    assert float(found.forces.abs().max()) > 1e-3
    numeric = finite_difference_forces(lambda a: energy_of(model, a), atoms)
    np.testing.assert_allclose(found.forces.numpy(), numeric, atol=2e-9)


def test_an_isolated_atom_has_exactly_its_reference_energy_unless_the_first_layer_keeps_the_atom():
    shift = (-1026.8538996116154, -7889.123456789)
    for values in ({}, {"gates": True}, {"element_dependent_radial": True}, {"scale": (20.0, 30.0)}):
        model = botnet(shift=shift, **values)
        assert [energy_of(model, ase.Atoms(symbol)) for symbol in ("C", "Si")] == list(shift)
    kept = botnet(shift=shift, first_self_connection=True)
    assert abs(energy_of(kept, ase.Atoms("C")) - shift[0]) > 1e-6


def many_body_term(model: LoadedModel, n_atoms: int) -> float:
    """The part of a cluster's energy that no sum over smaller clusters has: sum over subsets of (-1)^(n - size) E."""
    positions = np.array([[0, 0, 0], [1.6, 0.2, 0], [0.3, 1.7, 0.4], [-0.5, 0.6, 1.8]])[:n_atoms]
    atoms = ase.Atoms(["Si", "C", "Si", "C"][:n_atoms], positions=positions)
    subsets = [list(s) for size in range(1, n_atoms + 1) for s in itertools.combinations(range(n_atoms), size)]
    return sum((-1) ** (n_atoms - len(subset)) * energy_of(model, atoms[subset]) for subset in subsets)


def test_layers_and_linear_readouts_give_a_finite_body_order():
    """T layers: clusters of T + 1 atoms contribute, larger ones do not; layer t has order t + 1."""
    model = botnet(n_layers=2, readout_hidden=())
    assert abs(many_body_term(model, 3)) > 1e-3
    assert abs(many_body_term(model, 4)) < 1e-11
    with torch.no_grad():
        model.module.layers[1].layer_readout.network.weights[0].zero_()
    assert abs(many_body_term(model, 2)) > 1e-3
    assert abs(many_body_term(model, 3)) < 1e-11


@pytest.mark.parametrize("values", [{"readout_hidden": (4,)}, {"gates": True}], ids=["network", "gates"])
def test_a_network_that_reads_or_gates_give_every_body_order(values):
    assert abs(many_body_term(botnet(n_layers=2, **{"readout_hidden": (), **values}), 4)) > 1e-7


def test_element_dependent_radial_maps_tell_the_elements_of_the_sending_atoms():
    """With one embedding and one matrix for all elements, only the radial maps can."""

    def difference(element_dependent: bool) -> float:
        model = botnet(element_dependent_radial=element_dependent, n_layers=1, scale=(1.0, 1.0), shift=(0.0, 0.0))
        with torch.no_grad():
            for name, parameter in model.module.named_parameters():
                if name.endswith(("species_embedding.weight", "message_of_species.weight")):
                    parameter[1] = parameter[0]
        carbon, silicon = ase.Atoms("C2", [[0, 0, 0], [0, 0, 1.7]]), ase.Atoms("Si2", [[0, 0, 0], [0, 0, 1.7]])
        return abs(energy_of(model, carbon) - energy_of(model, silicon))

    assert difference(True) > 1e-4
    assert difference(False) < 1e-14


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize(
    ("values", "dtype", "tolerance"),
    [
        ({}, "float32", 1e-4),
        (NEQUIP, "float32", 1e-4),
        ({"unused_irreps": True, "gates": True, "l_max": 2}, "float64", 1e-7),
        ({"natural_parity": True, "n_layers": 1}, "float64", 1e-7),
    ],
)
def test_compiled_it_is_its_source(values, dtype, tolerance, tmp_path):
    source = write_tiny_checkpoint(tmp_path / "m.pt", architecture="botnet", **values)
    deployment = export(source, dtype=dtype, tolerance=tolerance)
    assert "hienet::interaction" in deployment.metadata["operators"]
    atoms = silicon_carbide()
    expected, found = load_model(source).predict(atoms), load_model(deployment.path).predict(atoms)
    torch.testing.assert_close(found.energies, expected.energies, rtol=0, atol=tolerance)
    torch.testing.assert_close(found.forces.double(), expected.forces, rtol=0, atol=tolerance)


def test_with_element_dependent_radial_maps_it_is_deployed_plain_for_any_of_its_elements(tmp_path):
    values = {"architecture": "botnet", "element_dependent_radial": True, "n_layers": 2}
    source = write_tiny_checkpoint(tmp_path / "m.pt", elements=("C", "O", "Si"), **values)
    deployment = export(source, dtype="float64", elements=["Si", "C"])
    assert read_metadata(deployment.path)["operators"] == []
    atoms = silicon_carbide()
    expected, found = load_model(source).predict(atoms), load_model(deployment.path).predict(atoms)
    torch.testing.assert_close(found.energies, expected.energies, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=1e-10)


@pytest.mark.parametrize("option", [{"self_connection": False}, {"element_dependent_radial": True}])
def test_a_layer_whose_options_read_the_species_needs_their_number(option):
    with pytest.raises(ValueError, match=r"needs `n_species`"):
        EquivariantLayer("2x0e", "2x0e+2x1o", "0e+1o", 4, [8], 10.0, **option)
