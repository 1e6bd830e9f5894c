"""Atoms and their neighbours as tensors: the one graph type of the project. The contract is in docs/conventions.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import ase
import torch
from torch import Tensor

from hienet.errors import HIENetError
from hienet.neighbors import neighbor_list
from hienet.torch_state import own_torch_state


@dataclass(frozen=True)
class AtomicGraph:
    """One structure, or a batch of them, as a directed graph.

    Attributes:
        species: `[n_nodes]` int64, index into the model's element list.
        center: `[n_edges]` int64, the atom that receives; `center < n_local`; edges are sorted by center.
        neighbor: `[n_edges]` int64, the atom that sends; any node.
        edge_vectors: `[n_edges, 3]` float, `r_neighbor + shift @ cell - r_center` (Å).
        n_local: nodes `0 .. n_local-1` are owned, the rest are ghosts.
        structure: `[n_local]` int64, to which structure of a batch an atom belongs.
        n_structures: number of structures in the batch.
        volume: `[n_structures]` float (Å^3); NaN where the cell has no volume, so that stress is undefined.
    """

    species: Tensor
    center: Tensor
    neighbor: Tensor
    edge_vectors: Tensor
    n_local: int
    structure: Tensor
    n_structures: int
    volume: Tensor

    def describe_size(self) -> str:
        """What decides how much memory and time the graph takes, in words."""
        return f"{self.n_local} atoms with {self.center.shape[0]} edges"

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> AtomicGraph:
        """A copy on `device`, with floating-point tensors in `dtype`."""
        return replace(
            self,
            species=self.species.to(device=device),
            center=self.center.to(device=device),
            neighbor=self.neighbor.to(device=device),
            edge_vectors=self.edge_vectors.to(device=device, dtype=dtype),
            structure=self.structure.to(device=device),
            volume=self.volume.to(device=device, dtype=dtype),
        )


@own_torch_state()
def species_indices(symbols: Sequence[str], elements: Sequence[str]) -> Tensor:
    """Indices `[n_atoms]` (int64) of chemical symbols in a model's element list.

    Raises:
        HIENetError: a symbol is not among the elements.
    """
    index = {symbol: i for i, symbol in enumerate(elements)}
    unknown = sorted(set(symbols) - set(index))
    if unknown:
        raise HIENetError(
            f"the structure contains {', '.join(unknown)}, but the model knows only {', '.join(elements)}; "
            "use a model that was trained with these elements"
        )
    return torch.tensor([index[symbol] for symbol in symbols], dtype=torch.int64)


@own_torch_state()
def graph_from_atoms(
    atoms: ase.Atoms, elements: Sequence[str], cutoff: float, dtype: torch.dtype = torch.float64
) -> AtomicGraph:
    """The graph of a structure, with every pair closer than `cutoff` (Å) as two directed edges.

    Raises:
        HIENetError: unknown element, positions that are not finite, or atoms on top of each other.
    """
    species = species_indices(atoms.get_chemical_symbols(), elements)
    center, neighbor, edge_vectors = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
    volume = atoms.cell.volume if atoms.cell.rank == 3 else float("nan")
    return AtomicGraph(
        species=species,
        center=torch.from_numpy(center),
        neighbor=torch.from_numpy(neighbor),
        edge_vectors=torch.from_numpy(edge_vectors).to(dtype),
        n_local=len(atoms),
        structure=torch.zeros(len(atoms), dtype=torch.int64),
        n_structures=1,
        volume=torch.tensor([volume], dtype=dtype),
    )


@own_torch_state()
def batch_graphs(graphs: Sequence[AtomicGraph]) -> AtomicGraph:
    """Several structures as one graph without edges between them. The graphs must not contain ghosts."""
    if any(graph.n_local != len(graph.species) for graph in graphs):
        raise ValueError("`batch_graphs` takes graphs without ghost nodes")
    atom_offsets, structure_offsets = [0], [0]
    for graph in graphs:
        atom_offsets.append(atom_offsets[-1] + graph.n_local)
        structure_offsets.append(structure_offsets[-1] + graph.n_structures)
    return AtomicGraph(
        species=torch.cat([graph.species for graph in graphs]),
        center=torch.cat([graph.center + start for graph, start in zip(graphs, atom_offsets, strict=False)]),
        neighbor=torch.cat([graph.neighbor + start for graph, start in zip(graphs, atom_offsets, strict=False)]),
        edge_vectors=torch.cat([graph.edge_vectors for graph in graphs]),
        n_local=atom_offsets[-1],
        structure=torch.cat([graph.structure + start for graph, start in zip(graphs, structure_offsets, strict=False)]),
        n_structures=structure_offsets[-1],
        volume=torch.cat([graph.volume for graph in graphs]),
    )
