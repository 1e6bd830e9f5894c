"""What is special to Geodite: its physical priors, its features, what its ranks exchange."""

from __future__ import annotations

import ase
import numpy as np
import pytest
import torch
from ase.data import atomic_numbers, covalent_radii
from e3nn import o3
from hienet_deploy.export import export

from hienet.calculator import load_model
from hienet.elements import MPTRJ_ELEMENTS
from hienet.errors import HIENetError
from hienet.graph import graph_from_atoms
from hienet.models.factory import ARCHITECTURES, build_model, make_config
from hienet.models.geodite import INITIAL_SCREENING, Geodite
from hienet.nn.distance_weighting import DistanceWeighting, P, Q
from hienet.nn.geometric_attention import EdgeUpdate, GeometricAttention, NeighborDensity
from hienet.nn.steerable import SteerableCoupling, SteerableLayerNorm
from hienet.testing import random_rotation, silicon_carbide, tiny_checkpoint, tiny_model, write_tiny_checkpoint

SPECIES = torch.zeros(1, dtype=torch.int64)


def tiny(**values: object) -> Geodite:
    module = tiny_model(architecture="geodite", **values).module
    assert isinstance(module, Geodite)
    return module


def pair(distance: float, symbols: str = "SiC") -> ase.Atoms:
    return ase.Atoms(symbols, positions=[[0.0, 0.0, 0.0], [0.6 * distance, 0.0, 0.8 * distance]])


def count(preset: str | None, elements: tuple[str, ...], **values: object) -> int:
    config = make_config("geodite", preset, {"elements": elements, **values})
    return sum(parameter.numel() for parameter in build_model("geodite", config).parameters())


# ---- size, and what is exchanged ------------------------------------------------------------------------------------


def test_it_has_as_many_parameters_as_geodite_mp():
    """3.6 million are published, for 89 elements; 192 channels and four blocks are our assumption.

    With H channels, n radial functions and S elements: embeddings of species, of neighbourhoods and of edges
    2SH + 2nH + n + 3H^2; in each of four blocks 19 H^2 + n + H, in all but the last 6 H^2 for the edges; gains of the
    normalisation, one for each l, of the first block only for l = 0; ten numbers of the repulsion.
    """
    h, n, s = 192, 12, len(MPTRJ_ELEMENTS)
    expected = 2 * s * h + 2 * n * h + n + 3 * h * h + 4 * (19 * h * h + n + h) + 3 * 6 * h * h + (1 + 3 * 3) * h + 10
    assert s == 89
    assert count("paper", MPTRJ_ELEMENTS) == expected == 3_617_350


def test_scalars_are_exchanged_first_then_scalars_and_steerable_features_together():
    config = make_config("geodite", "paper", {"elements": ("Si",)})
    stages = ARCHITECTURES["geodite"].module(config).stages()
    assert [stage.exchanged_width for stage in stages] == [0, 192, 9 * 192, 9 * 192, 9 * 192]
    # Radial functions and harmonics; features of edges besides, which stay with the owner of the center.
    assert [stage.edge_width for stage in stages] == [1 + 8, 12 + 8, *[12 + 8 + 192] * 3]


@pytest.mark.parametrize(("n_layers", "l_max"), [(1, 1), (2, 3), (4, 2)])
def test_stages_have_the_widths_that_they_announce_and_give_the_energies_of_the_whole(n_layers, l_max):
    module = tiny(n_layers=n_layers, l_max=l_max)
    atoms = silicon_carbide()
    graph = graph_from_atoms(atoms, ("C", "Si"), 4.0)
    state, edges = module.embed_nodes(graph.species), module.embed_edges(graph.edge_vectors)
    for index, stage in enumerate(module.stages()):
        assert (state.shape[1], edges.shape[1]) == (stage.width, stage.edge_width)
        state, edges = module.stage(index, state, edges, graph.species, graph.center, graph.neighbor, graph.n_local)
    expected = module(graph.species, graph.center, graph.neighbor, graph.edge_vectors, graph.n_local)
    torch.testing.assert_close(module.readout(state, graph.species), expected, rtol=0, atol=1e-12)
    assert float((expected - expected[0]).abs().max()) > 0.1


