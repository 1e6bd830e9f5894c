"""Compiled files and plain ones are the same model in LAMMPS, on one rank and on several."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from analytic import LJ_STAGES, LennardJones, write_deployed
from hienet_deploy.export import export
from runs import TIMEOUT, Setup, evaluate, run

from hienet.calculator import load_model
from hienet.lammps import run_deck
from hienet.testing import awkward_structures


@pytest.fixture(scope="module")
def plain(models, tmp_path_factory) -> Path:
    """`models["float64"]` without operators."""
    path = tmp_path_factory.mktemp("plain") / "plain.hienet.pt"
    return export(models["checkpoint"], path, dtype="float64", compiled=False).path


@pytest.mark.parametrize(("kind", "threads"), [("plain", 1), ("compiled", 1), ("compiled", 2)])
@pytest.mark.parametrize("ranks", [1, 3])
def test_ranks_and_threads_agree_with_python(kind, threads, ranks, plain, models, tmp_path):
    atoms = awkward_structures()["bulk"]
    model = plain if kind == "plain" else models["float64"]
    expected = load_model(model).predict(atoms)
    setup = Setup(model, style=f"threads {threads}")
    found = run(atoms, setup, tmp_path, ranks, steps=0)[0]
    assert found.energy == pytest.approx(float(expected.energy[0]), abs=1e-8)
    np.testing.assert_allclose(found.energies, expected.energies.numpy(), atol=1e-8)
    np.testing.assert_allclose(found.forces, expected.forces.numpy(), atol=1e-7)
    np.testing.assert_allclose(found.stress, expected.stress[0].numpy(), atol=1e-8)


def test_the_plugin_brings_the_operators(models, tmp_path):
    """In a process without Python: `lmp` itself."""
    atoms = awkward_structures()["small cell"]
    setup = Setup(models["float64"])
    setup.write(tmp_path / "data.test", atoms)
    output = run_deck(f"{setup.preamble(atoms, tmp_path / 'data.test')}\nrun 0\n", timeout=TIMEOUT, cwd=tmp_path)
    assert "Loop time" in output


def test_unknown_operators_are_named(tmp_path):
    model = write_deployed(
        LennardJones(), tmp_path / "m.hienet.pt", LJ_STAGES, format_version=2, operators=["hienet::levitation"]
    )
    with pytest.raises(Exception, match=r"needs the compiled operator `hienet::levitation`.*run `hienet build`"):
        evaluate(awkward_structures()["small cell"], Setup(model), tmp_path)


def test_tables_are_built_for_the_elements_of_the_deck(models, tmp_path):
    atoms = awkward_structures()["small cell"]
    setup = Setup(models["float64"])
    setup.write(tmp_path / "data.test", atoms)
    output = run_deck(f"{setup.preamble(atoms, tmp_path / 'data.test')}\nrun 0\n", timeout=TIMEOUT, cwd=tmp_path)
    assert re.search(r"tables for these elements: \d+\.\d MB, built in \d+\.\d s", output)
