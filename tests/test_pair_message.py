"""The first invariant layer as tables over (pair of species, distance): the operator, the layer, and its loaders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hienet_deploy.export import export
from torch import Tensor

from hienet.calculator import load_model
from hienet.graph import graph_from_atoms
from hienet.nn.embedding import EdgeEmbedding, SpeciesEmbedding
from hienet.nn.invariant import InvariantLayer
from hienet.ops.invariant import TabulatedInvariantLayer
from hienet.ops.spline import LANES, evaluate_spline, in_lanes
from hienet.testing import silicon_carbide

pytestmark = pytest.mark.usefixtures("operators")

CUTOFF = 5.0


# --- the operator


class Problem:
    """Random tables of all pairs of three species, and a graph: atoms without neighbours, ghosts as neighbours."""

    def __init__(self, channels=20, dtype=torch.float64, n_edges=60, n_local=9, n_nodes=13, n_intervals=7):
        generator = torch.Generator().manual_seed(1)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.coefficients = [random(n_intervals, 6, channels) for _ in range(9)]
        self.table = torch.stack([in_lanes(splines, LANES) for splines in self.coefficients])
        self.pair_row = torch.tensor([[4, 0, 8], [1, 2, 3], [7, 6, 5]])
        self.species = torch.randint(3, (n_nodes,), generator=generator)
        # Centers 0 and n_local-1 receive nothing.
        self.center = torch.randint(1, n_local - 1, (n_edges,), generator=generator).sort().values
        self.neighbor = torch.randint(n_nodes, (n_edges,), generator=generator)
        # Columns of a wider tensor.
        self.edges = random(n_edges, 7)[:, 2:]
        self.edges[:, 0] = (CUTOFF * torch.rand(n_edges, generator=generator, dtype=torch.float64)).to(dtype)
        self.n_local, self.channels = n_local, channels
        self.seed = random(n_local, channels + 1)[:, 1:]

    def arguments(self) -> dict[str, object]:
        """Of the operator."""
        return {
            "edges": self.edges,
            "species": self.species,
            "table": self.table,
            "pair_row": self.pair_row,
            "center": self.center,
            "neighbor": self.neighbor,
            "n_local": self.n_local,
            "channels": self.channels,
            "cutoff": CUTOFF,
        }

    def operator(self, edges: Tensor) -> Tensor:
        """The output, `[n_local, channels]`."""
        return torch.ops.hienet.pair_message_sum(**{**self.arguments(), "edges": edges})

    def reference(self, edges: Tensor) -> Tensor:
        """The same in plain torch."""
        rows = self.pair_row[self.species[self.center], self.species[self.neighbor]]
        of_all_pairs = torch.stack([evaluate_spline(c, edges[:, 0], CUTOFF) for c in self.coefficients])
        messages = of_all_pairs[rows, torch.arange(len(rows))]
        return messages.new_zeros(self.n_local, self.channels).index_add(0, self.center, messages)

    def results(self, function) -> list[Tensor]:
        """The output and its derivative by the edges."""
        edges = self.edges.detach().requires_grad_()
        output = function(edges)
        (gradient,) = torch.autograd.grad(output, edges, self.seed, allow_unused=True)
        return [output.detach(), torch.zeros_like(edges) if gradient is None else gradient]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 5, 16, 20, 47, 64])
def test_the_operator_sums_the_splines_of_neighbors(channels, dtype, instruction_set):
    problem = Problem(channels, dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    for found, expected in zip(problem.results(problem.operator), problem.results(problem.reference), strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    output, gradient = problem.results(problem.operator)
    assert not output[[0, -1]].any()
    assert gradient.shape == problem.edges.shape
    assert not gradient[:, 1:].any()


def test_the_backward_is_the_derivative_of_the_forward(instruction_set):
    problem = Problem(channels=18, n_edges=12)
    assert torch.autograd.gradcheck(problem.operator, [problem.edges.clone().requires_grad_()])


@pytest.mark.parametrize("n_edges", [0, 1])
def test_hardly_any_edges(n_edges, instruction_set):
    problem = Problem(n_edges=n_edges)
    for found, expected in zip(problem.results(problem.operator), problem.results(problem.reference), strict=True):
        torch.testing.assert_close(found, expected)


def test_no_atoms_at_all():
    problem = Problem(n_edges=0)
    problem.n_local, problem.species = 0, problem.species[:0]
    assert problem.operator(problem.edges).shape == (0, problem.channels)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_results_are_the_same_bits_every_time(threads):
    # More edges than pass through the channels together, and one center with more than that.
    problem = Problem(dtype=torch.float32, n_edges=6000, n_local=20, n_nodes=50)
    problem.center = torch.cat([torch.full([2500], 3), problem.center[2500:]]).sort().values
    expected = problem.results(problem.reference)
    torch.set_num_threads(threads)
    try:
        first, second = problem.results(problem.operator), problem.results(problem.operator)
    finally:
        torch.set_num_threads(1)
    for a, b, c in zip(first, second, expected, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=0, atol=1e-4 * float(c.abs().max()))


@pytest.mark.parametrize("distance", [torch.nan, torch.inf, -torch.inf, 1e30, -1.0])
def test_no_distance_leads_out_of_the_table(distance, instruction_set):
    problem = Problem(n_intervals=1)
    problem.edges[7, 0] = distance
    output, gradient = problem.results(problem.operator)
    others = torch.arange(problem.n_local) != problem.center[7]
    assert output[others].isfinite().all()
    assert gradient[torch.arange(len(gradient)) != 7].isfinite().all()
    if not -10.0 <= distance <= 10.0:
        assert not output[problem.center[7]].isfinite().all() or output[problem.center[7]].abs().max() > 1e100


def test_differentiating_twice_is_refused():
    problem = Problem()
    edges = problem.edges.clone().requires_grad_()
    with pytest.raises(RuntimeError, match=r"can be differentiated once only; train the model"):
        torch.autograd.grad(problem.operator(edges).sum(), edges, create_graph=True)


def test_tables_have_no_gradient():
    problem = Problem()
    problem.table.requires_grad_()
    with pytest.raises(RuntimeError, match=r"have no gradient with respect to weights"):
        problem.operator(problem.edges)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"center": torch.tensor([1, 0])}, r"`center` must be sorted and below `n_local` .4., got 0 for edge 1"),
        ({"neighbor": torch.tensor([0, 5])}, r"`neighbor` must be below 5, got 5 for edge 1"),
        ({"n_local": 6}, r"`n_local` is 6, but there are 5 nodes"),
        ({"species": torch.tensor([0, 1, 2, 0, 0])}, r"species 2 of node 2 is not one of the model's 2"),
        ({"species": torch.tensor([0, 1, -1, 0, 0])}, r"species -1 of node 2 is not one of the model's 2"),
        (
            {"species": torch.tensor([1, 0, 0, 0, 0])},
            r"the model has no table for the species 1 and 0; call `load_elements` with all species in use",
        ),
        (
            {"pair_row": torch.tensor([[0, 3], [2, -1]])},
            r"no table for the species 0 and 1; call",
        ),
        ({"pair_row": torch.zeros(2, 3, dtype=torch.int64)}, r"`pair_row` must be \[species, species\]"),
        ({"channels": 33}, r"`table` must be \[pairs, ceil.channels / 16., intervals, 6, 16\]"),
        ({"table": torch.zeros(3, 2, 5, 6, 16, dtype=torch.float64)}, r"`edges` are Float, but `table` is Double"),
        ({"edges": torch.zeros(3, 4)}, r"`edges` must have one row for each edge .2., got \[3, 4\]"),
        (
            {"edges": torch.zeros(2, 4, dtype=torch.int64)},
            r"pair messages takes float32 or float64, got Long",
        ),
        ({"cutoff": 0.0}, r"`cutoff` must be positive, got 0"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(changes, message):
    """The kernels do not look again."""
    inputs = {
        "edges": torch.ones(2, 4),
        "species": torch.tensor([0, 1, 0, 0, 0]),
        "table": torch.zeros(3, 2, 5, 6, 16),
        "pair_row": torch.tensor([[0, 1], [-1, -1]]),
        "center": torch.tensor([0, 3]),
        "neighbor": torch.tensor([1, 0]),
        "n_local": 4,
        "channels": 20,
        "cutoff": CUTOFF,
    }
    assert torch.ops.hienet.pair_message_sum(**inputs).shape == (4, 20)
    with pytest.raises(ValueError, match=message):
        torch.ops.hienet.pair_message_sum(**{**inputs, **changes})


# --- the layer


class DistanceAndHarmonics(torch.nn.Module):
    """The edges of a compiled model in plain torch."""

    def __init__(self, embedding: EdgeEmbedding) -> None:
        super().__init__()
        self.spherical_harmonics = embedding.spherical_harmonics

    def forward(self, edge_vectors: Tensor) -> Tensor:
        distance = torch.linalg.vector_norm(edge_vectors, dim=1, keepdim=True)
        return torch.cat([distance, self.spherical_harmonics(edge_vectors)], dim=1)


def parts(smooth_cutoff: bool = True, channels: int = 24, seed: int = 0) -> tuple:
    """An invariant layer with distinct weights everywhere, and the embeddings before it, for four elements."""
    torch.manual_seed(seed)
    layer = InvariantLayer(channels, 8, 0.0, 0.0, smooth_cutoff)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.4)
    species = SpeciesEmbedding(4, channels, 0.0)
    embedding = EdgeEmbedding(CUTOFF, 8, 6, 2)
    torch.nn.init.uniform_(embedding.basis.frequencies, 0.5, 4.0)
    return layer.eval(), species.eval(), embedding.eval()


def random_graph(n_species: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """species, center, neighbor, edge_vectors: 9 owned atoms of 13, one of them without neighbours."""
    generator = torch.Generator().manual_seed(2)
    center = torch.randint(8, (80,), generator=generator).sort().values
    vectors = torch.nn.functional.normalize(torch.randn(80, 3, generator=generator, dtype=torch.float64), dim=1)
    vectors *= 0.7 + (CUTOFF - 0.7) * torch.rand(80, 1, generator=generator, dtype=torch.float64)
    return (
        torch.randint(n_species, (13,), generator=generator),
        center,
        torch.randint(13, (80,), generator=generator),
        vectors.to(dtype),
    )


def layer_results(layer, features, edge_module, graph, n_local=9) -> list[Tensor]:
    """What a layer makes of the features, and a derivative by the edge vectors."""
    species, center, neighbor, edge_vectors = graph
    edge_vectors = edge_vectors.detach().requires_grad_()
    output = layer(
        layer.prepare(features(species), species), edge_module(edge_vectors), species, center, neighbor, n_local
    )
    weights = torch.sin(torch.arange(output.numel(), dtype=output.dtype)).view_as(output)
    return [output.detach(), *torch.autograd.grad((weights * output).sum(), edge_vectors)]


@pytest.mark.parametrize("smooth_cutoff", [True, False])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_tabulated_layer_is_the_plain_one(smooth_cutoff, threads, instruction_set):
    layer, features, embedding = parts(smooth_cutoff)
    tabulated = TabulatedInvariantLayer(layer, features, embedding, 512)
    torch.set_num_threads(threads)
    try:
        assert tabulated.load_elements(torch.tensor([3, 0, 2, 1])) == 16 * 2 * 512 * 6 * 16 * 8
        found = layer_results(tabulated, features, DistanceAndHarmonics(embedding), random_graph())
    finally:
        torch.set_num_threads(1)
    expected = layer_results(layer, features, embedding, random_graph())
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-8)


def test_the_tabulated_layer_in_float32():
    layer, features, embedding = parts()
    expected = layer_results(layer, features, embedding, random_graph())
    tabulated = TabulatedInvariantLayer(layer, features, embedding, 256).float()
    tabulated.load_elements(torch.arange(4))
    assert tabulated.table.dtype == torch.float32
    found = layer_results(
        tabulated, features.float(), DistanceAndHarmonics(embedding).float(), random_graph(dtype=torch.float32)
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=3e-6 * float(b.abs().max()))


def test_messages_know_which_species_is_the_center():
    layer, features, embedding = parts()
    tabulated = TabulatedInvariantLayer(layer, features, embedding, 64)
    tabulated.load_elements(torch.tensor([1, 2]))
    there, back = (tabulated.table[tabulated.pair_row[a, b]] for a, b in ((1, 2), (2, 1)))
    assert float((there - back).abs().max()) > 0.1 * float(there.abs().max())


def test_species_without_tables_are_refused_and_loaded_later():
    layer, features, embedding = parts()
    tabulated = TabulatedInvariantLayer(layer, features, embedding, 128)
    edges = DistanceAndHarmonics(embedding)
    graph = random_graph()
    with pytest.raises(ValueError, match=r"no table for the species . and .; call `load_elements`"):
        layer_results(tabulated, features, edges, graph)
    tabulated.load_elements(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"no table for the species"):
        layer_results(tabulated, features, edges, graph)
    tabulated.load_elements(torch.tensor([0, 1, 2, 3]))
    layer_results(tabulated, features, edges, graph)
    tabulated.load_elements(torch.tensor([2]))
    assert len(tabulated.table) == (tabulated.pair_row >= 0).sum() == 1
    with pytest.raises(ValueError, match=r"species must be below 4, got 4"):
        tabulated.load_elements(torch.tensor([4]))


def test_tables_that_are_there_are_not_built_again(monkeypatch):
    """In any order of calls they are those of one call."""
    layer, features, embedding = parts()
    whole, parted = (TabulatedInvariantLayer(layer, features, embedding, 64) for _ in range(2))
    whole.load_elements(torch.arange(4))
    built = []
    messages = parted.messages

    def counted(center, neighbors, *others):
        built.extend((center, int(neighbor)) for neighbor in neighbors)
        return messages(center, neighbors, *others)

    monkeypatch.setattr(parted, "messages", counted)
    for species in ([2], [1, 2], [1, 2, 3], [0, 1, 2, 3]):
        parted.load_elements(torch.tensor(species))
    assert sorted(built) == [(a, b) for a in range(4) for b in range(4)]
    torch.testing.assert_close(parted.table[parted.pair_row], whole.table[whole.pair_row], rtol=0, atol=1e-14)
    parted.load_elements(torch.tensor([3, 1]))
    assert len(built) == 16
    assert len(parted.table) == 4
    torch.testing.assert_close(parted.table[parted.pair_row[3, 1]], whole.table[whole.pair_row[3, 1]], rtol=0, atol=0)


def test_the_state_has_no_columns():
    layer, features, embedding = parts()
    tabulated = TabulatedInvariantLayer(layer, features, embedding, 8)
    assert (tabulated.state_width, tabulated.exchanged_width) == (0, 0)
    assert tabulated.prepare(features(torch.tensor([0, 1])), torch.tensor([0, 1])).shape == (2, 0)


# --- whole models


@pytest.fixture(scope="module")
def deployed(operators, checkpoint_path, tmp_path_factory) -> Path:
    """`model`, deployed."""
    path = tmp_path_factory.mktemp("tables") / "tiny.hienet.pt"
    return export(checkpoint_path, path, dtype="float64").path


def test_tables_made_in_inference_mode_serve_derivatives(deployed, model):
    """A caller may want energies alone at first."""
    loaded, atoms = load_model(deployed), silicon_carbide()
    with torch.inference_mode():
        loaded.predict(atoms, derivatives=False)
    torch.testing.assert_close(loaded.predict(atoms).forces, model.predict(atoms).forces, rtol=0, atol=1e-8)


def test_tables_follow_the_precision_of_the_loaded_model(deployed, model):
    found = load_model(deployed, dtype="float32").predict(silicon_carbide())
    torch.testing.assert_close(found.forces.double(), model.predict(silicon_carbide()).forces, rtol=0, atol=1e-5)


def test_stages_and_forward_agree(deployed):
    loaded = load_model(deployed)
    graph = graph_from_atoms(silicon_carbide(), loaded.elements, loaded.cutoff)
    expected = loaded.predict_graph(graph).energies
    script = loaded.module
    edges, state = script.embed_edges(graph.edge_vectors), script.embed_nodes(graph.species)
    assert state.shape == (len(graph.species), 0)
    for index in range(4):
        state = script.stage(index, state, edges, graph.species, graph.center, graph.neighbor, graph.n_local)
    torch.testing.assert_close(script.readout(state, graph.species), expected)
