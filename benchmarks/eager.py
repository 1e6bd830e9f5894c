"""HIENet written as users of e3nn write such a network: what the deployed model is measured against.

The mathematics is hienet/models/hienet.py's, and tests/test_benchmarks.py holds the two equal; the arithmetic is that
of the published implementations of this family of models. Every message is made edge by edge: features are gathered,
`o3.TensorProduct` ('uvu', with the weights of a `FullyConnectedNet`) acts on them, and the messages are scattered. The
invariant layer maps the nodes, gathers the images of both ends, concatenates them with the edge's, and evaluates
networks on the edges. Forces are left to autograd. e3nn compiles its products, linear maps and gates with TorchScript,
as it does by default.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from e3nn import o3
from e3nn.nn import FullyConnectedNet, Gate
from torch import Tensor, nn

from hienet.models.hienet import HIENet
from hienet.nn.convolution import coupling_paths
from hienet.nn.embedding import split_edges
from hienet.nn.equivariant import EquivariantLayer
from hienet.nn.invariant import InvariantLayer
from hienet.nn.linear import IrrepsLinear


class EagerInvariantLayer(nn.Module):
    """`InvariantLayer` with networks on concatenated features of center, neighbour and edge."""

    def __init__(self, layer: InvariantLayer) -> None:
        super().__init__()
        self.smooth_cutoff = layer.smooth_cutoff
        self.n_radial = layer.n_radial
        for name in ("query", "key", "value", "edge", "attention_norm", "output", "output_norm", "reset", "update"):
            self.add_module(name, copy.deepcopy(getattr(layer, name)))
        self.key_network = _sequential(layer.key_network)
        self.message_network = _sequential(layer.message_network)

    def forward(self, x: Tensor, edges: Tensor, center: Tensor, neighbor: Tensor) -> Tensor:
        """`[n_nodes, channels]` to the same."""
        radial, envelope, _ = split_edges(edges, self.n_radial)
        query, key, value, edge = self.query(x), self.key(x), self.value(x), self.edge(radial)
        keys = self.key_network(torch.cat([key[center], key[neighbor], edge], dim=1))
        attention = query[center] * keys / math.sqrt(float(x.shape[1]))
        messages = self.message_network(torch.cat([value[center], value[neighbor], edge], dim=1))
        messages = messages * torch.sigmoid(self.attention_norm(attention))
        if self.smooth_cutoff:
            messages = messages * envelope
        output = self.output(scatter(messages, center, x.shape[0]))
        reset, update = torch.sigmoid(self.reset(x)), torch.sigmoid(self.update(x))
        candidate = (1.0 - update) * x + update * F.softplus(self.output_norm(output))
        return (1.0 - update) * reset * x + update * candidate


class EagerEquivariantLayer(nn.Module):
    """`EquivariantLayer` of e3nn's modules, on features in e3nn's order (components fastest)."""

    def __init__(self, layer: EquivariantLayer) -> None:
        super().__init__()
        product = layer.convolution
        paths = coupling_paths(product.irreps_features, product.irreps_harmonics, product.irreps_out)
        messages, order, _ = o3.Irreps([(path.channels, (path.l, path.parity)) for path in paths]).sort()
        instructions = [(p.feature, p.harmonic, order[i], "uvu", True) for i, p in enumerate(paths)]
        self.convolution = o3.TensorProduct(
            product.irreps_features,
            product.irreps_harmonics,
            messages,
            instructions,
            shared_weights=False,
            internal_weights=False,
        )
        gated = o3.Irreps([(channels, irrep) for channels, irrep in layer.gate.irreps_in if irrep.l > 0])
        gates = o3.Irreps([(gated.num_irreps, (0, 1))] if gated else [])
        scalars = o3.Irreps([(layer.gate.n_odd, (0, -1)), (layer.gate.n_scalars, (0, 1))]).remove_zero_multiplicities()
        activations = [F.silu if irrep.p == 1 else torch.tanh for _, irrep in scalars]
        self.gate = Gate(scalars, activations, gates, [F.silu] if gates else [], gated)
        self.linear_in = _linear(layer.linear_in, product.irreps_features, product.irreps_features)
        self.linear_skip = _linear(layer.linear_skip, product.irreps_features, self.gate.irreps_in)
        self.linear_out = _linear(layer.linear_out, messages.simplify(), self.gate.irreps_in)
        weights = list(layer.radial_network.weights)
        widths = [weights[0].shape[0], *(weight.shape[1] for weight in weights)]
        self.radial_network = FullyConnectedNet(widths, F.silu)
        for module, weight in zip(self.radial_network, weights, strict=True):
            module.weight.data.copy_(weight)
        self.n_radial = layer.n_radial
        self.avg_num_neighbors = layer.avg_num_neighbors

    def forward(self, x: Tensor, edges: Tensor, center: Tensor, neighbor: Tensor) -> Tensor:
        """`[n_nodes, irreps_in.dim]` to `[n_nodes, irreps_out.dim]`."""
        radial, _, harmonics = split_edges(edges, self.n_radial)
        skip = self.linear_skip(x)
        messages = self.convolution(self.linear_in(x)[neighbor], harmonics, self.radial_network(radial))
        total = scatter(messages, center, x.shape[0]) / self.avg_num_neighbors
        return self.gate(self.linear_out(total) + skip)


class EagerHIENet(nn.Module):
    """The same function as a `HIENet`, of its weights."""

    def __init__(self, model: HIENet) -> None:
        """`model` in float64; so is the result. e3nn's constants are computed in the default dtype, which is float64
        for that time."""
        super().__init__()
        self.edge_embedding = copy.deepcopy(model.edge_embedding)
        self.species_embedding = copy.deepcopy(model.species_embedding)
        self.readout = copy.deepcopy(model.energy_readout)
        layers: list[nn.Module] = []
        for layer in model.layers:
            kind = EagerInvariantLayer if isinstance(layer, InvariantLayer) else EagerEquivariantLayer
            layers.append(kind(layer))
        self.layers = nn.ModuleList(layers)

    @classmethod
    def from_model(cls, model: HIENet) -> EagerHIENet:
        """The eager twin of a model in float64."""
        with _float64_default(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"`torch\.jit\..*` is deprecated", category=DeprecationWarning)
            return cls(model)

    def forward(self, species: Tensor, center: Tensor, neighbor: Tensor, edge_vectors: Tensor, n_local: int) -> Tensor:
        """Energies `[n_local]` (eV, float64) of a graph without ghosts."""
        edges = self.edge_embedding(edge_vectors)
        x = self.species_embedding(species)
        for layer in self.layers:
            x = layer(x, edges, center, neighbor)
        return self.readout(x, species[:n_local])


def scatter(messages: Tensor, center: Tensor, n_nodes: int) -> Tensor:
    """`[n_edges, width]` to `[n_nodes, width]`: sums over the edges of each center."""
    return messages.new_zeros(n_nodes, messages.shape[1]).index_add(0, center, messages)


def _linear(source: IrrepsLinear, irreps_in: o3.Irreps, irreps_out: o3.Irreps) -> o3.Linear:
    """e3nn's linear map with the same weights: both keep `[fan-in, fan-out]` for each l, in increasing order."""
    linear = o3.Linear(irreps_in, irreps_out)
    if linear.weight.shape != source.weight.shape:
        raise ValueError(f"`o3.Linear` has weights {list(linear.weight.shape)}, expected {list(source.weight.shape)}")
    linear.weight.data.copy_(source.weight)
    return linear


def _sequential(network: nn.Module) -> nn.Sequential:
    return nn.Sequential(copy.deepcopy(network.first), nn.SiLU(), copy.deepcopy(network.second))


@contextmanager
def _float64_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
