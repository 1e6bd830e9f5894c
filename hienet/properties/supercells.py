"""Force constants by phonopy: supercells, displacements, and structures between ASE and phonopy."""

from __future__ import annotations

from typing import Any

import ase
import numpy as np

from hienet.errors import HIENetError
from hienet.properties.engine import Engine
from hienet.properties.optional import require
from hienet.properties.progress import Progress
from hienet.properties.symmetry import SYMPREC

DISPLACEMENT = 0.01
"""Å, as in HIENet's paper (appendix D.1)."""


def supercell_of(atoms: ase.Atoms, length: float, repeats: tuple[int, ...] | None = None) -> tuple[int, int, int]:
    """Repetitions of a cell along its vectors.

    Args:
        atoms: the cell.
        length: Å, by which opposite faces of the supercell must be apart at least.
        repeats: the answer, where the user gives it: one number for all directions, or three.

    Raises:
        HIENetError: the repetitions are none.
    """
    if repeats is not None:
        if len(repeats) not in (1, 3) or min(repeats) < 1:
            raise HIENetError(f"a supercell is one positive number or three, got {repeats}; write 3 or 2,2,3")
        a, b, c = repeats if len(repeats) == 3 else repeats * 3
        return a, b, c
    # Distances between opposite faces are the inverse lengths of the reciprocal vectors.
    heights = 1.0 / np.linalg.norm(atoms.cell.reciprocal().array, axis=1)
    a, b, c = (max(1, int(np.ceil(length / height - 1e-6))) for height in heights)
    return a, b, c


def repeated(atoms: ase.Atoms, n_atoms: int) -> ase.Atoms:
    """A supercell of at least so many atoms, as near to a cube as repetitions one after another allow."""
    repeats = np.ones(3, dtype=int)
    while len(atoms) * repeats.prod() < n_atoms:
        repeats[np.argmin(repeats * atoms.cell.lengths())] += 1
    return atoms.repeat(tuple(int(n) for n in repeats))


def to_phonopy(atoms: ase.Atoms) -> Any:
    """A `PhonopyAtoms`."""
    structure = require("phonopy.structure.atoms", "phonons")
    return structure.PhonopyAtoms(
        symbols=atoms.get_chemical_symbols(), cell=atoms.cell.array, scaled_positions=atoms.get_scaled_positions()
    )


def from_phonopy(cell: Any) -> ase.Atoms:
    """A periodic structure of a `PhonopyAtoms`."""
    return ase.Atoms(cell.symbols, cell=cell.cell, scaled_positions=cell.scaled_positions, pbc=True)


def primitive_matrix(cell: Any) -> Any:
    """From a cell of phonopy to its primitive cell."""
    return require("phonopy.structure.cells", "phonons").guess_primitive_matrix(cell, symprec=SYMPREC)


def harmonic(
    atoms: ase.Atoms,
    engine: Engine,
    supercell: tuple[int, int, int],
    displacement: float,
    progress: Progress,
    what: str = "displacements",
) -> Any:
    """A `Phonopy` with symmetrised force constants.

    Forces of the supercell without displacement, which vanish but for rounding, are subtracted.

    Args:
        atoms: a relaxed crystal.
        engine: what gives forces.
        supercell: repetitions.
        displacement: Å.
        progress: told of each displacement.
        what: for the progress.
    """
    phonopy = require("phonopy", "phonons")
    cell = to_phonopy(atoms)
    phonon = phonopy.Phonopy(
        cell,
        supercell_matrix=np.diag(supercell),
        primitive_matrix=primitive_matrix(cell),
        symprec=SYMPREC,
        log_level=0,
    )
    phonon.generate_displacements(distance=displacement)
    cells = [from_phonopy(phonon.supercell), *map(from_phonopy, phonon.supercells_with_displacements)]
    progress.begin(f"{what} in {len(cells[0])} atoms", len(cells))
    rest, *forces = (found.forces for found in engine.calculate(cells, progress.advance))
    phonon.forces = np.array([each - rest for each in forces])
    phonon.produce_force_constants(show_drift=False)
    phonon.symmetrize_force_constants(show_drift=False)
    return phonon
