"""The operators run on as many threads as torch was told to use."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_operators_use_torchs_number_of_threads(threads):
    """Compiled without OpenMP, or with another runtime than torch's, they would not."""
    torch.set_num_threads(threads)
    try:
        assert torch.ops.hienet.threads() == threads
    finally:
        torch.set_num_threads(1)
