"""One energy-and-force step of the same deployed model: from Python, in LAMMPS on one rank, in LAMMPS on two ranks.

Every contender uses one thread a rank, and all take turns in each round, so that a noisy machine disturbs them alike.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
from pathlib import Path

import torch
from ase.build import bulk
from hienet_deploy.export import export
from rich.console import Console
from rich.table import Table

from hienet.calculator import load_model
from hienet.checkpoint import Checkpoint, save_checkpoint
from hienet.derivatives import predict
from hienet.files import atomic_path
from hienet.graph import graph_from_atoms
from hienet.lammps import run_deck
from hienet.models.factory import build_model, make_config

DECK = Path(__file__).resolve().parent.parent / "lammps_examples" / "nve" / "in.nve"


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="small", help="of the architecture hienet [default: small]")
    parser.add_argument("--repeat", type=int, default=4, help="cubic cells along each axis [default: 4, 512 atoms]")
    parser.add_argument("--steps", type=int, default=10, help="steps of each LAMMPS run [default: 10]")
    parser.add_argument("--rounds", type=int, default=5, help="[default: 5]")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = deployed_model(options.preset, Path(folder))
        rounds = [one_round(model, options.repeat, options.steps) for _ in range(options.rounds)]
    report(rounds, options)


def deployed_model(preset: str, folder: Path) -> Path:
    """A model with random weights, for which timings are the same."""
    config = make_config("hienet", preset, {"elements": ("C", "Si")})
    save_checkpoint(Checkpoint("hienet", config, build_model("hienet", config, 0).state_dict()), folder / "model.pt")
    return export(folder / "model.pt").path


def one_round(path: Path, repeat: int, steps: int) -> dict[str, float]:
    """Milliseconds a step of each contender."""
    atoms = bulk("SiC", "zincblende", a=4.39, cubic=True).repeat(repeat)
    atoms.rattle(0.05, seed=0)
    model = load_model(path)
    with torch.jit.optimized_execution(False):  # as the pair style does
        graph = graph_from_atoms(atoms, model.elements, model.cutoff, model.dtype)
        predict(model.module, graph)
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            predict(model.module, graph)
            times.append(time.perf_counter() - begin)
    found = {"python": 1e3 * statistics.median(times)}
    for ranks in (1, 2):
        arguments = ["-var", "model", str(path), "-var", "repeat", str(repeat), "-var", "steps", str(steps)]
        output = run_deck(DECK, ranks, arguments=arguments, timeout=3600)
        seconds = float(re.findall(r"Loop time of (\S+) on", output)[-1])
        found[f"lammps_{ranks}_rank"] = 1e3 * seconds / steps
    return found


def report(rounds: list[dict[str, float]], options: argparse.Namespace) -> None:
    """Table and JSON."""
    n_atoms = 8 * options.repeat**3
    medians = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    ratios = {
        "lammps_1_rank_over_python": statistics.median(r["lammps_1_rank"] / r["python"] for r in rounds),
        "speedup_of_2_ranks": statistics.median(r["lammps_1_rank"] / r["lammps_2_rank"] for r in rounds),
    }
    table = Table("contender", "ms/step", "µs/atom/step", title=f"preset {options.preset}, {n_atoms} atoms of SiC")
    for name, value in medians.items():
        table.add_row(name, f"{value:.1f}", f"{1e3 * value / n_atoms:.0f}")
    Console().print(table)
    for name, value in ratios.items():
        print(f"{name}: {value:.2f} (median of {len(rounds)} rounds)")
    if options.json:
        result = {"preset": options.preset, "n_atoms": n_atoms, "milliseconds_per_step": medians, **ratios}
        with atomic_path(options.json) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
