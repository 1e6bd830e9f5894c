"""What a model of every architecture is: a module made of stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Stage:
    """What one stage reads (docs/conventions.md, "A model is stages").

    Attributes:
        name: for people.
        width: columns of the state.
        exchanged_width: how many of them neighbours need.
        edge_width: columns of the edges; None, for all stages of a model, if none of them returns edges, so that all
            read those of `embed_edges`.
    """

    name: str
    width: int
    exchanged_width: int
    edge_width: int | None = None

    def as_dict(self) -> dict[str, object]:
        """For JSON; without what is None."""
        return {name: value for name, value in vars(self).items() if value is not None}


class StagedModel(Protocol):
    """The methods of a model. TorchScript exports them under these names; the pair style calls them.

    A module in it whose parameters depend on the species, by shape or by a factor, also has `keep_species(rows)` as
    `hienet.nn.embedding.SpeciesEmbedding` has it, so that a model can be deployed for some of its elements. One that
    computes something of its weights alone may have `fix_constants()`: when it is deployed, it is told to keep that.
    """

    def stages(self) -> list[Stage]:
        """One description for each stage."""

    def load_elements(self, species: Tensor) -> int:
        """`[n]` int64, the species in use, to the bytes of tables built for them; before any other method."""

    def embed_edges(self, edge_vectors: Tensor) -> Tensor:
        """`[n_edges, 3]` (Å) to `[n_edges, edge_width]`."""

    def embed_nodes(self, species: Tensor) -> Tensor:
        """`[n_nodes]` int64 to the first stage's state."""

    def stage(
        self, index: int, state: Tensor, edges: Tensor, species: Tensor, center: Tensor, neighbor: Tensor, n_local: int
    ) -> Tensor | tuple[Tensor, Tensor]:
        """State of all nodes to the next state of owned nodes; where edges evolve also the edges that the next stage
        reads, `[n_edges, next edge_width]`."""

    def readout(self, state: Tensor, species: Tensor) -> Tensor:
        """State of owned nodes to their energies, `[n_local]` (eV, float64)."""

    def forward(self, species: Tensor, center: Tensor, neighbor: Tensor, edge_vectors: Tensor, n_local: int) -> Tensor:
        """All of it for a graph without ghosts."""
