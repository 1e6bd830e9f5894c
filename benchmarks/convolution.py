"""The compiled convolution against plain torch and e3nn, and compiled models against plain ones, with the same weights.

Contenders take turns in every round, so that a noisy machine disturbs them alike. Ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from ase.build import bulk
from e3nn import o3
from hienet_deploy.export import export
from rich.console import Console
from rich.table import Table

from hienet.calculator import load_model
from hienet.checkpoint import Checkpoint, save_checkpoint
from hienet.derivatives import predict
from hienet.files import atomic_path
from hienet.graph import graph_from_atoms
from hienet.models.factory import build_model, make_config
from hienet.nn.convolution import TensorProductConvolution
from hienet.ops.convolution import FusedConvolution
from hienet.ops.library import load_operators

Work = Callable[[], object]
LAYERS = {
    "paper, first": ("512x0e", 3, "512x0e+128x1e+64x2e+32x3e"),
    "paper, middle": ("512x0e+128x1e+64x2e+32x3e", 3, "512x0e+128x1e+64x2e+32x3e"),
    "paper, last": ("512x0e+128x1e+64x2e+32x3e", 3, "512x0e"),
    "small, middle": ("32x0e+16x1e+8x2e", 2, "32x0e+16x1e+8x2e"),
}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="[default: 7]")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="[default: 1 2]")
    parser.add_argument("--repeat", type=int, default=2, help="cells of Si along each axis [default: 2, 64 atoms]")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    load_operators()
    results: dict[str, object] = {"instruction_set": torch.ops.hienet.instruction_sets()[-1]}
    for threads in options.threads:
        torch.set_num_threads(threads)
        layers = {name: layer_times(*layer, options.repeat, options.rounds) for name, layer in LAYERS.items()}
        models = {preset: model_times(preset, options.repeat, options.rounds) for preset in ("paper", "small")}
        results[f"threads_{threads}"] = {"layers": layers, "models": models}
        report(threads, layers, models)
    if options.json:
        with atomic_path(options.json) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n")


def silicon(repeat: int) -> object:
    """Rattled diamond silicon, 28 neighbours within 5 Å."""
    atoms = bulk("Si", "diamond", a=5.43, cubic=True).repeat(repeat)
    atoms.rattle(0.05, seed=0)
    return atoms


def in_turns(contenders: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds + 1):
        for name, work in contenders.items():
            begin = time.perf_counter()
            work()
            if i > 0:
                times[name].append(time.perf_counter() - begin)
    return times


def ratio(times: dict[str, list[float]], slow: str, fast: str) -> float:
    """How many times as long, as the median over rounds."""
    return statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))


def forward_flop(fused: FusedConvolution) -> int:
    """Operations of one edge with the couplings given: a multiplication and an addition for each coupling and channel,
    and the path weights on the smaller side. The backward is counted as twice that."""
    count = 0
    for _, dim_in, channels, *_, dim_out, _, _, _ in fused.paths.tolist():
        count += channels * (2 * dim_in * dim_out + min(dim_in, dim_out))
    return count


def e3nn_convolution(
    plain: TensorProductConvolution, irreps: o3.Irreps, harmonics: o3.Irreps
) -> Callable[..., torch.Tensor]:
    """Gather, `o3.TensorProduct` (compiled by e3nn), sum: the same paths and normalisation, in e3nn's layout."""
    mid, order, _ = o3.Irreps([(path.channels, (path.l, path.parity)) for path in plain.paths]).sort()
    instructions = [(p.feature, p.harmonic, order[i], "uvu", True) for i, p in enumerate(plain.paths)]
    product = o3.TensorProduct(irreps, harmonics, mid, instructions, shared_weights=False, internal_weights=False)

    def convolution(features, angular, weights, center, neighbor, n_local):  # type: ignore[no-untyped-def]
        messages = product(features.index_select(0, neighbor), angular, weights)
        return messages.new_zeros(n_local, mid.dim).index_add(0, center, messages)

    return convolution


