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
    # Nothing asks whether there are any, for which a GPU would have to be waited for.
    differing = torch.where(labelled, label, predicted.detach())
    return F.huber_loss(predicted, differing, reduction="sum", delta=delta) / labelled.sum().clamp(min=1)


def training_loss(prediction: Prediction, targets: Targets, settings: LossSettings) -> Loss:
    """energy_weight huber(E / n_atoms) + forces_weight huber(F) + stress_weight huber(stress in kbar).

    The mean is over frames, over force components of the batch, and over the six stress components of its frames.
    """
    assert prediction.forces is not None
    assert prediction.stress is not None
    stress = to_voigt(prediction.stress)
    return _weighted(
        targets.n_atoms,
        (prediction.energy, targets.energy),
        (prediction.forces, targets.forces),
        (stress, targets.stress),
        settings,
    )


def loss_of_comparison(comparison: Comparison, settings: LossSettings) -> float:
    """The same loss for predictions that were collected for a whole data set."""
    c = comparison
    pairs = ((c.energy, c.energy_label), (c.forces, c.forces_label), (c.stress, c.stress_label))
    energy, forces, stress = ((torch.from_numpy(p), torch.from_numpy(label)) for p, label in pairs)
    return float(_weighted(torch.from_numpy(c.n_atoms).to(torch.float64), energy, forces, stress, settings).total)


def _weighted(
    n_atoms: Tensor,
    energy: tuple[Tensor, Tensor],
    forces: tuple[Tensor, Tensor],
    stress: tuple[Tensor, Tensor],
    settings: LossSettings,
) -> Loss:
    """From pairs of prediction and label."""
    delta, kbar = settings.huber_delta, EV_PER_CUBIC_ANGSTROM_IN_KBAR
    of_energy = huber(energy[0] / n_atoms, energy[1] / n_atoms, delta)
    of_forces = huber(*forces, delta)
    of_stress = huber(stress[0] * kbar, stress[1] * kbar, delta)
    total = settings.energy_weight * of_energy + settings.forces_weight * of_forces + settings.stress_weight * of_stress
    return Loss(total.to(torch.float64), of_energy, of_forces, of_stress)
