"""The data sets of mlearn (Zuo et al., J. Phys. Chem. A 124, 731 (2020)) as frames of ASE."""

from __future__ import annotations

import json
from pathlib import Path

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from hienet.units import EV_PER_CUBIC_ANGSTROM_IN_KBAR

_TO_ASE = [0, 1, 2, 4, 5, 3]
"""Theirs is VASP's order, XX YY ZZ XY YZ ZX."""


def read_mlearn(path: Path) -> list[ase.Atoms]:
    """Frames with energy (eV), forces (eV/Å) and stress (eV/Å^3, tension positive); `config_type` is their group.

    In the file stresses are in kbar, and compression is positive.
    """
    frames = []
    for entry in json.loads(path.read_text()):
        structure, labels = entry["structure"], entry["outputs"]
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
            stress=-np.array(labels["virial_stress"])[_TO_ASE] / EV_PER_CUBIC_ANGSTROM_IN_KBAR,
        )
        frames.append(atoms)
    return frames
