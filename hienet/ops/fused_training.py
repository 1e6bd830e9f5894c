"""Which form training steps take in compiled operators, model by model."""

from __future__ import annotations

from typing import cast

from torch import nn

from hienet.derivatives import EnergyFunction
from hienet.models.geodite import Geodite
from hienet.models.layered import LayeredModel
from hienet.models.nemp import NEMP
from hienet.ops.training import FusedTraining, has_training_form
from hienet.ops.training_twice import TwiceDifferentiatedTraining, is_trained_twice


def has_fused_training(model: nn.Module) -> bool:
    """Whether `fused_training` knows every part of this model."""
    return has_training_form(model) or is_trained_twice(model)


def fused_training(model: nn.Module) -> EnergyFunction:
    """What trains a model that `has_fused_training`, on the CPU and in the precision of training.

    Raises:
        HIENetError: the library of operators is not compiled, or too old.
    """
    if has_training_form(model):
        return FusedTraining(cast(LayeredModel, model))
    return TwiceDifferentiatedTraining(cast(NEMP | Geodite, model))
