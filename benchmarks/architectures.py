"""Every architecture at its default size on the same structure: the deployed file's steps a second and memory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from common import (
    console,
    deploy,
    evaluation,
    force_error,
    in_turns,
    load_contender,
    machine,
    parser,
    peak_memory,
    prebuilt_graph,
    random_checkpoint,
    set_threads,
    write_json,
)
from rich.table import Table
from structures import structure

from hienet.calculator import load_model
from hienet.checkpoint import load_checkpoint
from hienet.models.factory import ARCHITECTURES


def main() -> None:
    """Make a model of each with random weights, compare its forces with the source model's, measure in turns."""
    options = parser(__doc__, rounds=5)
    options.add_argument("--system", default="si512", help="[default: si512]")
    options.add_argument("--threads", type=int, default=2, help="[default: 2]")
    options.add_argument("--seconds", type=float, default=1.0, help="of each architecture in a round [default: 1]")
    options.add_argument("--only", nargs="+", choices=list(ARCHITECTURES), default=list(ARCHITECTURES), help="not all")
    arguments = options.parse_args()
    set_threads(arguments.threads)
    atoms = structure(arguments.system)
    elements = sorted(set(atoms.symbols))
    with tempfile.TemporaryDirectory() as name:
        rows, works = {}, {}
        for architecture in arguments.only:
            folder = Path(name) / architecture
            folder.mkdir()
            preset = arguments.preset if architecture == "hienet" else next(iter(ARCHITECTURES[architecture].presets))
            checkpoint = random_checkpoint(folder, preset, elements, architecture=architecture)
            file = deploy(checkpoint)["deployed"]
            model = load_contender("deployed", file)
            rows[architecture] = {
                "architecture": architecture,
                "preset": preset,
                "n_parameters": sum(weight.numel() for weight in load_checkpoint(checkpoint).weights.values()),
                "cutoff": model.cutoff,
                "neighbors": prebuilt_graph(model, atoms).center.shape[0] / len(atoms),
                "compiled": bool(model.info["operators"]),
                "peak_mb_per_atom": peak_memory("deployed", file, arguments.system, arguments.threads)
                / 1e6
                / len(atoms),
                "max_force_error_ev_per_angstrom": force_error(
                    load_model(checkpoint), "deployed", model, structure("alloy32" if len(elements) > 1 else "si8")
                ),
            }
            works[architecture] = evaluation("deployed", model, atoms)
        turns = in_turns(works, arguments.rounds, arguments.seconds, warm_up=1)
    for architecture, row in rows.items():
        row["steps_per_second"] = 1.0 / turns.median(architecture)
        row["ms_per_atom"] = 1e3 * turns.median(architecture) / len(atoms)
        row["seconds"] = turns.seconds[architecture]
    result = {
        "benchmark": "architectures",
        "system": arguments.system,
        "n_atoms": len(atoms),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "probe_gflops": turns.probe,
        "architectures": list(rows.values()),
        "machine": machine(),
    }
    report(result)
    write_json(arguments.json, result)


def report(result: dict[str, Any]) -> None:
    """A row for each architecture."""
    table = Table(
        *(
            "architecture",
            "preset",
            "parameters",
            "cutoff, Å",
            "neighbours",
            "steps/s",
            "ms/atom",
            "MB/atom",
            "compiled",
        ),
        title=f"energy, forces and stress of {result['n_atoms']} atoms, float32, {result['threads']} thread(s)",
    )
    for row in result["architectures"]:
        table.add_row(
            row["architecture"],
            row["preset"],
            f"{row['n_parameters']:,}",
            f"{row['cutoff']:g}",
            f"{row['neighbors']:.0f}",
            f"{row['steps_per_second']:.3g}",
            f"{row['ms_per_atom']:.3g}",
            f"{row['peak_mb_per_atom']:.2f}",
            "yes" if row["compiled"] else "no",
        )
    console().print(table)


if __name__ == "__main__":
    main()
