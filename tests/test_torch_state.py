"""What a caller has told torch changes no result of this package, and this package does not change what it was told."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import ase.io
import numpy as np
import pytest
import torch
from hienet_deploy.export import export
from labelled_frames import emt_frames, tiny_values, write_frames
from rich.console import Console
from torch import Tensor

from hienet.calculator import HIENetCalculator, LoadedModel, load_model
from hienet.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from hienet.config import parse_config
from hienet.convert import convert
from hienet.data.prepare import prepare_data
from hienet.derivatives import Prediction, predict
from hienet.evaluate import evaluate
from hienet.graph import batch_graphs, graph_from_atoms
from hienet.info import describe_architectures, describe_file
from hienet.lammps import create
from hienet.neighbors import neighbor_list
from hienet.template import render, summarize
from hienet.testing import silicon_carbide, tiny_checkpoint, tiny_model, write_tiny_checkpoint
from hienet.torch_state import own_torch_state
from hienet.train.run import Run

sys.path.insert(0, str(Path(__file__).parent / "lammps"))

State = Callable[[], contextlib.AbstractContextManager[object]]


def switched(switch: Callable[..., object], there: object, back: object) -> State:
    """A setting of the whole process or thread."""

    @contextlib.contextmanager
    def state() -> Iterator[None]:
        switch(there)
        try:
            yield
        finally:
            switch(back)

    return state


@contextlib.contextmanager
def default_tensor_type() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"torch.set_default_tensor_type\(\) is deprecated")
        torch.set_default_tensor_type(torch.DoubleTensor)
    try:
        yield
    finally:
        torch.set_default_tensor_type(torch.FloatTensor)


@contextlib.contextmanager
def deterministic(warn_only: bool) -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def anomaly_detection() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Anomaly Detection has been enabled")
        with torch.autograd.detect_anomaly():
            yield


@contextlib.contextmanager
def fewer_digits() -> Iterator[None]:
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@contextlib.contextmanager
def several() -> Iterator[None]:
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
        yield


STATES: dict[str, State] = {
    "no_grad": torch.no_grad,
    "gradients switched off": switched(torch.set_grad_enabled, False, True),
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default dtype float64": switched(torch.set_default_dtype, torch.float64, torch.float32),
    "default dtype bfloat16": switched(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "default tensor type": default_tensor_type,
    "default device": switched(torch.set_default_device, "meta", None),
    "device context": lambda: torch.device("meta"),
    "deterministic": lambda: deterministic(False),
    "deterministic, warnings only": lambda: deterministic(True),
    "fewer digits": fewer_digits,
    "fewer digits, of all": switched(torch.set_float32_matmul_precision, "medium", "highest"),
    "two threads": switched(torch.set_num_threads, 2, 1),
    "denormals are zero": switched(torch.set_flush_denormal, True, False),
    "anomaly detection": anomaly_detection,
    "backward in one thread": lambda: torch.autograd.set_multithreading_enabled(False),
    "several at once": several,
}
"""What users and their other libraries do to torch. Each is undone afterwards, for the tests that follow."""

STATES_OF_SLOW_ENTRIES = ("no_grad", "inference_mode", "default dtype float64", "several at once")
"""What long work is tried under: between them they have every way in which a state has changed a result."""

SUMS_IN_ANOTHER_ORDER = ("two threads",)

Arrays = dict[str, np.ndarray]


def of_prediction(prediction: Prediction) -> Arrays:
    assert prediction.forces is not None
    assert prediction.stress is not None
    # A force that is lost shows as zeros.
    assert float(prediction.forces.abs().max()) > 0.01
    assert float(prediction.stress.abs().max()) > 1e-4
    return {name: value.numpy() for name, value in vars(prediction).items()}


def of_calculator(files: object) -> Arrays:
    atoms = silicon_carbide()
    atoms.calc = HIENetCalculator(files)  # type: ignore[arg-type]
    deviation = atoms.calc.get_property("force_deviation", atoms)
    assert np.abs(atoms.get_forces()).max() > 0.01
    return {
        "energies": atoms.get_potential_energies(),
        "forces": atoms.get_forces(),
        "stress": atoms.get_stress(),
        "deviation": deviation,
    }


def of_weights(weights: object) -> Arrays:
    return {name: tensor.detach().numpy() for name, tensor in dict(weights).items()}  # type: ignore[call-overload]


class Inputs:
    """Files and models, made in torch's own state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = tiny_model()
        self.checkpoints = [write_tiny_checkpoint(folder / f"{seed}.pt", seed=seed) for seed in (0, 1)]
        self.compiled = [export(path, folder / f"{path.stem}.hienet.pt").path for path in self.checkpoints]
        self.plain = export(self.checkpoints[0], folder / "plain.hienet.pt", compiled=False).path
        self.frames = write_frames(folder / "frames.extxyz", emt_frames(6))
        self.copper = write_tiny_checkpoint(folder / "copper.pt", elements=("Ag", "Cu"))
        structures = [silicon_carbide(rattle=rattle) for rattle in (0.05, 0.1)]
        for atoms in structures:
            atoms.info["energy"] = -60.0
        self.structures = write_frames(folder / "structures.extxyz", structures)

    def fresh(self, name: str) -> Path:
        """A path of this name in a new folder."""
        folder = self.folder / f"n{len(list(self.folder.iterdir()))}"
        folder.mkdir()
        return folder / name


