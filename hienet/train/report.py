"""Plots of a run: learning curves and parity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator
from numpy.typing import NDArray

from hienet.console import printable
from hienet.data.composition import least_absolute_deviations
from hienet.figure import own_style, save_figure, tidy
from hienet.metrics import Comparison, Errors, errors
from hienet.quantities import ENERGY, FORCES, QUANTITIES, STRESS, Quantity
from hienet.train.logs import Row

_COLORS = {"train": "#9aa5b1", "validation": "#e08a1e", "test": "#1f6fb4"}
_FALLBACK = "#1f6fb4"
_REACH = 20.0
_LARGEST_PART_OUTSIDE = 0.1

Array = NDArray[np.float64]


@own_style()
def plot_learning_curves(history: Sequence[Row], path: Path) -> None:
    """Loss, learning rate, and validation errors against the epoch."""
    figure = Figure(figsize=(11.0, 7.0), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    epochs = [row["epoch"] for row in history]
    has_validation = any(row["validation_loss"] is not None for row in history)
    # A line of one point cannot be seen.
    style: dict[str, Any] = {"linewidth": 1.4, "marker": "o" if len(history) == 1 else None}
    panels = (
        ("loss", "", (("train_loss", "training", "train"), ("validation_loss", "validation", "validation"))),
        *((quantity.name, quantity.unit, _pair(quantity)) for quantity in QUANTITIES),
        (
            "training loss by part (not weighted)",
            "",
            tuple(
                (f"train_loss_{quantity.name}", quantity.name, color)
                for quantity, color in zip(QUANTITIES, _PARTS, strict=True)
            ),
        ),
        ("learning rate", "", (("learning_rate", "", "test"),)),
    )
    for axis, (title, unit, lines) in zip(axes, panels, strict=True):
        for key, label, color in lines:
            values = [np.nan if row[key] is None else row[key] for row in history]
            if np.isfinite(np.array(values, dtype=float)).any():
                axis.plot(epochs, values, label=label or None, color=_COLORS.get(color, color), **style)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        if axis.lines:
            if len(history) == 1:
                axis.set_xticks(epochs)
            # A quantity that vanishes throughout has no logarithm.
            if any(np.nanmax(line.get_ydata()) > 0 for line in axis.lines):
                axis.set_yscale("log")
                axis.yaxis.set_major_formatter(LogFormatter())
                axis.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1.5, 0.5)))
            if axis.get_legend_handles_labels()[0]:
                axis.legend(frameon=False, fontsize=9)
        else:
            _say(axis, "no labels" if has_validation else "no validation frames")
        validation = " error (validation)" if unit else ""
        axis.set_title(title + validation, fontsize=10.5)
        axis.set_xlabel("epoch")
        axis.set_ylabel(unit)
        tidy(axis)
    save_figure(figure, path)


_PARTS = ("#1f6fb4", "#e08a1e", "#3d9970")


def _pair(quantity: Quantity) -> tuple[tuple[str, str, str], ...]:
    return (quantity.key("mae"), "MAE", "test"), (quantity.key("rmse"), "RMSE", "train")


@own_style()
def plot_parity(comparisons: Mapping[str, Comparison], path: Path) -> None:
    """Predictions against labels for energy, forces and stress, with the errors of each set in the legend.

    From energies, reference energies are subtracted that are fitted to the labels: next to the energies of atoms and
    the differences between compositions, which any fit gets right, errors of electronvolts could not be seen.
    """
    # A line above the panels for each set, which the layout does not make room for by itself.
    figure = Figure(figsize=(12.5, 4.4 + 0.25 * len(comparisons)), layout="constrained")
    axes = figure.subplots(1, 3)
    found = {name: errors(comparison) for name, comparison in comparisons.items()}
    references = _references(list(comparisons.values()))
    gpa = STRESS.factor

    def energies(c: Comparison) -> tuple[Array, Array]:
        subtracted = c.compositions @ references[: c.compositions.shape[1]]
        return (c.energy_label - subtracted) / c.n_atoms, (c.energy - subtracted) / c.n_atoms

    panels: tuple[tuple[Quantity, str, str, Callable[[Comparison], tuple[Array, Array]]], ...] = (
        (ENERGY, "energy", "− reference energies (eV/atom)", energies),
        (FORCES, "force components", "(eV/Å)", lambda c: (c.forces_label.ravel(), c.forces.ravel())),
        (STRESS, "stress components", "(GPa)", lambda c: (gpa * c.stress_label.ravel(), gpa * c.stress.ravel())),
    )
    for axis, (quantity, title, unit, values) in zip(axes, panels, strict=True):
        points = {}
        for name, comparison in comparisons.items():
            label, predicted = values(comparison)
            shown = np.isfinite(label) & np.isfinite(predicted)
            if shown.any():
                points[name] = np.stack([label[shown], predicted[shown]])
                axis.scatter(
                    *points[name],
                    s=9,
                    alpha=0.6,
                    linewidths=0,
                    color=_COLORS.get(name, _FALLBACK),
                    label=f"{name}: {_error_text(quantity, found[name])}",
                    rasterized=True,
                )
        axis.set_xlabel(f"label {unit}")
        axis.set_ylabel(f"prediction {unit}")
        tidy(axis)
        _diagonal(axis, title, list(points.values()))
    save_figure(figure, path)


@own_style()
def plot_errors_of_groups(found: Mapping[str, Errors], title: str, path: Path) -> None:
    """Mean absolute errors above coefficients of determination, of energy, forces and stress, for groups of frames.

    Args:
        found: for each group its errors, in the order in which they are drawn.
        title: what the groups are.
        path: of the PNG.
    """
    figure = Figure(figsize=(12.5, min(6.0 + 0.06 * max(map(len, found)), 8.0)), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True)
    rows = list(found.values())
    # Names with numbers are in their order; between others a line would mean nothing.
    line = "-" if all(any(character.isdigit() for character in name) for name in found) else ""
    panels = (
        ("energy", "MAE (meV/atom)", [row.energy_mae for row in rows], [row.energy_r2 for row in rows]),
        ("force components", "MAE (meV/Å)", [row.forces_mae for row in rows], [row.forces_r2 for row in rows]),
        ("stress components", "MAE (GPa)", [row.stress_mae for row in rows], [row.stress_r2 for row in rows]),
    )
    for column, (quantity, unit, *values) in enumerate(panels):
        for axis, label, given in zip(axes[:, column], (unit, "R²"), values, strict=True):
            numbers = np.array([np.nan if value is None else value for value in given], dtype=float)
            axis.set_ylabel(label)
            tidy(axis)
            if not np.isfinite(numbers).any():
                axis.text(0.5, 0.5, "not defined", transform=axis.transAxes, ha="center", color="0.5")
                continue
            axis.plot(range(len(numbers)), numbers, marker="o", linestyle=line, linewidth=1.2, color=_FALLBACK)
            if label == "R²":
                axis.axhline(1.0, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
            else:
                axis.set_ylim(bottom=0.0)
        axes[0, column].set_title(quantity, fontsize=10.5, loc="left")
        axes[1, column].set_xlabel(printable(title))
        names = [printable(name) for name in found]
        axes[1, column].set_xticks(range(len(names)), names)
        if max(map(len, names)) * len(names) > _CHARACTERS_OF_TICKS:
            axes[1, column].tick_params(axis="x", rotation=90)
    save_figure(figure, path)


_CHARACTERS_OF_TICKS = 34
"""So many fit below a panel side by side."""


def _references(comparisons: Sequence[Comparison]) -> Array:
    """Energy of each element (eV), fitted to the labels of all sets such that a few absurd ones do not matter."""
    n_elements = max((c.compositions.shape[1] for c in comparisons), default=0)
    fractions, energies = [np.zeros((0, n_elements))], [np.zeros(0)]
    for c in comparisons:
        labelled = np.isfinite(c.energy_label)
        n_atoms = c.n_atoms[labelled]
        padded = np.pad(c.compositions[labelled], ((0, 0), (0, n_elements - c.compositions.shape[1])))
        fractions.append(padded / n_atoms[:, None])
        energies.append(c.energy_label[labelled] / n_atoms)
    if sum(map(len, energies)) == 0:
        return np.zeros(n_elements)
    return least_absolute_deviations(np.concatenate(fractions), np.concatenate(energies))


def _error_text(quantity: Quantity, found: Errors) -> str:
    value = found.of(quantity)
    if value is None:
        return "no labels"
    return f"MAE {value:.3g} {quantity.unit}" if value < 1000.0 else f"MAE {value:,.0f} {quantity.unit}"


def _diagonal(axis: Axes, title: str, points: Sequence[Array]) -> None:
    """Equal limits and ticks on both axes, the line on which all points should lie, and above it title and legend.

    Args:
        axis: with `points` on it.
        title: what is shown.
        points: for each set labels and predictions `[2, n]`.
    """
    axis.set_box_aspect(1.0)
    if not points:
        axis.set_title(title, fontsize=10.5, loc="left")
        _say(axis, "no labels")
        return
    low, high, n_outside = _limits(np.concatenate(points, axis=1))
    axis.plot([low, high], [low, high], color="0.25", linewidth=0.8, zorder=0)
    axis.set_xlim(low, high)
    axis.set_ylim(low, high)
    ticks = [tick for tick in MaxNLocator(nbins=5).tick_values(low, high) if low <= tick <= high]
    axis.set_xticks(ticks)
    axis.set_yticks(ticks)
    axis.ticklabel_format(useOffset=False, style="sci", scilimits=(-3, 4), useMathText=True)
    if n_outside:
        text = f"{n_outside} points lie outside" if n_outside > 1 else "1 point lies outside"
        axis.text(0.97, 0.03, text, transform=axis.transAxes, ha="right", fontsize=8.5)
    axis.legend(
        frameon=False,
        title=title,
        title_fontsize=10.5,
        fontsize=8.5,
        alignment="left",
        # Above the points, which may lie anywhere.
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        borderpad=0.0,
        handletextpad=0.2,
        markerscale=1.6,
    )


def _limits(points: Array) -> tuple[float, float, int]:
    """Limits of both axes that show the points `[2, n]` except those far from most, and how many these are."""
    tenth, nine_tenths = np.quantile(points[0], [0.1, 0.9], method="nearest")
    reach = _REACH * (nine_tenths - tenth)
    near = ((points >= tenth - reach) & (points <= nine_tenths + reach)).all(axis=0)
    # Predictions all of which are wrong are what a parity plot is for; and where most labels are equal, none is far.
    if reach == 0.0 or near.mean() < 1.0 - _LARGEST_PART_OUTSIDE:
        near = np.ones_like(near)
    low, high = points[:, near].min(), points[:, near].max()
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return float(low - margin), float(high + margin), int((~near).sum())


def _say(axis: Axes, text: str) -> None:
    """In place of a plot."""
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", color="0.5")
    axis.set_xticks([])
    axis.set_yticks([])
