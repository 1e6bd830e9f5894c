"""The pair style has the model tabulate what it needs for the elements of atoms, when they appear, and says so."""

from __future__ import annotations

import re

import ase
import numpy as np
import pytest
import torch
from analytic import LJ_STAGES, LennardJones, write_deployed
from hienet_deploy.export import export
from runs import TIMEOUT, Setup, _blocks, lammps_cell, run
from torch import Tensor

from hienet.calculator import load_model
from hienet.errors import HIENetError
from hienet.lammps import run_deck
from hienet.testing import awkward_structures, silicon_carbide, write_tiny_checkpoint


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
    atoms = awkward_structures()["bulk"]
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
    atoms = awkward_structures()["bulk"]
    setup = Setup(tabulated, pair=pair.format(tabulated))
    data = tmp_path / "data.test"
    setup.write(data, atoms)
    deck = f"units metal\nboundary p p p\nread_data {data}\n{setup.pair}\n"
    output = run_deck(deck, timeout=TIMEOUT, cwd=tmp_path)
    assert "  tables for these elements: 1.5 MB, built in" in output


ELEMENTS = ["Ag", "Al", "C", "Cu", "Ge", "O", "Si", "Ti"]
APPEARS = {
    "nothing more": ("", 2),
    "set between runs": ("run 2\nset atom 3 type 5", 3),
    "set without setup": ("run 2\nset atom 3 type 5\nset atom 5 type 5\nrun 1 pre no", 3),
    "a type of an element that is there": ("run 2\nset atom 3 type 8", 2),
    "two more": ("run 1\nset atom 3 type 5\nrun 1\nset atom 6 type 1", 4),
    "deposited": (
        "region slab block 0.1 4.4 0.1 8.9 12 14\n"
        "fix depositing all deposit 2 5 2 4827 region slab near 2.0 vz -1 -1 units box\nrun 6",
        3,
    ),
    "created": ("run 1\ncreate_atoms 5 single 1.0 1.0 13.0\nrun 1", 3),
    "set in mid-run": ('run 4 every 2 "set atom 4 type 5"', 3),
    "grand canonical": (
        "group gas empty\nfix mc gas gcmc 2 20 0 5 771 3000.0 5.0 0.1 tfac_insert 1.0 full_energy\nrun 6",
        3,
    ),
}
"""What brings atoms of another element, and of how many elements there are tables in the end."""


@pytest.fixture(scope="module")
def many_elements(tmp_path_factory):
    """A compiled file of more elements than any deck has."""
    folder = tmp_path_factory.mktemp("many")
    source = write_tiny_checkpoint(folder / "m.pt", elements=tuple(ELEMENTS), scale=(40.0,) * 8)
    return export(source, folder / "m.hienet.pt", dtype="float64").path


def many_deck(model, folder, commands: str) -> tuple[ase.Atoms, str]:
    """Silicon carbide with room above it, in types 3 and 7 of the eight elements of the model and a ninth, silicon."""
    atoms = silicon_carbide((1, 2, 2))
    atoms.set_cell(np.diag([4.5, 9.0, 18.0]))
    symbols = [*ELEMENTS, "Si"]
    symbols[7] = "C"
    setup = Setup(model, type_symbols=symbols)
    types = [{"C": 3, "Si": 7}[s] for s in atoms.symbols]
    setup.write(folder / "data.test", atoms, types)
    deck = f"{setup.preamble(atoms, folder / 'data.test')}\ntimestep 0.0002\n{commands}\nrun 1\n"
    deck += "write_dump all custom dump.last id type x y z fx fy fz modify sort id format float %.17g\n"
    return atoms, deck + 'variable e equal pe\nprint "energy: $(v_e:%.12f)"\n'


@pytest.mark.parametrize(
    ("case", "ranks"), [(case, n) for case in APPEARS for n in (1, 2) if (case, n) != ("grand canonical", 2)]
)
def test_elements_are_tabulated_when_their_atoms_appear(case, ranks, many_elements, tmp_path):
    """On all ranks, with the energy and forces of Python."""
    commands, n_elements = APPEARS[case]
    atoms, deck = many_deck(many_elements, tmp_path, commands)
    output = run_deck(deck, ranks, timeout=TIMEOUT, cwd=tmp_path)
    cell, _ = lammps_cell(atoms)
    symbols = [*ELEMENTS[:7], "C", "Si"]
    dump = np.array(_blocks(tmp_path / "dump.last")[-1])
    if case in ("deposited", "grand canonical"):
        assert len(dump) > len(atoms)
    present = ase.Atoms([symbols[int(t) - 1] for t in dump[:, 1]], positions=dump[:, 2:5], cell=cell, pbc=True)
    right = load_model(many_elements).predict(present)
    (energy,) = re.findall(r"^energy: (\S+)$", output, re.MULTILINE)
    assert float(energy) == pytest.approx(float(right.energy), abs=1e-7)
    np.testing.assert_allclose(dump[:, 5:], right.forces.numpy(), rtol=0, atol=1e-6)
    said = re.findall(r"tables for ([\w ]+): (\S+) MB, built in \S+ s; other elements follow", output)
    assert said[0][0] == "C Si"
    assert {*said[-1][0].split()} >= {"C", "Si"}
    assert len(said[-1][0].split()) == n_elements
    of_a_pair = float(said[0][1]) / 4
    assert float(said[-1][1]) == pytest.approx(n_elements**2 * of_a_pair, rel=0.1, abs=0.06)


def test_no_atoms_have_no_tables(many_elements, tmp_path):
    """Until there are some."""
    deck = f"""
units metal
region box block 0 10 0 10 0 10
create_box 2 box
mass * 20
pair_style hienet
pair_coeff * * {many_elements} Si C
run 0
create_atoms 2 single 1 1 1
run 0
"""
    before, after = run_deck(deck, timeout=TIMEOUT, cwd=tmp_path).split("Created 1 atoms", 1)
    assert "tables" not in before
    assert re.search(r"tables for C: \S+ MB", after)


def test_a_failure_to_tabulate_stops_all_ranks(tmp_path):
    """Whichever rank has the atoms."""

    class Failing(TabulatedLennardJones):
        @torch.jit.export
        def load_elements(self, species: Tensor) -> int:
            assert species.size(0) < 2, "there is no room for a second element"
            return 1_500_000

    path = write_deployed(Failing(), tmp_path / "failing.hienet.pt", LJ_STAGES)
    atoms = awkward_structures()["bulk"]
    setup = Setup(path)
    setup.write(tmp_path / "data.test", atoms, [1] * len(atoms))
    deck = setup.preamble(atoms, tmp_path / "data.test") + "run 1\nset atom 5 type 2\nrun 1\n"
    with pytest.raises(HIENetError, match=r"failing.hienet.pt`.*there is no room for a second element"):
        run_deck(deck, 2, timeout=TIMEOUT, cwd=tmp_path)
