"""The graph contract: which edges there are, and what is refused. ASE is the oracle."""

from __future__ import annotations

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk, fcc111
from ase.neighborlist import neighbor_list as ase_neighbor_list

from hienet.errors import HIENetError
from hienet.graph import batch_graphs, graph_from_atoms
from hienet.neighbors import neighbor_list
from hienet.testing import silicon_carbide


def edge_set(center, neighbor, vectors) -> list[tuple]:
    return sorted(
        (int(i), int(j), *np.round(vector, 8).tolist()) for i, j, vector in zip(center, neighbor, vectors, strict=True)
    )


def sheared(tilt: float) -> ase.Atoms:
    atoms = bulk("Si", cubic=True)
    cell = atoms.cell.array.copy()
    cell[1, 0], cell[2, 0], cell[2, 1] = tilt, -0.5 * tilt, tilt
    atoms.set_cell(cell, scale_atoms=True)
    atoms.rattle(0.1, seed=0)
    return atoms


STRUCTURES = {
    "crystal": silicon_carbide((2, 2, 2)),
    "cell smaller than the cutoff": silicon_carbide(),
    "one-atom cell": bulk("Cu"),
    "tilted": sheared(4.0),
    "tilted the other way": sheared(-4.0),
    "slab": fcc111("Al", (2, 2, 3), vacuum=6.0),
    "slab without a third lattice vector": fcc111("Al", (2, 2, 3)),
    "wire": ase.Atoms("Si3", [[0, 0, 0], [2, 1, 0], [4, 0, 1]], cell=[6, 0, 0], pbc=[True, False, False]),
    "wire along y": ase.Atoms("Si2", [[0, 0, 0], [2, 1, 0]], cell=[0, 5, 0], pbc=[False, True, False]),
    "cluster": ase.Atoms("SiC2", [[0, 0, 0], [1.9, 0, 0], [0, 8.0, 0]]),
    "atoms far outside the cell": ase.Atoms("Si2", [[40, -30, 7], [1, 1, 1]], cell=[6, 6, 6], pbc=True),
}


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("cutoff", [3.0, 5.0, 9.5])
def test_edges_are_those_of_ase(name, cutoff):
    atoms = STRUCTURES[name]
    found = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
    expected = ase_neighbor_list("ijD", atoms, cutoff)
    assert edge_set(*found) == edge_set(*expected)


def test_edges_are_sorted_by_center_and_point_to_the_neighbor():
    atoms = STRUCTURES["cluster"]
    center, neighbor, vectors = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 3.0)
    assert center.tolist() == [0, 1]
    assert neighbor.tolist() == [1, 0]
    np.testing.assert_allclose(vectors, [[1.9, 0, 0], [-1.9, 0, 0]])


def test_an_atom_is_a_neighbor_of_its_images_but_not_of_itself():
    atoms = ase.Atoms("Si", cell=[3, 3, 3], pbc=True)
    graph = graph_from_atoms(atoms, ["Si"], 3.5)
    assert len(graph.center) == 6
    assert float(graph.edge_vectors.norm(dim=1).min()) == pytest.approx(3.0)


def test_a_structure_without_neighbors_has_no_edges():
    graph = graph_from_atoms(ase.Atoms("Si"), ["Si"], 5.0)
    assert graph.edge_vectors.shape == (0, 3)
    assert graph.n_local == 1


def test_species_follow_the_order_of_the_elements():
    graph = graph_from_atoms(ase.Atoms("CSiC", positions=np.eye(3) * 3), ["Si", "C"], 2.0)
    assert graph.species.tolist() == [1, 0, 1]


def test_an_unknown_element_is_named_with_what_the_model_knows():
    with pytest.raises(HIENetError, match="contains Ge, but the model knows only Si, C"):
        graph_from_atoms(ase.Atoms("SiGe", positions=[[0, 0, 0], [0, 0, 2]]), ["Si", "C"], 5.0)


def test_positions_that_are_not_finite_are_refused():
    with pytest.raises(HIENetError, match="NaN or infinity"):
        neighbor_list([[0, 0, np.nan]], np.eye(3), True, 3.0)


def test_atoms_on_top_of_each_other_are_refused():
    with pytest.raises(HIENetError, match=r"atoms 0 and 1 are .* Å apart"):
        neighbor_list([[0, 0, 0], [0, 0, 1e-5]], np.eye(3) * 8, False, 3.0)


def test_periodicity_without_a_lattice_vector_is_refused():
    with pytest.raises(HIENetError, match="give three independent lattice vectors"):
        neighbor_list([[0, 0, 0]], np.diag([5.0, 5.0, 0.0]), True, 3.0)


def test_batching_keeps_graphs_apart():
    graphs = [graph_from_atoms(atoms, ["C", "Si"], 4.0) for atoms in (silicon_carbide(), ase.Atoms("C"))]
    batch = batch_graphs([*graphs, graphs[0]])
    assert batch.n_local == 17
    assert batch.n_structures == 3
    assert torch.equal(batch.structure.bincount(), torch.tensor([8, 1, 8]))
    assert torch.equal(batch.structure[batch.center], batch.structure[batch.neighbor])
    assert torch.equal(batch.edge_vectors[-len(graphs[0].center) :], graphs[0].edge_vectors)
    assert bool((batch.center.diff() >= 0).all())


def test_graphs_with_ghosts_are_not_batched():
    graph = graph_from_atoms(ase.Atoms("C"), ["C", "Si"], 4.0)
    ghostly = type(graph)(**{**vars(graph), "species": torch.tensor([0, 1])})
    with pytest.raises(ValueError, match="without ghost nodes"):
        batch_graphs([ghostly])
