"""The benchmarks run and write what their documentation says; how fast anything is, is not tested."""

from __future__ import annotations

from pathlib import Path

import pytest

from hienet.derivatives import predict
from hienet.graph import graph_from_atoms
from hienet.testing import silicon_carbide, tiny_model

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def eager_class(monkeypatch) -> type:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from eager import EagerHIENet

    return EagerHIENet


@pytest.mark.parametrize("values", [{"n_invariant_layers": 2}, {"smooth_cutoff": False, "l_max": 2}])
def test_the_eager_e3nn_model_is_the_same_function(eager_class, values):
    model = tiny_model(scale=(40.0, 55.0), **values)
    graph = graph_from_atoms(silicon_carbide(), model.elements, model.cutoff)
    expected = predict(model.module, graph)
    found = predict(eager_class.from_model(model.module), graph)
    for name in ("energies", "forces", "stress"):
        largest = getattr(expected, name).abs().max()
        assert largest > 1e-3
        assert (getattr(found, name) - getattr(expected, name)).abs().max() < 1e-10 * max(1.0, largest)
