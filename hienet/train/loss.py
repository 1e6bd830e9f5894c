"""The loss: Huber on energy per atom, force components and stress components."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hienet.data.dataset import Dataset, Targets
from hienet.data.labels import QUANTITIES
from hienet.derivatives import Prediction, to_voigt
from hienet.errors import HIENetError
from hienet.metrics import Comparison
from hienet.units import EV_PER_CUBIC_ANGSTROM_IN_KBAR


@dataclass(frozen=True)
class LossSettings:
    """Weights and the error at which the Huber loss turns linear, in eV/atom, eV/Å and kbar."""

    energy_weight: float = 1.0
    forces_weight: float = 1.0
    stress_weight: float = 0.01
    huber_delta: float = 0.01

    def weight_of(self, quantity: str) -> float:
        """Of `energy`, `forces` or `stress`."""
        return float(getattr(self, f"{quantity}_weight"))


@dataclass(frozen=True)
class Loss:
    """The weighted sum, and its parts without their weights; all scalars with a gradient."""

    total: Tensor
    energy: Tensor
    forces: Tensor
    stress: Tensor


def huber(
    predicted: Tensor, label: Tensor, delta: float, weight: Tensor | float = 1.0, n_labels: int | None = None
) -> Tensor:
    """Mean over the labelled (finite) entries of `weight` h, with h = x^2 / 2 for |x| <= delta, delta (|x| - delta / 2)
    beyond.

    0 if there are none. Divided is by their number, not by the sum of weights: in a batch of one frame its weight would
    cancel. Where these entries are a part of a batch, `n_labels` is the number of labels of the whole. What is
    predicted where there is no label does not matter, even if it is NaN.
    """
    labelled = label.isfinite()
    # Nothing asks whether there are any, for which a GPU would have to be waited for.
    difference = torch.where(labelled, predicted - label, 0.0)
    values = F.huber_loss(difference, torch.zeros_like(difference), reduction="none", delta=delta)
    return (weight * values).sum() / (labelled.sum().clamp(min=1) if n_labels is None else max(n_labels, 1))


def training_loss(
    prediction: Prediction, targets: Targets, settings: LossSettings, n_labels: Sequence[int] | None = None
) -> Loss:
    """energy_weight huber(E / n_atoms) + forces_weight huber(F) + stress_weight huber(stress in kbar).

    The mean is over frames, over force components of the batch, and over the six stress components of its frames, each
    multiplied by the weight of its frame.

    Args:
        n_labels: numbers of labels (energies, force components, stress components) by which the sums are divided, where
            these frames are a part of a batch; the losses of all parts then add up to that of the batch.
    """
    assert prediction.forces is not None
    assert prediction.stress is not None
    stress = to_voigt(prediction.stress)
    return _weighted(
        targets.n_atoms,
        targets.weights,
        (prediction.energy, targets.energy),
        (prediction.forces, targets.forces),
        (stress, targets.stress),
        settings,
        n_labels,
    )


def loss_of_comparison(comparison: Comparison, weights: NDArray[np.float64], settings: LossSettings) -> float:
    """The same loss for predictions that were collected for a whole data set, with the `weights` of its frames."""
    c = comparison
    pairs = ((c.energy, c.energy_label), (c.forces, c.forces_label), (c.stress, c.stress_label))
    energy, forces, stress = ((torch.from_numpy(p), torch.from_numpy(label)) for p, label in pairs)
    n_atoms = torch.from_numpy(c.n_atoms).to(torch.float64)
    return float(_weighted(n_atoms, torch.from_numpy(weights), energy, forces, stress, settings).total)


def _weighted(
    n_atoms: Tensor,
    weights: Tensor,
    energy: tuple[Tensor, Tensor],
    forces: tuple[Tensor, Tensor],
    stress: tuple[Tensor, Tensor],
    settings: LossSettings,
    n_labels: Sequence[int] | None = None,
) -> Loss:
    """From pairs of prediction and label, and the weights of the frames."""
    # The size of the result is given, so that a GPU need not be asked for it.
    of_atoms = weights[:, 1].repeat_interleave(n_atoms.to(torch.int64), output_size=forces[0].shape[0]).unsqueeze(1)
    delta, kbar = settings.huber_delta, EV_PER_CUBIC_ANGSTROM_IN_KBAR
    counts = (None, None, None) if n_labels is None else n_labels
    of_energy = huber(energy[0] / n_atoms, energy[1] / n_atoms, delta, weights[:, 0], counts[0])
    of_forces = huber(*forces, delta, of_atoms.to(forces[0].dtype), counts[1])
    of_stress = huber(stress[0] * kbar, stress[1] * kbar, delta, weights[:, 2:].to(stress[0].dtype), counts[2])
    total = settings.energy_weight * of_energy + settings.forces_weight * of_forces + settings.stress_weight * of_stress
    return Loss(total.to(torch.float64), of_energy, of_forces, of_stress)


def require_counting_labels(dataset: Dataset, name: str, settings: LossSettings) -> None:
    """Refuse a set none of whose labels has a positive weight: its loss would be 0 whatever is predicted.

    Raises:
        HIENetError: with the labels that there are, and why they do not count.
    """
    labelled = dataset.summary.n_labels > 0
    of_quantities = np.array([settings.weight_of(quantity) for quantity in QUANTITIES])
    if (labelled & (dataset.weights() * of_quantities > 0)).any():
        return
    present = dataset.label_counts()
    found = ", ".join(
        f"{quantity} in {present[quantity]} of {len(dataset)} frames (`training.{quantity}_weight: "
        f"{settings.weight_of(quantity):g}`)"
        for quantity in QUANTITIES
        if present.get(quantity)
    )
    raise HIENetError(
        f"no label of the {name} frames counts in the loss, they have {found or 'none'}; raise a weight in `training`, "
        "or the weights of the frames, or give other frames"
    )
