"""pair_style hienet as a part of `hybrid` and `hybrid/scaled`."""

from __future__ import annotations

from pathlib import Path

import pytest

from hienet.lammps import run_deck

MODEL = Path(__file__).resolve().parents[2] / "lammps_examples" / "sic.hienet.pt"
DECK = """
units metal
lattice diamond 4.39
region box block 0 2 0 2 0 2
create_box 2 box
create_atoms 1 box basis 5 2 basis 6 2 basis 7 2 basis 8 2
mass * 20
displace_atoms all random 0.05 0.05 0.05 4928459
thermo_style custom step pe press fmax
thermo_modify format float %.12g
pair_style hienet
pair_coeff * * {model} Si C
run 0
pair_style hybrid hienet
pair_coeff * * hienet {model} Si C
run 0
pair_style hybrid/scaled 0.5 hienet 0.25 hienet
pair_coeff * * hienet 1 {model} Si C
pair_coeff * * hienet 2 {model} Si C
run 0
"""

pytestmark = pytest.mark.lammps


@pytest.mark.parametrize("ranks", [1, 2])
def test_hybrid_gives_the_same_and_hybrid_scaled_its_multiple(ranks, tmp_path):
    (tmp_path / "sic.hienet.pt").write_bytes(MODEL.read_bytes())
    output = run_deck(DECK.format(model="sic.hienet.pt"), ranks, cwd=tmp_path, timeout=120)
    rows = [line.split() for line in output.splitlines() if line.split()[:1] == ["0"] and len(line.split()) == 4]
    alone, hybrid, scaled = ([float(word) for word in row[1:]] for row in rows)
    assert abs(alone[0]) > 400
    assert hybrid == pytest.approx(alone, rel=1e-6)
    assert scaled == pytest.approx([0.75 * value for value in alone], rel=1e-6)
