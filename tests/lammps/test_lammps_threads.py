"""Threads share the graph and the forces, and change no bit of either."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import with_velocities
from runs import Setup, evaluate, run

from hienet.testing import silicon_carbide

ATOMS = with_velocities(silicon_carbide((5, 4, 4)))
"""Several blocks of nodes for each thread."""


@pytest.mark.parametrize("ranks", [1, 2])
def test_results_are_the_same_to_the_last_bit_for_any_number_of_threads(ranks, models, tmp_path):
    """A model whose own arithmetic does not depend on threads; with it everything that is summed over edges."""
    one, *others = (run(ATOMS, Setup(models["walks"], style=f"threads {n}"), tmp_path, ranks, 2) for n in (1, 2, 3))
    assert one[0].edges > 20 * len(ATOMS)
    for other in others:
        for a, b in zip(one, other, strict=True):
            for quantity in ("energy", "forces", "stress", "energies", "atom_stress", "centroid_stress", "ghosts"):
                np.testing.assert_array_equal(getattr(a, quantity), getattr(b, quantity))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_first_of_several_bad_pairs_is_named_whatever_the_threads(threads, models, tmp_path):
    atoms = ATOMS.copy()
    for i, j in ((20, 21), (300, 301), (600, 601)):
        atoms.positions[j] = atoms.positions[i]
    setup = Setup(models["lj"], style=f"threads {threads}", before_box="atom_modify sort 0 0")
    with pytest.raises(Exception, match=r"atoms 21 and 22 are at the same place"):
        evaluate(atoms, setup, tmp_path)
