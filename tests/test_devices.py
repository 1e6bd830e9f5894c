"""Models, training and calculators on a GPU: everything is where it belongs, and the results are those of the CPU.

The GPU is `fake_gpu`'s, so that these tests run anywhere; what only a real one shows is not tested here.
"""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from ase.build import bulk
from fake_gpu import CUDA, WAITS, FakeGPUTensor, fake_gpu
from hienet_deploy.export import export
from labelled_frames import emt_frames, tiny_values, write_frames
from rich.console import Console
from torch import Tensor, nn

from hienet.calculator import HIENetCalculator, LoadedModel, load_model, parse_device
from hienet.checkpoint import Checkpoint, load_checkpoint
from hienet.config import parse_config
from hienet.derivatives import Prediction, predict
from hienet.errors import HIENetError
from hienet.evaluate import evaluate
from hienet.graph import graph_from_atoms
from hienet.memory import OutOfMemoryError
from hienet.ops.compile import compile_model, has_compiled_form
from hienet.testing import silicon_carbide, tiny_checkpoint, tiny_model, write_tiny_checkpoint
from hienet.train.run import InterruptedTrainingError, Run
from hienet.train.signals import StopRequest


def by_stages(module: nn.Module) -> object:
    """What LAMMPS does on one rank: the methods of docs/conventions.md one after the other."""

    def energies(species: Tensor, center: Tensor, neighbor: Tensor, edge_vectors: Tensor, n_local: int) -> Tensor:
        module.load_elements(species)
        edges, state = module.embed_edges(edge_vectors), module.embed_nodes(species)
        for index, _ in enumerate(stages):
            result = module.stage(index, state, edges, species, center, neighbor, n_local)
            state, edges = result if isinstance(result, tuple) else (result, edges)
        return module.readout(state, species[:n_local])

    stages = module.stages()
    return energies


def assert_same(found: Prediction, expected: Prediction) -> None:
    """On the fake GPU the same operations run as on the CPU; only their order in sums could differ."""
    for name in ("energies", "energy", "forces", "stress"):
        on_gpu, on_cpu = getattr(found, name), getattr(expected, name)
        assert isinstance(on_gpu, FakeGPUTensor), name
        assert on_gpu.device == CUDA
        assert on_cpu.abs().max() > 1e-6, name
        assert (on_gpu.cpu() - on_cpu).abs().max() < 1e-12 * max(1.0, on_cpu.abs().max()), name


# The fake GPU itself


def test_the_fake_gpu_refuses_what_a_gpu_refuses():
    with fake_gpu():
        there, here = torch.ones(3, 4, device="cuda"), torch.ones(3, 4)
        assert (there + there).device == CUDA
        assert torch.tensor([2.0], device="cuda").cpu().tolist() == [2.0]
        for wrong in (
            lambda: there + here,
            lambda: there @ torch.ones(4, 2),
            lambda: there.index_select(0, torch.tensor([0])),
            lambda: torch.cat([there, here]),
            lambda: there.index_add(0, torch.tensor([0, 1, 2], device="cuda"), here),
        ):
            with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
                wrong()
        with pytest.raises(TypeError, match=r"Use Tensor\.cpu\(\) to copy it to host first"):
            there.numpy()
        # Numbers may come from the CPU where an operation goes element by element.
        assert (there * torch.tensor(2.0)).cpu().sum() == 24.0
        assert there.to("cpu").numpy().sum() == 12.0
        assert float(there.sum()) == 12.0
        # What is written in place is written.
        there[0] = 3.0
        there.mul_(2.0)
        assert there.cpu().sum() == 2 * (12 + 8)


@pytest.mark.parametrize("where", ["made in forward", "not moved with the module"])
def test_a_tensor_left_on_the_cpu_is_caught(where):
    model = tiny_model()
    readout = model.module.energy_readout
    if where == "made in forward":
        forward = readout.forward
        readout.forward = lambda features, species: forward(features, species) * torch.ones(features.shape[0])
    else:
        shift = readout.shift.clone()
        del readout.shift
        # Not a buffer: `to` passes it over.
        object.__setattr__(readout, "shift", shift)
    graph = graph_from_atoms(silicon_carbide(), model.elements, model.cutoff)
    predict(model.module, graph)
    with fake_gpu(), pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        predict(model.module.to("cuda"), graph.to("cuda"))


