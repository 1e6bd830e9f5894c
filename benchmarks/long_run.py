"""A long run in LAMMPS: does memory stay flat, is momentum kept, and how far does the energy drift?

A crystal that moves through its periodic cell at constant energy, so that atoms cross every boundary, migrate between
ranks, are sorted, and the neighbour list is rebuilt all the time. The resident memory of every rank is read from
outside while it runs.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, console, machine, parser, write_json
from drift import energy_drift
from hienet_deploy.export import export
from memory import resident_bytes_of_ranks
from rich.table import Table

from hienet.files import atomic_path
from hienet.lammps import run_deck

DECK = """
units         metal
atom_style    atomic
atom_modify   sort 100 2.0
lattice       diamond 4.39
region        box block 0 {repeat} 0 {repeat} 0 {repeat}
create_box    2 box
create_atoms  1 box basis 5 2 basis 6 2 basis 7 2 basis 8 2
mass          1 28.0855
mass          2 12.011
pair_style    hienet
pair_coeff    * * {model} Si C
neighbor      0.5 bin
neigh_modify  every 1 delay 0 check yes
# Half of it becomes potential energy within a few vibrations.
velocity      all create $(2*{temperature}) 4928459 mom yes rot yes dist gaussian loop geom
velocity      all set 4.0 2.5 1.0 sum yes
timestep      0.001
fix           dynamics all nve
# Momentum (g/mol Angstrom/ps), which LAMMPS sums over all ranks.
variable      px equal vcm(all,x)*mass(all)
variable      py equal vcm(all,y)*mass(all)
variable      pz equal vcm(all,z)*mass(all)
thermo        {every}
compute       thermal all temp/com
thermo_style  custom step time c_thermal etotal v_px v_py v_pz
thermo_modify format float %.15g
run           {steps}
"""
SETTLED = 0.1
"""Part of the run after which everything that is allocated once has been."""


@dataclass
class Course:
    """What was seen of one run.

    Attributes:
        rows: `[n, 7]`: step, time (ps), temperature (K), total energy (eV), momentum (g/mol Å/ps).
        memory: `[n, n_ranks]` resident memory (bytes) of each rank when its row was printed.
        device_memory: `[n]` memory in use on the GPU (bytes) then, whoever uses it.
        neighbor_builds, dangerous_builds: as LAMMPS counts them.
        seconds: of LAMMPS' loop.
    """

    rows: list[list[float]] = field(default_factory=list)
    memory: list[list[int]] = field(default_factory=list)
    device_memory: list[int] = field(default_factory=list)
    neighbor_builds: int = 0
    dangerous_builds: int = 0
    seconds: float = 0.0


def main() -> None:
    """Measure and report."""
    options = parser(__doc__, rounds=1)
    options.add_argument("--repeat", type=int, default=2, help="cubic cells of 8 atoms along each direction")
    options.add_argument("--steps", type=int, default=50_000, help="of 1 fs [default: 50000]")
    options.add_argument("--samples", type=int, default=500, help="of memory, energy, momentum [default: 500]")
    options.add_argument("--temperature", type=float, default=600.0, help="K [default: 600]")
    options.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="of LAMMPS [default: 1 2]")
    options.add_argument("--dtype", default="float32", help="of the deployed model [default: float32]")
    options.add_argument("--plot", type=Path, help="PNG to draw")
    arguments = options.parse_args()
    n_atoms = 8 * arguments.repeat**3
    courses: dict[int, Course] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = export(ROOT.parent / "lammps_examples" / "sic.pt", Path(folder) / "sic.hienet.pt", arguments.dtype).path
        for ranks in arguments.ranks:
            deck = DECK.format(
                model=model,
                repeat=arguments.repeat,
                temperature=arguments.temperature,
                every=max(1, arguments.steps // arguments.samples),
                steps=arguments.steps,
            )
            courses[ranks] = follow(deck, ranks)
    results = {str(ranks): summary(course, n_atoms) for ranks, course in courses.items()}
    title = f"{n_atoms} atoms of SiC, {arguments.steps} steps of 1 fs, {arguments.temperature:g} K, {arguments.dtype}"
    report(results, title)
    if arguments.plot is not None:
        draw(courses, n_atoms, title, arguments.plot)
    write_json(
        arguments.json,
        {
            "benchmark": "long_run",
            "n_atoms": n_atoms,
            "steps": arguments.steps,
            "dtype": arguments.dtype,
            "ranks": results,
            "machine": machine(),
        },
    )


def follow(deck: str, ranks: int, device_bytes: Callable[[], int] = lambda: 0, timeout: float = 24 * 3600.0) -> Course:
    """Run a deck whose rows of thermodynamic output are those of `Course`, and look at its ranks at every row.

    `device_bytes` gives the memory in use on the GPU; the run ends after `timeout` seconds.
    """
    course = Course()

    def see(line: str) -> None:
        if re.fullmatch(r"\s*\d+(\s+[-+.\de]+){6}\s*", line):
            course.rows.append([float(word) for word in line.split()])
            course.memory.append(resident_bytes_of_ranks())
            course.device_memory.append(device_bytes())

    output = run_deck(deck, ranks, timeout=timeout, echo=see)
    course.neighbor_builds = int(_number(r"Neighbor list builds = (\d+)", output))
    course.dangerous_builds = int(_number(r"Dangerous builds = (\d+)", output))
    course.seconds = _number(r"Loop time of (\S+)", output)
    # Those that came while a rank was beginning or ending miss some of them.
    kept = [i for i, sizes in enumerate(course.memory) if len(sizes) == ranks]
    course.rows, course.memory = [course.rows[i] for i in kept], [course.memory[i] for i in kept]
    course.device_memory = [course.device_memory[i] for i in kept]
    return course


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise SystemExit(f"LAMMPS did not print `{pattern}`:\n{text[-2000:]}")
    return float(found.group(1))


def summary(course: Course, n_atoms: int) -> dict[str, float]:
    """Figures of a run; those of memory after `SETTLED` of it."""
    rows = np.array(course.rows)
    steps, momentum = rows[:, 0], rows[:, 4:7]
    settled = steps >= SETTLED * steps[-1]
    memory = np.array(course.memory, dtype=float)[settled] / 1e6
    thousands = steps[settled] / 1e3
    return {
        "resident_mb": float(memory[-1].max()),
        "growth_mb": float((memory[-1] - memory[0]).max()),
        "growth_mb_per_1000_steps": float(np.polyfit(thousands, memory, 1)[0].max()),
        "momentum": float(np.linalg.norm(momentum[0])),
        "largest_change_of_momentum": float(np.abs(momentum - momentum[0]).max()),
        "neighbor_builds": course.neighbor_builds,
        "dangerous_builds": course.dangerous_builds,
        "mean_temperature_k": float(rows[settled, 2].mean()),
        "steps_per_second": float((steps[-1] - steps[0]) / course.seconds),
        "n_samples": len(rows),
        **energy_drift(rows[:, 1], 1e3 * rows[:, 3] / n_atoms),
    }


def report(results: dict[str, dict[str, Any]], title: str) -> None:
    """One row for each number of ranks."""
    table = Table(
        *("ranks", "resident (MB)", "growth (MB)", "MB/1000 steps", "momentum (g/mol Å/ps)", "its largest change"),
        *("drift (meV/atom/ps)", "fluctuation (meV/atom)", "neighbour lists", "steps/s"),
        title=title,
    )
    for ranks, r in results.items():
        table.add_row(
            ranks,
            f"{r['resident_mb']:.1f}",
            f"{r['growth_mb']:+.2f}",
            f"{r['growth_mb_per_1000_steps']:+.4f}",
            f"{r['momentum']:.1f}",
            f"{r['largest_change_of_momentum']:.1e}",
            f"{r['drift_mev_per_atom_per_ps']:+.5f} ± {r['drift_standard_error']:.5f}",
            f"{r['fluctuation_mev_per_atom']:.4f}",
            f"{r['neighbor_builds']:.0f}",
            f"{r['steps_per_second']:.0f}",
        )
    console().print(table)


def draw(courses: dict[int, Course], n_atoms: int, title: str, path: Path) -> None:
    """Three panels against time: memory, change of momentum, energy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = ("resident memory / MB", "change of momentum / (g/mol Å/ps)", "energy / (meV/atom)")
    figure, all_axes = pyplot.subplots(1, 3, figsize=(12.0, 3.4), layout="constrained")
    for color, (ranks, course) in enumerate(courses.items()):
        rows, memory = np.array(course.rows), np.array(course.memory) / 1e6
        time, momentum, energy = rows[:, 1], rows[:, 4:7], 1e3 * rows[:, 3] / n_atoms
        curves: Sequence[Any] = (memory, np.abs(momentum - momentum[0]).max(1), energy - energy[0])
        for axes, values in zip(all_axes, curves, strict=True):
            lines = axes.plot(time, values, color=f"C{color}", linewidth=0.8)
            lines[0].set_label("1 rank" if ranks == 1 else f"{ranks} ranks")
    for axes, label in zip(all_axes, labels, strict=True):
        axes.set_xlabel("time / ps")
        axes.set_ylabel(label)
        axes.grid(color="0.85", linewidth=0.6)
    all_axes[0].set_ylim(bottom=0)
    all_axes[0].legend()
    figure.suptitle(title, fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=200, format="png")
    pyplot.close(figure)


if __name__ == "__main__":
    main()