# ---- the energy of isolated atoms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("symbol", ["C", "Si"])
def test_an_isolated_atom_has_its_reference_energy(symbol, model):
    shift = dict(zip(model.elements, model.info["hyperparameters"]["shift"], strict=True))
    assert float(model.predict(ase.Atoms(symbol)).energy[0]) == pytest.approx(shift[symbol], abs=1e-13)
    assert float(model.module.vacuum_energies().abs().min()) > 1e-3, "there is something to take off"


@pytest.fixture(scope="module")
def model():
    return tiny_model(architecture="geodite")


def test_vacuum_energies_are_those_of_extra_atoms_without_neighbours(model):
    """As the authors compute them: one more node for each element."""
    graph = graph_from_atoms(silicon_carbide(), model.elements, model.cutoff)
    species = torch.cat([graph.species, torch.tensor([0, 1])])
    outputs = model.module.outputs(species, graph.center, graph.neighbor, graph.edge_vectors, len(species))
    torch.testing.assert_close(outputs[-2:, 0], model.module.vacuum_energies(), rtol=0, atol=1e-13)


def test_vacuum_energies_are_differentiated_with_the_weights():
    module = build_model("geodite", tiny_checkpoint("geodite").config, seed=0)
    module(torch.tensor([1]), SPECIES[:0], SPECIES[:0], torch.zeros(0, 3, dtype=torch.float64), 1).sum().backward()
    gradients = [p.grad for p in module.blocks.parameters() if p.grad is not None]
    assert gradients
    assert all(float(gradient.abs().max()) < 1e-12 for gradient in gradients), "an isolated atom is no news"
    module.vacuum_energies().sum().backward()
    assert max(float(gradient.abs().max()) for gradient in gradients) > 0.1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_deployed_file_has_them_as_constants(dtype, model, tmp_path):
    source = write_tiny_checkpoint(tmp_path / "m.pt", architecture="geodite")
    deployed = load_model(export(source, dtype=dtype).path)
    constants = dict(deployed.module.named_buffers())["vacuum"]
    assert constants.dtype == deployed.dtype
    tolerance = 1e-6 if dtype == "float32" else 1e-13
    torch.testing.assert_close(constants.double(), model.module.vacuum_energies(), rtol=0, atol=tolerance)
    for symbol, energy in (("C", -2.0), ("Si", -3.5)):
        assert float(deployed.predict(ase.Atoms(symbol)).energy[0]) == pytest.approx(energy, abs=tolerance)


def test_constants_once_fixed_do_not_follow_the_weights():
    module = build_model("geodite", tiny_checkpoint("geodite").config, seed=0)
    before = module.vacuum_energies().detach().clone()
    module.fix_constants()
    with torch.no_grad():
        module.blocks[0].energy.weight.mul_(2.0)
    torch.testing.assert_close(module.vacuum_energies(), before, rtol=0, atol=0)
    module.vacuum = None
    assert float((module.vacuum_energies().detach() - before).abs().max()) > 1e-3


# ---- short distances ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("t", "weight"), [(0.5, 0.010), (1.0, 0.115), (2.0, 0.32), (5.0, 0.57)])
def test_distance_weighting_is_that_of_the_authors(t, weight):
    distance = torch.tensor([[t * 2 * covalent_radii[14]]], dtype=torch.float64)
    assert float(DistanceWeighting(("Si",))(distance, SPECIES, SPECIES)) == pytest.approx(weight, abs=0.006)


def test_distance_weighting_is_one_minus_agnesis_function_for_each_pair_of_elements():
    p, q = P, Q
    a = 2 * (2 * p * q - p - q) / (p * p + p + q * q + q)
    assert a == pytest.approx(0.2604, abs=1e-4)
    weighting = DistanceWeighting(("C", "Si"))
    distance = torch.linspace(0.3, 6.0, 40, dtype=torch.float64).unsqueeze(1)
    t = distance[:, 0] / (covalent_radii[6] + covalent_radii[14])
    agnesi = (1 + t ** (q - p)) / (1 + t ** (q - p) + a * t**q)
    found = weighting(distance, torch.zeros(40, dtype=torch.int64), torch.ones(40, dtype=torch.int64))
    torch.testing.assert_close(found[:, 0], 1 - agnesi, rtol=1e-9, atol=0)


def test_the_exponents_are_those_from_which_the_authors_start():
    assert DistanceWeighting(("Si",)).exponents.tolist() == pytest.approx([-15.2013, 3.2139], abs=1e-9)


