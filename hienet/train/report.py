"""Plots of a run: learning curves and parity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hienet.files import atomic_path
from hienet.metrics import Comparison, Errors, errors
from hienet.train.logs import Row
from hienet.units import EV_PER_CUBIC_ANGSTROM_IN_GPA

_COLORS = {"train": "#9aa5b1", "validation": "#e08a1e", "test": "#1f6fb4"}
_FALLBACK = "#1f6fb4"
_RESOLUTION = 130


def plot_learning_curves(history: Sequence[Row], path: Path) -> None:
    """Loss, learning rate, and validation errors against the epoch."""
    figure = Figure(figsize=(11.0, 7.0), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    epochs = [row["epoch"] for row in history]
    panels = (
        ("loss", "", (("train_loss", "training", "train"), ("validation_loss", "validation", "validation"))),
        ("energy", "meV/atom", _pair("energy", "mev_per_atom")),
        ("forces", "meV/Å", _pair("forces", "mev_per_angstrom")),
        ("stress", "GPa", _pair("stress", "gpa")),
        (
            "training loss by part (not weighted)",
            "",
            tuple(
                (f"train_loss_{part}", part, color)
                for part, color in zip(("energy", "forces", "stress"), _PARTS, strict=True)
            ),
        ),
        ("learning rate", "", (("learning_rate", "", "test"),)),
    )
    for axis, (title, unit, lines) in zip(axes, panels, strict=True):
        for key, label, color in lines:
            values = [np.nan if row[key] is None else row[key] for row in history]
            if np.isfinite(np.array(values, dtype=float)).any():
                axis.plot(epochs, values, label=label or None, color=_COLORS.get(color, color), linewidth=1.4)
        if axis.lines:
            # A quantity that vanishes throughout has no logarithm.
            if any(np.nanmax(line.get_ydata()) > 0 for line in axis.lines):
                axis.set_yscale("log")
            if axis.get_legend_handles_labels()[0]:
                axis.legend(frameon=False, fontsize=9)
        else:
            axis.text(0.5, 0.5, "no labels", transform=axis.transAxes, ha="center", color="0.5")
        validation = " error (validation)" if unit else ""
        axis.set_title(title + validation, fontsize=10.5)
        axis.set_xlabel("epoch")
        axis.set_ylabel(unit)
        _tidy(axis)
    _save(figure, path)


_PARTS = ("#1f6fb4", "#e08a1e", "#3d9970")


def _pair(quantity: str, unit: str) -> tuple[tuple[str, str, str], ...]:
    return (
        (f"{quantity}_mae_{unit}", "MAE", "test"),
        (f"{quantity}_rmse_{unit}", "RMSE", "train"),
    )


def plot_parity(comparisons: Mapping[str, Comparison], path: Path) -> None:
    """Predictions against labels for energy, forces and stress, with the errors of each set in the legend."""
    figure = Figure(figsize=(12.5, 4.5), layout="constrained")
    axes = figure.subplots(1, 3)
    found = {name: errors(comparison) for name, comparison in comparisons.items()}
    gpa = EV_PER_CUBIC_ANGSTROM_IN_GPA
    panels = (
        ("energy", "eV/atom", lambda c: (c.energy_label / c.n_atoms, c.energy / c.n_atoms)),
        ("force components", "eV/Å", lambda c: (c.forces_label.ravel(), c.forces.ravel())),
        ("stress components", "GPa", lambda c: (gpa * c.stress_label.ravel(), gpa * c.stress.ravel())),
    )
    for axis, (title, unit, values) in zip(axes, panels, strict=True):
        for name, comparison in comparisons.items():
            label, predicted = values(comparison)
            labelled = np.isfinite(label)
            if labelled.any():
                axis.scatter(
                    label[labelled],
                    predicted[labelled],
                    s=9,
                    alpha=0.6,
                    linewidths=0,
                    color=_COLORS.get(name, _FALLBACK),
                    label=f"{name}: {_error_text(title, found[name])}",
                    rasterized=True,
                )
        _diagonal(axis)
        axis.set_title(title, fontsize=10.5)
        axis.set_xlabel(f"label ({unit})")
        axis.set_ylabel(f"prediction ({unit})")
        _tidy(axis)
    _save(figure, path)


def _error_text(title: str, found: Errors) -> str:
    value, unit = {
        "energy": (found.energy_mae, "meV/atom"),
        "force components": (found.forces_mae, "meV/Å"),
        "stress components": (found.stress_mae, "GPa"),
    }[title]
    return "-" if value is None else f"MAE {value:.3g} {unit}"


def _diagonal(axis: Axes) -> None:
    """Equal limits on both axes, and the line on which all points should lie."""
    if not axis.collections:
        axis.text(0.5, 0.5, "no labels", transform=axis.transAxes, ha="center", color="0.5")
        return
    limits: NDArray[np.float64] = np.array([*axis.get_xlim(), *axis.get_ylim()])
    low, high = limits.min(), limits.max()
    axis.plot([low, high], [low, high], color="0.25", linewidth=0.8, zorder=0)
    axis.set_xlim(low, high)
    axis.set_ylim(low, high)
    axis.set_aspect("equal")
    axis.legend(frameon=False, fontsize=8.5, loc="upper left", handletextpad=0.2, markerscale=1.6)


def _tidy(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(True, color="0.93", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=9)


def _save(figure: Figure, path: Path) -> None:
    """As PNG, without pyplot's global state."""
    FigureCanvasAgg(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=_RESOLUTION, format="png")
