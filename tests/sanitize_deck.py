"""Writes the deck that tests/sanitize.sh runs: a compiled model, rebuilt lists, per-atom stress, on one rank."""

from __future__ import annotations

import sys
from pathlib import Path

from hienet_deploy.export import export

from hienet.testing import write_tiny_checkpoint

DECK = """
units         metal
lattice       diamond 4.39
region        box block 0 2 0 1 0 1
create_box    2 box
create_atoms  1 box basis 5 2 basis 6 2 basis 7 2 basis 8 2
mass          * 28.0
pair_style    hienet
pair_coeff    * * {model} Si C
neighbor      0.5 bin
neigh_modify  every 1 delay 0 check no
velocity      all create 3000 4928459
compute       stress all centroid/stress/atom NULL virial
compute       sum all reduce sum c_stress[*]
thermo_style  custom step pe press c_sum[1] c_sum[7]
thermo        1
fix           dynamics all nve
run           {steps}
"""

folder, steps = Path(sys.argv[1]), int(sys.argv[2])
# Several invariant layers: the first is a table, the others are not.
checkpoint = write_tiny_checkpoint(folder / "tiny.pt", n_invariant_layers=2, scale=(40.0, 55.0))
model = export(checkpoint, folder / "tiny.hienet.pt").path
(folder / "in.deck").write_text(DECK.format(model=model, steps=steps))
