"""`hienet md`: writes a LAMMPS deck for a structure, runs it, and shows what came out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
from matplotlib.figure import Figure

from hienet.calculator import load_model
from hienet.deployed import is_torchscript
from hienet.errors import HIENetError
from hienet.figure import BLUE, COLORS, GRAY, save_figure, tidy
from hienet.files import atomic_path, make_folder
from hienet.lammps import run_deck
from hienet.properties.deck import BAR_PER_GPA, THERMO, Dynamics, deck, species_of, write_data
from hienet.properties.engine import Array
from hienet.properties.supercells import repeated
from hienet.properties.thermo import block_error, read_columns, read_trajectory, speed_of
from hienet.properties.trajectory import Motion, mean_squared_displacement, radial_distribution


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: where its files lie.
        dynamics: what was run.
        columns: of the log, by LAMMPS' names.
        frames: of the trajectory, with unwrapped positions.
        speed: of LAMMPS, as `speed_of` has it.
    """

    folder: Path
    dynamics: Dynamics
    columns: dict[str, Array]
    frames: list[ase.Atoms]
    speed: dict[str, float]

    def row(self) -> dict[str, Any]:
        """Means and their standard errors, and what else is a number."""
        c, n_atoms = self.columns, int(self.speed["atoms"])
        row: dict[str, Any] = {
            "ensemble": self.dynamics.ensemble,
            "n_atoms": n_atoms,
            "picoseconds": float(c["Time"][-1] - c["Time"][0]),
            "temperature_k": float(c["Temp"].mean()),
            "temperature_error_k": block_error(c["Temp"]),
            "pressure_gpa": float(c["Press"].mean()) / BAR_PER_GPA,
            "pressure_error_gpa": block_error(c["Press"]) / BAR_PER_GPA,
            "potential_energy_ev_per_atom": float(c["PotEng"].mean()) / n_atoms,
            "volume_angstrom3_per_atom": float(c["Volume"].mean()) / n_atoms,
            "volume_error_angstrom3_per_atom": block_error(c["Volume"]) / n_atoms,
            "ranks": int(self.speed["ranks"]),
            "microseconds_per_atom_step": self.speed["microseconds_per_atom_step"],
        }
        if self.dynamics.ensemble == "nve" and len(c["Time"]) > 2:
            row["energy_drift_mev_per_atom_per_ps"] = 1e3 * float(np.polyfit(c["Time"], c["TotEng"], 1)[0]) / n_atoms
        for symbol, (coefficient, error) in self.motion().coefficients.items():
            row[f"diffusion_{symbol}_cm2_per_s"] = coefficient
            row[f"diffusion_{symbol}_error_cm2_per_s"] = error
        return row

    def motion(self) -> Motion:
        """Mean squared displacements."""
        return mean_squared_displacement(self.frames, 1e-3 * self.dynamics.timestep * self.dynamics.every)


def prepare(
    atoms: ase.Atoms,
    model: str | Path,
    folder: str | Path,
    dynamics: Dynamics,
    n_atoms: int | None = None,
    title: str = "",
) -> Path:
    """Write `data.md`, `in.md` and, of a checkpoint, the deployed model; returns the deck's path.

    Args:
        atoms: a structure with a cell.
        model: deployed file, or a checkpoint, which is deployed with the elements of the structure.
        folder: for all files; created.
        dynamics: what is to be run.
        n_atoms: at least so many, by repeating the cell; None takes it as it is.
        title: first line of the deck.

    Raises:
        HIENetError: an element that the model does not know, a structure without a cell, or an unreadable model.
    """
    folder = make_folder(folder, "--output")
    if n_atoms is not None and n_atoms > len(atoms):
        if not atoms.pbc.all():
            raise HIENetError("only a crystal can be repeated, and the structure is not periodic; leave out --atoms")
        atoms = repeated(atoms, n_atoms)
    deployed = deployed_model(model, species_of(atoms), folder)
    write_data(atoms, folder / "data.md")
    name = os.path.relpath(deployed, folder)
    with atomic_path(folder / "in.md") as temporary:
        temporary.write_text(deck(atoms, [name], dynamics, title or atoms.get_chemical_formula()), encoding="utf-8")
    return folder / "in.md"


def deployed_model(model: str | Path, elements: list[str], folder: Path) -> Path:
    """A file that LAMMPS reads, with these elements; a checkpoint is deployed into the folder.

    Raises:
        HIENetError: the model does not know an element, or cannot be read.
    """
    from hienet_deploy.export import export

    if is_torchscript(model):
        unknown = sorted(set(elements) - set(load_model(model).elements))
        if unknown:
            raise HIENetError(
                f"the structure contains {', '.join(unknown)}, which `{model}` does not know; use a model that was "
                "trained with these elements"
            )
        return Path(model).absolute()
    path = folder / f"{Path(model).stem}-{''.join(elements)}.hienet.pt"
    if not path.exists() or path.stat().st_mtime < Path(model).stat().st_mtime:
        export(model, path, elements=elements)
    return path.absolute()


def run(
    deck_path: Path,
    dynamics: Dynamics,
    ranks: int = 1,
    timeout: float = 7 * 86400.0,
    echo: Callable[[str], None] | None = None,
) -> Run:
    """Run a deck of `prepare` in its folder, and read what it wrote.

    Args:
        deck_path: the deck.
        dynamics: what it does.
        ranks: MPI ranks.
        timeout: seconds.
        echo: called with each line that LAMMPS prints.

    Raises:
        HIENetError: LAMMPS stopped, or was stopped.
    """
    folder = deck_path.parent
    with atomic_path(folder / "log.md") as temporary:
        output = run_deck(deck_path, ranks, timeout=timeout, cwd=folder, echo=echo)
        temporary.write_text(output, encoding="utf-8")
    return read_run(folder, dynamics)


