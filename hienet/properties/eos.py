"""`hienet eos`: energy against volume, and the equation of state of Birch and Murnaghan."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.eos import EquationOfState, birchmurnaghan
from matplotlib.figure import Figure

from hienet.errors import HIENetError
from hienet.figure import BLUE, ORANGE, as_text, own_style, save_figure, tidy
from hienet.properties.engine import Array, Engine
from hienet.properties.progress import Progress, silent
from hienet.properties.relax import TIGHT, RelaxSettings, relax, relaxed
from hienet.properties.screen import Column, Outcome
from hienet.properties.structures import Structure
from hienet.properties.symmetry import space_group
from hienet.units import EV_PER_CUBIC_ANGSTROM_IN_GPA as GPA


@dataclass(frozen=True)
class EosSettings:
    """Which volumes.

    Attributes:
        n_points: number of volumes, at least 5.
        largest_change: largest relative change of the volume.
        relax: relax the structure first, and the atoms at each volume.
    """

    n_points: int = 11
    largest_change: float = 0.06
    relax: bool = True

    def __post_init__(self) -> None:
        if self.n_points < 5:
            raise HIENetError(f"an equation of state needs at least 5 volumes, got {self.n_points}; raise --points")
        if not 0.0 < self.largest_change < 0.5:
            raise HIENetError(
                f"the largest change of the volume must lie between 0 and 0.5, got {self.largest_change:g}; "
                "0.06 is usual"
            )


@dataclass(frozen=True)
class Eos:
    """Energies and their fit; per cell as it is in `atoms`.

    Attributes:
        atoms: the structure at the fitted minimum of the energy.
        volumes: `[n]` (Å^3).
        energies: `[n]` (eV).
        volume: of the minimum (Å^3).
        energy: of the minimum (eV).
        bulk_modulus: GPa.
        derivative: of the bulk modulus with respect to pressure.
        residual: root mean square of what the fit leaves (meV/atom).
    """

    atoms: ase.Atoms
    volumes: Array
    energies: Array
    volume: float
    energy: float
    bulk_modulus: float
    derivative: float
    residual: float


def equation_of_state(
    atoms: ase.Atoms, engine: Engine, settings: EosSettings | None = None, progress: Progress | None = None
) -> Eos:
    """The third-order equation of state of Birch, Phys. Rev. 71, 809 (1947).

    The cell is scaled without changing its shape.

    Args:
        atoms: a crystal.
        engine: what gives energies.
        settings: which volumes.
        progress: told of each volume.

    Raises:
        HIENetError: no crystal, or no minimum of the energy within the volumes.
    """
    settings, progress = settings or EosSettings(), progress or silent()
    _require_crystal(atoms)
    if settings.relax:
        atoms = relaxed(atoms, engine, TIGHT, progress)
    factors = np.linspace(1.0 - settings.largest_change, 1.0 + settings.largest_change, settings.n_points)
    scaled = [_scaled(atoms, factor) for factor in factors]
    if settings.relax:
        fixed = RelaxSettings(cell=False, fmax=1e-3, max_steps=500, optimizer="lbfgs")
        found = relax(scaled, engine, fixed, progress)
        for error in (result.error for result in found):
            if error is not None:
                raise error
        energies = np.array([result.energies[-1] for result in found])
        at_minimum = found[int(energies.argmin())].atoms
    else:
        progress.begin("volumes", len(scaled))
        energies = np.array([each.energy for each in engine.calculate(scaled, progress.advance)])
        at_minimum = scaled[int(energies.argmin())]
    volumes = np.array([each.get_volume() for each in scaled])
    return _fit(at_minimum, volumes, energies)


def _require_crystal(atoms: ase.Atoms) -> None:
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        raise HIENetError("the structure is not a crystal: it is not periodic in three directions")


def _scaled(atoms: ase.Atoms, factor: float) -> ase.Atoms:
    scaled = ase.Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
    scaled.set_cell(atoms.cell.array * factor ** (1.0 / 3.0), scale_atoms=True)
    return scaled


def _fit(atoms: ase.Atoms, volumes: Array, energies: Array) -> Eos:
    lowest = int(energies.argmin())
    if lowest in (0, len(volumes) - 1):
        side = "smallest" if lowest == 0 else "largest"
        raise HIENetError(
            f"the energy has no minimum within the volumes: it is lowest at the {side}, {volumes[lowest]:.3f} Å³; "
            "relax the structure first, or widen the range with --change"
        )
    fit = EquationOfState(volumes, energies, eos="birchmurnaghan")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            volume, energy, modulus = (float(x) for x in fit.fit(warn=False))
    except (RuntimeError, ValueError) as error:
        raise HIENetError(f"no equation of state fits the energies ({error}); look at the volumes") from error
    derivative = float(fit.eos_parameters[2])
    residual = energies - birchmurnaghan(volumes, *fit.eos_parameters)
    return Eos(
        _scaled(atoms, volume / atoms.get_volume()),
        volumes,
        energies,
        volume,
        energy,
        modulus * GPA,
        derivative,
        1e3 * float(np.sqrt((residual**2).mean())) / len(atoms),
    )


def eos_of_structures(
    structures: Sequence[Structure], engine: Engine, settings: EosSettings, progress: Progress
) -> list[Outcome | HIENetError]:
    """Outcomes for `screen`."""
    return [_outcome(s, equation_of_state(s.atoms, engine, settings, progress)) for s in structures]


def _outcome(structure: Structure, found: Eos) -> Outcome:
    n_atoms = len(found.atoms)
    row: dict[str, Any] = {
        "formula": found.atoms.get_chemical_formula(),
        "n_atoms": n_atoms,
        "space_group": space_group(found.atoms),
        "volume_angstrom3_per_atom": found.volume / n_atoms,
        "energy_ev_per_atom": found.energy / n_atoms,
        "a_angstrom": float(found.atoms.cell.lengths()[0]),
        "b_angstrom": float(found.atoms.cell.lengths()[1]),
        "c_angstrom": float(found.atoms.cell.lengths()[2]),
        "bulk_modulus_gpa": found.bulk_modulus,
        "bulk_modulus_derivative": found.derivative,
        "fit_rms_mev_per_atom": found.residual,
    }
    details = {"volumes_angstrom3": found.volumes, "energies_ev": found.energies}
    return Outcome(row, details, {"": found.atoms}, lambda path: _draw(path, structure.name, found))


COLUMNS = (
    Column("formula", "formula"),
    Column("space_group", "space group"),
    Column("volume_angstrom3_per_atom", "V0\nÅ³/atom", ".3f"),
    Column("energy_ev_per_atom", "E0\neV/atom", ".4f"),
    Column("a_angstrom", "a\nÅ", ".4f"),
    Column("bulk_modulus_gpa", "B0\nGPa", ".1f"),
    Column("bulk_modulus_derivative", "B'\n", ".2f"),
    Column("fit_rms_mev_per_atom", "fit RMS\nmeV/atom", ".3f"),
)


@own_style()
def _draw(path: Path, name: str, found: Eos) -> None:
    n_atoms = len(found.atoms)
    figure = Figure(figsize=(5.2, 4.0), layout="constrained")
    axis = figure.subplots()
    fine = np.linspace(found.volumes.min(), found.volumes.max(), 200)
    curve = birchmurnaghan(fine, found.energy, found.bulk_modulus / GPA, found.derivative, found.volume)
    label = (
        f"Birch–Murnaghan: V₀ {found.volume / n_atoms:.3f} Å³/atom\n"
        f"B₀ {found.bulk_modulus:.1f} GPa, B' {found.derivative:.2f}"
    )
    axis.plot(fine / n_atoms, 1e3 * (curve - found.energy) / n_atoms, color=BLUE, linewidth=1.4, label=label)
    axis.plot(found.volumes / n_atoms, 1e3 * (found.energies - found.energy) / n_atoms, "o", color=ORANGE, markersize=5)
    axis.set_xlabel("volume (Å³/atom)")
    axis.set_ylabel("energy above the minimum (meV/atom)")
    axis.legend(frameon=False, fontsize=9, loc="upper center")
    axis.set_title(f"equation of state of {as_text(name)}", fontsize=11)
    tidy(axis)
    save_figure(figure, path)
