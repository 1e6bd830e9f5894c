"""`hienet qha`: thermal expansion in the quasi-harmonic approximation, by phonopy."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
from matplotlib.figure import Figure

from hienet.errors import HIENetError
from hienet.figure import BLUE, GRAY, ORANGE, save_figure, tidy
from hienet.properties.engine import Array, Engine
from hienet.properties.optional import require
from hienet.properties.phonons import LARGEST_IMAGINARY
from hienet.properties.progress import Progress, silent
from hienet.properties.relax import TIGHT, RelaxSettings, relax, relaxed
from hienet.properties.screen import Column, Outcome
from hienet.properties.structures import Structure
from hienet.properties.supercells import DISPLACEMENT, harmonic, supercell_of
from hienet.properties.symmetry import space_group
from hienet.units import EV_PER_CUBIC_ANGSTROM_IN_GPA as GPA


@dataclass(frozen=True)
class QhaSettings:
    """Which volumes and temperatures.

    Attributes:
        n_volumes: at least 5.
        smallest, largest: changes of the volume.
        temperature: K, the highest.
        pressure: GPa.
        supercell: repetitions, one or three; None chooses them by `length`.
        length: Å, by which opposite faces of the supercell must be apart at least.
        mesh: density of q-points, a length in Å.
    """

    n_volumes: int = 7
    smallest: float = -0.04
    largest: float = 0.08
    temperature: float = 1000.0
    pressure: float = 0.0
    supercell: tuple[int, ...] | None = None
    length: float = 10.0
    mesh: float = 50.0

    def __post_init__(self) -> None:
        if self.n_volumes < 5:
            raise HIENetError(f"the approximation needs at least 5 volumes, got {self.n_volumes}; raise --volumes")
        if not -0.5 < self.smallest < 0.0 < self.largest < 0.5:
            raise HIENetError(
                f"volumes must change from less to more than nothing, got {self.smallest:g} to {self.largest:g}; usual "
                "are -0.04 to 0.08"
            )
        if self.temperature < 50.0:
            raise HIENetError(f"the highest temperature must be at least 50 K, got {self.temperature:g}")


@dataclass(frozen=True)
class Qha:
    """Results at `[n]` temperatures; volumes and energies are those of the cell of `atoms`.

    Attributes:
        atoms: the relaxed structure, without vibrations.
        volumes: `[n_volumes]` (Å^3) that were calculated.
        lowest: `[n_volumes]` lowest frequency (THz).
        temperatures: `[n]` (K).
        volume: `[n]` (Å^3).
        expansion: `[n]` volumetric thermal expansion (1/K).
        bulk_modulus: `[n]` (GPa).
        heat_capacity: `[n]` at constant pressure (J/K/mol of cells).
        gruneisen: `[n]` thermodynamic Grüneisen parameter.
    """

    atoms: ase.Atoms
    volumes: Array
    lowest: Array
    temperatures: Array
    volume: Array
    expansion: Array
    bulk_modulus: Array
    heat_capacity: Array
    gruneisen: Array


def quasi_harmonic(
    atoms: ase.Atoms, engine: Engine, settings: QhaSettings | None = None, progress: Progress | None = None
) -> Qha:
    """Phonons at some volumes, and the volume that makes the free energy least at each temperature.

    The cell is scaled without changing its shape; atoms are relaxed at each volume.

    Raises:
        HIENetError: no crystal, imaginary frequencies, or a minimum outside the volumes.
    """
    settings, progress = settings or QhaSettings(), progress or silent()
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        raise HIENetError("the structure is not a crystal: it is not periodic in three directions")
    phonopy = require("phonopy", "the quasi-harmonic approximation")
    atoms = relaxed(atoms, engine, TIGHT, progress)
    cells = []
    for change in np.linspace(settings.smallest, settings.largest, settings.n_volumes):
        cell = ase.Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
        cell.set_cell(atoms.cell.array * (1.0 + change) ** (1.0 / 3.0), scale_atoms=True)
        cells.append(cell)
    fixed = RelaxSettings(cell=False, fmax=1e-4, max_steps=1000, optimizer="lbfgs")
    found = relax(cells, engine, fixed, progress)
    for error in (result.error for result in found):
        if error is not None:
            raise error
    supercell = supercell_of(atoms, settings.length, settings.supercell)
    phonons = []
    for number, result in enumerate(found, 1):
        what = f"volume {number} of {len(found)}, displacements"
        phonons.append(harmonic(result.atoms, engine, supercell, DISPLACEMENT, progress, what))
        phonons[-1].run_mesh(settings.mesh)
    lowest = np.array([float(phonon.mesh.frequencies.min()) for phonon in phonons])
    if lowest.min() < -LARGEST_IMAGINARY:
        worst = int(np.argmin(lowest))
        raise HIENetError(
            f"the crystal is unstable at {found[worst].atoms.get_volume() / len(atoms):.2f} Å³/atom: a frequency of "
            f"{lowest[worst]:.2f} THz; the approximation means nothing there: narrow the volumes, or look at `hienet "
            "phonons`"
        )
    # phonopy's results are those of a primitive cell.
    factor = len(atoms) / len(phonons[0].primitive)
    energies = np.array([result.energies[-1] for result in found])
    volumes = np.array([result.atoms.get_volume() for result in found])
    try:
        with warnings.catch_warnings():
            # Of volumes beyond those calculated, which are an error below.
            warnings.simplefilter("ignore")
            qha = phonopy.run_qha(
                phonons,
                # One more than the highest, which a difference consumes.
                np.arange(0.0, settings.temperature + 15.0, 10.0),
                energies / factor,
                mesh=settings.mesh,
                pressure=settings.pressure,
                exclude_gamma_acoustic=True,
            )
    except (RuntimeError, ValueError, IndexError) as error:
        raise HIENetError(f"phonopy finds no minimum of the free energy within the volumes: {error}") from error
    volume = factor * np.array(qha.equilibrium_volumes)
    if volume.max() > volumes.max() or volume.min() < volumes.min():
        raise HIENetError(
            f"the crystal expands beyond the volumes: to {volume.max() / len(atoms):.2f} Å³/atom, where the largest is "
            f"{volumes.max() / len(atoms):.2f}; raise --largest, or lower --temperature"
        )
    return Qha(
        atoms,
        volumes,
        lowest,
        np.array(qha.temperatures),
        volume,
        np.array(qha.thermal_expansion),
        GPA * np.array(qha.bulk_moduli),
        factor * _JOULE_PER_MOLE * np.array(qha.heat_capacity_P.heat_capacities),
        np.array(qha.gruneisen_parameters),
    )


_JOULE_PER_MOLE = 96485.33212
"""1 eV in J/mol."""


def qha_of_structures(
    structures: Sequence[Structure], engine: Engine, settings: QhaSettings, progress: Progress
) -> list[Outcome | HIENetError]:
    """Outcomes for `screen`."""
    return [_outcome(s, quasi_harmonic(s.atoms, engine, settings, progress)) for s in structures]


def _outcome(structure: Structure, found: Qha) -> Outcome:
    n_atoms = len(found.atoms)
    room = int(np.abs(found.temperatures - 300.0).argmin())
    row: dict[str, Any] = {
        "formula": found.atoms.get_chemical_formula(),
        "n_atoms": n_atoms,
        "space_group": space_group(found.atoms),
        "temperature_k": float(found.temperatures[room]),
        "static_volume_angstrom3_per_atom": found.atoms.get_volume() / n_atoms,
        "zero_kelvin_volume_angstrom3_per_atom": float(found.volume[0]) / n_atoms,
        "volume_angstrom3_per_atom": float(found.volume[room]) / n_atoms,
        "linear_expansion_per_k": float(found.expansion[room]) / 3.0,
        "bulk_modulus_gpa": float(found.bulk_modulus[room]),
        "heat_capacity_p_j_per_k_mol_atoms": float(found.heat_capacity[room]) / n_atoms,
        "gruneisen": float(found.gruneisen[room]),
    }
    details = {
        "volumes_angstrom3": found.volumes,
        "lowest_frequencies_thz": found.lowest,
        "temperatures_k": found.temperatures,
        "equilibrium_volumes_angstrom3": found.volume,
        "volumetric_expansion_per_k": found.expansion,
        "bulk_moduli_gpa": found.bulk_modulus,
        "heat_capacities_p_j_per_k_mol": found.heat_capacity,
        "gruneisen": found.gruneisen,
    }
    return Outcome(row, details, {"": found.atoms}, lambda path: _draw(path, structure.name, found))


COLUMNS = (
    Column("formula", "formula"),
    Column("temperature_k", "temperature\nK", ".0f"),
    Column("volume_angstrom3_per_atom", "volume\nÅ³/atom", ".3f"),
    Column("linear_expansion_per_k", "linear expansion\n1/K", ".2e"),
    Column("bulk_modulus_gpa", "bulk modulus\nGPa", ".1f"),
    Column("heat_capacity_p_j_per_k_mol_atoms", "Cp\nJ/K/mol atoms", ".2f"),
    Column("gruneisen", "Grüneisen\n", ".2f"),
)


def _draw(path: Path, name: str, found: Qha) -> None:
    figure = Figure(figsize=(10.5, 3.5), layout="constrained")
    volume, expansion, modulus = figure.subplots(1, 3)
    t, n_atoms = found.temperatures, len(found.atoms)
    volume.plot(t, found.volume / n_atoms, color=BLUE, linewidth=1.4)
    static = found.atoms.get_volume() / n_atoms
    volume.axhline(static, color=GRAY, linewidth=0.9, linestyle=":", label="without vibrations")
    volume.set_ylabel("volume (Å³/atom)")
    volume.legend(frameon=False, fontsize=9)
    expansion.plot(t, 1e6 * found.expansion / 3.0, color=BLUE, linewidth=1.4)
    expansion.set_ylabel("linear expansion (10⁻⁶/K)")
    modulus.plot(t, found.bulk_modulus, color=ORANGE, linewidth=1.4)
    modulus.set_ylabel("bulk modulus (GPa)")
    for axis in (volume, expansion, modulus):
        axis.set_xlabel("temperature (K)")
        axis.set_xlim(t[0], t[-1])
        tidy(axis)
    figure.suptitle(f"quasi-harmonic approximation, {name}", fontsize=11)
    save_figure(figure, path)
