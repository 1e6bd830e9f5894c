"""The pair style has the model tabulate what it needs for the elements that pair_coeff names, and says so."""

from __future__ import annotations

import re

import pytest
import torch
from analytic import LJ_STAGES, LennardJones, write_deployed
from conftest import structures
from runs import TIMEOUT, Setup, run
from torch import Tensor

from hienet.lammps import run_deck


class TabulatedLennardJones(LennardJones):
    """Atoms have an energy only if `load_elements` was told of their species."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("strength", torch.zeros(2, dtype=torch.float64))

    @torch.jit.export
    def load_elements(self, species: Tensor) -> int:
        self.strength = torch.zeros_like(self.strength).index_fill(0, species, 1.0)
        assert not torch.is_grad_enabled()
        return 1_500_000 * species.size(0)

    @torch.jit.export
    def readout(self, state: Tensor, species: Tensor) -> Tensor:
        return state[:, 0].to(torch.float64) * self.strength[species]


@pytest.fixture(scope="module")
def tabulated(tmp_path_factory):
    """Its file."""
    path = tmp_path_factory.mktemp("tables") / "tabulated.hienet.pt"
    return write_deployed(TabulatedLennardJones(), path, LJ_STAGES)


@pytest.mark.parametrize("ranks", [1, 2])
def test_tables_are_built_before_the_first_step(ranks, tabulated, models, tmp_path):
    atoms = structures()["bulk"]
    expected = run(atoms, Setup(models["lj"]), tmp_path, steps=0)[0]
    found = run(atoms, Setup(tabulated), tmp_path, ranks, steps=0)[0]
    assert found.energy == pytest.approx(expected.energy, abs=1e-9)
    assert re.findall(r"^  tables for these elements: (.*), built in \d+\.\d s$", found.output, re.MULTILINE) == [
        "3.0 MB"
    ]
    assert "tables" not in expected.output


@pytest.mark.parametrize(
    "pair",
    [
        "pair_style hienet\npair_coeff * * {} Si Si",
        "pair_style hybrid/overlay hienet zero 4.0\npair_coeff * * hienet {} NULL C",
    ],
)
def test_only_elements_in_use_are_tabulated(pair, tabulated, tmp_path):
    atoms = structures()["bulk"]
    setup = Setup(tabulated, pair=pair.format(tabulated))
    data = tmp_path / "data.test"
    setup.write(data, atoms)
    deck = f"units metal\nboundary p p p\nread_data {data}\n{setup.pair}\n"
    output = run_deck(deck, timeout=TIMEOUT, cwd=tmp_path)
    assert "  tables for these elements: 1.5 MB, built in" in output
