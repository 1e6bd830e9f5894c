"""Every compiled operator against its floor: time, rate of arithmetic and traffic, next to what the machine can do."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

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
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from hienet.calculator import LoadedModel
from hienet.graph import AtomicGraph, graph_from_atoms
from hienet.models.factory import ARCHITECTURES, build_model, make_config
from hienet.models.hienet import HIENet
from hienet.nn.convolution import TensorProductConvolution
from hienet.nn.embedding import split_edges
from hienet.ops.compile import compile_model
from hienet.ops.edge_network import OPERATIONS, EdgeNetwork
from hienet.ops.interaction import FusedEquivariantLayer
from hienet.ops.invariant import TabulatedInvariantLayer

WHOLE_STEP = "si512"
"""System whose steps are taken as a whole."""


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


def cases(graph: AtomicGraph, preset: str) -> Iterator[Case]:
    """All operators of the library, as a model of one element calls them."""
    config = make_config("hienet", preset, {"elements": ("Si",)})
    plain = cast(HIENet, build_model("hienet", config, 0).requires_grad_(False))
    compiled = copy.deepcopy(plain)
    compile_model(compiled, n_intervals=64)
    plain, compiled = plain.float(), compiled.float()
    compiled.load_elements(torch.tensor([0]))
    vectors = graph.edge_vectors.float()
    edges = compiled.embed_edges(vectors)
    yield edge_geometry_case(vectors, plain, compiled)
    for i, (before, after) in enumerate(zip(plain.layers, compiled.layers, strict=True)):
        if isinstance(after, TabulatedInvariantLayer):
            yield pair_message_case(graph, edges, plain, before, after)
        elif isinstance(after, FusedEquivariantLayer):
            yield from equivariant_cases(graph, edges, i + 1, plain, before, after)
    yield later_invariant_case(graph)
    yield from geodite_cases(graph)
    yield nemp_case(graph)


def edge_geometry_case(vectors: Tensor, plain: nn.Module, compiled: nn.Module) -> Case:
    """Distances and harmonics; each term of the recursion is two multiplications and an addition."""
    geometry = compiled.edge_embedding

    def with_torch(edge_vectors: Tensor) -> Tensor:
        distance = torch.linalg.vector_norm(edge_vectors, dim=1, keepdim=True)
        return torch.cat([distance, plain.edge_embedding.spherical_harmonics(edge_vectors)], dim=1)

    return Case(
        name="edge_geometry",
        unit="edge",
        count=vectors.shape[0],
        function=geometry,
        inputs=[vectors.clone().requires_grad_()],
        flop=geometry_flop(geometry.coefficients.numel()),
        bytes_moved=4.0 * (4 + geometry.n_harmonics),
        others={"plain": with_torch},
    )


def pair_message_case(
    graph: AtomicGraph, edges: Tensor, plain: nn.Module, before: nn.Module, after: TabulatedInvariantLayer
) -> Case:
    """The whole first layer: sums of splines of 6 coefficients, and the update of the atoms."""
    state = plain.embed_nodes(graph.species)
    indices = (graph.species, graph.center, graph.neighbor, graph.n_local)
    per_atom = graph.center.shape[0] / graph.n_local
    return Case(
        name=f"pair_message_sum and update, {after.channels} channels",
        unit="edge",
        count=graph.center.shape[0],
        function=lambda edges: after(state, edges, *indices),
        inputs=[edges.detach().clone().requires_grad_()],
        flop=SPLINE_FLOP * after.channels,
        bytes_moved=4.0 * (1 + after.channels / per_atom),
        backward=1.0,
        others={"plain": lambda edges: before(state, plain_edges(plain, edges), *indices)},
    )


def equivariant_cases(
    graph: AtomicGraph, edges: Tensor, number: int, plain: nn.Module, before: nn.Module, after: FusedEquivariantLayer
) -> Iterator[Case]:
    """The three operators of an equivariant layer."""
    n_edges, n_atoms = graph.center.shape[0], graph.n_local
    irreps = before.convolution.irreps_features
    harmonics = before.convolution.irreps_harmonics
    linear = linear_flop(after.prepared.plan)
    yield Case(
        name=f"irreps_linear, layer {number}",
        unit="atom",
        count=n_atoms,
        function=after.prepared,
        inputs=[torch.randn(n_atoms, irreps.dim, requires_grad=True)],
        flop=linear,
        bytes_moved=4.0 * (irreps.dim + after.state_width),
        backward=1.0,
        others={"plain": lambda features: before.prepare(features, graph.species)},
    )
    indices = (graph.center, graph.neighbor, graph.n_local)

    def fused(state: Tensor, edges: Tensor) -> Tensor:
        return after.interaction(state, edges, *indices)

    def unfused(convolution: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def interaction(state: Tensor, edges: Tensor) -> Tensor:
            radial, _, angular = split_edges(plain_edges(plain, edges), before.n_radial)
            weights = before.radial_network(radial)
            messages = convolution(state, angular, weights, *indices) / before.avg_num_neighbors
            return before.linear_out(messages) + state[:n_atoms, before.sent_width :]

        return interaction

    yield Case(
        name=f"interaction, layer {number}",
        unit="edge",
        count=n_edges,
        function=fused,
        inputs=[torch.randn(n_atoms, after.state_width, requires_grad=True), edges.detach().clone().requires_grad_()],
        flop=convolution_flop(after) + linear_flop(after.linear) * n_atoms / n_edges,
        bytes_moved=4.0 * (edges.shape[1] + (after.state_width + after.kept_width) * n_atoms / n_edges),
        others={
            "plain": unfused(before.convolution),
            "e3nn": unfused(e3nn_convolution(before.convolution, irreps, harmonics)),
        },
    )
    gate_in = before.gate.irreps_in.dim
    yield Case(
        name=f"gate, layer {number}",
        unit="atom",
        count=n_atoms,
        function=after.gate,
        inputs=[torch.randn(n_atoms, gate_in, requires_grad=True)],
        flop=GATE_FLOP * gate_in,
        bytes_moved=8.0 * gate_in,
        others={"plain": before.gate},
    )


def plain_and_compiled(architecture: str) -> tuple[Any, Any]:
    """The first preset of another architecture, twice, in float32."""
    preset = next(iter(ARCHITECTURES[architecture].presets))
    plain = build_model(architecture, make_config(architecture, preset, {"elements": ("Si",)}), 0).requires_grad_(False)
    compiled = copy.deepcopy(plain)
    compile_model(compiled, n_intervals=64)
    return plain.float(), compiled.float()


def edge_network_case(
    name: str, graph: AtomicGraph, networks: list[EdgeNetwork], function: Any, plain: Any, inputs: list[Tensor]
) -> Case:
    """What is done on edges by `networks`: matrix products are its operations; its traffic is that of its arguments,
    and of what it keeps for the backward and reads again."""
    n_edges = graph.center.shape[0]
    flop, kept = 0.0, 0.0
    for network in networks:
        widths = network.values[:, 3].tolist()
        for operation, result, first, *_, column in network.program.tolist():
            if OPERATIONS[operation] in ("linear", "add_linear"):
                flop += 2.0 * widths[first] * widths[result]
                kept += widths[result] if column >= 0 else 0
    return Case(
        name=f"edge_network, {name}",
        unit="edge",
        count=n_edges,
        function=function,
        inputs=inputs,
        flop=flop,
        bytes_moved=4.0 * (kept + sum(tensor.numel() for tensor in inputs) / n_edges),
        backward=1.0,
        others={"plain": plain},
    )


def later_invariant_case(graph: AtomicGraph) -> Case:
    """An invariant layer that is not the first, with its update of the atoms."""
    plain, compiled = plain_and_compiled("invnet")
    vectors = graph.edge_vectors.float()
    before, after = plain.layers[1], compiled.layers[1]
    indices = (graph.species, graph.center, graph.neighbor, graph.n_local)
    return edge_network_case(
        f"invariant layer of {before.channels} channels",
        graph,
        [after.network],
        lambda state, edges: after(state, edges, *indices),
        lambda state, edges: before(state, plain_edges(plain, edges), *indices),
        [torch.randn(graph.n_local, before.channels).requires_grad_(), compiled.embed_edges(vectors).requires_grad_()],
    )


def geodite_cases(graph: AtomicGraph) -> Iterator[Case]:
    """Attention and update of the edges of a block in the middle."""
    plain, compiled = plain_and_compiled("geodite")
    n, c, m, indices = graph.n_local, plain.channels, plain.n_components, (graph.center, graph.neighbor, graph.n_local)
    scalars, steerables = torch.randn(n, c).requires_grad_(), torch.randn(n, m, c).requires_grad_()
    edges = torch.randn(graph.center.shape[0], c).requires_grad_()
    harmonics = plain.embed_edges(graph.edge_vectors.float())[:, 1:].requires_grad_()
    attention, fused = plain.blocks[1].attention, compiled.blocks[1].attention

    def attend(module: nn.Module) -> Callable[..., Tensor]:
        def together(*inputs: Tensor) -> Tensor:
            change, steered = module(*inputs, *indices)
            return torch.cat([change, steered.flatten(1)], dim=1)

        return together

    yield edge_network_case(
        f"Geodite's attention, {c} channels",
        graph,
        [fused.network],
        attend(fused),
        attend(attention),
        [scalars, steerables, edges, harmonics],
    )
    update, fused = plain.blocks[1].edge_update, compiled.blocks[1].edge_update
    yield edge_network_case(
        f"Geodite's update of edges, {c} channels",
        graph,
        [fused.on_edges],
        lambda *inputs: fused(*inputs, *indices),
        lambda *inputs: update(*inputs, *indices),
        [edges, steerables, harmonics],
    )


def nemp_case(graph: AtomicGraph) -> Case:
    """What the second iteration does on edges."""
    plain, compiled = plain_and_compiled("nemp")
    before, after = plain.layers[2], compiled.layers[2]
    n, n_edges, indices = graph.n_local, graph.center.shape[0], (graph.center, graph.neighbor, graph.n_local)

    def neighborhood(layer: Any) -> Callable[..., Tensor]:
        def sums(*inputs: Tensor) -> Tensor:
            result, new = layer.neighborhood(*inputs, *indices)
            # All results in one, so that the whole backward runs.
            return result.flatten(1).index_add(0, graph.center, new.repeat(1, result.shape[1]))

        return sums

    inputs = [torch.randn(n, before.n_features, before.channels).requires_grad_() for _ in range(2)]
    inputs += [torch.randn(n_edges, width).requires_grad_() for width in (before.n_harmonics, before.n_invariants)]
    return edge_network_case(
        "NEMP's second iteration", graph, [after.network], neighborhood(after), neighborhood(before), inputs
    )


def plain_edges(plain: nn.Module, edges: Tensor) -> Tensor:
    """What plain layers read, made of the distance and the harmonics of compiled ones."""
    embedding = plain.edge_embedding
    distance = edges[:, :1]
    envelope = embedding.envelope(distance)
    return torch.cat([embedding.basis(distance) * envelope, envelope, edges[:, 1:]], dim=1)


SPLINE_FLOP = 12.0
"""Operations of a spline of 6 coefficients and of its derivative, of one channel."""
GATE_FLOP = 20.0
"""Of the activation of one column."""


def geometry_flop(n_coefficients: int) -> float:
    """Operations of one edge: its distance, and three for each coefficient of the harmonics."""
    return 3.0 * n_coefficients + 10.0


def linear_flop(plan: Tensor) -> float:
    """Operations of one atom: a multiplication and an addition for each weight and component."""
    return sum(2.0 * fan_in * dim * fan_out for _, fan_in, dim, _, fan_out, _, _ in plan.tolist())


def convolution_flop(layer: FusedEquivariantLayer) -> float:
    """Operations of one edge with the couplings given: a multiplication and an addition for each coupling and channel,
    the path weights on the smaller side, and their splines. The backward is counted as twice that."""
    count = 0
    for _, dim_in, channels, *_, dim_out, _, _ in layer.paths.tolist():
        count += channels * (2 * dim_in * dim_out + min(dim_in, dim_out) + 10)
    return float(count)


def e3nn_convolution(plain: TensorProductConvolution, irreps: o3.Irreps, harmonics: o3.Irreps) -> Callable[..., Tensor]:
    """Gather, `o3.TensorProduct` (compiled by e3nn), sum: the same amount of work; features are not permuted."""
    mid, order, _ = o3.Irreps([(path.channels, (path.l, path.parity)) for path in plain.paths]).sort()
    instructions = [(p.feature, p.harmonic, order[i], "uvu", True) for i, p in enumerate(plain.paths)]
    product = o3.TensorProduct(irreps, harmonics, mid, instructions, shared_weights=False, internal_weights=False)

    def convolution(features, angular, weights, center, neighbor, n_local):  # type: ignore[no-untyped-def]
        messages = product(features[:, : irreps.dim].index_select(0, neighbor), angular, weights)
        return messages.new_zeros(n_local, mid.dim).index_add(0, center, messages)

    return convolution


def main() -> None:
    """Measure and report."""
    options = parser(__doc__)
    options.add_argument("--system", default="si64", help="[default: si64]")
    options.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="[default: 1 2]")
    options.add_argument("--seconds", type=float, default=0.2, help="of each operator in a round [default: 0.2]")
    options.add_argument("--only", default="", help="measure only operators with this in their name")
    options.add_argument("--without-others", action="store_true", help="leave out plain torch and e3nn")
    arguments = options.parse_args()
    graph = graph_from_atoms(structure(arguments.system), sorted(set(structure(arguments.system).symbols)), 5.0)
    chosen = [case for case in cases(graph, arguments.preset) if arguments.only in case.name]
    if arguments.without_others:
        chosen = [replace(case, others={}) for case in chosen]
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
        between = statistics.median(share_between_operators(arguments.preset, arguments.rounds))
        result[f"threads_{threads}"] = {
            "peak_gflops": peak,
            "triad_gb_per_s": bandwidth,
            "operators": rows,
            "share_between_operators": between,
        }
        report(rows, f"float32, {threads} thread(s): peak {peak:.0f} GFLOP/s, triad {bandwidth:.1f} GB/s")
        print(f"of the time of a step ({WHOLE_STEP}), {between:.1%} pass between the operators")
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


def share_between_operators(preset: str, rounds: int, system: str = WHOLE_STEP) -> list[float]:
    """Parts of the time of steps that no operator of the library takes: autograd, the readout, the first layer's
    update, forces and stress from the edges. The profiler's own time is in them."""
    config = make_config("hienet", preset, {"elements": ("Si",)})
    module = build_model("hienet", config, 0).requires_grad_(False)
    compile_model(module, n_intervals=64)
    model = LoadedModel(module.float(), config.elements, config.cutoff, torch.float32, torch.device("cpu"), {})
    graph = graph_from_atoms(structure(system), config.elements, config.cutoff).to("cpu", torch.float32)
    model.predict_graph(graph)
    shares = []
    for _ in range(rounds):
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            start = time.perf_counter()
            model.predict_graph(graph)
            duration = time.perf_counter() - start
        events = profiler.key_averages()
        inside = sum(event.cpu_time_total for event in events if event.key.startswith("hienet::"))
        shares.append(1.0 - 1e-6 * inside / duration)
    return shares


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