def test_distance_weighting_rises_most_steeply_at_the_sum_of_covalent_radii():
    t = torch.linspace(0.5, 2.0, 1501, dtype=torch.float64)
    zero = torch.zeros(len(t), dtype=torch.int64)
    weights = DistanceWeighting(("Si",))((t * 2 * covalent_radii[14]).unsqueeze(1), zero, zero)[:, 0]
    assert float(t[torch.gradient(weights)[0].argmax()]) == pytest.approx(1.0, abs=0.002)


def test_the_exponents_of_the_weighting_can_be_trained():
    names = [name for name, _ in tiny(trainable_weighting=True).named_parameters()]
    assert "radial_features.weighting.exponents" in names
    fixed, trained = tiny(), tiny(trainable_weighting=True)
    assert sum(p.numel() for p in trained.parameters()) == sum(p.numel() for p in fixed.parameters()) + 2


@pytest.mark.parametrize("weighted", [True, False])
def test_radial_features_are_bessel_functions(weighted):
    features = tiny(distance_weighting=weighted).radial_features
    distance = torch.tensor([[0.05], [1.3], [2.9]], dtype=torch.float64)
    u = distance / 4.0
    envelope = 1 - 28 * u**6 + 48 * u**7 - 21 * u**8
    expected = np.sqrt(2 / 4.0) * torch.sin(torch.arange(1, 7, dtype=torch.float64) * np.pi * u) * envelope
    species = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1])
    if weighted:
        expected = expected / distance * DistanceWeighting(("C", "Si"))(distance, *species)
    torch.testing.assert_close(features(distance, *species), expected, rtol=1e-12, atol=1e-14)


def test_what_is_learnt_vanishes_where_atoms_overlap():
    """With the weighting; the repulsion remains, as `test_at_short_range_nuclei_repel_by_the_learnt_screening` says."""
    model = tiny_model(architecture="geodite", zbl=False)
    energies = [abs(float(model.predict(pair(d)).energy[0]) + 5.5) for d in (0.01, 0.1, 1.0)]
    assert energies[0] < 1e-6
    assert energies[0] < 1e-3 * energies[1] < 1e-4 * energies[2]


@pytest.mark.parametrize("symbols", ["SiC", "Si2", "C2"])
def test_at_short_range_nuclei_repel_by_the_learnt_screening(symbols):
    """Written down once more, with the authors' first values; inside the scaling of the energy."""
    model = tiny_model(architecture="geodite", universal_screening=False, scale=(2.0, 2.0))
    z_i, z_j = (atomic_numbers[s] for s in ase.Atoms(symbols).get_chemical_symbols())
    distance, outer = 0.3, covalent_radii[z_i] + covalent_radii[z_j]
    a = 0.4546 * 0.529 / (z_i**0.0842 + z_j**0.0842)
    u = distance / outer
    envelope = 1 - 21 * u**5 + 35 * u**6 - 15 * u**7
    screened = 4 * 0.1663 * np.exp(-0.0354 * distance / a)
    expected = 2.0 * 14.3996 * z_i * z_j / distance * screened * envelope
    isolated = [float(model.predict(ase.Atoms(s)).energy[0]) for s in ase.Atoms(symbols).get_chemical_symbols()]
    found = model.predict(pair(distance, symbols))
    assert float(found.energy[0]) - sum(isolated) == pytest.approx(expected, rel=1e-3)
    assert found.forces[1] @ torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64) > 100


def test_the_screening_is_trained():
    parameters = dict(tiny(universal_screening=False).named_parameters())
    assert parameters["repulsion.screening"].flatten().tolist() == pytest.approx(list(INITIAL_SCREENING))


def test_all_ten_numbers_of_the_screening_feel_a_loss_on_forces():
    module = build_model("geodite", tiny_checkpoint("geodite").config, seed=0)
    graph = graph_from_atoms(pair(0.9), ("C", "Si"), 4.0)
    vectors = graph.edge_vectors.requires_grad_()
    energies = module(graph.species, graph.center, graph.neighbor, vectors, graph.n_local)
    (gradient,) = torch.autograd.grad(energies.sum(), vectors, create_graph=True)
    gradient.square().sum().backward()
    assert int((module.repulsion.screening.grad.abs() > 0).sum()) == 10


# ---- at the cutoff --------------------------------------------------------------------------------------------------


