"""Cost per atom of the deployed model against the number of atoms and against the number of neighbours."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import ase
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
from structures import silicon_with_neighbors, structure

from hienet.calculator import LoadedModel, load_model

SIZES = [64, 216, 512, 1000, 1728, 4096, 8000, 13824, 20000]
NEIGHBORS = [12, 16, 28, 46, 70, 100]
FLAT_RANGE = (1000, 20000)
"""Numbers of atoms between which the cost of an atom should not change."""


def main() -> None:
    """Measure and report."""
    options = parser(__doc__, rounds=5)
    options.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="atoms of silicon, multiples of 8")
    options.add_argument("--neighbors", type=int, nargs="+", default=NEIGHBORS, help="mean numbers of neighbours")
    options.add_argument("--neighbor-atoms", type=int, default=512, help="atoms in the second series [default: 512]")
    options.add_argument("--threads", type=int, default=2, help="[default: 2]")
    options.add_argument("--seconds", type=float, default=0.5, help="of each size in a round [default: 0.5]")
    options.add_argument("--no-memory", action="store_true", help="do not measure memory, which takes a process a size")
    options.add_argument("--plot", type=Path, help="PNG to draw")
    arguments = options.parse_args()
    set_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = random_checkpoint(Path(folder), arguments.preset, ["Si"])
        path = deploy(checkpoint)["deployed"]
        model = load_contender("deployed", path)
        error = force_error(load_model(checkpoint), "deployed", model, structure(f"si{min(arguments.sizes)}"))
        atoms = [structure(f"si{size}") for size in arguments.sizes]
        sizes = series(model, atoms, arguments.rounds, arguments.seconds)
        if not arguments.no_memory:
            for row in sizes:
                total = peak_memory("deployed", path, f"si{row['n_atoms']}", arguments.threads)
                row["mb_per_atom"] = total / 1e6 / row["n_atoms"]
        atoms = [silicon_with_neighbors(arguments.neighbor_atoms, n, model.cutoff) for n in arguments.neighbors]
        neighbors = series(model, atoms, arguments.rounds, arguments.seconds)
    result = {
        "benchmark": "scaling",
        "preset": arguments.preset,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "sizes": sizes,
        "neighbors": neighbors,
        "flat_range": FLAT_RANGE,
        "max_force_error_ev_per_angstrom": error,
        "max_over_min_in_flat_range": flatness(sizes),
        "machine": machine(),
    }
    report(result)
    write_json(arguments.json, result)
    if arguments.plot is not None:
        draw(result, arguments.plot)


def series(model: LoadedModel, structures: list[ase.Atoms], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """A row for each structure; the structures take turns in every round."""
    works = {str(i): evaluation("deployed", model, atoms) for i, atoms in enumerate(structures)}
    turns = in_turns(works, rounds, seconds, warm_up=1)
    rows = []
    for i, atoms in enumerate(structures):
        n_edges = prebuilt_graph(model, atoms).center.shape[0]
        rows.append(
            {
                "n_atoms": len(atoms),
                "neighbors": n_edges / len(atoms),
                "ms_per_atom": 1e3 * turns.median(str(i)) / len(atoms),
                "us_per_edge": 1e6 * turns.median(str(i)) / n_edges,
                "seconds": turns.seconds[str(i)],
            }
        )
    return rows


def flatness(sizes: list[dict[str, Any]]) -> float | None:
    """Largest over smallest cost of an atom in the flat range; None with fewer than two sizes there."""
    costs = [row["ms_per_atom"] for row in sizes if FLAT_RANGE[0] <= row["n_atoms"] <= FLAT_RANGE[1]]
    return max(costs) / min(costs) if len(costs) > 1 else None


def report(result: dict[str, Any]) -> None:
    """Two tables and the ratio."""
    title = f"deployed, preset {result['preset']}, float32, {result['threads']} thread(s)"
    for key in ("sizes", "neighbors"):
        table = Table("atoms", "neighbours", "ms/atom", "µs/edge", "peak MB/atom", title=title)
        for row in result[key]:
            memory = f"{row['mb_per_atom']:.3g}" if "mb_per_atom" in row else ""
            numbers = (f"{row[name]:.3g}" for name in ("neighbors", "ms_per_atom", "us_per_edge"))
            table.add_row(str(row["n_atoms"]), *numbers, memory)
        console().print(table)
    ratio = result["max_over_min_in_flat_range"]
    if ratio is not None:
        print(f"cost of an atom from {FLAT_RANGE[0]} to {FLAT_RANGE[1]} atoms: largest / smallest = {ratio:.3f}")


def draw(result: dict[str, Any], path: Path) -> None:
    """Three panels: cost against atoms, memory against atoms, cost against neighbours."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panels = [("sizes", "n_atoms", "ms_per_atom", "atoms", "time / (ms/atom)")]
    if "mb_per_atom" in result["sizes"][0]:
        panels.append(("sizes", "n_atoms", "mb_per_atom", "atoms", "peak memory / (MB/atom)"))
    panels.append(("neighbors", "neighbors", "ms_per_atom", "neighbours within the cutoff", "time / (ms/atom)"))
    figure, all_axes = pyplot.subplots(1, len(panels), figsize=(4.0 * len(panels), 3.4), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    for axes, (key, x, y, x_label, y_label) in zip(all_axes, panels, strict=True):
        rows = sorted(result[key], key=lambda row: row[x])
        values = [row[y] for row in rows]
        axes.loglog([row[x] for row in rows], values, "o-", color="C0", markersize=4, linewidth=1.2)
        # At least a factor of ten, so that small changes do not look large.
        middle = (max(values) * min(values)) ** 0.5
        axes.set_ylim(min(min(values) / 1.3, middle / 10**0.5), max(max(values) * 1.3, middle * 10**0.5))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(which="major", color="0.85", linewidth=0.6)
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 100 else (1.0,)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}".replace(",", " ")))
            axis.set_minor_formatter(NullFormatter())
    threads = "1 thread" if result["threads"] == 1 else f"{result['threads']} threads"
    figure.suptitle(f"deployed HIENet, preset {result['preset']}, silicon, float32, {threads}", fontsize=10)
    figure.savefig(path, dpi=200)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
