"""Parity with the authors' programs of BOTNet and NEMP: numbers that they gave for small random models, in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hienet.derivatives import predict
from hienet.graph import AtomicGraph
from hienet.models.factory import build_model, make_config

FOLDER = Path(__file__).parent / "reference"
BOTNET = sorted((FOLDER / "botnet").glob("*.npz"))
NEMP = sorted((FOLDER / "nemp").glob("*.npz"))


def their_model(architecture: str, path: Path) -> tuple[nn.Module, dict[str, Any]]:
    with np.load(path) as file:
        reference = dict(file)
    hyperparameters = json.loads(str(reference["hyperparameters"]))
    config = make_config(architecture, None, {**hyperparameters, "elements": reference["elements"].tolist()})
    model = build_model(architecture, config, seed=0)
    prefix = "weight:"
    weights = {name.removeprefix(prefix): value for name, value in reference.items() if name.startswith(prefix)}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return model, {name: value for name, value in reference.items() if not name.startswith(prefix)}


def graph_of(reference: dict[str, Any], edge_vectors: Tensor) -> AtomicGraph:
    """Edges in order of their centers, as every graph here has them."""
    species, center, neighbor = (torch.from_numpy(reference[name]).long() for name in ("species", "center", "neighbor"))
    order = torch.argsort(center, stable=True)
    structure, volume = torch.zeros_like(species), torch.tensor([abs(np.linalg.det(reference["cell"]))])
    return AtomicGraph(
        species=species,
        center=center[order],
        neighbor=neighbor[order],
        edge_vectors=edge_vectors[order],
        n_local=len(species),
        structure=structure,
        n_structures=1,
        volume=volume,
    )


def test_there_are_references_of_both():
    assert len(BOTNET) == 2
    assert len(NEMP) == 4


@pytest.mark.parametrize("path", BOTNET, ids=lambda path: path.stem)
def test_energies_and_their_derivatives_equal_botnets(path):
    model, reference = their_model("botnet", path)
    graph = graph_of(reference, torch.from_numpy(reference["edge_vectors"]))
    vectors = graph.edge_vectors.clone().requires_grad_()
    energies = model(graph.species, graph.center, graph.neighbor, vectors, graph.n_local)
    (gradient,) = torch.autograd.grad(energies.sum(), vectors)
    order = np.argsort(reference["center"], kind="stable")
    assert np.abs(energies.detach().numpy() - reference["energies"]).max() < 1e-11
    assert np.abs(gradient.numpy() - reference["edge_gradients"][order]).max() < 1e-13


@pytest.mark.parametrize("path", NEMP, ids=lambda path: path.stem)
def test_energy_and_forces_equal_nemps(path):
    model, reference = their_model("nemp", path)
    center, neighbor = reference["center"], reference["neighbor"]
    positions = reference["positions"]
    vectors = positions[neighbor] + reference["image"] @ reference["cell"] - positions[center]
    prediction = predict(model, graph_of(reference, torch.from_numpy(vectors)))
    assert prediction.forces is not None
    assert abs(float(prediction.energy) - float(reference["energy"])) < 1e-11
    assert np.abs(prediction.forces.numpy() - reference["forces"]).max() < 1e-11
