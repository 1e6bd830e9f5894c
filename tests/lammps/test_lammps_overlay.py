"""Energies of other pair styles on top of the network's, and the example decks that add them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from test_lammps_examples import EXAMPLES, thermo

from hienet.lammps import create, run_deck

ATOMS = """
units metal
lattice diamond {lattice}
region box block 0 2 0 1 0 1
create_box 2 box
create_atoms 1 box basis 5 2 basis 6 2 basis 7 2 basis 8 2
mass * 20
displace_atoms all random 0.1 0.1 0.1 4928459 units box
neighbor 1.0 bin
thermo_style custom step pe pxx pyy pzz pxy pxz pyz
thermo_modify format float %.12g
"""

PARTS = {
    "hienet": ("hienet precision double", f"pair_coeff * * {{name}} {EXAMPLES / 'sic.hienet.pt'} Si C"),
    # In a crystal this dense even the closest atoms that are not bonded repel each other.
    "zbl": (
        "zbl 1.5 3.0",
        "pair_coeff 1 1 {name} 14 14\npair_coeff 1 2 {name} 14 6\npair_coeff 2 2 {name} 6 6",
    ),
    "dispersion/d3": ("dispersion/d3 bj pbe 12.0 10.0", "pair_coeff * * {name} Si C"),
}


@cache
def has_dispersion() -> bool:
    """Whether this LAMMPS has the package EXTRA-PAIR."""
    lammps = create()
    try:
        return lammps.has_style("pair", "dispersion/d3")
    finally:
        lammps.close()


def need(style: str) -> None:
    if style == "dispersion/d3" and not has_dispersion():
        pytest.skip("this LAMMPS has no pair_style dispersion/d3 (package EXTRA-PAIR)")


def evaluated(names: list[str], folder: Path, ranks: int) -> tuple[np.ndarray, np.ndarray]:
    """Energy and six pressures, and the forces by id."""
    hybrid = len(names) > 1
    styles = [PARTS[name][0] for name in names]
    deck = ATOMS.format(lattice=4.2)
    deck += "pair_style " + ("hybrid/overlay " if hybrid else "") + " ".join(styles) + "\n"
    deck += "\n".join(PARTS[name][1].format(name=name if hybrid else "") for name in names)
    deck += "\ndump 1 all custom 1 dump.test id fx fy fz\ndump_modify 1 sort id format float %.15g\nrun 0\n"
    output = run_deck(deck, ranks, timeout=120, cwd=folder)
    (row,) = (line.split() for line in output.splitlines() if line.split()[:1] == ["0"] and len(line.split()) == 8)
    table = np.loadtxt((folder / "dump.test").read_text().splitlines()[9:])
    return np.array(row[1:], dtype=float), table[:, 1:]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("style", ["zbl", "dispersion/d3"])
def test_an_overlay_is_the_sum_of_its_parts(style, ranks, tmp_path):
    need(style)
    both, forces = evaluated(["hienet", style], tmp_path, ranks)
    network, network_forces = evaluated(["hienet"], tmp_path, 1)
    other, other_forces = evaluated([style], tmp_path, 1)
    assert abs(other[0]) > 1.0
    assert np.abs(other_forces).max() > 1e-3
    np.testing.assert_allclose(both, network + other, rtol=1e-8, atol=1e-3)
    np.testing.assert_allclose(forces, network_forces + other_forces, atol=1e-7)


def run_example(deck: str, folder: Path, ranks: int = 1, **variables: object) -> str:
    arguments = ["-var", "model", str(EXAMPLES / "sic.hienet.pt")]
    for name, value in variables.items():
        arguments += ["-var", name, str(value)]
    return run_deck(EXAMPLES / deck / f"in.{deck}", ranks, cwd=folder, arguments=arguments, timeout=300)


def test_the_recoil_conserves_energy(tmp_path):
    rows = thermo(run_example("recoil", tmp_path, repeat=2, steps=60, every=20))
    first, last = rows[0], rows[60]
    # 50 eV of the recoil, and the other 63 atoms at 600 K.
    assert first["KinEng"] == pytest.approx(50 + 63 * 1.5 * 8.617333e-5 * 600, abs=1.0)
    assert last["KinEng"] < first["KinEng"] - 10
    assert last["TotEng"] == pytest.approx(first["TotEng"], abs=0.02)
    # Far below the bonds of 1.90 Å.
    assert min(row["c_closest"] for row in rows.values()) < 1.45


def test_the_dispersion_deck_prints_both_parts(tmp_path):
    need("dispersion/d3")
    for row in thermo(run_example("dispersion", tmp_path, steps=5)).values():
        assert row["PotEng"] == pytest.approx(row["c_network"] + row["c_dispersion"], rel=1e-6)
        assert -100 < row["c_dispersion"] < -1


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_deck_of_the_thermal_conductivity_writes_its_correlation(ranks, tmp_path):
    variables = {"repeat": 2, "equilibrate": 10, "steps": 20, "sample": 1, "window": 10}
    output = run_example("thermal_conductivity", tmp_path, ranks, **variables)
    # The table of the equilibration comes before that of the run.
    row = thermo(re.split(r"(?m)^(?= *Step )", output)[-1])[20]
    flux = np.array([row[f"v_j{axis}"] for axis in "xyz"])
    assert np.isfinite([*flux, row["v_kappa"]]).all()
    assert np.abs(flux).max() > 1e-6
    blocks = re.split(r"^\d+ 10$", (tmp_path / "heat_flux.txt").read_text(), flags=re.MULTILINE)
    table = np.array([line.split() for line in blocks[-1].strip().splitlines()], dtype=float)
    assert table.shape == (10, 6)
    # The correlation at zero time is a mean of squares; the conductivity follows from the table.
    assert (table[0, 3:] > 0).all()
    volume = (2 * 4.41) ** 3
    factor = 1602.1766 * volume / (8.617333e-5 * 1500.0**2) * 0.001
    integral = ((table[1:, 3:] + table[:-1, 3:]) / 2).sum(0).mean()
    assert row["v_kappa"] == pytest.approx(factor * integral, rel=1e-4)
