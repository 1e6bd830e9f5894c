"""The operators take their memory from a pool, which steady work neither grows nor leaves."""

from __future__ import annotations

import gc

import pytest
import torch

pytestmark = pytest.mark.usefixtures("operators")

LARGE_PAGE = 1 << 21


def edge_vectors(n_edges: int) -> torch.Tensor:
    return torch.randn(n_edges, 3, generator=torch.Generator().manual_seed(0))


def geometry(n_edges: int) -> torch.Tensor:
    """`[n_edges, 2]`: distance and the harmonic of l = 0."""
    terms, coefficients = torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0)
    return torch.ops.hienet.edge_geometry(edge_vectors(n_edges), terms, coefficients, 1)


@pytest.fixture(autouse=True)
def empty_pool() -> None:
    gc.collect()
    torch.ops.hienet.release_pooled_memory()


def pool() -> tuple[int, int]:
    """Bytes in use and free."""
    return torch.ops.hienet.pooled_memory()


def test_what_is_freed_is_used_again():
    used = pool()[0]
    first = geometry(100_000)
    place, taken = first.data_ptr(), pool()[0] - used
    assert taken >= first.nbytes
    del first
    assert pool() == (used, taken)
    again = geometry(100_000)
    assert again.data_ptr() == place
    assert pool() == (used + taken, 0)


def test_a_block_serves_numbers_of_edges_that_differ_a_little():
    place = geometry(100_000).data_ptr()
    assert geometry(99_000).data_ptr() == place
    assert geometry(100_300).data_ptr() == place


def test_a_much_smaller_tensor_does_not_take_a_large_block():
    large = geometry(1_000_000).data_ptr()
    assert geometry(50_000).data_ptr() != large


def test_two_tensors_never_share_a_block():
    tensors = [geometry(100_000) for _ in range(4)]
    assert len({tensor.data_ptr() for tensor in tensors}) == 4
    torch.testing.assert_close(tensors[0], tensors[3])


def test_tensors_begin_at_whole_vectors():
    assert all(geometry(n).data_ptr() % 64 == 0 for n in (1, 17, 9_000, 300_001))
    assert geometry(LARGE_PAGE).data_ptr() % LARGE_PAGE == 0


def test_what_nobody_uses_is_given_back():
    used = pool()[0]
    geometry(1_000_000)
    assert pool()[1] > 0
    torch.ops.hienet.release_pooled_memory()
    assert pool() == (used, 0)


def test_what_nobody_has_wanted_for_long_is_given_back():
    """Otherwise one large structure would occupy memory for as long as small ones follow."""
    used = pool()[0]
    geometry(1_000_000)
    large = pool()[1]
    for _ in range(2_500):
        geometry(20_000)
    assert pool()[0] == used
    assert 0 < pool()[1] < large


def test_a_tensor_outlives_the_release_of_the_pool():
    kept = geometry(100_000)
    expected = kept.clone()
    torch.ops.hienet.release_pooled_memory()
    geometry(100_000)
    torch.testing.assert_close(kept, expected, rtol=0, atol=0)


def test_more_memory_than_there_is_is_an_error():
    features = torch.ones(1, 4).expand(1 << 46, 4)  # the same row again and again
    with pytest.raises(RuntimeError, match=r"cannot allocate memory, \d+ bytes were asked for"):
        torch.ops.hienet.gate(features, torch.zeros(0, 2, dtype=torch.int64), 4, 1.0)
