"""Neighbour lists: all pairs, with periodic images, closer than a cutoff."""

from __future__ import annotations

import numpy as np
import vesin
from numpy.typing import ArrayLike, NDArray

from hienet.errors import HIENetError

_MINIMAL_DISTANCE = 1e-3
"""Å; closer atoms are a mistake of the input, and no model is defined there."""

_LARGEST_DENSITY = 50.0
"""Atoms/Å^3. Solids have 0.02 to 0.2, a thousand times as many if nm are taken for Å, whose neighbours fill any
memory."""

_SURELY_A_VOLUME = 1e-2  # Å^3


def neighbor_list(
    positions: ArrayLike, cell: ArrayLike, pbc: ArrayLike, cutoff: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """All directed edges with `|edge_vector| < cutoff`, sorted by center.

    Args:
        positions: `[n_atoms, 3]` (Å); need not lie inside the cell.
        cell: `[3, 3]`, lattice vectors as rows (Å); rows of directions without periodicity may be zero.
        pbc: `[3]` bool, mixed periodicity allowed.
        cutoff: Å; may exceed the cell.

    Returns:
        center `[n_edges]`, neighbor `[n_edges]`, and `edge_vectors` `[n_edges, 3]` = r_neighbor + shift @ cell -
        r_center (Å).

    Raises:
        HIENetError: positions or cell are not finite, a periodic direction has no lattice vector, two atoms coincide,
            or there are more atoms in the cell than any matter has.
    """
    positions = np.asarray(positions, dtype=np.float64).reshape(-1, 3)
    cell = np.array(cell, dtype=np.float64).reshape(3, 3)
    pbc = np.broadcast_to(np.asarray(pbc, dtype=bool), (3,))
    if not np.isfinite(positions).all() or not np.isfinite(cell).all():
        raise HIENetError("positions or cell contain NaN or infinity; check the structure, or the time step of the run")
    if len(positions) == 0:
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty.copy(), np.zeros((0, 3))
    box = _complete_cell(cell, pbc)
    if pbc.all():
        _require_space(len(positions), abs(np.linalg.det(box)))
    calculator = vesin.NeighborList(cutoff=float(cutoff), full_list=True, sorted=True)
    center, neighbor, distance, vectors = calculator.compute(positions, box, pbc, quantities="ijdD")
    inside = distance < cutoff
    if not inside.all():
        center, neighbor, distance, vectors = center[inside], neighbor[inside], distance[inside], vectors[inside]
    if len(distance) and distance.min() < _MINIMAL_DISTANCE:
        edge = int(distance.argmin())
        raise HIENetError(
            f"atoms {center[edge]} and {neighbor[edge]} are {distance[edge]:.1e} Å apart; "
            "remove duplicate atoms, or check that the cell is complete"
        )
    return center.astype(np.int64), neighbor.astype(np.int64), np.ascontiguousarray(vectors, dtype=np.float64)


def _require_space(n_atoms: int, volume: float) -> None:
    if n_atoms > _LARGEST_DENSITY * volume:
        raise HIENetError(
            f"{n_atoms} atom(s) in a cell of {volume:.3g} Å^3 are more than {_LARGEST_DENSITY:g} for each Å^3; check "
            "that positions and cell are in Å, not in nm, and that the cell has not collapsed"
        )


def _complete_cell(cell: NDArray[np.float64], pbc: NDArray[np.bool_]) -> NDArray[np.float64]:
    """An invertible cell: rows of directions without periodicity are replaced by unit vectors normal to the rest."""
    if pbc.all() and abs(np.linalg.det(cell)) > _SURELY_A_VOLUME:
        return cell
    if np.linalg.matrix_rank(cell[pbc]) < pbc.sum():
        raise HIENetError(
            f"the structure is periodic along {pbc.tolist()} but its lattice vectors there are {cell[pbc].tolist()}; "
            "give three independent lattice vectors, or switch periodicity off"
        )
    # The last right-singular vectors span the complement of the periodic directions.
    complement = np.linalg.svd(cell[pbc] if pbc.any() else np.zeros((1, 3)))[2][int(pbc.sum()) :]
    box = cell.copy()
    box[~pbc] = complement
    return box