def test_every_quantity_of_an_edge_vanishes_at_the_cutoff():
    """Radial features, edge features before and after their updates, attention, messages, density."""
    module = tiny(n_layers=3)
    module.fix_constants()
    largest: dict[float, dict[str, float]] = {}
    for gap in (0.4, 0.004):
        atoms = pair(4.0 - gap)
        graph = graph_from_atoms(atoms, ("C", "Si"), 4.0)
        found: dict[str, float] = {}
        hooks = []
        for name, part in module.named_modules():
            if isinstance(part, GeometricAttention | EdgeUpdate) or name in ("radial_features", "edge_embedding"):

                def note(_module, _inputs, output, name=name, found=found) -> None:
                    parts = output if isinstance(output, tuple) else (output,)
                    found[name] = max(float(tensor.abs().max()) for tensor in parts)

                hooks.append(part.register_forward_hook(note))
            elif isinstance(part, NeighborDensity):

                def density(_module, _inputs, output, name=name, found=found) -> None:
                    found[name] = float((output - 1.0).abs().max())

                hooks.append(part.register_forward_hook(density))
        module(graph.species, graph.center, graph.neighbor, graph.edge_vectors, graph.n_local)
        for hook in hooks:
            hook.remove()
        largest[gap] = found
    far, near = largest[0.4], largest[0.004]
    assert len(far) == 2 + 3 + 2 + 4
    for name in far:
        # The envelope falls with the third power of the gap.
        assert 0 < far[name] < 10, name
        assert near[name] < 3e-6 * far[name], name


# ---- features -------------------------------------------------------------------------------------------------------


def rotation_of_components(l_max: int, rotation: np.ndarray) -> torch.Tensor:
    matrix = torch.tensor(rotation)
    return torch.block_diag(*(o3.Irrep(l, 1).D_from_matrix(matrix).double() for l in range(1, l_max + 1)))


