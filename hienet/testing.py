"""What tests of models need, this package's and yours: small random models, structures, finite differences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ase
import numpy as np
import torch
from ase.build import bulk
from numpy.typing import NDArray

from hienet.calculator import LoadedModel, model_of
from hienet.checkpoint import Checkpoint, save_checkpoint
from hienet.models import botnet
from hienet.models.factory import build_model, make_config

_EQUIVARIANT: dict[str, object] = {
    "channels": 8,
    "equivariant_irreps": ("8x0e+4x1e+3x2e+2x3e", "8x0e+5x1e+2x2e", "6x0e"),
    "radial_hidden": (16,),
    "readout_channels": 4,
    "l_max": 3,
    "cutoff": 4.0,
    "avg_num_neighbors": 12.0,
}

TINY: dict[str, dict[str, object]] = {
    "hienet": {
        "invariant_channels": 8,
        "equivariant_irreps": ("8x0e+4x1e+3x2e+2x3e", "8x0e+5x1e+2x2e", "6x0e"),
        "radial_hidden": (16,),
        "readout_channels": 4,
        "l_max": 3,
        "cutoff": 4.0,
        "avg_num_neighbors": 12.0,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "invnet": {
        "channels": 8,
        "n_layers": 3,
        "readout_channels": 4,
        "cutoff": 4.0,
        "avg_num_neighbors": 12.0,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "eqvnet": {**_EQUIVARIANT, "dropout": 0.0},
    "sevennet": {**_EQUIVARIANT, "species_self_connection": True},
    "inv_sevennet": _EQUIVARIANT,
    "nemp": {
        "channels": 4,
        "l_max": 2,
        "l_max_density": 3,
        "n_iterations": 2,
        "n_radial": 4,
        "pair_code": 4,
        "pair_hidden": 8,
        "edge_hidden": 8,
        "readout_hidden": 8,
        "n_blocks": 1,
        "cutoff": 4.0,
    },
    "geodite": {
        "channels": 12,
        "n_layers": 3,
        "n_heads": 3,
        "n_radial": 6,
        "cutoff": 4.0,
        "avg_num_neighbors": 12.0,
        "distance_weighting": True,
        "universal_screening": True,
    },
    "botnet": {
        "channels": 3,
        "n_layers": 4,
        "l_max": 1,
        "radial_hidden": (16,),
        "readout_hidden": (4,),
        "cutoff": 4.0,
        "avg_num_neighbors": 4.0,
    },
}
"""For each architecture, hyperparameters of a model that evaluates in milliseconds and still has every kind of path."""

NATURAL: dict[str, object] = {
    "parity": True,
    "equivariant_irreps": ("8x0e+4x1o+3x2e+2x3o", "8x0e+5x1o+2x2e", "6x0e"),
}
"""Irreps of the parity of the spherical harmonics, as new models have them."""

BOTH_PARITIES: dict[str, object] = {
    "parity": True,
    "equivariant_irreps": (
        "8x0e+4x1o+3x2e",
        "8x0e+3x1o+3x1e+2x2o+2x2e",
        "3x0o+8x0e+2x1o+3x1e+2x2e",
        "3x0o+8x0e+3x1o+2x1e",
        "8x0e+4x1o+2x1e",
        "6x0e",
    ),
    "l_max": 2,
}
"""Both parities of each l, odd scalars among them. The third layer is the first that can make such, and three more are
needed until they have changed an even one: 0o, 1e, 1o, 0e."""

VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    **{name: (name, {}) for name in TINY},
    **{f"{name}-o3": (name, NATURAL) for name in ("hienet", "eqvnet", "inv_sevennet")},
    "sevennet-both-parities": ("sevennet", BOTH_PARITIES),
    "hienet-both-parities": ("hienet", {**BOTH_PARITIES, "n_invariant_layers": 3, "layer_order": "alternating"}),
    "hienet-alternating": (
        "hienet",
        {"invariant_channels": 6, "n_invariant_layers": 2, "layer_order": "alternating"},
    ),
    "nequip": ("botnet", {name: value for name, value in botnet.PRESETS["nequip"].items() if name != "channels"}),
}
"""Architectures, and some with other options so different that they have names of their own."""


def tiny_checkpoint(
    architecture: str = "hienet", elements: tuple[str, ...] = ("C", "Si"), seed: int = 0, **values: object
) -> Checkpoint:
    """An untrained model with distinct reference energies and scales, so that a swapped species shows."""
    statistics = {
        "scale": tuple(1.0 + 0.3 * i for i in range(len(elements))),
        "shift": tuple(-2.0 - 1.5 * i for i in range(len(elements))),
    }
    config = make_config(architecture, None, {**TINY[architecture], **statistics, "elements": elements, **values})
    return Checkpoint(architecture, config, build_model(architecture, config, seed).state_dict())


def tiny_model(dtype: torch.dtype = torch.float64, **values: object) -> LoadedModel:
    """The model of `tiny_checkpoint`, ready to predict."""
    return model_of(tiny_checkpoint(**values), dtype)  # type: ignore[arg-type]


def write_tiny_checkpoint(path: str | Path, **values: object) -> Path:
    """`tiny_checkpoint` as a file."""
    save_checkpoint(tiny_checkpoint(**values), path)  # type: ignore[arg-type]
    return Path(path)


def silicon_carbide(repeat: int | tuple[int, int, int] = 1, rattle: float = 0.1, seed: int = 1) -> ase.Atoms:
    """Rattled 3C-SiC: cubic 8-atom cells with a slight shear, so that no component vanishes by symmetry."""
    atoms = bulk("SiC", "zincblende", a=4.39, cubic=True).repeat(repeat)
    deformation = np.eye(3) + np.array([[0.02, 0.03, -0.01], [0.0, -0.01, 0.04], [0.0, 0.0, 0.03]])
    atoms.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    atoms.rattle(rattle, seed=seed)
    return atoms


def awkward_structures() -> dict[str, ase.Atoms]:
    """Crystals, slab, cluster and lone atoms of Si and C: everything that a list of neighbours can get wrong."""
    cell = silicon_carbide()
    tilted = {}
    for name, sign in (("tilt +", 1.0), ("tilt -", -1.0)):
        atoms = silicon_carbide((2, 1, 1))
        shear = np.array([[1, 0, 0], [0.45 * sign, 1, 0], [0.3 * sign, -0.4 * sign, 1]])
        atoms.set_cell(atoms.cell.array @ shear, scale_atoms=True)
        tilted[name] = atoms
    slab = silicon_carbide((2, 2, 1), rattle=0.15)
    slab.set_cell(np.diag([8.8, 8.8, 20.0]), scale_atoms=False)
    slab.center(axis=2)
    slab.pbc = (True, True, False)
    cluster = silicon_carbide(1, rattle=0.2)
    cluster.set_cell(np.eye(3) * 20.0, scale_atoms=False)
    cluster.center()
    cluster.pbc = False
    one = ase.Atoms("Si", cell=[[2.6, 0, 0], [0.3, 2.7, 0], [-0.4, 0.2, 2.5]], pbc=True)
    lone = ase.Atoms("C", positions=[[5, 5, 5]], cell=np.eye(3) * 10.0, pbc=False)
    pair = ase.Atoms("CSi", positions=[[5, 5, 5], [5, 5, 14]], cell=np.eye(3) * 20.0, pbc=False)
    return {
        "bulk": silicon_carbide((2, 2, 2)),
        "small cell": cell,
        **tilted,
        "slab": slab,
        "cluster": cluster,
        "one-atom cell": one,
        "isolated atom": lone,
        "two far atoms": pair,
    }


def random_rotation(seed: int = 0) -> NDArray[np.float64]:
    """A rotation matrix `[3, 3]`."""
    matrix, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    return np.asarray(matrix * np.sign(np.linalg.det(matrix)))


def rotated(atoms: ase.Atoms, rotation: NDArray[np.float64]) -> ase.Atoms:
    """The structure with positions and cell multiplied by `rotation`, which may be improper (inversion, mirror)."""
    result = atoms.copy()
    result.set_cell(atoms.cell.array @ rotation.T, scale_atoms=False)
    result.set_positions(atoms.positions @ rotation.T)
    return result


def finite_difference_forces(
    energy: Callable[[ase.Atoms], float], atoms: ase.Atoms, step: float = 1e-4
) -> NDArray[np.float64]:
    """-dE/dr `[n_atoms, 3]` (eV/Å) by central differences of fourth order."""
    forces = np.zeros((len(atoms), 3))
    for index in np.ndindex(*forces.shape):

        def displaced(distance: float, index: tuple[int, ...] = index) -> float:
            moved = atoms.copy()
            moved.positions[index] += distance
            return energy(moved)

        forces[index] = -_central_difference(displaced, step)
    return forces


def finite_difference_stress(
    energy: Callable[[ase.Atoms], float], atoms: ase.Atoms, step: float = 1e-5
) -> NDArray[np.float64]:
    """(1/V) dE/d(strain) `[3, 3]` (eV/Å^3) by central differences of fourth order, for symmetric strains."""
    stress = np.zeros((3, 3))
    for i, j in [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]:

        def strained(size: float, i: int = i, j: int = j) -> float:
            strain = np.eye(3)
            strain[i, j] += 0.5 * size
            strain[j, i] += 0.5 * size
            deformed = atoms.copy()
            deformed.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            return energy(deformed)

        stress[i, j] = stress[j, i] = _central_difference(strained, step) / atoms.get_volume()
    return stress


def _central_difference(function: Callable[[float], float], step: float) -> float:
    return (8.0 * (function(step) - function(-step)) - (function(2.0 * step) - function(-2.0 * step))) / (12.0 * step)
