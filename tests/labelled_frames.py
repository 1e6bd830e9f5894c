"""Small labelled data sets and configurations for the tests of data, training and evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

TINY_MODEL: dict[str, Any] = {
    "architecture": "hienet",
    "preset": None,
    "invariant_channels": 8,
    "equivariant_irreps": ["8x0e+4x1e", "8x0e"],
    "l_max": 1,
    "radial_hidden": [8],
    "readout_channels": 4,
    "cutoff": 3.5,
    "dropout": 0.1,
    "attention_dropout": 0.1,
}


def emt_frames(n_frames: int = 8, seed: int = 0) -> list[ase.Atoms]:
    """Four-atom Cu/Ag cells, rattled and strained, with EMT's labels; a `config_type` for each half."""
    generator = np.random.default_rng(seed)
    frames = []
    for i in range(n_frames):
        atoms = bulk("Cu", cubic=True)
        atoms.symbols[: i % 3] = "Ag"
        atoms.set_cell(atoms.cell @ (np.eye(3) + generator.normal(0, 0.02, (3, 3))), scale_atoms=True)
        atoms.positions += generator.normal(0, 0.08, (4, 3))
        atoms.calc = EMT()
        results = {
            "energy": atoms.get_potential_energy(),
            "forces": atoms.get_forces(),
            "stress": atoms.get_stress(),
        }
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.info["config_type"] = "first" if i < n_frames / 2 else "second"
        frames.append(atoms)
    return frames


def write_frames(path: Path, frames: list[ase.Atoms] | None = None) -> Path:
    """The frames as extxyz."""
    ase.io.write(path, emt_frames() if frames is None else frames, format="extxyz")
    return path


def tiny_values(data: Path, output: Path, **training: Any) -> dict[str, Any]:
    """A configuration that trains in seconds."""
    return {
        "model": dict(TINY_MODEL),
        "data": {"train": str(data), "validation": 0.25},
        "training": {"epochs": 3, "batch_size": 2, "threads": 1, "ema_decay": 0.9, **training},
        "output": str(output),
    }
