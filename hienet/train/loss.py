"""The loss: Huber on energy per atom, force components and stress components."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hienet.data.dataset import Targets
from hienet.derivatives import Prediction, to_voigt
from hienet.metrics import Comparison
from hienet.units import EV_PER_CUBIC_ANGSTROM_IN_KBAR


@dataclass(frozen=True)
class LossSettings:
    """Weights and the error at which the Huber loss turns linear, in eV/atom, eV/Å and kbar."""

    energy_weight: float = 1.0
    forces_weight: float = 1.0
    stress_weight: float = 0.01
    huber_delta: float = 0.01


@dataclass(frozen=True)
class Loss:
    """The weighted sum, and its parts without their weights; all scalars with a gradient."""

    total: Tensor
    energy: Tensor
    forces: Tensor
    stress: Tensor


def huber(predicted: Tensor, label: Tensor, delta: float) -> Tensor:
    """Mean over the labelled (finite) entries of x^2 / 2 for |x| <= delta, delta (|x| - delta / 2) beyond.

    0 if there are none.
    """
    labelled = label.isfinite()
    if not labelled.all():
        predicted, label = predicted[labelled], label[labelled]
    if label.numel() == 0:
        return predicted.new_zeros(())
    return F.huber_loss(predicted, label, delta=delta)


def training_loss(prediction: Prediction, targets: Targets, settings: LossSettings) -> Loss:
    """energy_weight huber(E / n_atoms) + forces_weight huber(F) + stress_weight huber(stress in kbar).

    The mean is over frames, over force components of the batch, and over the six stress components of its frames.
    """
    assert prediction.forces is not None
    assert prediction.stress is not None
    delta = settings.huber_delta
    energy = huber(prediction.energy / targets.n_atoms, targets.energy / targets.n_atoms, delta)
    forces = huber(prediction.forces, targets.forces, delta)
    kbar = EV_PER_CUBIC_ANGSTROM_IN_KBAR
    stress = huber(to_voigt(prediction.stress) * kbar, targets.stress * kbar, delta)
    total = settings.energy_weight * energy + settings.forces_weight * forces + settings.stress_weight * stress
    return Loss(total.to(torch.float64), energy, forces, stress)


def loss_of_comparison(comparison: Comparison, settings: LossSettings) -> float:
    """The same loss for predictions that were collected for a whole data set."""
    stress = torch.from_numpy(comparison.stress), torch.from_numpy(comparison.stress_label)
    n_atoms = torch.from_numpy(comparison.n_atoms).to(torch.float64)
    delta, kbar = settings.huber_delta, EV_PER_CUBIC_ANGSTROM_IN_KBAR
    energy = huber(
        torch.from_numpy(comparison.energy) / n_atoms, torch.from_numpy(comparison.energy_label) / n_atoms, delta
    )
    forces = huber(torch.from_numpy(comparison.forces), torch.from_numpy(comparison.forces_label), delta)
    total = settings.energy_weight * energy + settings.forces_weight * forces
    return float(total + settings.stress_weight * huber(stress[0] * kbar, stress[1] * kbar, delta))
