"""What is special about NEMP; what all architectures have in common is tested elsewhere."""

from __future__ import annotations

import math

import ase
import numpy as np
import pytest
import torch
from ase.data import chemical_symbols
from e3nn import o3
from hienet_deploy.export import export

from hienet.calculator import load_model
from hienet.deployed import load_deployed
from hienet.errors import HIENetError
from hienet.graph import AtomicGraph, graph_from_atoms
from hienet.models.factory import build_model, make_config
from hienet.models.nemp import NEMP
from hienet.nn.node_product import NodeTensorProduct, natural_paths
from hienet.nn.zbl import ZBLRepulsion
from hienet.testing import silicon_carbide, tiny_model, write_tiny_checkpoint


def test_the_published_configuration_has_0_66_million_parameters_for_37_elements():
    config = make_config("nemp", "paper", {"elements": tuple(chemical_symbols[1:38])})
    model = build_model("nemp", config, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 663_978


def test_each_iteration_exchanges_the_features_and_adds_an_invariant_for_each_channel_of_an_edge():
    stages = NEMP(make_config("nemp", "paper", {"elements": ("Si",)})).stages()
    assert [stage.exchanged_width for stage in stages] == [0, 144, 144, 144]
    harmonics, channels = 9, 16
    assert [stage.edge_width for stage in stages[1:]] == [harmonics + n * channels for n in (2, 3, 4)]


@pytest.mark.parametrize(("l_max_density", "counts"), [(2, [3, 4, 4]), (3, [3, 5, 5])])
def test_only_paths_of_natural_parity_exist(l_max_density, counts):
    paths = natural_paths(l_max_density, 2, 2)
    assert [sum(l == out for _, _, l in paths) for out in range(3)] == counts


def test_the_squares_of_the_couplings_of_a_path_add_up_to_one():
    product = NodeTensorProduct(1, 1, 3, 2, 2)
    norms = torch.zeros(len(product.paths), dtype=torch.float64)
    norms.index_add_(0, product.column_path, product.coupling.square().sum(1))
    torch.testing.assert_close(norms, torch.ones_like(norms))
    for l in range(3):
        (column,) = (product.column_path == product.paths.index((l, l, 0))).nonzero()[0].tolist()
        block = product.coupling[column].view(16, 9)[l * l : (l + 1) ** 2, l * l : (l + 1) ** 2]
        torch.testing.assert_close(block, torch.eye(2 * l + 1, dtype=torch.float64) / math.sqrt(2 * l + 1))


def pair_curve(distances: np.ndarray, **values: object) -> np.ndarray:
    """Energies of a lone pair above those of its atoms."""
    model = tiny_model(architecture="nemp", **values)

    def energy(atoms: ase.Atoms) -> float:
        return float(model.predict(atoms, derivatives=False).energy[0])

    alone = energy(ase.Atoms("Si")) + energy(ase.Atoms("C"))
    return np.array([energy(ase.Atoms("SiC", positions=[[0, 0, 0], [0, 0, d]])) - alone for d in distances])


@pytest.mark.parametrize("normalize_features", [True, False])
def test_the_energy_of_a_lone_pair_fades_before_the_cutoff(normalize_features):
    """The published division by n_i keeps it alive until 3 % before the cutoff, where it drops to zero at once."""
    cutoff = 5.0
    distances = np.append(np.linspace(1.5, 4.5, 13), 0.97 * cutoff)
    for seed in range(3):
        values = {"seed": seed, "cutoff": cutoff, "normalize_features": normalize_features}
        smooth = np.abs(pair_curve(distances, **values))
        assert smooth.max() > 1e-3
        assert smooth[-1] < 1e-4 * smooth.max()
        published = np.abs(pair_curve(distances, smooth_coordination=False, **values))
        assert published[-1] > 0.1 * published.max()


def test_edges_beyond_the_cutoff_have_no_effect():
    """A neighbour list with a skin."""
    model, atoms = tiny_model(architecture="nemp"), silicon_carbide()
    exact = graph_from_atoms(atoms, model.elements, model.cutoff)
    longer = graph_from_atoms(atoms, model.elements, model.cutoff + 1.0)
    assert len(longer.center) > 1.5 * len(exact.center)
    expected, found = (
        model.module(g.species, g.center, g.neighbor, g.edge_vectors, g.n_local) for g in (exact, longer)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_features_are_normalised_atom_by_atom():
    """Other atoms, far away, do not change an atom's energy, as an RMS over all atoms would."""
    model, cluster = tiny_model(architecture="nemp"), silicon_carbide()
    cluster.set_pbc(False)
    dimer = ase.Atoms("SiSi", positions=[[90, 0, 0], [91.7, 0, 0]])
    expected = model.predict(cluster).energies
    torch.testing.assert_close(model.predict(cluster + dimer).energies[:8], expected, rtol=0, atol=1e-12)
    without = tiny_model(architecture="nemp", normalize_features=False)
    assert float((without.predict(cluster).energies - expected).abs().max()) > 1e-3


def by_the_formulas(model: NEMP, graph: AtomicGraph, cutoff: float) -> torch.Tensor:
    """Energies in units of the scale, sums over l, m and neighbours written out as in the paper."""
    species, center, neighbor, n = graph.species, graph.center, graph.neighbor, graph.n_local
    first, iterations, readout = model.layers[0], list(model.layers)[1:], model.energy_readout
    channels, l_max = model.channels, model.l_max
    degree = torch.tensor([l for l in range(model.l_max_density + 1) for _ in range(2 * l + 1)])
    inner = int((degree <= l_max).sum())
    own = degree[:inner]
    distance = graph.edge_vectors.norm(dim=1)
    x = distance / cutoff
    envelope = torch.where(x < 1, 1 - 28 * x**6 + 48 * x**7 - 21 * x**8, 0.0) ** 2
    harmonics = o3.spherical_harmonics(
        list(range(model.l_max_density + 1)), graph.edge_vectors, normalize=True, normalization="component"
    )

    def total(of_edges: torch.Tensor) -> torch.Tensor:
        return torch.stack([of_edges[center == i].sum(0) for i in range(n)])

    def mixed(features: torch.Tensor, mix: torch.nn.Module) -> torch.Tensor:
        return torch.einsum("nmk,nkq->nmq", features, mix.weight[species]) / math.sqrt(channels)

    parameters = first.pairs.of_pairs(species[center], species[neighbor])
    weights, frequencies = parameters.split([first.pairs.n_weights, first.pairs.n_frequencies], 1)
    argument = math.pi * frequencies * x[:, None]
    radial = torch.cat([weights[:, channels:], torch.sin(argument) / argument], 1) * envelope[:, None]
    q = first.radial_network(radial).view(-1, l_max + 3, channels)
    divisor = (1 + total(envelope))[:, None]
    invariants = torch.cat([weights[:, :channels] * envelope[:, None], q[:, l_max + 2]], 1)
    densities = [total(q[:, l_max + 1])]
    features = mixed(total(q[:, own] * harmonics[:, :inner, None]) / divisor[:, :, None], first.mix)
    norm = 1 / torch.sqrt((2 * own.double() + 1) * (l_max + 1))[:, None]
    for layer in iterations:
        rho = layer.filters(invariants).view(-1, 3, l_max + 1, channels)[:, :, own]
        scaled = features * norm
        sums = rho[:, 0] * scaled[center] + rho[:, 1] * scaled[neighbor]
        new = (harmonics[:, :inner, None] * sums).sum(1) / math.sqrt(2)
        invariants = torch.cat([invariants, new], 1)
        densities.append((scaled * total(rho[:, 2] * harmonics[:, :inner, None])).sum(1))
        o = layer.orbitals(invariants).view(-1, l_max + model.l_max_density + 2, channels)
        a = total(o[:, own] * mixed(features, layer.mix_sent)[neighbor])
        b = total(o[:, l_max + 1 + degree] * harmonics[:, :, None])
        message = torch.zeros_like(features)
        for p, (l1, l2, l) in enumerate(layer.product.paths):
            symbol = o3.wigner_3j(l1, l2, l, dtype=torch.float64)
            term = torch.einsum("abm,nak,nbk->nmk", symbol, b[:, l1**2 : (l1 + 1) ** 2], a[:, l2**2 : (l2 + 1) ** 2])
            count = sum(path[2] == l for path in layer.product.paths)
            message[:, l**2 : (l + 1) ** 2] += term * layer.product.weight[species][:, p, None] / math.sqrt(count)
        message = mixed(message / divisor[:, :, None] ** 2, layer.mix_message)
        features = (mixed(features, layer.mix_kept) + message) / math.sqrt(2)
        features = features / torch.sqrt((features**2).sum((1, 2), keepdim=True) / ((l_max + 1) * channels) + 1e-6)
    rho = iterations[-1].closing_filters(invariants).view(-1, 3, l_max + 1, channels).sum(1)[:, own]
    densities.append((features * norm / math.sqrt(3) * total(rho * harmonics[:, :inner, None])).sum(1))
    return readout.network(torch.cat(densities, 1) / divisor)[:, 0]


def test_it_is_what_the_paper_writes():
    model = tiny_model(architecture="nemp", scale=(1.0, 1.0), shift=(0.0, 0.0))
    graph = graph_from_atoms(silicon_carbide(), model.elements, model.cutoff)
    found = model.module(graph.species, graph.center, graph.neighbor, graph.edge_vectors, graph.n_local)
    expected = by_the_formulas(model.module, graph, model.cutoff)
    assert float(expected.std()) > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_an_isolated_atom_has_its_reference_energy_and_a_learned_offset():
    model = tiny_model(architecture="nemp", shift=(-2.0, -3.5), scale=(1.0, 2.0))
    with torch.no_grad():
        model.module.energy_readout.offset.copy_(torch.tensor([0.25, 0.5]))
    for symbol, expected in (("C", -1.75), ("Si", -2.5)):
        assert float(model.predict(ase.Atoms(symbol)).energy[0]) == pytest.approx(expected, abs=1e-12)


def test_the_stages_of_a_deployed_model_make_up_its_forward(tmp_path):
    """Ghost rows hold nothing but what was exchanged, and no stage reads an edge but the one before wrote it."""
    source = write_tiny_checkpoint(tmp_path / "m.pt", architecture="nemp")
    module, metadata = load_deployed(export(source, dtype="float64", compiled=False).path)
    assert metadata["format_version"] == 4
    graph = graph_from_atoms(silicon_carbide(), metadata["elements"], metadata["cutoff"])
    n = graph.n_local
    # A second copy of all atoms plays the ghosts: neighbours are read there only.
    species, neighbor = torch.cat([graph.species, graph.species]), graph.neighbor + n
    edges, state = module.embed_edges(graph.edge_vectors), module.embed_nodes(species)
    assert edges.shape[1] == metadata["edge_width"]
    for index, stage in enumerate(metadata["stages"]):
        assert (state.shape[1], edges.shape[1]) == (stage["width"], stage["edge_width"])
        if index > 0:
            ghosts = torch.zeros_like(state)
            ghosts[:, : stage["exchanged_width"]] = state[:, : stage["exchanged_width"]]
            state = torch.cat([state, ghosts])
        state, edges = module.stage(index, state, edges, species, graph.center, neighbor, n)
        assert (state.shape[0], edges.shape[0]) == (n, len(graph.center))
    expected = module(graph.species, graph.center, graph.neighbor, graph.edge_vectors, n)
    torch.testing.assert_close(module.readout(state, graph.species), expected, rtol=0, atol=1e-12)


def test_the_repulsion_of_nuclei_is_added_to_the_energy(tmp_path):
    """In the source and in the deployed file, outside the scaling of what is learned."""
    atoms = silicon_carbide()
    atoms.set_cell(0.7 * atoms.cell.array, scale_atoms=True)
    without = tiny_model(architecture="nemp").predict(atoms)
    repulsive = load_model(write_tiny_checkpoint(tmp_path / "m.pt", architecture="nemp", zbl=True))
    found = repulsive.predict(atoms)
    graph = graph_from_atoms(atoms, repulsive.elements, repulsive.cutoff)
    distance = graph.edge_vectors.norm(dim=1)
    repulsion = ZBLRepulsion(repulsive.elements, repulsive.cutoff)
    expected = repulsion(distance, graph.species, graph.center, graph.neighbor, graph.n_local)[:, 0]
    assert float(expected.min()) > 0.1
    torch.testing.assert_close(found.energies - without.energies, expected, rtol=0, atol=1e-12)
    deployed = load_model(export(tmp_path / "m.pt", dtype="float64", compiled=False).path).predict(atoms)
    torch.testing.assert_close(deployed.energies, found.energies, rtol=0, atol=1e-10)
    torch.testing.assert_close(deployed.forces, found.forces, rtol=0, atol=1e-9)


def test_fewer_harmonics_than_the_features_need_are_refused():
    with pytest.raises(HIENetError, match=r"`l_max_density` must not be below `l_max` = 3"):
        make_config("nemp", None, {"elements": ("Si",), "l_max": 3})
