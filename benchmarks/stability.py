"""Stability: what a model does where molecular dynamics goes wrong with a bad one.

    stability.py --committee A.hienet.pt B.hienet.pt C.hienet.pt --compare "no ZBL=model.pt" --json S.json

Four parts, each with a table: atoms that come close (dimers and a compressed crystal, down to 0.5 Å), conservation of
energy with growing time steps, a long run of a hot crystal at constant pressure, and what a committee says of a crystal
at temperatures at which no model was trained, until it melts and beyond.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import bulk
from ase.data import atomic_numbers, covalent_radii
from common import ROOT, console, machine, parser, write_json
from drift import energy_drift
from hienet_deploy.export import export
from numpy.typing import NDArray
from rich.table import Table

from hienet.errors import HIENetError
from hienet.lammps import run_deck
from hienet.properties.engine import Engine
from hienet.properties.smoothness import Smoothness, SmoothnessSettings, smoothness

EXAMPLES = ROOT.parent / "lammps_examples"
LATTICE = 4.39
"""Å, of 3C-SiC."""
SHORTEST = 0.5
"""Å, of dimers, and between neighbours of the compressed crystal."""
FEW_ATOMS = 64
"""So many are evaluated at a time: compressed to 0.5 Å, an atom has thousands of neighbours."""
DECK = """
units         metal
atom_style    atomic
lattice       diamond {lattice}
region        box block 0 {repeat} 0 {repeat} 0 {repeat}
create_box    2 box
create_atoms  1 box basis 5 2 basis 6 2 basis 7 2 basis 8 2
mass          1 28.0855
mass          2 12.011
pair_style    hienet {committee}
pair_coeff    * * {models} Si C
neighbor      1.0 bin
neigh_modify  every 1 delay 0 check yes
# Half of it becomes potential energy within a few vibrations.
velocity      all create $(2*{temperature}) 4928459 mom yes rot yes dist gaussian loop geom
timestep      {timestep}
fix           dynamics all {fix}
compute       distances all pair/local dist
compute       closest all reduce min c_distances inputs local
compute       displacement all msd com yes
{committee_compute}
thermo        {every}
thermo_style  custom step time temp etotal press lx c_closest c_displacement[4] {last}
thermo_modify format float %.12g lost error
run           {steps}
"""
LOST = "Lost atoms"
"""By which words LAMMPS says so."""
COLUMNS = ("step", "time", "temperature", "energy", "pressure", "length", "closest", "displacement", "deviation")
"""Of a run's rows: steps, ps, K, eV, bar, Å, Å, Å², eV/Å."""


def main() -> None:
    """Measure and report."""
    options = parser(__doc__)
    options.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="not all of them")
    options.add_argument("--model", type=Path, default=EXAMPLES / "sic.pt", help="checkpoint [default: the example]")
    options.add_argument("--compare", nargs="+", default=[], metavar="NAME=FILE", help="more models to scan")
    options.add_argument(
        "--committee",
        type=Path,
        nargs="+",
        default=[EXAMPLES / "sic.hienet.pt", *(EXAMPLES / "active_learning" / f"sic_{i}.hienet.pt" for i in (1, 2))],
        help="deployed models [default: those of active_learning]",
    )
    options.add_argument("--repeat", type=int, default=2, help="cubic cells along each direction [default: 2]")
    options.add_argument("--timesteps", type=float, nargs="+", default=[0.5, 1.0, 1.5, 2.0], help="fs, of NVE")
    options.add_argument("--picoseconds", type=float, default=100.0, help="of NVE [default: 100]")
    options.add_argument("--temperature", type=float, default=1000.0, help="K, of NVE [default: 1000]")
    options.add_argument("--npt-picoseconds", type=float, default=1000.0, help="[default: 1000]")
    options.add_argument("--npt-temperature", type=float, default=2000.0, help="K [default: 2000]")
    options.add_argument("--melt-picoseconds", type=float, default=20.0, help="[default: 20]")
    options.add_argument(
        "--melt-temperatures", type=float, nargs="+", default=[4000.0, 6000.0], help="K [default: 4000 and 6000]"
    )
    arguments = options.parse_args()
    arguments.compare = dict(_named(text) for text in arguments.compare)
    result: dict[str, Any] = {"benchmark": "stability", "n_atoms": 8 * arguments.repeat**3}
    for part in arguments.parts:
        rows = PARTS[part](arguments)
        result[part] = rows
        _report(part, rows)
        write_json(arguments.json, {**result, "machine": machine()})


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or not Path(path).is_file():
        raise SystemExit(f"--compare takes NAME=FILE with the file of a model, got `{text}`")
    return name, Path(path)


# Atoms that come close


def scans(arguments: Any) -> list[dict[str, Any]]:
    """Dimers of every pair and the compressed crystal, of the model and those to compare with, in float64."""
    return [
        {"model": name, **scan(Engine(path, batch_atoms=FEW_ATOMS))}
        for name, path in {"the model": arguments.model, **arguments.compare}.items()
    ]


