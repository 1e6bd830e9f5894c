"""Reference energies of a trained model, moved to the energies of other calculations."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hienet.checkpoint import Checkpoint
from hienet.data.composition import Array, least_absolute_deviations, least_squares, sums_over_atoms
from hienet.data.dataset import Dataset, MemoryDataset
from hienet.data.isolated import is_isolated
from hienet.derivatives import predict
from hienet.errors import HIENetError

_FRAMES = 500
_OTHER_KIND = 1.0
"""eV/atom between labels and predictions that no error of a trained model explains."""


@dataclass(frozen=True)
class Refit:
    """Reference energies (eV) of a model's elements, in species order, before and after.

    Attributes:
        elements: symbols.
        before, after: energies.
        note: how they were found.
    """

    elements: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    note: str

    def changes(self) -> dict[str, float]:
        """eV by which each element's is moved."""
        return {s: b - a for s, a, b in zip(self.elements, self.before, self.after, strict=True)}

    def lines(self) -> list[str]:
        """For the log: those that change side by side, the others together."""
        moved = [i for i in range(len(self.elements)) if self.before[i] != self.after[i]]
        lines = [f"reference energies (eV): {self.note}"]
        if moved:
            lines.append(f"  {'element':8} {'checkpoint':>13} {'now':>13} {'change':>12}")
        for i in moved:
            change = self.after[i] - self.before[i]
            lines.append(f"  {self.elements[i]:8} {self.before[i]:13.5f} {self.after[i]:13.5f} {change:+12.5f}")
        others = [symbol for symbol, change in self.changes().items() if change == 0.0]
        if moved and others:
            lines.append(f"  as in the checkpoint: {', '.join(others)}")
        return lines

    def applied_to(self, checkpoint: Checkpoint) -> Checkpoint:
        """The model with the new ones."""
        return replace(checkpoint, config=checkpoint.config.model_copy(update={"shift": self.after}))

    def moved(self, dataset: MemoryDataset) -> MemoryDataset:
        """Frames whose energies are of the old kind with energies of the new one."""
        change = sums_over_atoms(dataset, np.array(list(self.changes().values())))
        targets = [
            replace(target, energy=target.energy + float(shift))
            for target, shift in zip(dataset.targets, change, strict=True)
        ]
        labels = [
            label if label.energy is None else replace(label, energy=label.energy + float(shift))
            for label, shift in zip(dataset.labels, change, strict=True)
        ]
        return dataset.with_targets(targets, labels)


def refit_reference_energies(start: Checkpoint, dataset: Dataset) -> tuple[Refit, list[str]]:
    """The smallest change of the reference energies that brings the model's energies to the labels, by least absolute
    deviations.

    Frames unlike the model's data, which are often why it is trained further, are off by more than any change of
    the labels' kind: they would decide a fit of least squares, and spoil the energies of all others. What a trained
    model has learnt of bonds stays; an element of which no frame with an energy has an atom, and one that the
    compositions do not tell from others, changes no more than it must. Frames of isolated atoms, of which trained
    models say anything, are left out.

    Args:
        start: the model, with the elements of `dataset`.
        dataset: ordinary frames with the new labels.

    Returns:
        The energies, and warnings.
    """
    elements, before = start.config.elements, start.config.shift
    chosen = _with_energies(dataset)
    if not chosen:
        return Refit(elements, before, before, "those of the checkpoint, for want of energies among the labels"), []
    left, counts = _errors_per_atom(start, dataset.subset(chosen))
    fractions = counts / counts.sum(axis=1, keepdims=True)
    _, rank = least_squares(fractions, left)
    change = least_absolute_deviations(fractions, left)
    # The fit leaves rounding errors where nothing is to be changed.
    change[~(counts > 0).any(axis=0)] = 0.0
    seen = int((counts > 0).any(axis=0).sum())
    note = f"moved to the labels of {len(chosen)} frames, of which the checkpoint is off by {_described(left)}"
    if rank < seen:
        note += (
            f"; their compositions determine only {rank} of {seen}, so the smallest change is taken, "
            "and energies of other compositions mean nothing"
        )
    after = tuple(float(energy + moved) for energy, moved in zip(before, change, strict=True))
    return Refit(elements, before, after, note), _warnings(left, left - fractions @ change)


