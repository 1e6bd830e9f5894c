"""Calculators are pickled and copied, as multiprocessing, joblib and dask do, and give the same numbers."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hienet_deploy.export import export

from hienet.calculator import HIENetCalculator, LoadedModel, load_model
from hienet.errors import HIENetError
from hienet.testing import silicon_carbide, write_tiny_checkpoint

COPIES = {
    "pickle": lambda calculator: pickle.loads(pickle.dumps(calculator)),
    "pickle, oldest protocol": lambda calculator: pickle.loads(pickle.dumps(calculator, 2)),
    "pickle of a pickle": lambda calculator: pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(calculator)))),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


@pytest.fixture(scope="module")
def files(operators, tmp_path_factory) -> dict[str, list[Path]]:
    folder = tmp_path_factory.mktemp("pickle")
    sources = [write_tiny_checkpoint(folder / f"{seed}.pt", seed=seed) for seed in (0, 1)]
    compiled = [export(source).path for source in sources]
    plain = export(sources[0], folder / "plain.hienet.pt", compiled=False).path
    geodite = export(write_tiny_checkpoint(folder / "g.pt", architecture="geodite")).path
    return {
        "checkpoint": sources[:1],
        "compiled": compiled[:1],
        "plain": [plain],
        "geodite": [geodite],
        "committee": [compiled[0], sources[1], plain],
    }


KINDS = ("checkpoint", "compiled", "plain", "geodite", "committee")


def results(calculator: HIENetCalculator) -> dict[str, np.ndarray]:
    atoms = silicon_carbide()
    calculator.reset()
    names = ("energy", "energies", "forces", "stress", "force_deviation")
    return {name: np.array(calculator.get_property(name, atoms)) for name in names}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_gives_the_same_numbers(kind, used, way, files):
    right = results(HIENetCalculator(files[kind]))
    calculator = HIENetCalculator(files[kind])
    if used:
        results(calculator)
    copied = COPIES[way](calculator)
    # A shallow copy shares the model, whose second call torch's executor compiles anew: equal to rounding.
    tolerance = 1e-5 if way == "copy" and used else 0.0
    found = results(copied)
    for name, value in right.items():
        np.testing.assert_allclose(found[name], value, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float64", None])
@pytest.mark.parametrize("kind", KINDS)
def test_dtype_and_device_stay(kind, dtype, files):
    calculator = HIENetCalculator(files[kind], dtype=dtype)
    copied = COPIES["pickle"](calculator)
    for before, after in zip(calculator.models, copied.models, strict=True):
        assert (after.dtype, after.device, after.elements, after.cutoff) == (
            before.dtype,
            before.device,
            before.elements,
            before.cutoff,
        )
        assert after.info == before.info
    right, found = results(HIENetCalculator(files[kind], dtype=dtype)), results(copied)
    np.testing.assert_array_equal(found["forces"], right["forces"])


def test_results_of_before_stay(files):
    atoms = silicon_carbide()
    atoms.calc = HIENetCalculator(files["compiled"])
    forces = atoms.get_forces()
    copied = copy.deepcopy(atoms.calc)
    np.testing.assert_array_equal(copied.results["forces"], forces)
    assert not copied.calculation_required(atoms, ["forces"])


def test_the_pickle_needs_no_file(files, tmp_path):
    """It was moved, or another model has its name since."""
    path = tmp_path / "m.hienet.pt"
    path.write_bytes(files["compiled"][0].read_bytes())
    calculator = HIENetCalculator(path)
    right = results(HIENetCalculator(path))
    path.write_bytes(files["geodite"][0].read_bytes())
    pickled = pickle.dumps(calculator)
    path.unlink()
    np.testing.assert_array_equal(results(pickle.loads(pickled))["forces"], right["forces"])


def test_the_pickle_has_the_file_and_no_tables(files):
    calculator = HIENetCalculator(files["compiled"])
    fresh = len(pickle.dumps(calculator.models))
    results(calculator)
    assert len(pickle.dumps(calculator.models)) < 1.1 * fresh
    size = files["compiled"][0].stat().st_size
    assert size < fresh < size + 20_000


def test_a_copy_shares_the_contents_of_the_file(files):
    model = load_model(files["compiled"][0])
    copied = copy.deepcopy(model)
    assert model.archive is not None
    assert copied.archive is not None
    assert copied.archive.contents is model.archive.contents
    assert copied.module is not model.module


def test_a_device_that_is_not_there_is_one_sentence(files):
    model = load_model(files["plain"][0])
    state = {**model.__getstate__(), "device": torch.device("cuda:0")}
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(HIENetError, match="device `cuda:0` is not available: this torch sees no CUDA device"):
        LoadedModel.__new__(LoadedModel).__setstate__(state)


SCRIPT = """
import multiprocessing, sys
import numpy as np, torch
from hienet.calculator import HIENetCalculator
from hienet.testing import silicon_carbide

def forces(arguments):
    calculator, seed = arguments
    atoms = silicon_carbide(seed=seed)
    atoms.calc = calculator
    return atoms.get_forces()

if __name__ == "__main__":
    torch.set_num_threads(1)
    calculator = HIENetCalculator(sys.argv[2:])
    right = [forces((calculator, seed)) for seed in (1, 2)]
    with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
        found = pool.map_async(forces, [(calculator, seed) for seed in (1, 2)]).get(250)
    for a, b in zip(found, right, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    print("same")
"""


@pytest.mark.parametrize("start", ["spawn", "fork", "forkserver"])
def test_processes_of_multiprocessing(start, files, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    arguments = [sys.executable, str(script), start, *map(str, files["committee"])]
    found = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert found.stdout == "same\n"
