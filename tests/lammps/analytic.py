"""Small models with known answers, written as deployed files: what the pair style computes can be checked by hand."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

ELEMENTS = ("C", "Si")
CUTOFF = 4.0


class LennardJones(nn.Module):
    """One stage: half of 4 eps ((sigma/r)^12 - (sigma/r)^6) for each edge, cut off as `pair_style lj/cut` does."""

    def __init__(self, epsilon: float = 0.05, sigma: float = 2.0) -> None:
        super().__init__()
        self.epsilon, self.sigma = epsilon, sigma

    @torch.jit.export
    def embed_edges(self, edge_vectors: Tensor) -> Tensor:
        return (edge_vectors * edge_vectors).sum(1, keepdim=True)

    @torch.jit.export
    def embed_nodes(self, species: Tensor) -> Tensor:
        return torch.zeros(species.size(0), 1, dtype=torch.float64)

    @torch.jit.export
    def stage(
        self, index: int, state: Tensor, edges: Tensor, species: Tensor, center: Tensor, neighbor: Tensor, n_local: int
    ) -> Tensor:
        s6 = (self.sigma * self.sigma / edges) ** 3
        energy = 2.0 * self.epsilon * (s6 * s6 - s6)
        return torch.zeros(n_local, 1, dtype=edges.dtype).index_add(0, center, energy)

    @torch.jit.export
    def readout(self, state: Tensor, species: Tensor) -> Tensor:
        return state[:, 0].to(torch.float64)

    def forward(self, species: Tensor, center: Tensor, neighbor: Tensor, edge_vectors: Tensor, n_local: int) -> Tensor:
        edges = self.embed_edges(edge_vectors)
        state = self.stage(0, self.embed_nodes(species), edges, species, center, neighbor, n_local)
        return self.readout(state, species)


class Walks(nn.Module):
    """Three stages, two exchanges: the energy sums walks of three edges, so that it reaches three cutoffs far.

    With w = (1 - r^2/rc^2)^3 and charges q = 1 + species:
        rho_i   = sum_j q_j w_ij
        sigma_i = sum_j rho_j w_ij,  v_i = sum_j rho_j w_ij r_ij
        e_i     = sum_j sigma_j w_ij + sum_j w_ij (r_ij . v_j) + 0.1 rho_i^2 - 3 q_i

    The state carries columns that are an atom's own and must not be needed on ghosts.
    """

    edge_width = 4
    """Columns of `embed_edges`, for the description of the file; 1 where a model does not say."""

    def __init__(self, cutoff: float = CUTOFF) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.register_buffer("charges", torch.tensor([1.0, 2.0], dtype=torch.float64))

    @torch.jit.export
    def embed_edges(self, edge_vectors: Tensor) -> Tensor:
        r2 = (edge_vectors * edge_vectors).sum(1, keepdim=True)
        return torch.cat([(1.0 - r2 / (self.cutoff * self.cutoff)) ** 3, edge_vectors], 1)

    @torch.jit.export
    def embed_nodes(self, species: Tensor) -> Tensor:
        return self.charges[species].unsqueeze(1)

    @torch.jit.export
    def stage(
        self, index: int, state: Tensor, edges: Tensor, species: Tensor, center: Tensor, neighbor: Tensor, n_local: int
    ) -> Tensor:
        w, r = edges[:, :1], edges[:, 1:]
        sent = state[neighbor]
        zeros = torch.zeros(n_local, 1, dtype=edges.dtype)
        if index == 0:
            rho = zeros.index_add(0, center, sent * w)
            return torch.cat([rho, 0.1 * rho * rho], 1)
        if index == 1:
            sigma = zeros.index_add(0, center, sent[:, :1] * w)
            v = torch.zeros(n_local, 3, dtype=edges.dtype).index_add(0, center, sent[:, :1] * w * r)
            return torch.cat([sigma, v, state[:n_local, 1:]], 1)
        energy = sent[:, :1] * w + (sent[:, 1:4] * r).sum(1, keepdim=True) * w
        return state[:n_local, 4:] + zeros.index_add(0, center, energy)

    @torch.jit.export
    def readout(self, state: Tensor, species: Tensor) -> Tensor:
        return state[:, 0].to(torch.float64) - 3.0 * self.charges[species].to(torch.float64)

    def forward(self, species: Tensor, center: Tensor, neighbor: Tensor, edge_vectors: Tensor, n_local: int) -> Tensor:
        edges = self.embed_edges(edge_vectors)
        state = self.embed_nodes(species)
        for index in range(3):
            state = self.stage(index, state, edges, species, center, neighbor, n_local)
        return self.readout(state, species)


class EdgeWalks(nn.Module):
    """Three stages that write on the edges, differently for the two directions of a pair.

    With w = (1 - r^2/rc^2)^3 and charges q = 1 + species:
        rho_i   = sum_j q_j w_ij,           t_ij = rho_i w_ij
        sigma_i = sum_j t_ij,               u_ij = t_ij + rho_j w_ij^2
        e_i     = sum_j sigma_j u_ij - 3 q_i
    """

    def __init__(self, cutoff: float = CUTOFF) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.register_buffer("charges", torch.tensor([1.0, 2.0], dtype=torch.float64))

    @torch.jit.export
    def embed_edges(self, edge_vectors: Tensor) -> Tensor:
        r2 = (edge_vectors * edge_vectors).sum(1, keepdim=True)
        return (1.0 - r2 / (self.cutoff * self.cutoff)) ** 3

    @torch.jit.export
    def embed_nodes(self, species: Tensor) -> Tensor:
        return self.charges[species].unsqueeze(1)

    @torch.jit.export
    def stage(
        self, index: int, state: Tensor, edges: Tensor, species: Tensor, center: Tensor, neighbor: Tensor, n_local: int
    ) -> tuple[Tensor, Tensor]:
        zeros = torch.zeros(n_local, 1, dtype=edges.dtype)
        sent = state[neighbor]
        if index == 0:
            rho = zeros.index_add(0, center, sent * edges)
            return rho, torch.cat([edges, rho[center] * edges], 1)
        if index == 1:
            w, t = edges[:, :1], edges[:, 1:]
            return zeros.index_add(0, center, t), t + sent * w * w
        return zeros.index_add(0, center, sent * edges), edges[:, :0]

    @torch.jit.export
    def readout(self, state: Tensor, species: Tensor) -> Tensor:
        return state[:, 0].to(torch.float64) - 3.0 * self.charges[species].to(torch.float64)

    def forward(self, species: Tensor, center: Tensor, neighbor: Tensor, edge_vectors: Tensor, n_local: int) -> Tensor:
        edges = self.embed_edges(edge_vectors)
        state = self.embed_nodes(species)
        for index in range(3):
            state, edges = self.stage(index, state, edges, species, center, neighbor, n_local)
        return self.readout(state, species)


class Recorder(LennardJones):
    """Writes the graph that it is given to a file: the inputs of the network, as LAMMPS made them."""

    edge_width = 4

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    @torch.jit.export
    def embed_edges(self, edge_vectors: Tensor) -> Tensor:
        return torch.cat([(edge_vectors * edge_vectors).sum(1, keepdim=True), edge_vectors], 1)

    @torch.jit.export
    def stage(
        self, index: int, state: Tensor, edges: Tensor, species: Tensor, center: Tensor, neighbor: Tensor, n_local: int
    ) -> Tensor:
        torch.save((species, center, neighbor, edges[:, 1:].detach()), self.path)
        s6 = (self.sigma * self.sigma / edges[:, :1]) ** 3
        energy = 2.0 * self.epsilon * (s6 * s6 - s6)
        return torch.zeros(n_local, 1, dtype=edges.dtype).index_add(0, center, energy)


LJ_STAGES = [{"name": "pairs", "width": 1, "exchanged_width": 0}]
WALK_STAGES = [
    {"name": "first", "width": 1, "exchanged_width": 0},
    {"name": "second", "width": 2, "exchanged_width": 1},
    {"name": "third", "width": 5, "exchanged_width": 4},
]
EDGE_WALK_STAGES = [
    {"name": "first", "width": 1, "exchanged_width": 0, "edge_width": 1},
    {"name": "second", "width": 1, "exchanged_width": 1, "edge_width": 2},
    {"name": "third", "width": 1, "exchanged_width": 1, "edge_width": 1},
]


def write_deployed(module: nn.Module, path: Path, stages: list[dict[str, object]], **changes: object) -> Path:
    """A deployed file around `module`; `changes` replace entries of its description."""
    metadata: dict[str, object] = {
        "format": "hienet-deployed",
        "format_version": 1,
        "package_version": "0.1.0",
        "torch_version": torch.__version__,
        "created": "2026-01-01T00:00:00+00:00",
        "architecture": type(module).__name__,
        "elements": list(ELEMENTS),
        "cutoff": CUTOFF,
        "dtype": "float64",
        "edge_width": getattr(module, "edge_width", 1),
        "stages": stages,
        "n_parameters": 0,
        "units": {"length": "angstrom", "energy": "eV"},
        "reference_energies": {"C": 0.0, "Si": 0.0},
        "smooth_cutoff": True,
        "training": None,
        "verification": None,
        "content_hash": "",
        "license": None,
    }
    metadata.update(changes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\..*` is deprecated", category=DeprecationWarning)
        torch.jit.save(torch.jit.script(module), str(path), _extra_files={"hienet.json": json.dumps(metadata)})
    return path
