"""A model that is a row of layers: embedding, one layer a stage, readout."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hienet.models.staged import Stage
from hienet.nn.zbl import ZBLRepulsion


class LayeredModel(nn.Module):
    """Embeddings, layers, readout, as stages (docs/conventions.md): one stage for each layer.

    An architecture of this kind is its constructor: it makes these modules and hands them over. A layer has
    `state_width`, `exchanged_width`, `prepare`, `load_elements` and `forward` as `hienet.nn.equivariant` has them.
    With a repulsion, the last layer's features get its energy as one more column, which the readout takes off again.
    """

    def __init__(
        self,
        edge_embedding: nn.Module,
        species_embedding: nn.Module,
        layers: list[nn.Module],
        energy_readout: nn.Module,
        repulsion: ZBLRepulsion | None,
    ) -> None:
        super().__init__()
        self.edge_embedding = edge_embedding
        self.species_embedding = species_embedding
        self.layers = nn.ModuleList(layers)
        self.n_layers = len(layers)
        self.energy_readout = energy_readout
        self.repulsion = repulsion
        edge_embedding.with_distance = repulsion is not None  # type: ignore[assignment]

    def stages(self) -> list[Stage]:
        """The state that each layer reads."""
        return [
            Stage(f"{type(layer).__name__} {i + 1}", layer.state_width, layer.exchanged_width if i else 0)  # type: ignore[arg-type]
            for i, layer in enumerate(self.layers)
        ]

    @torch.jit.export
    def load_elements(self, species: Tensor) -> int:
        """Build the tables that a compiled model needs for these species, `[n]` int64; returns their bytes."""
        n_bytes = 0
        for layer in self.layers:
            n_bytes += layer.load_elements(species)  # type: ignore[operator]
        return n_bytes

    @torch.jit.export
    def embed_edges(self, edge_vectors: Tensor) -> Tensor:
        """`[n_edges, 3]` (Å) to edge features `[n_edges, edge_width]`."""
        return self.edge_embedding(edge_vectors)

    @torch.jit.export
    def embed_nodes(self, species: Tensor) -> Tensor:
        """`[n_nodes]` to the state that the first stage reads."""
        features = self.species_embedding(species)
        for i, layer in enumerate(self.layers):
            if i == 0:
                features = layer.prepare(features, species)  # type: ignore[operator]
        return features

    @torch.jit.export
    def stage(
        self, index: int, state: Tensor, edges: Tensor, species: Tensor, center: Tensor, neighbor: Tensor, n_local: int
    ) -> Tensor:
        """Layer `index`, and what the next one wants of it: `[n_nodes, width]` to `[n_local, next width]`."""
        features = self.edge_embedding.features(edges)  # type: ignore[operator]
        for i, layer in enumerate(self.layers):
            if i == index:
                state = layer(state, features, species, center, neighbor, n_local)
            elif i == index + 1:
                state = layer.prepare(state, species[:n_local])  # type: ignore[operator]
        if index == self.n_layers - 1:
            state = self.with_repulsion(state, edges, species, center, neighbor, n_local)
        return state

    def with_repulsion(
        self, state: Tensor, edges: Tensor, species: Tensor, center: Tensor, neighbor: Tensor, n_local: int
    ) -> Tensor:
        """Features `[n_local, width]`, and as a last column the energy of repulsion (eV) of a model that has one."""
        if self.repulsion is not None:
            distance = self.edge_embedding.distance(edges)  # type: ignore[operator]
            state = torch.cat([state, self.repulsion(distance, species, center, neighbor, n_local)], dim=1)
        return state

    @torch.jit.export
    def readout(self, state: Tensor, species: Tensor) -> Tensor:
        """Energies of the owned atoms, `[n_local]` (eV, float64)."""
        if self.repulsion is not None:
            return self.energy_readout(state[:, :-1], species) + state[:, -1].to(torch.float64)
        return self.energy_readout(state, species)

    def forward(self, species: Tensor, center: Tensor, neighbor: Tensor, edge_vectors: Tensor, n_local: int) -> Tensor:
        """Energies `[n_local]` (eV, float64) of a graph without ghosts."""
        edges, state = self.embed_edges(edge_vectors), self.embed_nodes(species)
        for index in range(self.n_layers):
            state = self.stage(index, state, edges, species, center, neighbor, n_local)
        return self.readout(state, species[:n_local])