def predict_functions(inputs: Inputs) -> Arrays:
    """`predict` on a batch, with and without derivatives, and its derivative by the weights."""
    model = tiny_checkpoint().build()
    graphs = [graph_from_atoms(silicon_carbide(rattle=r), ("C", "Si"), 4.0) for r in (0.05, 0.1)]
    found = of_prediction(predict(model, batch_graphs(graphs)))
    bare = predict(model, graphs[0], derivatives=False)
    return {**found, "energies alone": bare.energies.detach().numpy(), "energy alone": bare.energy.detach().numpy()}


def training(inputs: Inputs) -> Arrays:
    folder = inputs.fresh("run")
    values = tiny_values(inputs.frames, folder, epochs=2, threads=None)
    with mock.patch("hienet.train.run.plot_learning_curves"), mock.patch("hienet.train.run.plot_parity"):
        result = Run(parse_config(values), False, Console(file=io.StringIO())).train()
    errors = {name: np.array([float(v) for v in found.as_dict().values()]) for name, found in result.errors.items()}
    return {**of_weights(load_checkpoint(result.best).weights), **errors}


def preparation(inputs: Inputs) -> Arrays:
    config = parse_config(tiny_values(inputs.frames, inputs.folder / "unused"))
    data = prepare_data(config.data, config.model, torch.float32, 0)
    numbers = [*data.model.scale, *data.model.shift, data.model.avg_num_neighbors]
    fingerprint = np.frombuffer(bytes.fromhex(data.fingerprint), dtype=np.uint8)
    return {"numbers": np.array(numbers), "fingerprint": fingerprint}


def evaluation(model: Path, data: Path) -> Arrays:
    found = evaluate(model, [data]).comparison
    return {name: value for name, value in vars(found).items() if isinstance(value, np.ndarray)}


def exported(inputs: Inputs, compiled: bool) -> Arrays:
    path = export(inputs.checkpoints[0], inputs.fresh("m.hienet.pt"), compiled=compiled).path
    return of_calculator(path)


def round_trip(inputs: Inputs) -> Arrays:
    """A new model with weights of a seed, written and read."""
    path = inputs.fresh("new.pt")
    checkpoint = tiny_checkpoint(seed=5)
    save_checkpoint(Checkpoint(checkpoint.architecture, checkpoint.config, checkpoint.weights), path)
    return of_weights(load_checkpoint(path).weights)