# Models


def assert_runs_on_a_gpu(checkpoint: Checkpoint, form: str) -> None:
    module = checkpoint.build().requires_grad_(False)
    if form == "compiled":
        if not has_compiled_form(module):
            pytest.skip("this architecture has no compiled form")
        compile_model(module, n_intervals=64)
    graph = graph_from_atoms(silicon_carbide(), checkpoint.config.elements, checkpoint.config.cutoff)
    if form == "script":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            scripted = torch.jit.script(module)
        scripted.stages, module = module.stages, scripted
    run = module if form == "plain" else by_stages(module)
    expected = predict(run, graph)
    with fake_gpu():
        module.to("cuda")
        assert_same(predict(run, graph.to("cuda")), expected)


@pytest.mark.parametrize("form", ["plain", "stages", "compiled"])
def test_every_architecture_runs_on_a_gpu(variant, form, operators):
    assert_runs_on_a_gpu(tiny_checkpoint(**{"scale": (40.0, 55.0), **variant}), form)


@pytest.mark.parametrize("architecture_with_code_of_its_own", ["hienet", "nemp", "botnet"])
def test_torchscript_runs_on_a_gpu(architecture_with_code_of_its_own):
    assert_runs_on_a_gpu(tiny_checkpoint(architecture_with_code_of_its_own, scale=(40.0, 55.0)), "script")


@pytest.mark.parametrize("form", ["plain", "compiled"])
def test_a_step_of_hienet_never_waits_for_the_gpu(form, operators):
    """So that its launches can be recorded as a graph."""
    checkpoint = tiny_checkpoint()
    module = checkpoint.build().requires_grad_(False)
    if form == "compiled":
        compile_model(module, n_intervals=64)
    graph = graph_from_atoms(silicon_carbide(), checkpoint.config.elements, checkpoint.config.cutoff)
    with fake_gpu():
        module.to("cuda").load_elements(torch.tensor([0, 1]))
        graph = graph.to("cuda")
        WAITS.clear()
        predict(module, graph)
        assert WAITS == []
        graph.species[graph.species == 1].sum().item()
        assert WAITS == ["aten.index.Tensor", "aten._local_scalar_dense.default"], "it would have been noticed"


def test_tables_for_more_elements_are_built_where_the_layer_is(operators):
    """Also where the species are named by tensors of the CPU."""
    checkpoint = tiny_checkpoint()
    module = checkpoint.build().requires_grad_(False)
    compile_model(module, n_intervals=64)
    expected = module.load_elements(torch.tensor([0, 1]))
    layer = module.layers[0]
    tables = layer.table[layer.pair_row.flatten()]
    with fake_gpu():
        module.to("cuda")
        assert module.load_elements(torch.tensor([1])) == expected // 4
        assert module.load_elements(torch.tensor([0, 1])) == expected
        assert layer.table.device == layer.pair_row.device == CUDA
        found = layer.table.cpu()[layer.pair_row.cpu().flatten()]
        torch.testing.assert_close(found, tables, rtol=0, atol=1e-13)


