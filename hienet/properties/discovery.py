"""Matbench Discovery's metrics: how well a model tells stable crystals from unstable ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hienet.errors import HIENetError
from hienet.figure import BLUE, GRAY, ORANGE, save_figure, tidy
from hienet.properties.engine import Array
from hienet.properties.hull import number, read_table


@dataclass(frozen=True)
class Metrics:
    """Of predicted distances to the convex hull (Riebesell et al., Nat. Mach. Intell. 7, 836 (2025)).

    Attributes:
        n: number of crystals.
        f1: harmonic mean of precision and recall.
        daf: discovery acceleration factor, precision over the part of all crystals that are stable.
        precision: part of those called stable that are.
        recall: part of the stable ones that are called so.
        accuracy: part of all that are called right.
        mae: eV/atom.
        rmse: eV/atom.
        r2: coefficient of determination.
        rmsd: mean of the crystals' displacements against DFT's relaxed structures; None if there are none.
    """

    n: int
    f1: float
    daf: float
    precision: float
    recall: float
    accuracy: float
    mae: float
    rmse: float
    r2: float
    rmsd: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def discovery_metrics(reference: Array, predicted: Array, rmsd: Array | None = None, threshold: float = 0.0) -> Metrics:
    """Metrics of a classification as stable: at most `threshold` above the hull.

    A crystal whose prediction is missing (NaN) is called unstable, and has no part in MAE, RMSE and R2.

    Args:
        reference: `[n]` distances to the hull, of DFT (eV/atom).
        predicted: `[n]` of the model.
        rmsd: `[n]` root mean square displacements, NaN where there is none.
        threshold: eV/atom.

    Raises:
        HIENetError: arrays of different lengths or without numbers.
    """
    if reference.shape != predicted.shape or not len(reference) or not np.isfinite(reference).all():
        raise HIENetError(
            f"there are {len(reference)} reference and {len(predicted)} predicted distances; expected equally many, at "
            "least one, and finite references"
        )
    known = np.isfinite(predicted)
    if not known.any():
        raise HIENetError("none of the crystals has a prediction")
    stable = reference <= threshold
    called = np.where(known, predicted, np.inf) <= threshold
    hits = int((stable & called).sum())
    precision = hits / called.sum() if called.any() else float("nan")
    recall = hits / stable.sum() if stable.any() else float("nan")
    f1 = 2 * hits / (called.sum() + stable.sum()) if called.any() or stable.any() else float("nan")
    error = predicted[known] - reference[known]
    spread = ((reference[known] - reference[known].mean()) ** 2).sum()
    return Metrics(
        n=len(reference),
        f1=float(f1),
        daf=float(precision / stable.mean()) if stable.any() else float("nan"),
        precision=float(precision),
        recall=float(recall),
        accuracy=float((stable == called).mean()),
        mae=float(np.abs(error).mean()),
        rmse=float(np.sqrt((error**2).mean())),
        r2=float(1.0 - (error**2).sum() / spread) if spread > 0 else float("nan"),
        rmsd=None if rmsd is None or not np.isfinite(rmsd).any() else float(np.nanmean(rmsd)),
    )


REFERENCE, PREDICTED, RMSD = "e_above_hull_dft_ev_per_atom", "e_above_hull_ev_per_atom", "rmsd"


def read_distances(path: str | Path) -> tuple[Array, Array, Array | None]:
    """Reference, prediction and, where there is such a column, displacement of each row; NaN for empty cells.

    Rows without a reference are left out.

    Raises:
        HIENetError: no such file or columns, or a cell that is no number.
    """
    rows = [row for row in read_table(path, (REFERENCE, PREDICTED)) if row[REFERENCE]]
    if not rows:
        raise HIENetError(f"`{path}` holds no values in the column `{REFERENCE}`")

    def column(name: str) -> Array:
        return np.array([number(row[name], path) if row.get(name) else np.nan for row in rows])

    return column(REFERENCE), column(PREDICTED), column(RMSD) if RMSD in rows[0] else None


def draw(path: Path, reference: Array, predicted: Array, found: Metrics) -> None:
    """Predicted against reference distances, with the quadrants of a classification."""
    figure = Figure(figsize=(5.0, 4.8), layout="constrained")
    axis = figure.subplots()
    known = np.isfinite(predicted)
    right = (reference <= 0) == (predicted <= 0)
    for chosen, color, label in ((right, BLUE, "called right"), (~right, ORANGE, "called wrong")):
        mask = known & chosen
        axis.scatter(reference[mask], predicted[mask], s=10, color=color, alpha=0.6, linewidths=0, label=label)
    both = np.concatenate([reference[known], predicted[known]])
    low, high = float(np.quantile(both, 0.005)), float(np.quantile(both, 0.995))
    margin = 0.08 * (high - low) or 0.1
    axis.plot([low - margin, high + margin], [low - margin, high + margin], color="0.25", linewidth=0.8, zorder=0)
    axis.axhline(0.0, color=GRAY, linewidth=0.9)
    axis.axvline(0.0, color=GRAY, linewidth=0.9)
    axis.set_xlim(low - margin, high + margin)
    axis.set_ylim(low - margin, high + margin)
    axis.set_box_aspect(1.0)
    axis.set_xlabel("distance to the hull, DFT (eV/atom)")
    axis.set_ylabel("distance to the hull, model (eV/atom)")
    axis.set_title(f"F1 {found.f1:.3f}, DAF {found.daf:.2f}, MAE {found.mae:.3f} eV/atom", fontsize=10.5)
    axis.legend(frameon=False, fontsize=9)
    tidy(axis)
    save_figure(figure, path)
