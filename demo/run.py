"""The whole road once: train HIENet on DFT data, deploy it, run it in LAMMPS on two ranks, and compare with DFT.

Run it with `make demo`. Everything it makes lies in demo/output; demo/results.json and demo/report.png are the summary.
An interrupted demo goes on where it stopped; a finished one begins anew.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from analysis import (
    DFT_BULK_MODULUS,
    DFT_LATTICE_CONSTANT,
    Dynamics,
    equation_of_state,
    read_dynamics,
    read_rdf,
    thermal_expansion,
)
from figure import draw_report
from rich.console import Console
from rich.table import Table

from hienet.errors import HIENetError
from hienet.evaluate import evaluate, write_evaluation
from hienet.files import atomic_path
from hienet.lammps import run_deck

DEMO = Path(__file__).resolve().parent
OUTPUT = DEMO / "output"
TRAINING = OUTPUT / "training"
BEST = TRAINING / "best.pt"
DEPLOYED = OUTPUT / "sic.hienet.pt"
DECKS = DEMO.parent / "lammps_examples"
RANKS = 2
CELLS = 4
"""Cubic cells of 8 atoms along each direction: 512 atoms."""

console = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Every step of the road, with what is already there skipped."""
    begin = time.monotonic()
    results_path = DEMO / "results.json"
    if results_path.exists():
        results_path.unlink()
        shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir(exist_ok=True)
    spent = _Stopwatch(OUTPUT / "seconds.json", begin)

    step(1, "train on 3C-SiC (PBE), 2 threads, about 5 minutes", train)
    evaluation = evaluate(BEST, [TRAINING / "test.extxyz"])
    write_evaluation(evaluation, OUTPUT / "evaluation")
    spent.save()
    step(2, "deploy", deploy)
    step(3, "equation of state", lambda: console.print("from the deployed model's energies at 11 volumes"))
    equation = equation_of_state(DEPLOYED)

    runs: dict[str, Dynamics] = {}
    for number, (name, deck, settings) in enumerate(dynamics_runs(equation.lattice_constant), start=4):
        title = f"{name} with {8 * CELLS**3} atoms on {RANKS} ranks"
        step(number, title, lambda name=name, deck=deck, settings=settings: run(name, deck, settings, spent))
        runs[name] = read_dynamics(OUTPUT / f"{name.replace(' ', '-')}.log")

    total, nve = evaluation.total, runs["NVE 300 K"]
    cold, hot = runs["NPT 300 K"], runs["NPT 1500 K"]
    expansion, expansion_error = thermal_expansion(cold, hot, 1500 - 300)
    results = {
        "energy_mae_mev_per_atom": total.energy_mae,
        "force_mae_ev_per_angstrom": (total.forces_mae or 0.0) / 1e3,
        "stress_mae_gpa": total.stress_mae,
        "test_frames": total.n_frames,
        "nve_drift_mev_per_atom_per_ps": nve.drift,
        "nve_drift_standard_error": nve.drift_error,
        "lattice_constant_angstrom": equation.lattice_constant,
        "lattice_constant_error_percent": 100 * (equation.lattice_constant / DFT_LATTICE_CONSTANT - 1),
        "bulk_modulus_gpa": equation.bulk_modulus,
        "bulk_modulus_error_percent": 100 * (equation.bulk_modulus / DFT_BULK_MODULUS - 1),
        "thermal_expansion_per_kelvin": expansion,
        "thermal_expansion_standard_error": expansion_error,
        "mean_temperature_nvt_kelvin": runs["NVT 300 K"].mean_temperature,
        "atom_steps_per_second": nve.atom_steps_per_second,
        "wall_seconds": spent.total(),
    }
    draw_report(DEMO / "report.png", evaluation, runs, read_rdf(OUTPUT / "rdf.txt"))
    with atomic_path(results_path) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")
    show(results)


def dynamics_runs(lattice_constant: float) -> list[tuple[str, str, dict[str, object]]]:
    """Name, deck and settings of each run; all begin with the relaxed lattice."""
    lattice = f"{lattice_constant:.4f}"
    return [
        ("NVE 300 K", "nve", {"lattice": lattice, "steps": 800}),
        ("NVT 300 K", "nvt", {"lattice": lattice, "steps": 500, "rdf": "rdf.txt"}),
        ("NPT 300 K", "npt", {"lattice": lattice, "temperature": 300, "steps": 1000}),
        ("NPT 1500 K", "npt", {"lattice": lattice, "temperature": 1500, "steps": 1000}),
    ]


def step(number: int, title: str, action: Callable[[], None]) -> None:
    """Print a headline and do it."""
    console.rule(f"[bold]{number}. {title}", align="left")
    action()