# Calculators


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_the_calculator_gives_numbers_of_the_host(checkpoint_path, dtype):
    atoms = silicon_carbide()
    expected = HIENetCalculator([checkpoint_path] * 2, dtype=dtype)
    expected.calculate(atoms, ["forces", "stress"])
    with fake_gpu():
        calculator = HIENetCalculator([checkpoint_path] * 2, device="cuda", dtype=dtype)
        assert calculator.models[0].device.type == "cuda"
        calculator.calculate(atoms, ["forces", "stress"])
    assert calculator.results.keys() == expected.results.keys()
    for name, value in expected.results.items():
        np.testing.assert_allclose(calculator.results[name], value, rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_deployed_file_runs_on_a_gpu(compiled, operators, tmp_path):
    """The operators' kernels are those of the CPU here."""
    checkpoint = write_tiny_checkpoint(tmp_path / "model.pt", elements=("Si",), scale=(40.0,))
    deployed = export(checkpoint, compiled=compiled, dtype="float64", tolerance=1e-3).path
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=0)
    expected = load_model(deployed).predict(atoms)
    with fake_gpu(), mock.patch("hienet.deployed.compiled_devices", return_value=["cpu", "cuda"]):
        assert_same(load_model(deployed, "cuda").predict(atoms), expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:1", r"device `cuda:1` is not available: torch numbers the GPUs here from 0 to 0; use one of them"),
        ("gpu", r"unknown device `gpu`; expected cpu, cuda or cuda:N"),
        ("meta", r"unknown device `meta`; expected cpu, cuda or cuda:N"),
    ],
)
def test_a_device_that_is_not_there_is_refused(name, message):
    with fake_gpu(), pytest.raises(HIENetError, match=message):
        parse_device(name)


# Training and evaluation


@pytest.fixture
def gpu_random_state():
    """The state of the GPU's random numbers: torch would ask the driver for it."""
    state = {"state": torch.arange(16, dtype=torch.uint8)}

    def get(device: torch.device) -> Tensor:
        assert device.type == "cuda"
        return state["state"].clone()

    def put(value: Tensor, device: torch.device) -> None:
        assert device.type == "cuda"
        assert not isinstance(value, FakeGPUTensor)
        state["state"] = value

    with mock.patch("torch.cuda.get_rng_state", get), mock.patch("torch.cuda.set_rng_state", put):
        yield state


def trained(folder: Path, resume: bool = False, **training: object) -> dict[str, Tensor]:
    """Weights of the best model of a run on the frames beside its folder."""
    values = tiny_values(folder.parent / "data.extxyz", folder, gradient_clip=1.0, epochs=1, **training)
    # Plots take seconds, and are made of numbers of the CPU.
    with mock.patch("hienet.train.run.plot_learning_curves"), mock.patch("hienet.train.run.plot_parity"):
        Run(parse_config(values), resume, Console(file=io.StringIO())).train()
    return dict(load_checkpoint(folder / "best.pt").weights)


class Stop(StopRequest):
    """As if a signal had come at once."""

    def __enter__(self) -> Stop:
        super().__enter__()
        self.received = "SIGINT"
        return self


def test_training_on_a_gpu_is_training(tmp_path, gpu_random_state):
    """Steps, validation, averaged weights, files, and the report at the end."""
    write_frames(tmp_path / "data.extxyz", emt_frames(6))
    expected = trained(tmp_path / "cpu")
    with fake_gpu():
        found = trained(tmp_path / "gpu", device="cuda")
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert not isinstance(found[name], FakeGPUTensor)
        assert (found[name] - weight).abs().max() < 1e-6, name
    for name in ("train", "validation"):
        on_cpu, on_gpu = (
            json.loads((tmp_path / device / "results.json").read_text())["errors"][name] for device in ("cpu", "gpu")
        )
        assert on_gpu == pytest.approx(on_cpu, rel=1e-4)
    rows = [json.loads((tmp_path / device / "log.jsonl").read_text()) for device in ("cpu", "gpu")]
    assert rows[1]["train_loss"] == pytest.approx(rows[0]["train_loss"])


def test_a_run_on_a_gpu_is_resumed_there_and_on_the_cpu(tmp_path, gpu_random_state):
    write_frames(tmp_path / "data.extxyz", emt_frames(6))
    stop = mock.patch("hienet.train.run.StopRequest", Stop)
    with fake_gpu():
        whole = trained(tmp_path / "whole", device="cuda")
        for folder in ("gpu", "cpu"):
            with stop, pytest.raises(InterruptedTrainingError, match="stopped by SIGINT in epoch 1"):
                trained(tmp_path / folder, device="cuda")
        gpu_random_state["state"] = torch.zeros(16, dtype=torch.uint8)
        resumed = trained(tmp_path / "gpu", resume=True, device="cuda")
    assert gpu_random_state["state"].tolist() == [0] * 16, "the caller's own"
    there = load_checkpoint(tmp_path / "gpu" / "last.pt").resume
    assert there["trainer"]["random_device"].tolist() == list(range(16))
    elsewhere = trained(tmp_path / "cpu", resume=True)
    for name, weight in whole.items():
        assert torch.equal(resumed[name], weight), name
        assert (elsewhere[name] - weight).abs().max() < 1e-6, name