def scan(engine: Engine) -> dict[str, Any]:
    """One row."""
    crystal = bulk("SiC", "zincblende", LATTICE, cubic=True)
    bond = LATTICE * 3**0.5 / 4
    radii = [2.0 * covalent_radii[atomic_numbers[symbol]] for symbol in ("C", "Si")]
    # The dimers' shortest distance is a part of the sum of radii; that of the largest pair is to be `SHORTEST`.
    settings = SmoothnessSettings(400, SHORTEST / max(radii), (SHORTEST / bond, 1.5))
    found = smoothness(crystal, engine, settings)
    assert found.compression is not None
    return {
        "attracts_below": attraction(found),
        "largest_number_of_sign_changes": max(dimer.sign_changes for dimer in found.dimers),
        **barrier(found.compression.scales * bond, found.compression.energies),
        "cutoff_jump_mev": 1e3 * max(dimer.cutoff_jump or 0.0 for dimer in found.dimers),
        "inconsistency_mev": 1e3 * found.way.inconsistency,
    }


def attraction(found: Smoothness) -> dict[str, float | None]:
    """Greatest distance (Å) below the bond at which two atoms are drawn together; None where they repel each other."""
    result: dict[str, float | None] = {}
    for dimer in found.dimers:
        bond = sum(covalent_radii[atomic_numbers[symbol]] for symbol in dimer.symbols)
        short = (dimer.distances >= SHORTEST) & (dimer.distances < 0.8 * bond) & (dimer.forces < 0.0)
        result["-".join(dimer.symbols)] = float(dimer.distances[short].max()) if short.any() else None
    return result


def barrier(distances: NDArray[np.float64], energies: NDArray[np.float64]) -> dict[str, float]:
    """What keeps a crystal from collapse: the highest energy (eV/atom above the least of those beyond 1.5 Å) on the way
    to where it falls below that least one, if it does, and by how much it falls before on the way.

    `distances` (Å, growing) are those of nearest neighbours."""
    lowest = int(np.argmin(np.where(distances > 1.5, energies, np.inf)))
    way = energies[: lowest + 1][::-1] - energies[lowest]
    below = np.flatnonzero(way < -1e-6)
    way = way[: below[0]] if len(below) else way
    top = int(way.argmax())
    rising = way[: top + 1]
    return {
        "barrier_at": float(distances[lowest - top]),
        "barrier": float(way[top]),
        "fall_before": float((np.maximum.accumulate(rising) - rising).max()),
    }


# Dynamics


@dataclass(frozen=True)
class Course:
    """What a run went through.

    Attributes:
        data: rows by the names of `COLUMNS`.
        lost: whether LAMMPS stopped because it lost atoms.
    """

    data: dict[str, NDArray[np.float64]]
    lost: bool