def random_features(n: int, l_max: int, channels: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scalars = torch.randn(n, channels, dtype=torch.float64, generator=generator)
    components = (l_max + 1) ** 2 - 1
    return scalars, torch.randn(n, components, channels, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("layer", [SteerableLayerNorm(6, 3), SteerableCoupling(6)], ids=["norm", "coupling"])
def test_steerable_features_turn_with_the_structure_and_scalars_stay(layer):
    scalars, steerables = random_features(4, 3, 6)
    rotation = rotation_of_components(3, random_rotation())
    with torch.no_grad():
        same, turned = layer(scalars, torch.einsum("ij,njc->nic", rotation, steerables))
        expected_same, expected = layer(scalars, steerables)
    torch.testing.assert_close(same, expected_same, rtol=0, atol=1e-12)
    torch.testing.assert_close(turned, torch.einsum("ij,njc->nic", rotation, expected), rtol=0, atol=1e-12)
    assert float((expected - steerables).abs().max()) > 0.1


def test_normalised_features_have_unit_size():
    scalars, steerables = SteerableLayerNorm(6, 2)(*random_features(5, 2, 6))
    of_degree = [scalars.square(), steerables[:, :3].square().sum(1) / 3, steerables[:, 3:].square().sum(1) / 5]
    torch.testing.assert_close(sum(of_degree).mean(1), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-7)


@pytest.mark.parametrize("rejection", [True, False])
def test_the_edges_inner_product_leaves_out_what_points_along_the_edge(rejection):
    """Both ends projected, as written in the paper, against one."""
    l_max, channels = 2, 4
    torch.manual_seed(0)
    update = EdgeUpdate(channels, l_max, "linear", "identity", rejection)
    _, steerables = random_features(2, l_max, channels)
    vector = torch.tensor([[0.3, -0.8, 0.5]], dtype=torch.float64)
    harmonics = o3.spherical_harmonics([1, 2], vector, normalize=True, normalization="norm")
    edge_features = torch.ones(1, channels, dtype=torch.float64)
    found = update(edge_features, steerables, harmonics, torch.tensor([0]), torch.tensor([1]), 2)
    product = torch.zeros(channels, dtype=torch.float64)
    for i, columns in enumerate((slice(0, 3), slice(3, 8))):
        y = harmonics[0, columns]
        ends = [update.query(steerables)[0, columns], update.keys[i](steerables)[1, columns]]
        if rejection:
            ends = [end - torch.outer(y, y @ end) for end in ends]
        product = product + (ends[0] * ends[1]).sum(0)
    expected = edge_features + update.network(edge_features) * product
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "values",
    [
        {"edge_network": "linear", "edge_gate": "identity", "l_max": 3, "distance_weighting": False},
        {"edge_gate": "tanh", "rejection": False, "l_max": 1, "zbl": False},
        {"n_layers": 1},
    ],
)
def test_other_choices_are_symmetric_too_and_deploy(values, tmp_path):
    source = write_tiny_checkpoint(tmp_path / "m.pt", architecture="geodite", **values)
    model = load_model(source)
    atoms = silicon_carbide()
    mirrored = atoms.copy()
    mirror = random_rotation() @ np.diag([1.0, 1.0, -1.0])
    mirrored.set_cell(atoms.cell.array @ mirror.T)
    mirrored.set_positions(atoms.positions @ mirror.T)
    found, expected = model.predict(mirrored), model.predict(atoms)
    torch.testing.assert_close(found.energies, expected.energies, rtol=0, atol=1e-11)
    torch.testing.assert_close(found.forces, expected.forces @ torch.tensor(mirror).T, rtol=0, atol=1e-10)
    deployed = load_model(export(source, dtype="float64").path).predict(atoms)
    torch.testing.assert_close(deployed.forces, expected.forces, rtol=0, atol=1e-10)


def test_attention_is_by_heads_of_contiguous_blocks():
    """Against the formula, edge by edge and head by head."""
    torch.manual_seed(0)
    channels, n_heads = 6, 3
    attention = GeometricAttention(channels, n_heads, 0.0, first=False)
    scalars, steerables = random_features(2, 1, channels)
    edge = torch.randn(1, channels, dtype=torch.float64)
    harmonics = torch.tensor([[0.6, 0.0, -0.8]], dtype=torch.float64)
    center, neighbor = torch.tensor([0]), torch.tensor([1])
    found, steered = attention(scalars, steerables, edge, harmonics, center, neighbor, 2)
    q, k = attention.query(scalars)[0], attention.key(scalars)[1]
    match = q * k * torch.nn.functional.silu(attention.edge_key(edge)[0])
    v, x = attention.attended(scalars)[1], attention.filtered(scalars)[1]
    attended = []
    for head in range(n_heads):
        alpha = torch.nn.functional.silu(match[2 * head : 2 * head + 2].sum()) / channels**0.5
        attended.append(alpha * v[6 * head : 6 * head + 6])
    o_s, o_d, o_t = (torch.cat(attended) + attention.edge_filter(edge)[0] * x).chunk(3)
    torch.testing.assert_close(found[0], o_s, rtol=0, atol=1e-12)
    expected = torch.outer(harmonics[0], o_d) + o_t * steerables[1]
    torch.testing.assert_close(steered[0], expected, rtol=0, atol=1e-12)
    assert not bool(steered[1].any()), "nobody sends to the other atom"


def test_the_first_block_is_the_same_with_steerable_features_of_zero():
    torch.manual_seed(0)
    first, general = (GeometricAttention(8, 4, 0.0, first=is_first) for is_first in (True, False))
    general.load_state_dict(first.state_dict())
    scalars, steerables = random_features(3, 2, 8)
    edge, harmonics = torch.randn(2, 8, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    graph = torch.tensor([0, 1]), torch.tensor([2, 0]), 3
    for found, expected in zip(
        first(scalars, steerables[:, :0], edge, harmonics, *graph),
        general(scalars, torch.zeros_like(steerables), edge, harmonics, *graph),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"n_heads": 5}, r"`n_heads` must divide `channels`, got 5 and 192"),
        (
            {"elements": ("Es",), "distance_weighting": True, "zbl": False},
            r"the covalent radii of \['Es'\] are not known; set `distance_weighting: false`",
        ),
        (
            {"trainable_weighting": True},
            r"`trainable_weighting` is given, but `distance_weighting` is false; set it too",
        ),
        (
            {"edge_gate": "relu"},
            r"key `model.edge_gate`: Input should be 'identity', 'linear' or 'tanh' .given: `relu`.",
        ),
    ],
)
def test_mistakes_in_the_configuration_are_named(values, sentence):
    with pytest.raises(HIENetError, match=sentence):
        make_config("geodite", None, {"elements": ("C", "Si"), **values})
