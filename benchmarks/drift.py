"""Energy conservation: drift and fluctuation of the total energy in LAMMPS, of the plain and of the compiled model.

The trained model of lammps_examples in 3C-SiC at constant energy: plain TorchScript in float64, compiled in float64,
and compiled in float32, from the same start.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, console, machine, parser, write_json
from hienet_deploy.export import export
from numpy.typing import NDArray
from rich.table import Table

from hienet.lammps import run_deck

EXAMPLES = ROOT.parent / "lammps_examples"
CONTENDERS = {
    "plain, float64": {"dtype": "float64", "compiled": False},
    "compiled, float64": {"dtype": "float64", "compiled": True},
    "compiled, float32": {"dtype": "float32", "compiled": True},
}
BLOCKS = 10
"""The standard error of the drift comes from slopes of this many parts of the run."""


def main() -> None:
    """Measure and report."""
    options = parser(__doc__, rounds=1)
    options.add_argument("--repeat", type=int, default=4, help="cubic cells along each direction [default: 4]")
    options.add_argument("--steps", type=int, default=1000, help="of 1 fs [default: 1000]")
    options.add_argument("--temperature", type=float, default=1000.0, help="K [default: 1000]")
    options.add_argument("--ranks", type=int, default=2, help="of LAMMPS [default: 2]")
    arguments = options.parse_args()
    n_atoms = 8 * arguments.repeat**3
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in CONTENDERS.items():
            path = Path(folder) / f"{len(results)}.hienet.pt"
            export(EXAMPLES / "sic.pt", path, **settings)  # type: ignore[arg-type]
            variables = {
                "model": path,
                "repeat": arguments.repeat,
                "temperature": arguments.temperature,
                "steps": arguments.steps,
                "every": max(1, arguments.steps // 200),
            }
            given = [word for key, value in variables.items() for word in ("-var", key, str(value))]
            output = run_deck(EXAMPLES / "nve" / "in.nve", arguments.ranks, arguments=given, timeout=7200)
            results[name] = conservation(output, n_atoms)
    report(results, f"{n_atoms} atoms of SiC, {arguments.steps} steps of 1 fs at {arguments.temperature:g} K")
    write_json(
        arguments.json,
        {"benchmark": "drift", "n_atoms": n_atoms, "steps": arguments.steps, "models": results, "machine": machine()},
    )


def conservation(output: str, n_atoms: int) -> dict[str, float]:
    """Drift of the total energy with its standard error, fluctuation about it, and momentum left at the end.

    LAMMPS' columns: step, time (ps), temperature, potential, kinetic and total energy (eV), pressure.
    """
    rows = [
        [float(x) for x in row.split()] for row in re.findall(r"^ +\d+ +[-+.\de]+(?: +[-+.\de]+){5}$", output, re.M)
    ]
    data = np.array(rows)
    return {
        **energy_drift(data[:, 1], 1e3 * data[:, 5] / n_atoms),
        "final_total_energy_ev": float(data[-1, 5]),
        "mean_temperature_k": float(data[len(data) // 2 :, 2].mean()),
        "n_samples": float(len(data)),
    }


def energy_drift(time: NDArray[np.float64], energy: NDArray[np.float64]) -> dict[str, float]:
    """A straight line through the total energy (meV/atom) against time (ps): its slope, and what remains."""
    slope, offset = np.polyfit(time, energy, 1)
    parts = [
        np.polyfit(t, e, 1)[0]
        for t, e in zip(np.array_split(time, BLOCKS), np.array_split(energy, BLOCKS), strict=True)
    ]
    return {
        "drift_mev_per_atom_per_ps": float(slope),
        # Slopes of parts scatter BLOCKS^(3/2) times as much as that of the whole, for independent residuals.
        "drift_standard_error": float(np.std(parts, ddof=1)) / BLOCKS**1.5,
        "fluctuation_mev_per_atom": float(np.std(energy - slope * time - offset)),
    }


def report(results: dict[str, dict[str, Any]], title: str) -> None:
    """One row for each model."""
    table = Table("model", "drift (meV/atom/ps)", "fluctuation (meV/atom)", "temperature (K)", title=title)
    for name, r in results.items():
        table.add_row(
            name,
            f"{r['drift_mev_per_atom_per_ps']:+.5f} ± {r['drift_standard_error']:.5f}",
            f"{r['fluctuation_mev_per_atom']:.5f}",
            f"{r['mean_temperature_k']:.0f}",
        )
    console().print(table)


if __name__ == "__main__":
    main()
