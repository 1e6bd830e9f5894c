"""Every compiled operator against its floor: time, rate of arithmetic and traffic, next to what the machine can do."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from common import (
    Work,
    console,
    in_turns,
    machine,
    multiplication_rate,
    parser,
    set_threads,
    triad_bandwidth,
    write_json,
)
from e3nn import o3
from rich.table import Table
from structures import structure
from torch import Tensor

from hienet.graph import AtomicGraph, graph_from_atoms
from hienet.nn.convolution import TensorProductConvolution
from hienet.ops.convolution import FusedConvolution
from hienet.ops.library import load_operators

FULL = "512x0e+128x1e+64x2e+32x3e"
CONVOLUTIONS = {
    "paper, first": ("512x0e", 3, FULL),
    "paper, middle": (FULL, 3, FULL),
    "paper, last": (FULL, 3, "512x0e"),
    "small, middle": ("32x0e+16x1e+8x2e", 2, "32x0e+16x1e+8x2e"),
}


@dataclass
class Case:
    """One operator on one input.

    Attributes:
        name: of the operator and its size.
        unit: `edge` or `atom`, of which `count` are handled.
        function: the operator as a function of `inputs`.
        inputs: tensors with respect to which the backward differentiates.
        flop: operations of the forward, of one unit; a fused multiplication and addition counts as two.
        bytes_moved: of the forward, of one unit: every input read once and every output written once.
        backward: how many times as many operations the backward needs, at least.
        others: the same function in other ways, for ratios.
    """

    name: str
    unit: str
    count: int
    function: Callable[..., Tensor]
    inputs: list[Tensor]
    flop: float
    bytes_moved: float
    backward: float = 2.0
    others: dict[str, Callable[..., Tensor]] = field(default_factory=dict)


def cases(graph: AtomicGraph) -> Iterator[Case]:
    """All operators of the library. A new operator gets a function here that yields its cases."""
    yield from convolution_cases(graph)


def convolution_cases(graph: AtomicGraph) -> Iterator[Case]:
    """The tensor-product convolution, against plain torch and against e3nn."""
    n_edges, n_atoms = graph.center.shape[0], graph.n_local
    arguments = (graph.center, graph.neighbor, graph.n_local)
    for name, (irreps, l_max, irreps_out) in CONVOLUTIONS.items():
        harmonics = o3.Irreps.spherical_harmonics(l_max, p=1)
        plain = TensorProductConvolution(irreps, harmonics, irreps_out).float()
        fused = FusedConvolution(plain)
        width = o3.Irreps(irreps).dim
        others = {"plain": plain, "e3nn": e3nn_convolution(plain, o3.Irreps(irreps), harmonics)}
        yield Case(
            name=f"convolution, {name}",
            unit="edge",
            count=n_edges,
            function=lambda *inputs, fused=fused: fused(*inputs, *arguments),
            inputs=[
                torch.randn(n_atoms, width, requires_grad=True),
                torch.randn(n_edges, harmonics.dim, requires_grad=True),
                torch.randn(n_edges, plain.n_weights, requires_grad=True),
            ],
            flop=convolution_flop(fused),
            bytes_moved=4.0 * (harmonics.dim + plain.n_weights + (width + plain.irreps_out.dim) * n_atoms / n_edges),
            others={key: lambda *inputs, module=module: module(*inputs, *arguments) for key, module in others.items()},
        )


def convolution_flop(fused: FusedConvolution) -> int:
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


def main() -> None:
    """Measure and report."""
    options = parser(__doc__)
    options.add_argument("--system", default="si64", help="[default: si64]")
    options.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="[default: 1 2]")
    options.add_argument("--seconds", type=float, default=0.2, help="of each operator in a round [default: 0.2]")
    options.add_argument("--only", default="", help="measure only operators with this in their name")
    arguments = options.parse_args()
    load_operators()
    graph = graph_from_atoms(structure(arguments.system), sorted(set(structure(arguments.system).symbols)), 5.0)
    chosen = [case for case in cases(graph) if arguments.only in case.name]
    result: dict[str, Any] = {
        "benchmark": "operators",
        "system": arguments.system,
        "neighbors": graph.center.shape[0] / graph.n_local,
        "instruction_set": torch.ops.hienet.instruction_sets()[-1],
        "rounds": arguments.rounds,
    }
    for threads in arguments.threads:
        set_threads(threads)
        peak, bandwidth = multiplication_rate(2048, 2.0), triad_bandwidth(1.0)
        rows = [measured(case, arguments.rounds, arguments.seconds, peak, bandwidth) for case in chosen]
        result[f"threads_{threads}"] = {"peak_gflops": peak, "triad_gb_per_s": bandwidth, "operators": rows}
        report(rows, f"float32, {threads} thread(s): peak {peak:.0f} GFLOP/s, triad {bandwidth:.1f} GB/s")
    result["machine"] = machine()
    write_json(arguments.json, result)


def measured(case: Case, rounds: int, seconds: float, peak: float, bandwidth: float) -> dict[str, Any]:
    """Microseconds a unit of the forward and of forward and backward together, rates, and ratios to other ways."""
    output = case.function(*case.inputs)
    seeds = {key: torch.randn_like(function(*case.inputs)) for key, function in case.others.items()}
    seeds["ours"] = torch.randn_like(output)
    functions = {"ours": case.function, **case.others}

    def forward(function: Callable[..., Tensor]) -> Work:
        def work() -> None:
            with torch.no_grad():
                function(*case.inputs)

        return work

    def both(key: str) -> Work:
        return lambda: torch.autograd.grad(functions[key](*case.inputs), case.inputs, seeds[key])

    result: dict[str, Any] = {
        "name": case.name,
        "unit": case.unit,
        "count": case.count,
        "flop": case.flop,
        "bytes": case.bytes_moved,
    }
    for kind, works, factor in (
        ("forward", {key: forward(function) for key, function in functions.items()}, 1.0),
        ("both", {key: both(key) for key in functions}, 1.0 + case.backward),
    ):
        turns = in_turns(works, rounds, seconds)
        duration = turns.median("ours") / case.count
        rate, traffic = 1e-9 * factor * case.flop / duration, 1e-9 * factor * case.bytes_moved / duration
        result[kind] = {
            "us": 1e6 * duration,
            "gflops": rate,
            "fraction_of_peak": rate / peak,
            "gb_per_s": traffic,
            "fraction_of_bandwidth": traffic / bandwidth,
            # What remains above 1 is neither arithmetic nor traffic that cannot be avoided.
            "over_floor": 1.0 / max(rate / peak, traffic / bandwidth),
            "ratios": {key: statistics.median(turns.ratios(key, "ours")) for key in case.others},
        }
    return result


def report(rows: list[dict[str, Any]], title: str) -> None:
    """One row for the forward of each operator, one for forward and backward."""
    columns = ("operator", "work", "unit", "µs", "GFLOP/s", "of peak", "GB/s", "of triad", "over floor", "others")
    table = Table(*columns, title=title)
    for row in rows:
        for kind, label in (("forward", "forward"), ("both", "and backward")):
            r = row[kind]
            ratios = ", ".join(f"{key} {value:.3g}x" for key, value in r["ratios"].items())
            table.add_row(
                str(row["name"]) if kind == "forward" else "",
                label,
                str(row["unit"]),
                f"{r['us']:.3g}",
                f"{r['gflops']:.3g}",
                f"{r['fraction_of_peak']:.0%}",
                f"{r['gb_per_s']:.3g}",
                f"{r['fraction_of_bandwidth']:.0%}",
                f"{r['over_floor']:.2g}",
                ratios,
            )
    console().print(table)


if __name__ == "__main__":
    main()
