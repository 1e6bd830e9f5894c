"""Predictions beside labels, and the errors between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hienet.data.batching import Budget, steps_in_order
from hienet.data.dataset import Dataset
from hienet.data.prefetch import prefetched
from hienet.derivatives import EnergyFunction, predict, to_voigt
from hienet.memory import memory_explained
from hienet.processes import ALONE, Processes
from hienet.quantities import ENERGY, FORCES, MEASURES, QUANTITIES, STRESS, Quantity
from hienet.torch_state import own_torch_state

Array = NDArray[np.float64]

_FRAMES_NAMED = 8


@dataclass(frozen=True)
class Comparison:
    """Predictions and labels of a data set; NaN where a label is missing, or where stress is undefined.

    Attributes:
        n_atoms: `[n_frames]` int.
        compositions: `[n_frames, n_elements]`, number of atoms of each element.
        energy, energy_label: `[n_frames]` (eV).
        forces, forces_label: `[n_atoms_total, 3]` (eV/Å).
        energies: `[n_atoms_total]` predicted energies of the atoms (eV).
        stress, stress_label: `[n_frames, 6]` (eV/Å^3, xx, yy, zz, yz, xz, xy).
    """

    n_atoms: NDArray[np.int64]
    compositions: Array
    energy: Array
    energy_label: Array
    energies: Array
    forces: Array
    forces_label: Array
    stress: Array
    stress_label: Array

    @property
    def frame_of_atom(self) -> NDArray[np.int64]:
        """`[n_atoms_total]`: index of the frame of each atom."""
        return np.repeat(np.arange(len(self.n_atoms)), self.n_atoms)

    def not_finite(self) -> list[int]:
        """Indices of the frames for which something was predicted that is no finite number, but should be."""
        wrong = ~np.isfinite(self.energy)
        wrong[self.frame_of_atom[~np.isfinite(self.forces).all(axis=1)]] = True
        wrong |= (~np.isfinite(self.stress) & np.isfinite(self.stress_label)).any(axis=1)
        return np.flatnonzero(wrong).tolist()


@own_torch_state()
def compare(
    model: EnergyFunction,
    dataset: Dataset,
    budget: Budget | int = 8,
    device: torch.device | str = "cpu",
    remedy: str = "take a smaller batch size",
    processes: Processes = ALONE,
) -> Comparison:
    """Predict all frames. The model must be in evaluation mode, on `device`, in the precision of the data set.

    Args:
        budget: how much is predicted at a time; a number is one of frames.
        processes: those that share the work, each frame in one of them; all have the whole result.

    Raises:
        OutOfMemoryError: a batch is too large; the message ends in `remedy`.
    """
    batches = steps_in_order(dataset, Budget(budget) if isinstance(budget, int) else budget)
    own = batches[processes.rank :: processes.number]
    threads = 0 if dataset.in_memory else 2
    parts: list[dict[str, Array]] = []
    for frames, (graph, targets) in zip(own, prefetched(own, dataset.batch, threads), strict=True):
        with memory_explained(f"batches of {len(frames)} frames, {graph.describe_size()}", remedy):
            prediction = predict(model, graph.to(device))
        assert prediction.forces is not None
        assert prediction.stress is not None
        undefined = ~graph.volume.isfinite()
        stress = to_voigt(prediction.stress).cpu().masked_fill(undefined.unsqueeze(1), torch.nan)
        columns = {
            "energy": prediction.energy,
            "energy_label": targets.energy,
            "energies": prediction.energies,
            "forces": prediction.forces,
            "forces_label": targets.forces,
            "stress": stress,
            "stress_label": targets.stress,
        }
        parts.append({name: tensor.detach().cpu().to(torch.float64).numpy() for name, tensor in columns.items()})
    everywhere = processes.gather(parts)
    # Batch by batch, in the order of the frames.
    whole = [everywhere[i % processes.number][i // processes.number] for i in range(len(batches))]
    arrays = {name: np.concatenate([part[name] for part in whole]) for name in whole[0]}
    return Comparison(
        n_atoms=dataset.summary.n_atoms,
        compositions=dataset.compositions(0, len(dataset)),
        **arrays,
    )


def describe_not_finite(comparison: Comparison, dataset: Dataset, name: str) -> list[str]:
    """A warning that names the frames of the set `name` for which what is predicted is no finite number, if any."""
    wrong = comparison.not_finite()
    if not wrong:
        return []
    sources = ", ".join(dataset.frames[i].source for i in wrong[:_FRAMES_NAMED])
    rest = f" and {len(wrong) - _FRAMES_NAMED} more" if len(wrong) > _FRAMES_NAMED else ""
    return [
        f"WARNING: for {len(wrong)} of {len(dataset)} {name} the model does not predict finite numbers, so that the "
        f"errors are none: {sources}{rest}; look for atoms that nearly touch, or leave these frames out"
    ]


@dataclass(frozen=True)
class Errors:
    """Mean absolute and root mean square errors, and coefficients of determination R²; None where there are no labels.

    Attributes:
        n_frames, n_atoms: how many.
        energy_mae, energy_rmse: meV/atom.
        forces_mae, forces_rmse: meV/Å, over components.
        stress_mae, stress_rmse: GPa, over components.
        energy_r2, forces_r2, stress_r2: the part of the labels' variance that is predicted, of energies per atom and of
            components of forces and stress; None also where labels do not vary, and in summaries of older files.
    """

    n_frames: int
    n_atoms: int
    energy_mae: float | None
    energy_rmse: float | None
    forces_mae: float | None
    forces_rmse: float | None
    stress_mae: float | None
    stress_rmse: float | None
    energy_r2: float | None = None
    forces_r2: float | None = None
    stress_r2: float | None = None

    def of(self, quantity: Quantity, measure: str = "mae") -> float | None:
        """One of the errors."""
        value: float | None = getattr(self, f"{quantity.name}_{measure}")
        return value

    def as_dict(self) -> dict[str, int | float | None]:
        """With the units in the names."""
        return {key: getattr(self, name) for name, key in _KEYS.items()}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Errors:
        """The inverse of `as_dict`, in whatever order the keys are, and whatever others there are beside them; what is
        missing counts as without labels."""
        found = {name: row.get(key) for name, key in _KEYS.items()}
        return cls(int(found.pop("n_frames") or 0), int(found.pop("n_atoms") or 0), **found)


_KEYS = {
    "n_frames": "n_frames",
    "n_atoms": "n_atoms",
    **{f"{quantity.name}_{measure}": quantity.key(measure) for quantity in QUANTITIES for measure in MEASURES},
    **{f"{quantity.name}_r2": f"{quantity.name}_r2" for quantity in QUANTITIES},
}
"""Attributes of `Errors`, and their names with units."""


def errors(comparison: Comparison, frames: Sequence[bool] | NDArray[np.bool_] | None = None) -> Errors:
    """Errors over all frames, or over those where `frames` `[n_frames]` is true."""
    chosen = np.ones(len(comparison.n_atoms), dtype=bool) if frames is None else np.asarray(frames, dtype=bool)
    atoms = chosen[comparison.frame_of_atom]
    n_atoms = comparison.n_atoms[chosen]
    return Errors(
        int(chosen.sum()),
        int(atoms.sum()),
        *mae_and_rmse(comparison.energy[chosen], comparison.energy_label[chosen], ENERGY.factor / n_atoms),
        *mae_and_rmse(comparison.forces[atoms], comparison.forces_label[atoms], FORCES.factor),
        *mae_and_rmse(comparison.stress[chosen], comparison.stress_label[chosen], STRESS.factor),
        determination(comparison.energy[chosen] / n_atoms, comparison.energy_label[chosen] / n_atoms),
        determination(comparison.forces[atoms], comparison.forces_label[atoms]),
        determination(comparison.stress[chosen], comparison.stress_label[chosen]),
    )


def determination(predicted: Array, label: Array) -> float | None:
    """The coefficient of determination R², 1 - (sum of squared errors) / (sum of squared deviations of the labels from
    their mean), over the entries that have a label; None if these do not vary.

    A prediction that is no number makes it NaN.
    """
    given = ~np.isnan(label)
    if not given.any() or np.ptp(label[given]) == 0.0:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        deviation = label[given] - label[given].mean()
        return float(1.0 - ((predicted - label)[given] ** 2).sum() / (deviation**2).sum())


def mae_and_rmse(predicted: Array, label: Array, factor: Array | float) -> tuple[float | None, float | None]:
    """Of `factor * (predicted - label)`, over the entries that have a label; None if there are none.

    A prediction that is no number makes them NaN: it must not vanish from them.
    """
    difference = (factor * (predicted - label))[~np.isnan(label)]
    if difference.size == 0:
        return None, None
    with np.errstate(over="ignore"):
        return float(np.abs(difference).mean()), float(np.sqrt((difference**2).mean()))


@dataclass(frozen=True)
class MirrorChange:
    """How far a model's predictions of frames and of their mirror images are apart. The labels of both are equal, so
    that this is an error of the model, and part of those that are found against labels.

    Attributes:
        energy_mean, energy_max: over frames (meV/atom).
        forces_mean, forces_max: over components, the mirror image's turned back (meV/Å).
    """

    energy_mean: float
    energy_max: float
    forces_mean: float
    forces_max: float

    def as_dict(self) -> dict[str, float]:
        """With the units in the names."""
        return {
            ENERGY.key("mean"): self.energy_mean,
            ENERGY.key("max"): self.energy_max,
            FORCES.key("mean"): self.forces_mean,
            FORCES.key("max"): self.forces_max,
        }


def mirror_change(comparison: Comparison, other: Comparison) -> MirrorChange:
    """From predictions of frames and of their mirror images, forces of these turned back."""
    # Predictions that are not finite are named elsewhere.
    with np.errstate(invalid="ignore", over="ignore"):
        energy = ENERGY.factor * np.abs(other.energy - comparison.energy) / comparison.n_atoms
        forces = FORCES.factor * np.abs(other.forces - comparison.forces)
    return MirrorChange(float(energy.mean()), float(energy.max()), float(forces.mean()), float(forces.max()))
