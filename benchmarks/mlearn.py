"""The data sets of mlearn (Zuo et al., J. Phys. Chem. A 124, 731 (2020)) as frames of ASE."""

from __future__ import annotations

import json
from pathlib import Path

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from hienet.units import EV_PER_CUBIC_ANGSTROM_IN_KBAR

_FROM_VASP = [0, 1, 2, 4, 5, 3]
"""XX YY ZZ XY YZ ZX, the order of the deformed crystals (group Elastic), to xx yy zz yz xz xy."""
_FROM_OTHER = [0, 1, 2, 5, 4, 3]
"""XX YY ZZ XY ZX YZ, the order of all other groups of silicon. Nothing says so, but the labels do. Models trained on
them predict the shear stresses yz and zx of these groups with correlations of 0.96 and more in this order, and of 0.1
to 0.3 in VASP's; for the deformed crystals it is the other way round. The potential of Stillinger and Weber (1985) says
the same of the molecular dynamics (0.97 and more), and less clearly of the vacancies."""


def read_mlearn(path: Path) -> list[ase.Atoms]:
    """Frames with energy (eV), forces (eV/Å) and stress (eV/Å^3, tension positive); `config_type` is their group.

    In the file stresses are in kbar, and compression is positive.
    """
    frames = []
    for entry in json.loads(path.read_text()):
        structure, labels = entry["structure"], entry["outputs"]
        order = _FROM_VASP if entry["group"] == "Elastic" else _FROM_OTHER
        atoms = ase.Atoms(
            [site["species"][0]["element"] for site in structure["sites"]],
            scaled_positions=[site["abc"] for site in structure["sites"]],
            cell=structure["lattice"]["matrix"],
            pbc=True,
        )
        atoms.info["config_type"] = entry["group"]
        atoms.calc = SinglePointCalculator(
            atoms,
            energy=labels["energy"],
            forces=np.array(labels["forces"]),
            stress=-np.array(labels["virial_stress"])[order] / EV_PER_CUBIC_ANGSTROM_IN_KBAR,
        )
        frames.append(atoms)
    return frames
