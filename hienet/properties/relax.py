"""`hienet relax`: atoms and cell to the minimum of the energy, many structures in step with each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.constraints import FixSymmetry
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE, LBFGS
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hienet.errors import HIENetError
from hienet.figure import BLUE, COLORS, ORANGE, as_text, own_style, save_figure, tidy
from hienet.properties.engine import Array, Engine
from hienet.properties.progress import Progress, silent
from hienet.properties.screen import Column, Outcome
from hienet.properties.structures import Structure
from hienet.properties.symmetry import SYMPREC, space_group
from hienet.units import EV_PER_CUBIC_ANGSTROM_IN_GPA as GPA

OPTIMIZERS = {"fire": FIRE, "lbfgs": LBFGS, "bfgs": BFGS}
_LARGEST_FORCE = 1e4
"""eV/Å; a structure with more has no minimum to be found."""
_LARGEST_CHANGE = 8.0
"""Of the volume, by a factor; a model that makes it larger or smaller than that does not hold the crystal together."""


@dataclass(frozen=True)
class RelaxSettings:
    """How structures are relaxed.

    Attributes:
        cell: relax the cell too.
        symmetry: keep the space group.
        pressure: GPa.
        fmax: eV/Å; largest force, and for the cell largest derivative of the enthalpy with respect to the logarithm of
            the deformation, divided by the number of atoms, as `FrechetCellFilter` of ASE has it.
        max_steps: of the optimiser.
        optimizer: `fire`, `lbfgs` or `bfgs`.
    """

    cell: bool = True
    symmetry: bool = True
    pressure: float = 0.0
    fmax: float = 1e-3
    max_steps: int = 500
    optimizer: str = "fire"

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise HIENetError(f"unknown optimizer `{self.optimizer}`; expected one of {', '.join(OPTIMIZERS)}")


TIGHT = RelaxSettings(fmax=1e-4, max_steps=1000, optimizer="lbfgs")
"""For second derivatives of the energy."""


@dataclass
class Relaxation:
    """The end of a relaxation.

    Attributes:
        atoms: the structure, with energy, forces and stress as the results of its calculator.
        converged: whether all forces are below the limit.
        energies: eV, of each step.
        largest_forces: eV/Å, of each step, those of the cell among them.
        error: why it was given up; None if it was not.
    """

    atoms: ase.Atoms
    converged: bool = False
    energies: list[float] = field(default_factory=list)
    largest_forces: list[float] = field(default_factory=list)
    error: HIENetError | None = None


def relax(
    structures: Sequence[ase.Atoms],
    engine: Engine,
    settings: RelaxSettings | None = None,
    progress: Progress | None = None,
) -> list[Relaxation]:
    """Relax structures, each by an optimiser of its own, all evaluated together.

    Args:
        structures: any number; they are not changed.
        engine: what gives forces.
        settings: how.
        progress: told of each structure that has converged.

    Returns:
        One for each structure; that of one that the model cannot evaluate has an `error`.
    """
    settings, progress = settings or RelaxSettings(), progress or silent()
    runs = [_Run(atoms, settings) for atoms in structures]
    progress.begin(f"relaxing {len(runs)} structures" if len(runs) > 1 else "relaxing", len(runs))
    for _ in range(settings.max_steps + 1):
        active = [run for run in runs if not run.finished]
        if not active:
            break
        for run, error in zip(active, _evaluate(engine, active), strict=True):
            run.step(error)
            if run.finished:
                progress.advance()
    return [run.result for run in runs]


class _Run:
    """One structure and its optimiser, which finds the results of the present positions attached to the structure."""

    def __init__(self, atoms: ase.Atoms, settings: RelaxSettings) -> None:
        self.settings = settings
        self.atoms = atoms.copy()
        self.atoms.set_constraint()
        if settings.cell and self.atoms.cell.rank < 3:
            raise HIENetError(
                "the structure has no cell to relax: it is not periodic in three directions; add --fixed-cell"
            )
        if settings.symmetry and self.atoms.pbc.all():
            self.atoms.set_constraint(FixSymmetry(self.atoms, symprec=SYMPREC, verbose=False))
        self.result = Relaxation(self.atoms)
        self._volume = float(self.atoms.cell.volume)
        self.steps_left = settings.max_steps
        self.finished = False
        self._optimizer: Any = None

    def _target(self) -> Any:
        if not self.settings.cell:
            return self.atoms
        return FrechetCellFilter(self.atoms, scalar_pressure=self.settings.pressure / GPA)

    def step(self, error: HIENetError | None) -> None:
        """Look at the forces that were found, and move unless this is the end."""
        if error is None and not np.isfinite(self.atoms.get_forces()).all():
            error = HIENetError("forces are not finite; the model does not know such a structure")
        if error is not None:
            self._end(error)
            return
        if self._optimizer is None:
            # Made only now: filters and optimisers look at the energy when they are made.
            self._optimizer = OPTIMIZERS[self.settings.optimizer](self._target(), logfile=None)
        gradient = self._optimizer.optimizable.get_gradient()
        largest = float(np.sqrt((gradient.reshape(-1, 3) ** 2).sum(1).max()))
        self.result.energies.append(self.atoms.get_potential_energy())
        self.result.largest_forces.append(largest)
        if largest > _LARGEST_FORCE:
            self._end(HIENetError(f"a force of {largest:.1e} eV/Å: atoms are on top of each other, or the model fails"))
        elif self.settings.cell and not 1.0 / _LARGEST_CHANGE < self.atoms.cell.volume / self._volume < _LARGEST_CHANGE:
            change = self.atoms.cell.volume / self._volume
            self._end(
                HIENetError(
                    f"the cell has come to {change:.2g} times its volume: the model does not hold this crystal "
                    "together; look at the structure, or relax the atoms alone"
                )
            )
        elif largest < self.settings.fmax:
            self.result.converged = True
            self._end(None)
        elif self.steps_left == 0:
            self._end(None)
        else:
            self.steps_left -= 1
            self._optimizer.step()

    def _end(self, error: HIENetError | None) -> None:
        self.finished = True
        self.result.error = error
        self.atoms.set_constraint()


def _evaluate(engine: Engine, runs: Sequence[_Run]) -> list[HIENetError | None]:
    """Attach results to the structures; where one cannot be evaluated, find out which."""
    try:
        for run, found in zip(runs, engine.calculate([run.atoms for run in runs]), strict=True):
            found.attach(run.atoms)
        return [None] * len(runs)
    except HIENetError as error:
        if len(runs) == 1:
            return [error]
        return [each for run in runs for each in _evaluate(engine, [run])]


def relaxed(
    atoms: ase.Atoms, engine: Engine, settings: RelaxSettings = TIGHT, progress: Progress | None = None
) -> ase.Atoms:
    """One structure, at its minimum.

    Raises:
        HIENetError: it has none that was found.
    """
    result = relax([atoms], engine, settings, progress)[0]
    if result.error is not None:
        raise result.error
    if not result.converged:
        raise HIENetError(
            f"the structure did not relax within {settings.max_steps} steps: the largest force is "
            f"{result.largest_forces[-1]:.1e} eV/Å, where {settings.fmax:.0e} is wanted; relax it first with "
            "`hienet relax --max-steps`, or skip this with --no-relax"
        )
    return result.atoms


def relax_structures(
    structures: Sequence[Structure], engine: Engine, settings: RelaxSettings, progress: Progress
) -> list[Outcome | HIENetError]:
    """Outcomes for `screen`."""
    found = relax([structure.atoms for structure in structures], engine, settings, progress)
    return [
        result.error or _outcome(structure, result, settings)
        for structure, result in zip(structures, found, strict=True)
    ]


def _outcome(structure: Structure, result: Relaxation, settings: RelaxSettings) -> Outcome:
    atoms, before = result.atoms, structure.atoms
    periodic = atoms.cell.rank == 3
    row: dict[str, Any] = {
        "formula": atoms.get_chemical_formula(),
        "n_atoms": len(atoms),
        "converged": result.converged,
        "steps": len(result.energies) - 1,
        "energy_ev": result.energies[-1],
        "energy_ev_per_atom": result.energies[-1] / len(atoms),
        "energy_change_ev_per_atom": (result.energies[-1] - result.energies[0]) / len(atoms),
        "largest_force_ev_per_angstrom": result.largest_forces[-1],
    }
    if periodic:
        stress = atoms.get_stress()
        row |= {
            "pressure_gpa": -float(stress[:3].mean()) * GPA,
            "volume_angstrom3_per_atom": atoms.get_volume() / len(atoms),
            "volume_change_percent": 100.0 * (atoms.get_volume() / before.get_volume() - 1.0),
            **dict(zip(_LENGTHS, (float(x) for x in atoms.cell.cellpar()), strict=True)),
            "space_group_before": space_group(before),
            "space_group": space_group(atoms),
        }
    details = {"energies_ev": result.energies, "largest_forces_ev_per_angstrom": result.largest_forces}
    return Outcome(row, details, {"": atoms}, lambda path: _draw(path, structure.name, result, settings))


_LENGTHS = ("a_angstrom", "b_angstrom", "c_angstrom", "alpha_degrees", "beta_degrees", "gamma_degrees")

COLUMNS = (
    Column("formula", "formula"),
    Column("converged", "converged"),
    Column("steps", "steps", "d"),
    Column("energy_ev_per_atom", "energy\neV/atom", ".4f"),
    Column("volume_angstrom3_per_atom", "volume\nÅ³/atom", ".3f"),
    Column("volume_change_percent", "change\n%", "+.2f"),
    Column("a_angstrom", "a\nÅ", ".4f"),
    Column("b_angstrom", "b\nÅ", ".4f"),
    Column("c_angstrom", "c\nÅ", ".4f"),
    Column("space_group", "space group"),
)


@own_style()
def _draw(path: Path, name: str, result: Relaxation, settings: RelaxSettings) -> None:
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = np.arange(len(result.energies))
    energies = 1e3 * (np.array(result.energies) - result.energies[-1]) / len(result.atoms)
    left.plot(steps, energies, color=BLUE, linewidth=1.4, marker="o", markersize=2.5)
    left.set_ylabel("energy above the last step (meV/atom)")
    right.semilogy(steps, result.largest_forces, color=BLUE, linewidth=1.4, marker="o", markersize=2.5)
    right.axhline(settings.fmax, color=ORANGE, linewidth=1.0, linestyle="--", label=f"limit {settings.fmax:g} eV/Å")
    right.set_ylabel("largest force, atoms and cell (eV/Å)")
    right.legend(frameon=False, fontsize=9)
    for axis in (left, right):
        axis.set_xlabel("step")
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        tidy(axis)
    figure.suptitle(f"relaxation of {as_text(name)}", fontsize=11)
    save_figure(figure, path)


@own_style()
def draw_changes(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Of many structures: volumes before and after, and changes of the energy."""
    shown = [row for row in rows if row.get("volume_angstrom3_per_atom") is not None]
    after = np.array([row["volume_angstrom3_per_atom"] for row in shown])
    before: Array = after / (1.0 + np.array([row["volume_change_percent"] for row in shown]) / 100.0)
    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    for label, color, chosen in (("converged", COLORS[0], True), ("not converged", COLORS[1], False)):
        mask = np.array([row["converged"] is chosen for row in shown])
        if mask.any():
            left.scatter(before[mask], after[mask], s=16, color=color, label=label, linewidths=0, alpha=0.8)
    limits = [0.95 * min(before.min(), after.min()), 1.05 * max(before.max(), after.max())]
    left.plot(limits, limits, color="0.25", linewidth=0.8, zorder=0)
    left.set_xlim(*limits)
    left.set_ylim(*limits)
    left.set_box_aspect(1.0)
    left.set_xlabel("volume before (Å³/atom)")
    left.set_ylabel("volume after (Å³/atom)")
    left.legend(frameon=False, fontsize=9)
    changes = -1e3 * np.array([row["energy_change_ev_per_atom"] for row in rows])
    right.hist(changes, bins=min(40, max(8, len(changes) // 4)), color=BLUE)
    right.set_xlabel("energy gained (meV/atom)")
    right.set_ylabel("structures")
    right.yaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in (left, right):
        tidy(axis)
    save_figure(figure, path)
