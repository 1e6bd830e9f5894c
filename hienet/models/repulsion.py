"""Which repulsion of nuclei the configuration of a model asks for."""

from __future__ import annotations

from hienet.models.config import ModelConfig
from hienet.nn.zbl import ZBLRepulsion


def repulsion_of(config: ModelConfig) -> ZBLRepulsion | None:
    """What `zbl` and `zbl_outer` ask for; None without."""
    return ZBLRepulsion(config.elements, config.cutoff, config.zbl_outer) if config.zbl else None
