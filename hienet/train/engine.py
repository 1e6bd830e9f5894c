"""What computes training steps: compiled operators, or plain torch."""

from __future__ import annotations

from torch import nn

from hienet.config import TrainingSection
from hienet.derivatives import EnergyFunction
from hienet.errors import HIENetError


def choose_engine(model: nn.Module, settings: TrainingSection) -> tuple[EnergyFunction, str]:
    """The energy function that training differentiates, and a sentence that says what it is and why.

    Args:
        model: on the device and in the precision of training.
        settings: what was asked for.
    """
    if settings.engine == "plain":
        return model, "steps are computed by plain torch, as `training.engine: plain` asks"
    if next(model.parameters()).device.type != "cpu":
        return model, "steps are computed by plain torch: fused steps are for the CPU"
    from hienet.ops.fused_training import fused_training, has_fused_training

    if not has_fused_training(model):
        return model, "steps are computed by plain torch: this architecture, with these options, has no fused steps"
    try:
        return fused_training(model), "steps are fused: compiled operators compute them"
    except HIENetError as error:
        return model, f"steps are computed by plain torch, which is several times slower: {error}"
