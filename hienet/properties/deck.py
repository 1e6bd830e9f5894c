"""LAMMPS decks and data files of molecular dynamics, written to be read."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ase
import ase.io
import numpy as np
from ase.data import atomic_masses, atomic_numbers

from hienet.errors import HIENetError
from hienet.files import atomic_path

BAR_PER_GPA = 1e4

ENSEMBLES = ("nve", "nvt", "npt")
COUPLINGS = ("iso", "aniso", "tri")


@dataclass(frozen=True)
class Ramp:
    """A value at the beginning and one at the end of a run."""

    start: float
    end: float

    @property
    def is_constant(self) -> bool:
        """The same throughout."""
        return self.start == self.end

    def __str__(self) -> str:
        return f"{self.start:g}" if self.is_constant else f"{self.start:g} to {self.end:g}"


def parse_ramp(text: str, option: str) -> Ramp:
    """`300` or `300:1500`.

    Raises:
        HIENetError: something else.
    """
    parts = text.split(":")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    if len(values) not in (1, 2) or not np.isfinite(values).all():
        raise HIENetError(f"{option} takes a number, or two for a ramp, such as 300 or 300:1500; got `{text}`")
    return Ramp(values[0], values[-1])


@dataclass(frozen=True)
class Dynamics:
    """What is run.

    Attributes:
        ensemble: `nve`, `nvt` or `npt`.
        temperature: K; of `nve` the first value is that of the velocities at the start.
        pressure: GPa, for `npt`.
        coupling: `iso`, `aniso` or `tri`: which lengths and angles of the cell may change under `npt`.
        steps: of the part that is analysed.
        equilibration: steps before it, at the first temperature and pressure.
        timestep: fs.
        every: steps between two lines of the log and two frames of the trajectory.
        seed: of the velocities.
        damping: ps, of the thermostat; that of the barostat is ten times as long.
    """

    ensemble: str = "nvt"
    temperature: Ramp = Ramp(300.0, 300.0)
    pressure: Ramp = Ramp(0.0, 0.0)
    coupling: str = "iso"
    steps: int = 5000
    equilibration: int = 1000
    timestep: float = 1.0
    every: int = 20
    seed: int = 1
    damping: float = 0.1

    def __post_init__(self) -> None:
        if self.ensemble not in ENSEMBLES:
            raise HIENetError(f"unknown ensemble `{self.ensemble}`; expected one of {', '.join(ENSEMBLES)}")
        if self.coupling not in COUPLINGS:
            raise HIENetError(f"unknown coupling `{self.coupling}`; expected one of {', '.join(COUPLINGS)}")
        if min(self.temperature.start, self.temperature.end) <= 0:
            raise HIENetError(f"the temperature must be positive, got {self.temperature} K")
        if self.ensemble == "nve" and not self.temperature.is_constant:
            raise HIENetError("nve has no thermostat that could change the temperature; use nvt or npt for a ramp")
        if self.steps < self.every or self.every < 1 or self.equilibration < 0:
            raise HIENetError(
                f"a run needs at least one frame: {self.steps} steps with a frame every {self.every} are too few; "
                "raise --steps or lower --every"
            )
        if not 0.0 < self.timestep <= 20.0:
            raise HIENetError(f"the time step must lie between 0 and 20 fs, got {self.timestep:g}; 1 or 2 are usual")


def species_of(atoms: ase.Atoms) -> list[str]:
    """Its elements in the order of atom types."""
    return sorted(set(atoms.get_chemical_symbols()))


def write_data(atoms: ase.Atoms, path: Path) -> None:
    """LAMMPS' data file, with masses; the cell is turned so that LAMMPS takes it.

    Raises:
        HIENetError: no cell.
    """
    if atoms.cell.rank < 3:
        raise HIENetError(
            "the structure has no cell; put molecules and clusters into one, as with ASE's `atoms.center(vacuum=10)`"
        )
    text = io.StringIO()
    ase.io.write(text, atoms, format="lammps-data", specorder=species_of(atoms), masses=True, units="metal")
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def deck(
    atoms: ase.Atoms,
    models: Sequence[str],
    dynamics: Dynamics,
    title: str,
    extra: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> str:
    """The text of a deck that reads `data.md`, and writes `trajectory.lammpstrj` and the columns of `THERMO`.

    Args:
        atoms: the structure of the data file.
        models: deployed files, as seen from where the deck is run; several are a committee whose first one drives.
        dynamics: what is run.
        title: the first line.
        extra: lines before the last run, with output of one's own.
        columns: of the log, after those of `THERMO`; a compute of `pair hienet` named `committee` is defined then.
    """
    d, symbols = dynamics, species_of(atoms)
    boundary = " ".join("p" if periodic else "f" for periodic in atoms.pbc)
    masses = ", ".join(f"{symbol} {atomic_masses[atomic_numbers[symbol]]:.4g}" for symbol in symbols)
    committee = " committee first" if len(models) > 1 else ""
    lines = [
        f"# {title}",
        "# Written by `hienet md`; run it again with `lmp -in in.md`, or `mpirun -np 4 lmp -in in.md`.",
        "",
        "units         metal                     # Angstrom, eV, ps, bar, K",
        "atom_style    atomic",
        f"boundary      {boundary}",
        f"read_data     data.md                   # {len(atoms)} atoms; masses: {masses}",
        "",
        f"pair_style    hienet{committee}",
        f"pair_coeff    * * {' '.join(_quoted(model) for model in models)} {' '.join(symbols)}",
        "neighbor      1.0 bin",
        "",
        f"timestep      {d.timestep * 1e-3:g}                     # ps",
        "# Twice the temperature, since a crystal at rest turns half of it into potential energy.",
        f"velocity      all create {2 * d.temperature.start:g} {d.seed} mom yes rot no dist gaussian loop geom",
        "",
        f"thermo        {d.every}",
        *(["compute       committee all pair hienet"] if columns else []),
        f"thermo_style  custom {' '.join((*THERMO, *columns))}",
        "thermo_modify format float %.10g flush yes",
    ]
    if d.equilibration:
        first = Dynamics(d.ensemble, Ramp(*[d.temperature.start] * 2), Ramp(*[d.pressure.start] * 2), d.coupling)
        lines += [
            "",
            "# Equilibration" + ("." if d.ensemble == "npt" else ", with a thermostat of Langevin."),
            *_thermalise(first, d),
            f"run           {d.equilibration}",
            "unfix         dynamics",
            *(["unfix         thermostat"] if d.ensemble != "npt" else []),
            "reset_timestep 0",
        ]
    lines += [
        "",
        f"# {_words(d)}",
        _fix(d),
        f"dump          trajectory all custom {d.every} trajectory.lammpstrj id type element xu yu zu",
        f"dump_modify   trajectory sort id element {' '.join(symbols)} format float %.8g",
        *extra,
        f"run           {d.steps}",
        "write_data    final.data nocoeff",
    ]
    return "\n".join(lines) + "\n"


THERMO = ("step", "time", "temp", "pe", "ke", "etotal", "press", "vol", "lx", "ly", "lz")
"""Columns of the log."""


def _thermalise(first: Dynamics, d: Dynamics) -> list[str]:
    if first.ensemble == "npt":
        return [_fix(Dynamics("npt", first.temperature, first.pressure, d.coupling, damping=d.damping))]
    temperature = f"{first.temperature.start:g}"
    return [
        "fix           dynamics all nve",
        f"fix           thermostat all langevin {temperature} {temperature} {d.damping:g} {d.seed + 1}",
    ]


def _fix(d: Dynamics) -> str:
    if d.ensemble == "nve":
        return "fix           dynamics all nve"
    line = f"fix           dynamics all {d.ensemble} temp {d.temperature.start:g} {d.temperature.end:g} {d.damping:g}"
    if d.ensemble == "npt":
        start, end = BAR_PER_GPA * d.pressure.start, BAR_PER_GPA * d.pressure.end
        line += f" {d.coupling} {start:g} {end:g} {10 * d.damping:g}"
    return line


def _words(d: Dynamics) -> str:
    words = f"{d.ensemble.upper()}, {d.steps} steps of {d.timestep:g} fs"
    if d.ensemble != "nve":
        words += f", {d.temperature} K"
    if d.ensemble == "npt":
        words += f", {d.pressure} GPa ({d.coupling})"
    return words


def _quoted(name: str) -> str:
    return f'"{name}"' if any(character in name for character in " #$&\t'") else name