def graph(inputs: Inputs) -> Arrays:
    made = graph_from_atoms(silicon_carbide(), ("C", "Si"), 4.0, torch.float32)
    tensors = {name: part for name, part in vars(made).items() if isinstance(part, Tensor)}
    assert not any(tensor.is_inference() for tensor in tensors.values())
    return of_weights(tensors)


def neighbors(inputs: Inputs) -> Arrays:
    atoms = silicon_carbide()
    names = ("center", "neighbor", "edge_vectors")
    return dict(zip(names, neighbor_list(atoms.positions, atoms.cell, atoms.pbc, 4.0), strict=True))


def converted(inputs: Inputs) -> Arrays:
    reference = Path(__file__).parent / "reference"
    return of_weights(convert(reference / "hienet_official" / "paper_small_older_e3nn.pth").weights)


def as_text(value: object) -> Arrays:
    return {"text": np.array(json.dumps(value, default=str, ensure_ascii=False))}


def in_lammps(file: Path, inputs: Inputs) -> Arrays:
    from runs import Setup

    setup, data = Setup(file), inputs.fresh("data.test")
    setup.write(data, silicon_carbide())
    lammps = create()
    try:
        lammps.commands_string(setup.preamble(silicon_carbide(), data) + "run 2\n")
        n = lammps.extract_global("nlocal")
        order = np.argsort(lammps.numpy.extract_atom("id")[:n])
        forces = np.array(lammps.numpy.extract_atom("f")[:n])[order]
        return {"energy": np.array(lammps.get_thermo("pe")), "forces": forces}
    finally:
        lammps.close()


ENTRIES: dict[str, Callable[[Inputs], Arrays]] = {
    "calculator of a checkpoint": lambda i: of_calculator(i.checkpoints[0]),
    "calculator of a compiled file": lambda i: of_calculator(i.compiled[0]),
    "calculator of a plain file": lambda i: of_calculator(i.plain),
    "calculator of checkpoints": lambda i: of_calculator(i.checkpoints),
    "calculator of compiled files": lambda i: of_calculator(i.compiled),
    "model made before": lambda i: of_prediction(i.model.predict(silicon_carbide())),
    "predict": predict_functions,
    "graph": graph,
    "neighbors": neighbors,
    "evaluate a checkpoint": lambda i: evaluation(i.copper, i.frames),
    "evaluate a compiled file": lambda i: evaluation(i.compiled[0], i.structures),
    "prepare data": preparation,
    "train": training,
    "deploy compiled": lambda i: exported(i, True),
    "deploy plain": lambda i: exported(i, False),
    "write and read a checkpoint": round_trip,
    "convert": converted,
    "describe a checkpoint": lambda i: as_text(describe_file(i.checkpoints[0])),
    "describe a deployed file": lambda i: as_text(describe_file(i.compiled[0])),
    "summarize data": lambda i: as_text(render(summarize([str(i.frames)]), "run")),
}
"""Every way into the package that computes, or makes what is computed with later."""

SLOW_ENTRIES = (
    "evaluate a checkpoint",
    "evaluate a compiled file",
    "prepare data",
    "train",
    "deploy compiled",
    "deploy plain",
    "convert",
    "describe a checkpoint",
    "describe a deployed file",
    "summarize data",
)

LAMMPS_ENTRIES: dict[str, Callable[[Inputs], Arrays]] = {
    "compiled": lambda i: in_lammps(i.compiled[0], i),
    "plain": lambda i: in_lammps(i.plain, i),
}


def torch_settings() -> dict[str, object]:
    """What a caller can see of torch's state."""
    return {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "dtype": torch.get_default_dtype(),
        "device": torch.empty(0).device,
        "autocast": torch.is_autocast_enabled("cpu"),
        "autocast dtype": torch.get_autocast_dtype("cpu"),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warnings only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "digits": (torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision),
        "threads": torch.get_num_threads(),
        "anomaly": torch.is_anomaly_enabled(),
        "backward": torch._C._is_multithreading_enabled(),
        "random numbers": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
        "filters of warnings": list(warnings.filters),
        "denormals": float(torch.tensor(1e-310, dtype=torch.float64, device="cpu") * 1.0),
    }