def test_a_gpu_is_waited_for_once_a_step(tmp_path, gpu_random_state):
    write_frames(tmp_path / "data.extxyz", emt_frames(6))
    config = parse_config(tiny_values(tmp_path / "data.extxyz", tmp_path / "run", gradient_clip=1.0, device="cuda"))
    with fake_gpu():
        trainer = Run(config, False, Console(file=io.StringIO())).trainer
        trainer.model.train()
        for step in ([0, 1], [2, 3]):
            WAITS.clear()
            trainer._step(step)
            assert WAITS == ["aten._to_copy.default"], "the losses, for the log"


def test_evaluation_on_a_gpu_is_evaluation(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "model.pt", elements=("Ag", "Cu"))
    data = write_frames(tmp_path / "data.extxyz")
    expected = evaluate(model, [data])
    with fake_gpu():
        found = evaluate(model, [data], device="cuda")
    assert found.total.as_dict() == pytest.approx(expected.total.as_dict(), rel=1e-9)


# Memory

CUDA_MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.72 GiB of which ..."


def exhausted(*_: object) -> Tensor:
    raise torch.cuda.OutOfMemoryError(CUDA_MESSAGE)


def test_a_gpu_without_memory_is_explained_by_the_calculator(checkpoint_path):
    atoms = silicon_carbide()
    with fake_gpu():
        atoms.calc = HIENetCalculator(checkpoint_path, device="cuda")
        model = atoms.calc.models[0]
        n_edges = graph_from_atoms(atoms, model.elements, model.cutoff).center.shape[0]
        with (
            mock.patch.object(model.module, "forward", exhausted),
            pytest.raises(
                OutOfMemoryError,
                match=rf"not enough memory for 8 atoms with {n_edges} edges; use a smaller structure, `float32`, a "
                r"compiled file \(`hienet-deploy`\), or LAMMPS on several ranks",
            ),
        ):
            atoms.get_forces()
        atoms.get_forces()


def test_a_gpu_without_memory_is_explained_by_training(tmp_path, gpu_random_state):
    write_frames(tmp_path / "data.extxyz")
    with (
        fake_gpu(),
        mock.patch("hienet.models.hienet.HIENet.forward", exhausted),
        pytest.raises(
            OutOfMemoryError,
            match=r"not enough memory for batches of 2 frames, 8 atoms with \d{2,} edges; "
            r"go on with --resume and a larger `training\.accumulate`, or where there is more memory",
        ),
    ):
        trained(tmp_path / "run", device="cuda")


def test_a_gpu_without_memory_is_explained_by_evaluation(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "model.pt", elements=("Ag", "Cu"))
    data = write_frames(tmp_path / "data.extxyz", emt_frames(3))
    with (
        fake_gpu(),
        mock.patch("hienet.models.hienet.HIENet.forward", exhausted),
        pytest.raises(
            OutOfMemoryError,
            match=r"not enough memory for batches of 3 frames, 12 atoms with \d{3,} edges; give a smaller "
            r"--batch-size, --dtype float32, or a compiled file \(`hienet-deploy`\)",
        ),
    ):
        evaluate(model, [data], batch_size=3, device="cuda")


def test_a_model_takes_graphs_of_any_device_and_dtype():
    model = tiny_model()
    graph = graph_from_atoms(silicon_carbide(), model.elements, model.cutoff)
    expected = model.predict_graph(graph)
    with fake_gpu():
        there = LoadedModel(model.module.to("cuda"), model.elements, model.cutoff, model.dtype, CUDA, {})
        assert_same(there.predict_graph(graph), expected)
        assert_same(there.predict_graph(graph.to("cuda")), expected)
