"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hienet.calculator import LoadedModel
from hienet.testing import tiny_model, write_tiny_checkpoint

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    """Results of other people's programs."""
    return Path(__file__).parent / "reference"


@pytest.fixture(scope="session")
def model() -> LoadedModel:
    """A tiny random HIENet in float64."""
    return tiny_model()


@pytest.fixture(scope="session")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a file."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny.pt")