def run(
    arguments: Any,
    models: Sequence[Path],
    fix: str,
    temperature: float,
    timestep: float,
    picoseconds: float,
    may_lose_atoms: bool = False,
) -> Course:
    """A run in LAMMPS, some 1000 rows. `timestep` in fs.

    Raises:
        HIENetError: LAMMPS stopped; because it lost atoms, only unless `may_lose_atoms`.
    """
    steps = round(1e3 * picoseconds / timestep)
    committee = len(models) > 1
    deck = DECK.format(
        lattice=LATTICE,
        repeat=arguments.repeat,
        committee="committee mean" if committee else "",
        models=" ".join(str(path.resolve()) for path in models),
        temperature=temperature,
        timestep=1e-3 * timestep,
        fix=fix,
        every=max(1, steps // 1000),
        steps=steps,
        committee_compute="compute committee all pair hienet" if committee else "variable deviation equal 0.0",
        last="c_committee[4]" if committee else "v_deviation",
    )
    lines: list[str] = []
    lost = False
    try:
        run_deck(deck, timeout=24 * 3600.0, echo=lines.append)
    except HIENetError as error:
        if not may_lose_atoms or LOST not in str(error):
            raise
        lost = True
    rows = [line.split() for line in lines if re.fullmatch(r"\s*\d+(\s+[-+.\de]+){8}\s*", line)]
    return Course(dict(zip(COLUMNS, np.array(rows, dtype=float).T, strict=True)), lost)


def conservation(arguments: Any) -> list[dict[str, Any]]:
    """Constant energy with growing time steps, of the model as it is deployed."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = export(arguments.model, Path(folder) / "model.hienet.pt").path
        for timestep in arguments.timesteps:
            data = run(arguments, [model], "nve", arguments.temperature, timestep, arguments.picoseconds).data
            settled = data["time"] >= 0.02 * data["time"][-1]
            energy = 1e3 * data["energy"] / (8 * arguments.repeat**3)
            rows.append(
                {
                    "timestep_fs": timestep,
                    "mean_temperature": float(data["temperature"][settled].mean()),
                    **energy_drift(data["time"][settled], energy[settled]),
                }
            )
    return rows


def npt(arguments: Any) -> list[dict[str, Any]]:
    """A hot crystal at zero pressure for a long time: is it still one?"""
    with tempfile.TemporaryDirectory() as folder:
        model = export(arguments.model, Path(folder) / "model.hienet.pt").path
        kelvin = arguments.npt_temperature
        fix = f"npt temp {kelvin} {kelvin} 0.075 iso 0 0 0.3"
        data = run(arguments, [model], fix, kelvin, 1.5, arguments.npt_picoseconds).data
    settled = data["time"] >= 0.1 * data["time"][-1]
    return [
        {
            "picoseconds": float(data["time"][-1]),
            "mean_temperature": float(data["temperature"][settled].mean()),
            "mean_pressure_gpa": 1e-4 * float(data["pressure"][settled].mean()),
            "lattice_constant": float(data["length"][settled].mean()) / arguments.repeat,
            "root_mean_square_displacement": float(np.sqrt(data["displacement"][settled].max())),
            "closest": float(data["closest"].min()),
        }
    ]


def melt(arguments: Any) -> list[dict[str, Any]]:
    """A crystal moved by the mean of a committee at constant volume, far above the temperatures of the training data:
    what the committee says, and how long before the dynamics goes astray, if it does."""
    rows = []
    for kelvin in arguments.melt_temperatures:
        fix = f"nvt temp {kelvin} {kelvin} 0.05"
        course = run(arguments, arguments.committee, fix, kelvin, 0.5, arguments.melt_picoseconds, may_lose_atoms=True)
        rows.append({"temperature": kelvin, **outside_the_data(course, kelvin)})
    return rows


def outside_the_data(course: Course, kelvin: float) -> dict[str, Any]:
    """One row: the first times of signs, in ps, and extremes. An explosion is a temperature of three times the
    thermostat's, or lost atoms; extremes are of the time before it."""
    data = course.data

    def first(sign: NDArray[np.bool_]) -> float | None:
        return float(data["time"][sign][0]) if sign.any() else None

    exploded = first(data["temperature"] > 3.0 * kelvin)
    if exploded is None and course.lost:
        exploded = float(data["time"][-1])
    before = data["time"] < (np.inf if exploded is None else exploded)
    return {
        "picoseconds": float(data["time"][-1]),
        "deviation_above_0.5_after_ps": first(data["deviation"] > 0.5),
        "deviation_above_1_after_ps": first(data["deviation"] > 1.0),
        "deviation_above_2_after_ps": first(data["deviation"] > 2.0),
        "explodes_after_ps": exploded,
        "median_deviation": float(np.median(data["deviation"][before])),
        "greatest_deviation": float(data["deviation"][before].max()),
        "root_mean_square_displacement": float(np.sqrt(data["displacement"][before].max())),
        "closest": float(data["closest"][before].min()),
    }


PARTS = {"scans": scans, "conservation": conservation, "npt": npt, "melt": melt}
TITLES = {
    "scans": "down to 0.5 Å",
    "conservation": "constant energy",
    "npt": "a hot crystal at zero pressure",
    "melt": "far above the training data, by the mean of the committee",
}
UNITS = {
    "attracts_below": "attracts below, Å",
    "largest_number_of_sign_changes": "changes of a dimer's force's sign",
    "barrier_at": "barrier to collapse at, Å",
    "barrier": "height, eV/atom",
    "fall_before": "falls before by, eV/atom",
    "cutoff_jump_mev": "jump at cutoff, meV",
    "inconsistency_mev": "energy - work, meV",
    "timestep_fs": "time step, fs",
    "mean_temperature": "mean T, K",
    "temperature": "T, K",
    "drift_mev_per_atom_per_ps": "drift, meV/atom/ps",
    "drift_standard_error": "±",
    "fluctuation_mev_per_atom": "fluctuation, meV/atom",
    "picoseconds": "ps",
    "mean_pressure_gpa": "mean pressure, GPa",
    "lattice_constant": "lattice constant, Å",
    "root_mean_square_displacement": "RMS displacement, Å",
    "closest": "closest atoms, Å",
    "deviation_above_0.5_after_ps": "deviation > 0.5 eV/Å after, ps",
    "deviation_above_1_after_ps": "> 1 eV/Å after, ps",
    "deviation_above_2_after_ps": "> 2 eV/Å after, ps",
    "explodes_after_ps": "explodes after, ps",
    "median_deviation": "median, eV/Å",
    "greatest_deviation": "greatest, eV/Å",
}


def _report(part: str, rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(*(UNITS.get(key, key) for key in rows[0]), title=TITLES[part])
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console().print(table)


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(number)}" for key, number in value.items())
    if value is None:
        return "never"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
