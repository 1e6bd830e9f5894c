"""Other programs' checkpoints as ours: `convert` finds out which program wrote a file."""

from __future__ import annotations

from pathlib import Path

from hienet.checkpoint import Checkpoint
from hienet.convert.foreign import read_foreign
from hienet.convert.official import convert_official
from hienet.convert.sevennet import convert_sevennet
from hienet.errors import HIENetError
from hienet.torch_state import own_torch_state

__all__ = ["convert"]


@own_torch_state()
def convert(path: str | Path, modality: str | None = None) -> Checkpoint:
    """A checkpoint of the HIENet authors or of SevenNet as one of ours, in float64.

    Args:
        path: of the file.
        modality: which one of a SevenNet that was trained on data of several kinds.

    Raises:
        HIENetError: neither of the two, or a model that has no equivalent here.
    """
    configuration = read_foreign(path)["config"]
    if "num_invariant_conv" not in configuration:
        return convert_sevennet(path, modality)
    if modality is not None:
        raise HIENetError(f"`{path}` is of HIENet, which has no modalities, but --modal is `{modality}`; leave it out")
    return convert_official(path)
