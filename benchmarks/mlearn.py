"""The data sets of mlearn (Zuo et al., J. Phys. Chem. A 124, 731 (2020)) as frames of ASE."""

from __future__ import annotations

from pathlib import Path

import ase

from hienet.data.json_structures import iterate_mlearn


def read_mlearn(path: Path) -> list[ase.Atoms]:
    """Frames with energy (eV), forces (eV/Å) and stress (eV/Å^3, tension positive); `config_type` is their group."""
    return list(iterate_mlearn(path))
