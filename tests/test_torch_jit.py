"""Torch says that TorchScript is deprecated, in a category that differs between versions; users do not hear it."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hienet_deploy.export import export

from hienet.calculator import HIENetCalculator, load_model
from hienet.info import describe_file
from hienet.testing import silicon_carbide, write_tiny_checkpoint
from hienet.torch_state import torchscript

SENTENCES = {
    "2.13": "`torch.jit.{}` is deprecated. Please switch to `torch.export`.",
    "other marks": "torch.jit.{} is deprecated. Please switch to torch.compile or torch.export.",
}
CATEGORIES = (DeprecationWarning, FutureWarning, UserWarning)


@pytest.fixture(params=CATEGORIES, ids=lambda category: category.__name__)
def category(request) -> type[Warning]:
    return request.param


@pytest.fixture(params=SENTENCES)
def deprecating(request, category, monkeypatch) -> list[str]:
    """A torch that warns in every function of `torch.jit`; the names of those that were called."""
    called: list[str] = []

    def warning(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            called.append(name)
            warnings.warn(SENTENCES[request.param].format(name), category, stacklevel=2)
            return function(*arguments, **options)

        return call

    for name in ("load", "save", "script", "trace", "freeze"):
        monkeypatch.setattr(torch.jit, name, warning(name, getattr(torch.jit, name)))
    return called


@pytest.fixture
def source(tmp_path) -> Path:
    return write_tiny_checkpoint(tmp_path / "m.pt")


def test_nobody_who_deploys_or_computes_hears_of_it(deprecating, source, operators):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for compiled in (True, False):
            path = export(source, source.with_suffix(f".{compiled}.hienet.pt"), compiled=compiled).path
            describe_file(path)
            atoms = silicon_carbide()
            atoms.calc = HIENetCalculator([path, source])
            assert abs(atoms.get_forces()).max() > 0.01
            for copied in (pickle.loads(pickle.dumps(atoms.calc)), copy.deepcopy(atoms.calc)):
                assert abs(copied.get_forces(silicon_carbide())).max() > 0.01
            load_model(path, dtype="float64")
    assert {"load", "save", "script"} <= set(deprecating)


def test_others_are_heard(category):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with torchscript():
            warnings.warn("`torch.jit.load` is deprecated. Please switch.", category, stacklevel=1)
            warnings.warn("`torch.jit.load` may break", category, stacklevel=1)
            warnings.warn("`torch.load` is deprecated", category, stacklevel=1)
            warnings.warn("a loss of precision", category, stacklevel=1)
        warnings.warn("`torch.jit.load` is deprecated. Please switch.", category, stacklevel=1)
    assert [str(warning.message) for warning in heard] == [
        "`torch.jit.load` may break",
        "`torch.load` is deprecated",
        "a loss of precision",
        "`torch.jit.load` is deprecated. Please switch.",
    ]


def test_the_users_filters_are_left_as_they_were():
    """Also by two threads, of which the second leaves last: filters are one list for all."""
    before = list(warnings.filters)
    inside = threading.Event()

    def other() -> None:
        inside.wait(10)
        with torchscript():
            pass

    thread = threading.Thread(target=other)
    thread.start()
    with torchscript():
        inside.set()
        thread.join(0.2)
        # It waits, or it would take these filters for the user's.
        assert thread.is_alive()
    thread.join(10)
    assert list(warnings.filters) == before