@pytest.fixture(scope="module")
def inputs(operators, tmp_path_factory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="module")
def expected(inputs) -> Callable[[str, Callable[[Inputs], Arrays]], Arrays]:
    """The results in torch's own state, once for each entry."""
    known: dict[str, Arrays] = {}

    def result(name: str, entry: Callable[[Inputs], Arrays]) -> Arrays:
        if name not in known:
            known[name] = entry(inputs)
        return known[name]

    return result


def assert_the_same(state: str, entry: Callable[[Inputs], Arrays], inputs: Inputs, expected: Arrays) -> None:
    with STATES[state]():
        before = torch_settings()
        found = entry(inputs)
        assert torch_settings() == before
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if state in SUMS_IN_ANOTHER_ORDER and value.dtype.kind == "f":
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("entry", "state"),
    [(e, s) for e in ENTRIES for s in STATES if e not in SLOW_ENTRIES or s in STATES_OF_SLOW_ENTRIES],
)
def test_results_do_not_depend_on_torchs_state(entry, state, inputs, expected):
    assert_the_same(state, ENTRIES[entry], inputs, expected(entry, ENTRIES[entry]))


@pytest.mark.lammps
@pytest.mark.parametrize("state", STATES_OF_SLOW_ENTRIES)
@pytest.mark.parametrize("entry", LAMMPS_ENTRIES)
def test_lammps_in_this_process_does_not_depend_on_torchs_state(entry, state, inputs, expected):
    assert_the_same(state, LAMMPS_ENTRIES[entry], inputs, expected(f"lammps {entry}", LAMMPS_ENTRIES[entry]))


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", ["checkpoint", "compiled", "plain"])
def test_a_model_read_in_any_state_serves_outside_of_it(kind, state, inputs):
    path = {"checkpoint": inputs.checkpoints[0], "compiled": inputs.compiled[0], "plain": inputs.plain}[kind]
    right = of_prediction(load_model(path).predict(silicon_carbide()))
    with STATES[state]():
        model = load_model(path)
        model.predict(silicon_carbide())
    found = of_prediction(load_model(path).predict(silicon_carbide()))
    for name, value in right.items():
        np.testing.assert_array_equal(found[name], value)
    first = of_prediction(model.predict(silicon_carbide()))
    for name, value in right.items():
        # The second call of a script is compiled by torch's executor, which rounds differently.
        np.testing.assert_allclose(first[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("state", STATES)
def test_weights_made_in_any_state_can_be_trained_outside_of_it(state):
    """Weights of inference mode could not."""
    with STATES[state]():
        model = tiny_checkpoint().build().requires_grad_()
        made = graph_from_atoms(silicon_carbide(), ("C", "Si"), 4.0)
    prediction = predict(model, made, training=True)
    assert prediction.forces is not None
    (prediction.forces**2).sum().backward()
    gradients = [float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None]
    assert len(gradients) > 5
    assert max(gradients) > 1e-6


def test_graphs_of_inference_mode_are_differentiated(model: LoadedModel):
    """Tensors that a caller made in that mode, by whatever way."""
    made = graph_from_atoms(silicon_carbide(), model.elements, model.cutoff)
    right = model.predict_graph(made)
    with torch.inference_mode():
        foreign = type(made)(**{n: p.clone() if isinstance(p, Tensor) else p for n, p in vars(made).items()})
        assert foreign.edge_vectors.is_inference()
        inside = model.predict_graph(foreign)
    for found in (inside, model.predict_graph(foreign)):
        assert torch.equal(found.forces, right.forces)
        assert torch.equal(found.stress, right.stress)


def test_training_leaves_the_callers_random_numbers_alone(inputs):
    torch.manual_seed(7)
    right = torch.rand(3)
    torch.manual_seed(7)
    training(inputs)
    assert torch.equal(torch.rand(3), right)


@pytest.mark.parametrize("threads", [1, 2])
def test_training_computes_with_its_threads_and_leaves_the_callers(inputs, threads, monkeypatch):
    used: list[int] = []
    original = predict

    def noting(*arguments: object, **options: object) -> Prediction:
        used.append(torch.get_num_threads())
        return original(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("hienet.train.loop.predict", noting)
    values = tiny_values(inputs.frames, inputs.fresh("run"), epochs=1, threads=threads)
    with mock.patch("hienet.train.run.plot_learning_curves"), mock.patch("hienet.train.run.plot_parity"):
        Run(parse_config(values), False, Console(file=io.StringIO())).train()
    assert set(used) == {threads}
    assert torch.get_num_threads() == 1


# --- what must not be zeros


def made_graph(cutoff: float = 4.0):
    return graph_from_atoms(silicon_carbide(), ("C", "Si"), cutoff)


DETACHED = {
    "a detached energy": lambda species, center, neighbor, vectors, n: torch.ones(n, dtype=torch.float64),
    "an energy of other variables": lambda species, center, neighbor, vectors, n: torch.ones(
        n, dtype=torch.float64, requires_grad=True
    ),
}


@pytest.mark.parametrize("name", DETACHED)
@pytest.mark.parametrize("training", [False, True])
def test_a_model_that_loses_its_derivative_is_an_error(name, training):
    with pytest.raises(RuntimeError, match=r"energies do not depend on the \d+ edge vectors"):
        predict(DETACHED[name], made_graph(), training=training)


@pytest.mark.parametrize("name", DETACHED)
def test_forces_without_any_edge_are_zero(name):
    found = predict(DETACHED[name], made_graph(cutoff=0.5))
    assert len(made_graph(cutoff=0.5).center) == 0
    assert found.forces is not None
    assert found.stress is not None
    assert found.forces.shape == (8, 3)
    assert float(found.forces.abs().max()) == float(found.stress.abs().max()) == 0.0


def test_evaluation_of_lone_atoms_works_in_any_state(inputs, tmp_path):
    atoms = ase.Atoms("Si", cell=[20, 20, 20], pbc=True)
    atoms.info["energy"] = -1.0
    atoms.arrays["forces"] = np.zeros((1, 3))
    ase.io.write(tmp_path / "lone.extxyz", atoms)
    with torch.inference_mode():
        found = evaluate(inputs.checkpoints[0], [tmp_path / "lone.extxyz"])
    assert float(np.abs(found.comparison.forces).max()) == 0.0


# --- the context itself


def test_within_torch_is_as_in_a_fresh_process():
    fresh = torch_settings()
    with several(), fewer_digits(), own_torch_state():
        found = torch_settings()
        assert found["digits"][0] == "ieee"
        assert (torch.ones(2) @ torch.ones(2)).dtype == torch.float32
    for name in ("grad", "inference", "dtype", "device", "autocast"):
        assert found[name] == fresh[name], name


def test_what_all_threads_share_is_restored_by_the_last():
    """The second thread enters while the first is within, and leaves after it."""
    matmul = torch.backends.mkldnn.matmul
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))
    seen: list[str] = []

    def first() -> None:
        with own_torch_state():
            first_is_in.set()
            second_is_in.wait(10)
        first_is_out.set()

    def second() -> None:
        first_is_in.wait(10)
        with own_torch_state():
            second_is_in.set()
            first_is_out.wait(10)
            seen.append(matmul.fp32_precision)

    with fewer_digits():
        threads = [threading.Thread(target=each) for each in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert matmul.fp32_precision == "bf16"
    assert seen == ["ieee"]


def test_the_state_is_restored_after_an_error(model: LoadedModel):
    with torch.inference_mode(), torch.device("meta"):
        before = torch_settings()
        with pytest.raises(Exception, match="knows only"):
            model.predict(ase.Atoms("Au"))
        assert torch_settings() == before


def test_the_architectures_are_described_in_any_state():
    right = describe_architectures()
    with several():
        assert describe_architectures() == right
