"""Reference numbers of the pair style in YAML, as LAMMPS' own force-style tests keep them (unittest/force-styles).

    python tests/lammps/references.py

evaluates the committed example model in float64 on one rank, and writes `references/*.yaml` anew. That is needed only
when a change of the numbers is meant; `test_lammps_references.py` compares every variant with the files.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hienet.files import atomic_path
from hienet.lammps import create
from hienet.plugin import installed_version

FOLDER = Path(__file__).parent / "references"
MODEL = FOLDER / "sic.hienet.pt"
"""Plain TorchScript of `lammps_examples/sic.pt`."""
STEPS = 4

SYSTEM = """
atom_style    atomic
atom_modify   map array
newton        {newton}
lattice       diamond {lattice}
region        box block 0 2 0 1 0 1
create_box    2 box
create_atoms  1 box basis 5 2 basis 6 2 basis 7 2 basis 8 2
mass          1 28.0855
mass          2 12.011
change_box    all triclinic
change_box    all xy final 0.3 xz final -0.2 yz final 0.25 remap units box
displace_atoms all random 0.1 0.1 0.1 4928459 units box
velocity      all create 600 4928459 mom yes rot yes dist gaussian loop geom
"""

PAIR = """
pair_style    {hybrid} hienet precision double
pair_coeff    * * {name} {model} Si C
neighbor      1.0 bin
"""

DYNAMICS = """
timestep      {timestep}
fix           dynamics all nve
compute       virial all pressure NULL virial
thermo_style  custom step pe press c_virial[1] c_virial[2] c_virial[3] c_virial[4] c_virial[5] c_virial[6]
"""

SYSTEMS: dict[str, dict[str, Any]] = {"sic-triclinic": {"lattice": 4.39, "timestep": 0.001, "units": "metal"}}
"""What is in each file."""


def start(lammps: Any, system: dict[str, Any], newton: str = "on") -> None:
    """Units, atoms and velocities."""
    lammps.commands_string(f"units {system['units']}" + SYSTEM.format(newton=newton, lattice=system["lattice"]))


def add_style(lammps: Any, system: dict[str, Any], hybrid: bool = False) -> None:
    """The pair style, alone or as the only part of `hybrid`, and what follows it."""
    lammps.commands_string(PAIR.format(hybrid="hybrid" if hybrid else "", name="hienet" if hybrid else "", model=MODEL))
    lammps.commands_string(DYNAMICS.format(timestep=system["timestep"]))


def results(lammps: Any) -> dict[str, Any]:
    """Energy, virial pressure (xx, yy, zz, xy, xz, yz) and forces by id, of the last step."""
    n = lammps.extract_global("nlocal")
    order = np.argsort(lammps.numpy.extract_atom("id")[:n])
    return {
        "energy": float(lammps.get_thermo("pe")),
        "stress": [float(x) for x in lammps.numpy.extract_compute("virial", 0, 1)],
        "forces": np.array(lammps.numpy.extract_atom("f")[:n])[order].tolist(),
    }


def both_steps(lammps: Any) -> dict[str, Any]:
    """Before and after the run."""
    lammps.command("run 0 post no")
    first = results(lammps)
    lammps.command(f"run {STEPS} post no")
    return {"step 0": first, f"step {STEPS}": results(lammps)}


def main() -> None:
    """Write all files."""
    FOLDER.mkdir(exist_ok=True)
    for name, system in SYSTEMS.items():
        lammps = create(["-log", "none", "-screen", "none"])
        try:
            start(lammps, system)
            add_style(lammps, system)
            found = both_steps(lammps)
        finally:
            lammps.close()
        header = {
            "written with": f"lammps {installed_version('lammps')}, torch {installed_version('torch')}",
            "model": MODEL.name,
            "units": system["units"],
        }
        with atomic_path(FOLDER / f"{name}.yaml") as temporary:
            temporary.write_text(yaml.safe_dump({**header, **found}, sort_keys=False, width=110))


if __name__ == "__main__":
    sys.exit(main())
