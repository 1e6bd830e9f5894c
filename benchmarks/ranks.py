"""LAMMPS with the deployed model: what it adds to an evaluation from Python, and what ranks and threads gain.

Contenders take turns. One atom set in several ways is strong scaling; as many atoms for each rank is weak scaling.
"""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ase.io import write
from common import (
    console,
    deploy,
    evaluation,
    force_error,
    load_contender,
    machine,
    multiplication_rate,
    parser,
    random_checkpoint,
    rotated,
    set_threads,
    write_json,
)
from rich.table import Table
from structures import structure

from hienet.calculator import load_model
from hienet.lammps import run_deck

DECK = """
units         metal
atom_style    atomic
read_data     {data}
pair_style    hienet threads {threads}
pair_coeff    * * {model} Si
neighbor      1.0 bin
velocity      all create 300 4928459 mom yes rot yes dist gaussian loop geom
timestep      0.0005
fix           dynamics all nve
thermo        {steps}
thermo_style  custom step temp pe
thermo_modify format float %.10g
# The first step loads and warms up, and is not counted.
run           1
run           {steps}
"""
ENERGY_TOLERANCE = 1e-5
"""eV/atom, difference of the first energy in LAMMPS from Python's."""
BREAKDOWN = ("Pair", "Neigh", "Comm", "Output", "Modify", "Other")


def main() -> None:
    """Measure and report."""
    options = parser(__doc__, rounds=5)
    options.add_argument("--atoms", type=int, default=4000, help="of silicon, a multiple of 16 [default: 4000]")
    options.add_argument("--budget", type=float, default=15.0, help="seconds of each LAMMPS run [default: 15]")
    arguments = options.parse_args()
    half, whole = arguments.atoms // 2, arguments.atoms
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(Path(folder), arguments.preset, arguments.budget, (half, whole))
        contenders: dict[str, Callable[[], dict[str, float]]] = {
            "python, 1 thread": lambda: setup.python(whole),
            "1 rank x 1 thread": lambda: setup.lammps(whole, 1, 1),
            "2 ranks x 1 thread": lambda: setup.lammps(whole, 2, 1),
            "1 rank x 2 threads": lambda: setup.lammps(whole, 1, 2),
            "half the atoms, 1 rank x 1 thread": lambda: setup.lammps(half, 1, 1),
        }
        names = list(contenders)
        rounds: list[dict[str, dict[str, float]]] = []
        probe = []
        for i in range(arguments.rounds):
            order = rotated(names, i)
            probe.append(multiplication_rate(512, 0.02))
            rounds.append({name: contenders[name]() for name in order})
    seconds = {name: [found[name]["seconds"] for found in rounds] for name in names}

    def ratio(slow: str, fast: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))

    result = {
        "benchmark": "ranks",
        "preset": arguments.preset,
        "n_atoms": whole,
        "rounds": arguments.rounds,
        "steps": setup.steps,
        "max_force_error_ev_per_angstrom": setup.error,
        "ms_per_atom": {
            name: 1e3 * statistics.median(seconds[name]) / (half if "half" in name else whole) for name in names
        },
        "lammps_over_python": ratio("1 rank x 1 thread", "python, 1 thread"),
        "speedup_of_2_ranks": ratio("1 rank x 1 thread", "2 ranks x 1 thread"),
        "speedup_of_2_threads": ratio("1 rank x 1 thread", "1 rank x 2 threads"),
        "weak_efficiency_of_2_ranks": ratio("half the atoms, 1 rank x 1 thread", "2 ranks x 1 thread"),
        "percent_of_loop": {
            name: {key: statistics.median(found[name][key] for found in rounds) for key in BREAKDOWN}
            for name in names[1:]
        },
        "seconds_per_step": seconds,
        "probe_gflops": probe,
        "machine": machine(),
    }
    report(result)
    write_json(arguments.json, result)


class Setup:
    """The deployed model, the structures, and how many steps fit the budget."""

    def __init__(self, folder: Path, preset: str, budget: float, sizes: tuple[int, ...]) -> None:
        self.folder = folder
        checkpoint = random_checkpoint(folder, preset, ["Si"])
        self.model = deploy(checkpoint)["deployed"]
        self.loaded = load_contender("deployed", self.model)
        self.error = force_error(load_model(checkpoint), "deployed", self.loaded, structure("si64"))
        set_threads(1)
        self.works, self.energies, self.steps = {}, {}, {}
        for size in sizes:
            atoms = structure(f"si{size}")
            write(folder / f"si{size}.data", atoms, format="lammps-data", specorder=["Si"], masses=True)
            self.works[size] = evaluation("deployed", self.loaded, atoms)
            self.energies[size] = float(self.works[size]().energy[0]) / size
            self.steps[size] = 1
            self.steps[size] = max(3, min(500, round(budget / self.python(size)["seconds"])))

    def python(self, size: int) -> dict[str, float]:
        """Seconds of an evaluation on the prebuilt graph, one thread: the mean over as many as LAMMPS makes steps."""
        begin = time.perf_counter()
        for _ in range(self.steps[size]):
            self.works[size]()
        return {"seconds": (time.perf_counter() - begin) / self.steps[size]}

    def lammps(self, size: int, ranks: int, threads: int) -> dict[str, float]:
        """Seconds of a step of constant-energy dynamics, and the percentage of the loop that each task took.

        Raises:
            SystemExit: the first energy is not the one that Python finds.
        """
        steps = self.steps[size]
        deck = DECK.format(data=self.folder / f"si{size}.data", threads=threads, model=self.model, steps=steps)
        output = run_deck(deck, ranks, timeout=3600)
        first = re.search(r"^ +0 +\S+ +(\S+)$", output, re.MULTILINE)
        if first is None or abs(float(first[1]) / size - self.energies[size]) > ENERGY_TOLERANCE:
            found = "no energy" if first is None else f"{float(first[1]) / size:.8f} eV/atom"
            raise SystemExit(
                f"LAMMPS with {ranks} rank(s) found {found}, Python {self.energies[size]:.8f} eV/atom: the times would "
                "mean nothing"
            )
        last = output[output.rindex("Loop time of") :]
        result = {"seconds": float(last.split()[3]) / steps}
        for key in BREAKDOWN:
            line = re.search(rf"^{key} .*\| *(\S+)$", last, re.MULTILINE)
            result[key] = float(line[1]) if line else 0.0
        return result


def report(result: dict[str, Any]) -> None:
    """Table and ratios."""
    title = f"silicon, {result['n_atoms']} atoms, preset {result['preset']}, float32; percentages of the loop"
    table = Table("contender", "ms/atom/step", *BREAKDOWN, title=title)
    for name, value in result["ms_per_atom"].items():
        parts = result["percent_of_loop"].get(name, {})
        table.add_row(name, f"{value:.3g}", *(f"{parts[key]:.1f}" if parts else "" for key in BREAKDOWN))
    console().print(table)
    for name in ("lammps_over_python", "speedup_of_2_ranks", "speedup_of_2_threads", "weak_efficiency_of_2_ranks"):
        print(f"{name}: {result[name]:.3f} (median of {result['rounds']} rounds)")


if __name__ == "__main__":
    main()