def read_run(folder: Path, dynamics: Dynamics) -> Run:
    """A finished run from its folder.

    Raises:
        HIENetError: it is not finished.
    """
    try:
        text = (folder / "log.md").read_text(encoding="utf-8")
    except OSError as error:
        raise HIENetError(f"there is no finished run in `{folder}`: {error.strerror}") from error
    return Run(folder, dynamics, read_columns(text), read_trajectory(folder / "trajectory.lammpstrj"), speed_of(text))


def draw(path: Path, found: Run, title: str) -> None:
    """Temperature, energy or volume against time, g(r), and displacements."""
    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    (temperature, second), (rdf, msd) = figure.subplots(2, 2)
    c, n_atoms = found.columns, found.speed["atoms"]
    temperature.plot(c["Time"], c["Temp"], color=BLUE, linewidth=0.9)
    temperature.set_ylabel("temperature (K)")
    if found.dynamics.ensemble == "npt":
        second.plot(c["Time"], c["Volume"] / n_atoms, color=BLUE, linewidth=0.9)
        second.set_ylabel("volume (Å³/atom)")
    elif found.dynamics.ensemble == "nve":
        second.plot(c["Time"], 1e3 * (c["TotEng"] - c["TotEng"][0]) / n_atoms, color=BLUE, linewidth=0.9)
        second.set_ylabel("change of the total energy (meV/atom)")
    else:
        second.plot(c["Time"], c["Press"] / BAR_PER_GPA, color=BLUE, linewidth=0.9)
        second.set_ylabel("pressure (GPa)")
    # Of a ramp the end: a mean over all temperatures is the structure of none.
    steady = found.frames if found.dynamics.temperature.is_constant else found.frames[-max(1, len(found.frames) // 5) :]
    distances, functions = radial_distribution(steady)
    for color, (name, values) in zip(COLORS * len(functions), functions.items(), strict=False):
        if name != "all":
            rdf.plot(distances, values, linewidth=1.2, color=color, label=name.replace("-", "–"))
    rdf.axhline(1.0, color=GRAY, linewidth=0.7, linestyle=":")
    rdf.set_xlabel("distance (Å)")
    rdf.set_ylabel("g(r)")
    rdf.set_ylim(bottom=0.0)
    motion = found.motion()
    for color, (symbol, values) in zip(COLORS * len(motion.displacements), motion.displacements.items(), strict=False):
        coefficient, error = motion.coefficients[symbol]
        label = f"{symbol}: D = {coefficient:.1e} ± {error:.0e} cm²/s" if np.isfinite(error) else symbol
        msd.plot(motion.times, values, linewidth=1.2, color=color, label=label)
    msd.set_xlabel("time (ps)")
    msd.set_ylabel("mean squared displacement (Å²)")
    msd.set_ylim(bottom=0.0)
    for axis in (temperature, second):
        axis.set_xlabel("time (ps)")
        axis.ticklabel_format(useOffset=False)
    for axis in (rdf, msd):
        axis.legend(frameon=False, fontsize=8.5)
    for axis in (temperature, second, rdf, msd):
        tidy(axis)
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path)


def tables(found: Run) -> tuple[list[dict[str, float]], list[dict[str, float]], list[dict[str, float]]]:
    """Rows of `thermo.csv`, `rdf.csv` and `msd.csv`."""
    names = list(found.columns)
    thermo = [dict(zip(names, map(float, row), strict=True)) for row in zip(*found.columns.values(), strict=True)]
    distances, functions = radial_distribution(found.frames)
    rdf = [
        {"r_angstrom": float(r), **{name: float(values[i]) for name, values in functions.items()}}
        for i, r in enumerate(distances)
    ]
    motion = found.motion()
    msd = [
        {"time_ps": float(t), **{f"{s}_angstrom2": float(values[i]) for s, values in motion.displacements.items()}}
        for i, t in enumerate(motion.times)
    ]
    return thermo, rdf, msd


N_COLUMNS = len(THERMO)
"""Of a line of the log."""


def table(row: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What of a row a person wants to see: name with unit, mean, standard error."""

    def cells(name: str, key: str, error: str | None, form: str) -> tuple[str, str, str]:
        spread = row.get(error) if error is not None else None
        return name, format(row[key], form), "-" if spread is None or not np.isfinite(spread) else format(spread, ".2g")

    rows = [
        cells("temperature, K", "temperature_k", "temperature_error_k", ".1f"),
        cells("pressure, GPa", "pressure_gpa", "pressure_error_gpa", ".3f"),
        cells("volume, Å³/atom", "volume_angstrom3_per_atom", "volume_error_angstrom3_per_atom", ".4f"),
        cells("potential energy, eV/atom", "potential_energy_ev_per_atom", None, ".5f"),
    ]
    if "energy_drift_mev_per_atom_per_ps" in row:
        rows.append(cells("drift, meV/atom/ps", "energy_drift_mev_per_atom_per_ps", None, ".3g"))
    for key in row:
        if key.startswith("diffusion_") and "_error_" not in key:
            symbol = key.split("_")[1]
            rows.append(cells(f"diffusion of {symbol}, cm²/s", key, f"diffusion_{symbol}_error_cm2_per_s", ".2e"))
    rows.append(cells("time, µs/atom/step", "microseconds_per_atom_step", None, ".1f"))
    return rows
