"""The deployed model against eager e3nn on the same weights: time, memory, and the same forces first."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import ase
from common import (
    CONTENDERS,
    Turns,
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
from structures import NAMES, structure

from hienet.calculator import LoadedModel, load_model


def main() -> None:
    """Measure and report."""
    options = parser(__doc__, rounds=5)
    options.add_argument("--systems", nargs="+", default=["si64", "sic512", "alloy108"], help=f"[default: {NAMES}]")
    options.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="[default: 1 2]")
    options.add_argument("--seconds", type=float, default=1.0, help="of each contender in a round [default: 1]")
    options.add_argument(
        "--memory", nargs="*", default=["si64", "si216"], help="systems of the memory table [default: si64 si216]"
    )
    arguments = options.parse_args()
    atoms = {name: structure(name) for name in dict.fromkeys([*arguments.systems, *arguments.memory])}
    elements = sorted({symbol for one in atoms.values() for symbol in one.symbols})
    headline = {"system": arguments.systems[0], "threads": max(arguments.threads)}
    with tempfile.TemporaryDirectory() as folder:
        files = deploy(random_checkpoint(Path(folder), arguments.preset, elements), CONTENDERS)
        source = load_model(files["eager"])
        models = {name: load_contender(name, path) for name, path in files.items()}
        systems: dict[str, dict[str, Any]] = {}
        for name in arguments.systems:
            set_threads(max(arguments.threads))
            systems[name] = accuracy(source, models, atoms[name])
            for threads in arguments.threads:
                set_threads(threads)
                works = {key: evaluation(key, model, atoms[name]) for key, model in models.items()}
                rounds = arguments.rounds if name == headline["system"] else max(3, arguments.rounds // 2)
                turns = in_turns(works, rounds, arguments.seconds)
                systems[name][f"threads_{threads}"] = summary(turns, len(atoms[name]))
        memory: dict[str, dict[str, float]] = {}
        for name in dict.fromkeys([headline["system"], *arguments.memory]):
            peaks = {key: peak_memory(key, path, name, headline["threads"]) for key, path in files.items()}
            memory[name] = {key: peak / 1e6 / len(atoms[name]) for key, peak in peaks.items()}
    result = {
        "benchmark": "speed",
        "preset": arguments.preset,
        "headline": headline,
        **top_level(systems[headline["system"]], memory[headline["system"]], headline["threads"]),
        "n_parameters": models["deployed"].info["n_parameters"],
        "rounds": arguments.rounds,
        "systems": systems,
        "memory_mb_per_atom": memory,
        "machine": machine(),
    }
    report(result)
    write_json(arguments.json, result)


def accuracy(source: LoadedModel, models: dict[str, LoadedModel], atoms: ase.Atoms) -> dict[str, Any]:
    """What the system is, and the largest errors of forces in it."""
    graph = prebuilt_graph(source, atoms)
    return {
        "n_atoms": len(atoms),
        "neighbors": graph.center.shape[0] / len(atoms),
        "largest_force_ev_per_angstrom": float(evaluation("plain", source, atoms)().forces.abs().max()),
        "max_force_error_ev_per_angstrom": {
            name: force_error(source, name, model, atoms) for name, model in models.items()
        },
    }


def summary(turns: Turns, n_atoms: int) -> dict[str, Any]:
    """Milliseconds an atom, and ratios to the deployed model with their quartiles."""
    result: dict[str, Any] = {}
    for name in turns.seconds:
        result[f"{name}_ms_per_atom"] = 1e3 * turns.median(name) / n_atoms
        result[f"{name}_cpu_ms_per_atom"] = 1e3 * statistics.median(turns.cpu_seconds[name]) / n_atoms
    for name in ("eager", "plain"):
        ratios = turns.ratios(name, "deployed")
        result[f"{name}_over_deployed"] = statistics.median(ratios)
        if len(ratios) > 1:
            result[f"{name}_over_deployed_quartiles"] = statistics.quantiles(ratios, n=4, method="inclusive")
    result["probe_gflops"] = turns.probe
    result["seconds"] = turns.seconds
    return result


def top_level(system: dict[str, Any], memory: dict[str, float], threads: int) -> dict[str, float]:
    """The figures of the headline."""
    times = system[f"threads_{threads}"]
    return {
        "eager_ms_per_atom": times["eager_ms_per_atom"],
        "deployed_ms_per_atom": times["deployed_ms_per_atom"],
        "plain_ms_per_atom": times["plain_ms_per_atom"],
        "ratio": times["eager_over_deployed"],
        "eager_mb_per_atom": memory["eager"],
        "deployed_mb_per_atom": memory["deployed"],
        "plain_mb_per_atom": memory["plain"],
        "max_force_error_ev_per_angstrom": system["max_force_error_ev_per_angstrom"]["deployed"],
    }


def report(result: dict[str, Any]) -> None:
    """Tables of time, of memory and of errors."""
    columns = ("system", "atoms", "neighbours", "threads", *(f"{name} ms/atom" for name in CONTENDERS))
    table = Table(
        *columns, "eager/deployed", "quartiles", title=f"preset {result['preset']}, float32, energy, forces and stress"
    )
    for name, system in result["systems"].items():
        for key, times in system.items():
            if key.startswith("threads_"):
                quartiles = times.get("eager_over_deployed_quartiles")
                table.add_row(
                    name,
                    str(system["n_atoms"]),
                    f"{system['neighbors']:.1f}",
                    key.removeprefix("threads_"),
                    *(f"{times[f'{contender}_ms_per_atom']:.3g}" for contender in CONTENDERS),
                    f"{times['eager_over_deployed']:.3g}",
                    f"{quartiles[0]:.3g} to {quartiles[2]:.3g}" if quartiles else "",
                )
    console().print(table)
    table = Table("system", *CONTENDERS, title="peak memory of an evaluation, MB/atom")
    for name, memory in result["memory_mb_per_atom"].items():
        table.add_row(name, *(f"{memory[contender]:.3g}" for contender in CONTENDERS))
    console().print(table)
    table = Table("system", "largest force", *CONTENDERS, title="largest error of a force against float64, eV/Å")
    for name, system in result["systems"].items():
        errors = system["max_force_error_ev_per_angstrom"]
        largest = system["largest_force_ev_per_angstrom"]
        table.add_row(name, f"{largest:.2g}", *(f"{errors[contender]:.1e}" for contender in CONTENDERS))
    console().print(table)


if __name__ == "__main__":
    main()
