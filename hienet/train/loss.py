"""The loss: on errors of energies, force components and stress components, each with a weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hienet.config import TrainingSection
from hienet.data.dataset import Dataset, Targets
from hienet.data.labels import QUANTITIES
from hienet.derivatives import Prediction, to_voigt
from hienet.errors import HIENetError
from hienet.metrics import Comparison
from hienet.units import EV_PER_CUBIC_ANGSTROM_IN_GPA, EV_PER_CUBIC_ANGSTROM_IN_KBAR


@dataclass(frozen=True)
class LossSettings:
    """Weights, kinds and units.

    Attributes:
        energy_weight, forces_weight, stress_weight: factors.
        huber_delta: error at which the Huber loss turns linear, in the units of the errors.
        kinds: of the losses of energy, forces and stress: `huber`, `mse` or `l1`.
        energy_power: energies are divided by this power of the number of atoms.
        stress_factor: on stresses in eV/Å^3; kbar unless given.
        spreads: of the labels of energy, forces and stress, by which errors are divided.
    """

    energy_weight: float = 1.0
    forces_weight: float = 1.0
    stress_weight: float = 0.01
    huber_delta: float = 0.01
    kinds: tuple[str, str, str] = ("huber", "huber", "huber")
    energy_power: float = 1.0
    stress_factor: float = EV_PER_CUBIC_ANGSTROM_IN_KBAR
    spreads: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def weight_of(self, quantity: str) -> float:
        """Of `energy`, `forces` or `stress`."""
        return float(getattr(self, f"{quantity}_weight"))


@dataclass(frozen=True)
class Loss:
    """The weighted sum, a scalar with a gradient (float64), and its parts without their weights."""

    total: Tensor
    energy: Tensor
    forces: Tensor
    stress: Tensor


def mean_loss(
    predicted: Tensor,
    label: Tensor,
    delta: float,
    weight: Tensor | float = 1.0,
    kind: str = "huber",
    n_labels: int | None = None,
    unit: Tensor | float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Mean over the labelled (finite) entries of `weight` times the loss of the error x, and its gradient with respect
    to what is predicted.

    That is x^2 / 2 for |x| <= delta and delta (|x| - delta / 2) beyond (`huber`), x^2 (`mse`), or |x| (`l1`), where x
    counts in `unit`.

    0 if there are none. Divided is by their number, not by the sum of weights: in a batch of one frame its weight would
    cancel. Where these entries are a part of a batch, `n_labels` is the number of labels of the whole. What is
    predicted where there is no label does not matter, even if it is NaN.
    """
    labelled = label.isfinite()
    # Nothing asks whether there are any, for which a GPU would have to be waited for.
    error = torch.where(labelled, predicted - label, 0.0)
    factor = weight / (labelled.count_nonzero().clamp_(min=1) if n_labels is None else max(n_labels, 1))
    per_unit = factor
    if isinstance(unit, Tensor) or unit != 1.0:
        error, per_unit = error / unit, factor / unit
    if kind == "huber":
        slope = error.clamp(-delta, delta)
        values = slope * (error - 0.5 * slope)
    elif kind == "mse":
        values, slope = error.square(), 2.0 * error
    else:
        values, slope = error.abs(), error.sign()
    return (factor * values).sum(), per_unit * slope


class _WeightedSum(torch.autograd.Function):
    """Hands three losses and their weighted sum on, of which the gradients are known: autograd's own way back through
    what they are made of takes as long as a layer of a small model."""

    @staticmethod
    def forward(ctx, energy, forces, stress, parts, weights):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*(slope for _, slope in parts))
        ctx.weights = weights
        values = [value for value, _ in parts]
        ctx.mark_non_differentiable(*values)
        return sum(weight * value.to(torch.float64) for weight, value in zip(weights, values, strict=True)), *values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient, *_):  # type: ignore[no-untyped-def]
        found = zip(ctx.weights, ctx.saved_tensors, strict=True)
        return *((weight * gradient).to(slope.dtype) * slope for weight, slope in found), None, None


def training_loss(
    prediction: Prediction, targets: Targets, settings: LossSettings, n_labels: Sequence[int] | None = None
) -> Loss:
    """energy_weight loss(E / n_atoms) + forces_weight loss(F) + stress_weight loss(stress in kbar), or in other units.

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
    delta, pairs = settings.huber_delta, (energy, forces, stress)
    counts = (None, None, None) if n_labels is None else n_labels
    units: tuple[Tensor | float, ...] = (
        n_atoms.pow(settings.energy_power) * settings.spreads[0],
        settings.spreads[1],
        settings.spreads[2] / settings.stress_factor,
    )
    with torch.no_grad():
        # The size of the result is given, so that a GPU need not be asked for it.
        of_atoms = weights[:, 1].repeat_interleave(n_atoms.to(torch.int64), output_size=forces[0].shape[0]).unsqueeze(1)
        of_labels = (weights[:, 0], of_atoms.to(forces[0].dtype), weights[:, 2:].to(stress[0].dtype))
        parts = [
            mean_loss(*pair, delta, weight, kind, count, unit)
            for pair, weight, kind, count, unit in zip(pairs, of_labels, settings.kinds, counts, units, strict=True)
        ]
    of_quantities = [settings.weight_of(quantity) for quantity in QUANTITIES]
    return Loss(*_WeightedSum.apply(energy[0], forces[0], stress[0], parts, of_quantities))


_STRESS_FACTORS = {"kbar": EV_PER_CUBIC_ANGSTROM_IN_KBAR, "GPa": EV_PER_CUBIC_ANGSTROM_IN_GPA, "eV/A^3": 1.0}
_ENERGY_POWERS = {"atoms": 1.0, "sqrt_atoms": 0.5, "none": 0.0}


def loss_settings(
    settings: TrainingSection, spreads: tuple[float, float, float] | None, remaining: float
) -> LossSettings:
    """As the configuration says.

    Args:
        settings: that section.
        spreads: of the labels (eV/atom, eV/Å, eV/Å^3), needed with `normalize_labels`.
        remaining: 1 where weights that change along the run have their first values, 0 where they have the last.
    """
    weights = {}
    for quantity in QUANTITIES:
        first, last = getattr(settings, f"{quantity}_weight"), getattr(settings, f"final_{quantity}_weight")
        weights[f"{quantity}_weight"] = first if last is None else last + remaining * (first - last)
    kinds = settings.loss if isinstance(settings.loss, dict) else dict.fromkeys(QUANTITIES, settings.loss)
    normalized = settings.normalize_labels and spreads is not None
    return LossSettings(
        **weights,
        huber_delta=settings.huber_delta,
        kinds=(kinds.get("energy", "huber"), kinds.get("forces", "huber"), kinds.get("stress", "huber")),
        energy_power=_ENERGY_POWERS[settings.energy_normalization],
        # The spread of stresses is in their own unit.
        stress_factor=1.0 if normalized else _STRESS_FACTORS[settings.stress_unit],
        spreads=spreads if normalized and spreads is not None else (1.0, 1.0, 1.0),
    )


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