def layer_times(irreps: str, l_max: int, irreps_out: str, repeat: int, rounds: int) -> dict[str, float]:
    """Microseconds an edge, forward alone and with the backward, in float32."""
    graph = graph_from_atoms(silicon(repeat), ["Si"], 5.0)
    harmonics = o3.Irreps.spherical_harmonics(l_max, p=1)
    plain = TensorProductConvolution(irreps, harmonics, irreps_out).float()
    contenders = {
        "fused": FusedConvolution(plain),
        "plain": plain,
        "e3nn": e3nn_convolution(plain, o3.Irreps(irreps), harmonics),
    }
    n_edges = graph.center.shape[0]
    inputs = [
        torch.randn(graph.n_local, o3.Irreps(irreps).dim, requires_grad=True),
        torch.randn(n_edges, harmonics.dim, requires_grad=True),
        torch.randn(n_edges, plain.n_weights, requires_grad=True),
    ]
    seed = torch.randn(graph.n_local, plain.irreps_out.dim)
    arguments = (graph.center, graph.neighbor, graph.n_local)

    def forward(module: Callable[..., torch.Tensor]) -> Work:
        def work() -> None:
            with torch.no_grad():
                module(*inputs, *arguments)

        return work

    def both(module: Callable[..., torch.Tensor]) -> Work:
        return lambda: torch.autograd.grad(module(*inputs, *arguments), inputs, seed)

    forwards = in_turns({name: forward(module) for name, module in contenders.items()}, rounds)
    differentiated = in_turns({name: both(module) for name, module in contenders.items()}, rounds)
    result: dict[str, float] = {"n_edges": n_edges}
    for kind, times in (("forward", forwards), ("both", differentiated)):
        for name, values in times.items():
            result[f"{name}_{kind}_us_per_edge"] = 1e6 * statistics.median(values) / n_edges
        result[f"plain_over_fused_{kind}"] = ratio(times, "plain", "fused")
        result[f"e3nn_over_fused_{kind}"] = ratio(times, "e3nn", "fused")
    flop = forward_flop(contenders["fused"])
    result["forward_flop_per_edge"] = flop
    result["fused_forward_gflops"] = flop / result["fused_forward_us_per_edge"] / 1e3
    result["fused_both_gflops"] = 3 * flop / result["fused_both_us_per_edge"] / 1e3
    return result


def model_times(preset: str, repeat: int, rounds: int) -> dict[str, float]:
    """Milliseconds an atom of energy, forces and stress: deployed compiled and with --no-compile, random weights."""
    atoms = silicon(repeat)
    config = make_config("hienet", preset, {"elements": ("Si",)})
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.pt"
        save_checkpoint(Checkpoint("hienet", config, build_model("hienet", config, 0).state_dict()), source)
        models = {
            name: load_model(export(source, Path(folder) / f"{name}.hienet.pt", compiled=name == "compiled").path)
            for name in ("compiled", "plain")
        }
    graph = graph_from_atoms(atoms, ["Si"], config.cutoff).to(torch.device("cpu"), torch.float32)
    with torch.jit.optimized_execution(False):  # as the pair style does
        works: dict[str, Work] = {
            name: lambda model=model: predict(model.module, graph)  # type: ignore[misc]
            for name, model in models.items()
        }
        times = in_turns(works, rounds)
    result = {f"{name}_ms_per_atom": 1e3 * statistics.median(v) / len(atoms) for name, v in times.items()}
    found = {name: predict(model.module, graph).forces for name, model in models.items()}
    result["plain_over_compiled"] = ratio(times, "plain", "compiled")
    result["max_force_difference_ev_per_angstrom"] = float((found["compiled"] - found["plain"]).abs().max())
    return result


def report(threads: int, layers: dict[str, dict[str, float]], models: dict[str, dict[str, float]]) -> None:
    """Two tables."""
    title = f"convolution, float32, µs an edge, {threads} thread(s); ratios to the compiled one"
    table = Table("layer", "work", "compiled", "GFLOP/s", "plain", "ratio", "e3nn", "ratio", title=title)
    for name, r in layers.items():
        for kind, label in (("forward", "forward"), ("both", "forward+backward")):
            numbers = [r[f"fused_{kind}_us_per_edge"], r[f"fused_{kind}_gflops"]]
            for other in ("plain", "e3nn"):
                numbers += [r[f"{other}_{kind}_us_per_edge"], r[f"{other}_over_fused_{kind}"]]
            table.add_row(name, label, *(f"{x:.3g}" for x in numbers))
    Console().print(table)
    table = Table("preset", "compiled", "plain", "ratio", title=f"whole model, ms an atom, {threads} thread(s)")
    for name, r in models.items():
        numbers = [r["compiled_ms_per_atom"], r["plain_ms_per_atom"], r["plain_over_compiled"]]
        table.add_row(name, *(f"{x:.3g}" for x in numbers))
    Console().print(table)


if __name__ == "__main__":
    main()