def train() -> None:
    """`hienet train`, resumed if it was interrupted."""
    if (TRAINING / "results.json").exists():
        console.print("already trained")
        return
    resume = ["--resume"] if (TRAINING / "last.pt").exists() else []
    if not resume:
        shutil.rmtree(TRAINING, ignore_errors=True)
    command("hienet", "train", str(DEMO / "train.yaml"), "--output", str(TRAINING), *resume)


def deploy() -> None:
    """`hienet-deploy`."""
    command("hienet-deploy", str(BEST), "--output", str(DEPLOYED))


def command(program: str, *arguments: str) -> None:
    """Run one of this environment's programs, its output on this terminal."""
    process = subprocess.Popen([str(Path(sys.executable).parent / program), *arguments], cwd=DEMO.parent)
    try:
        status = process.wait()
    except (KeyboardInterrupt, SystemExit) as error:
        # Ctrl-C reaches the program too, other signals do not; let it save its state.
        if isinstance(error, SystemExit):
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=60)
        raise
    if status != 0:
        raise HIENetError(
            f"`{program} {' '.join(arguments)}` ended with status {status}; `make demo` goes on from here"
        )


def run(name: str, deck: str, settings: dict[str, object], spent: _Stopwatch) -> None:
    """One LAMMPS run; its thermodynamic output is shown as it comes."""
    log = OUTPUT / f"{name.replace(' ', '-')}.log"
    if log.exists():
        console.print("already done")
        return
    # Names without folders, since LAMMPS splits a line at spaces; the runs take place in the working folder.
    variables = {"model": DEPLOYED.name, "repeat": CELLS, **settings}
    arguments = [word for key, value in variables.items() for word in ("-var", key, str(value))]
    output = run_deck(
        DECKS / deck / f"in.{deck}", RANKS, timeout=1800, cwd=OUTPUT, arguments=arguments, echo=show_thermodynamics
    )
    with atomic_path(log) as temporary:
        temporary.write_text(output)
    spent.save()


def show_thermodynamics(line: str) -> None:
    """Print lines of the table of thermodynamic output, and nothing else of what LAMMPS says."""
    words = line.split()
    if words[:1] == ["Step"] or (len(words) > 5 and words[0].isdigit() and all(_is_number(word) for word in words)):
        console.print("  ".join(f"{word:>13}" for word in words))


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


class _Stopwatch:
    """Seconds spent in this and in interrupted runs of the demo."""

    def __init__(self, path: Path, begin: float) -> None:
        self.path, self.begin = path, begin
        self.before = json.loads(path.read_text()) if path.exists() else 0.0

    def total(self) -> float:
        """So far."""
        return round(self.before + time.monotonic() - self.begin, 1)

    def save(self) -> None:
        """For a later run."""
        with atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps(self.total()))


def show(results: dict[str, float]) -> None:
    """The closing table."""
    table = Table("quantity", "HIENet", "reference", title="3C-SiC: HIENet in LAMMPS against DFT")
    table.columns[1].justify = table.columns[2].justify = "right"
    rows = [
        (
            f"test MAE of energy ({results['test_frames']} frames)",
            f"{results['energy_mae_mev_per_atom']:.2f} meV/atom",
            "",
        ),
        ("test MAE of forces", f"{1e3 * results['force_mae_ev_per_angstrom']:.1f} meV/Å", ""),
        ("test MAE of stress", f"{results['stress_mae_gpa']:.2f} GPa", ""),
        (
            "drift of the energy, NVE",
            f"{results['nve_drift_mev_per_atom_per_ps']:+.2f} ± {results['nve_drift_standard_error']:.2f} meV/atom/ps",
            "0",
        ),
        (
            "lattice constant",
            f"{results['lattice_constant_angstrom']:.4f} Å ({results['lattice_constant_error_percent']:+.2f} %)",
            f"{DFT_LATTICE_CONSTANT} Å",
        ),
        (
            "bulk modulus",
            f"{results['bulk_modulus_gpa']:.1f} GPa ({results['bulk_modulus_error_percent']:+.1f} %)",
            f"{DFT_BULK_MODULUS} GPa",
        ),
        (
            "thermal expansion, 300 to 1500 K",
            f"({1e6 * results['thermal_expansion_per_kelvin']:.1f} ± "
            f"{1e6 * results['thermal_expansion_standard_error']:.1f}) 1e-6 /K",
            "",
        ),
        (f"speed, {RANKS} ranks", f"{results['atom_steps_per_second']:.0f} atom-steps/s", ""),
        ("time of the demo", f"{results['wall_seconds'] / 60:.1f} min", ""),
    ]
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print("figure: demo/report.png; numbers: demo/results.json; model: demo/output/sic.hienet.pt")


def leave(number: int, frame: FrameType | None) -> None:
    """On SIGTERM and SIGHUP: by way of an exception, so that no program which the demo started stays behind."""
    sys.exit("stopped; `make demo` goes on from here")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, leave)
    try:
        main()
    except HIENetError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; `make demo` goes on from here")