def keep_reference_energies(start: Checkpoint, dataset: Dataset) -> Refit:
    """Those of the checkpoint.

    Raises:
        HIENetError: the labels are of another kind of energy.
    """
    chosen = _with_energies(dataset)
    left = _errors_per_atom(start, dataset.subset(chosen))[0] if chosen else np.zeros(0)
    if len(left) and abs(float(np.median(left))) > _OTHER_KIND:
        raise HIENetError(
            "`data.reference_energies` is `keep`, but the labels are of another kind of energy than the checkpoint's, "
            f"which is off by {_described(left)}; let the reference energies be found (`auto`), or give labels of the "
            "same kind"
        )
    shift = start.config.shift
    return Refit(start.config.elements, shift, shift, "those of the checkpoint, as `reference_energies: keep` asks")


def require_same_kind(start: Checkpoint, replay: Dataset) -> None:
    """Refuse replay frames with labels that are not of the checkpoint's kind of energy.

    Raises:
        HIENetError: as said.
    """
    chosen = _with_energies(replay)
    if not chosen:
        return
    left, _ = _errors_per_atom(start, replay.subset(chosen))
    if abs(float(np.median(left))) > _OTHER_KIND:
        raise HIENetError(
            "the energies of `data.replay` are of another kind than the checkpoint's, which is off by "
            f"{_described(left)}; give frames with labels of the kind that the checkpoint was trained on, or set "
            "`data.replay_labels: model`"
        )


def predictions(checkpoint: Checkpoint, dataset: Dataset, derivatives: bool) -> list[dict[str, Tensor]]:
    """What the model says of each frame, in float64: energy `[]` (eV), and with `derivatives` forces `[n, 3]` (eV/Å)
    and stress `[3, 3]` (eV/Å^3)."""
    model = checkpoint.build(torch.float64).requires_grad_(False)
    found = []
    for i in range(len(dataset)):
        graph, _ = dataset.batch([i])
        prediction = predict(model, graph.to(dtype=torch.float64), derivatives)
        one = {"energy": prediction.energy[0]}
        if prediction.forces is not None and prediction.stress is not None:
            one |= {"forces": prediction.forces, "stress": prediction.stress[0]}
        found.append({name: value.detach() for name, value in one.items()})
    return found


def _with_energies(dataset: Dataset) -> list[int]:
    """Frames that have an energy and more than an isolated atom; of many some hundred, at equal distances."""
    single = {i for i in np.flatnonzero(dataset.summary.n_atoms == 1).tolist() if is_isolated(dataset.frames[i].atoms)}
    found = [i for i in np.flatnonzero(np.isfinite(dataset.energies())).tolist() if i not in single]
    return [found[i] for i in np.unique(np.linspace(0, len(found) - 1, min(_FRAMES, len(found))).round().astype(int))]


def _errors_per_atom(checkpoint: Checkpoint, dataset: Dataset) -> tuple[Array, Array]:
    """Label less prediction `[n_frames]` (eV/atom), and the compositions `[n_frames, n_elements]`."""
    predicted = np.array([float(one["energy"]) for one in predictions(checkpoint, dataset, derivatives=False)])
    counts = dataset.compositions(0, len(dataset))
    return (dataset.energies() - predicted) / counts.sum(axis=1), counts


def _described(left: Array) -> str:
    return f"{float(np.median(left)):.4g} eV/atom (median; {float(left.min()):.4g} to {float(left.max()):.4g})"


def _warnings(left: Array, remaining: Array) -> list[str]:
    found = []
    if abs(float(np.median(left))) > _OTHER_KIND:
        found.append(
            f"WARNING: the labels are of another kind of energy than the checkpoint's, which is off by "
            f"{_described(left)}, as with other pseudopotentials or all-electron energies; the reference energies make "
            "up for it"
        )
    spread = float(np.sqrt(np.mean(remaining**2)))
    if spread > _OTHER_KIND:
        found.append(
            f"WARNING: whatever the reference energies, the checkpoint's energies are {spread:.3g} eV/atom (RMS) off; "
            "check that the energies are total energies (eV) of the whole frame"
        )
    return found
