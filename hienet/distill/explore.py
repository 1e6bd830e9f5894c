"""Dynamics in which students are tried, or in which the teacher shows what its material does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ase
import numpy as np

from hienet.distill.plan import Plan
from hienet.errors import HIENetError
from hienet.files import atomic_path
from hienet.lammps import run_deck
from hienet.properties.deck import Dynamics, Ramp, deck, write_data
from hienet.properties.engine import Array
from hienet.properties.thermo import read_columns, read_trajectory, speed_of

_HALT = 8.0
"""Deviations above so many thresholds end a run: nothing after it would be worth a label."""
_DAYS = 86400.0


@dataclass(frozen=True)
class Exploration:
    """Dynamics at one temperature and pressure.

    Attributes:
        name: of the conditions, such as `1500K_0GPa`.
        frames: of the trajectory.
        deviations: `[n_frames]` greatest deviation of the committee's forces (eV/Å); zeros of a single model.
        volumes: `[n_frames]` (Å^3).
        complete: false if it was stopped because the committee disagreed too much, or LAMMPS failed.
        speed: of LAMMPS, as `speed_of` has it.
    """

    name: str
    frames: list[ase.Atoms]
    deviations: Array
    volumes: Array
    complete: bool
    speed: dict[str, float]


def conditions(plan: Plan) -> list[tuple[float, float, str]]:
    """Temperature (K), pressure (GPa), and a name for both."""
    return [(t, p, f"{t:g}K_{p:g}GPa") for t in plan.temperatures for p in plan.pressures]


def explore(
    atoms: ase.Atoms,
    models: Sequence[Path],
    folder: Path,
    plan: Plan,
    temperature: float,
    pressure: float,
    steps: int,
    seed: int,
    every: int = 20,
) -> Exploration:
    """NPT of a crystal, or the results of the same run that were left before.

    Args:
        atoms: a supercell.
        models: deployed files; of several, the first moves the atoms and all tell the deviation.
        folder: of the run.
        plan: of the distillation.
        temperature: K.
        pressure: GPa.
        steps: in all.
        seed: of the velocities.
        every: steps between frames.

    Raises:
        HIENetError: LAMMPS failed before the first frames.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dynamics = Dynamics(
        "npt",
        Ramp(temperature, temperature),
        Ramp(pressure, pressure),
        "aniso",
        steps=steps,
        equilibration=0,
        timestep=plan.timestep,
        every=every,
        seed=seed,
    )
    if not (folder / "log.md").exists():
        write_data(atoms, folder / "data.md")
        committee = len(models) > 1
        extra = [
            "# Where the models disagree this much, what follows is worth nothing.",
            "variable      greatest equal c_committee[4]",
            f"fix           halt all halt {every} v_greatest > {_HALT * plan.threshold:g} error continue message yes",
        ]
        title = f"{'students' if committee else 'one model'} at {temperature:g} K and {pressure:g} GPa"
        names = [str(model.absolute()) for model in models]
        columns = ("c_committee[4]",) if committee else ()
        with atomic_path(folder / "in.md") as temporary:
            temporary.write_text(deck(atoms, names, dynamics, title, extra if committee else (), columns))
        _run(folder, plan.ranks)
    return _read(folder, steps)


def _run(folder: Path, ranks: int) -> None:
    """LAMMPS' output goes to `log.md`; that of a run that failed too, if it got anywhere: that it fails is a result."""
    lines: list[str] = []
    try:
        run_deck(folder / "in.md", ranks, timeout=30 * _DAYS, cwd=folder, echo=lines.append)
    except HIENetError as error:
        if sum(line.split()[:1] != [] and line.split()[0].isdigit() for line in lines) < 3:
            raise
        lines.append(f"stopped: {error}")
        # As LAMMPS ends the table of a run, so that what there is can be read.
        lines.append("Loop time of 0 on 1 procs for 0 steps with 1 atoms")
    with atomic_path(folder / "log.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _read(folder: Path, steps: int) -> Exploration:
    text = (folder / "log.md").read_text(encoding="utf-8")
    columns = read_columns(text)
    frames = read_trajectory(folder / "trajectory.lammpstrj")
    number = min(len(frames), len(columns["Step"]))
    deviations = columns.get("c_committee[4]", np.zeros(number))[:number]
    good = np.isfinite(deviations) & np.isfinite(columns["Volume"][:number])
    number = number if good.all() else int(np.argmin(good))
    return Exploration(
        folder.name,
        frames[:number],
        deviations[:number],
        columns["Volume"][:number],
        bool(columns["Step"][-1] >= steps),
        speed_of(text),
    )
