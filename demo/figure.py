"""The demo's figure: parity, energy drift, structure, volume."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from analysis import Dynamics
from matplotlib.axes import Axes
from numpy.typing import NDArray

from hienet.evaluate import Evaluation, symbols_of
from hienet.files import atomic_path

COLORS = {"Si": "#0072b2", "C": "#d55e00"}


def draw_report(
    path: Path, evaluation: Evaluation, runs: Mapping[str, Dynamics], rdf: Mapping[str, NDArray[np.float64]]
) -> None:
    """Write the figure as PNG."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 8), layout="constrained")
    figure.suptitle("3C-SiC: HIENet trained on PBE, run in LAMMPS on two MPI ranks")
    _parity(axes[0, 0], evaluation)
    _drift(axes[0, 1], runs["NVE 300 K"])
    _structure(axes[1, 0], rdf)
    _volume(axes[1, 1], runs)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)


def _parity(axes: Axes, evaluation: Evaluation) -> None:
    comparison, symbols = evaluation.comparison, symbols_of(evaluation.dataset)
    for symbol, color in COLORS.items():
        chosen = symbols == symbol
        label = comparison.forces_label[chosen].ravel()
        axes.plot(label, comparison.forces[chosen].ravel(), ".", ms=4, alpha=0.5, color=color, label=symbol)
    low, high = axes.get_xlim()
    axes.plot([low, high], [low, high], color="0.5", lw=0.8, zorder=0)
    axes.set(
        xlabel="DFT force component (eV/Å)",
        ylabel="HIENet (eV/Å)",
        title=f"forces of {evaluation.total.n_frames} test frames: MAE {evaluation.total.forces_mae:.0f} meV/Å",
    )
    axes.legend(frameon=False)


def _drift(axes: Axes, run: Dynamics) -> None:
    time, energy = run.columns["Time"], run.columns["TotEng"] / run.n_atoms
    axes.plot(time, 1e3 * (energy - energy[0]), color="k", lw=1, label="total energy")
    potential = run.columns["PotEng"] / run.n_atoms
    axes.plot(time, 1e3 * (potential - potential.mean()), color="0.7", lw=1, label="potential energy, from its mean")
    axes.set(xlabel="time (ps)", ylabel="energy (meV/atom)", title=f"NVE at 300 K: drift {run.drift:+.3f} meV/atom/ps")
    axes.legend(frameon=False)


def _structure(axes: Axes, rdf: Mapping[str, NDArray[np.float64]]) -> None:
    for name, color in (("Si-C", "k"), ("Si-Si", COLORS["Si"]), ("C-C", COLORS["C"])):
        axes.plot(rdf["r"], rdf[name], color=color, lw=1, label=name)
    axes.set(xlabel="r (Å)", ylabel="g(r)", title="NVT at 300 K", xlim=(1.2, float(rdf["r"].max())), ylim=(0, None))
    axes.legend(frameon=False)


def _volume(axes: Axes, runs: Mapping[str, Dynamics]) -> None:
    for name, color in (("NPT 300 K", COLORS["Si"]), ("NPT 1500 K", COLORS["C"])):
        run = runs[name]
        axes.plot(run.columns["Time"], run.columns["Volume"] / run.n_atoms, color=color, lw=1, label=name)
        axes.axhline(run.mean_volume / run.n_atoms, color=color, lw=0.8, ls=":")
    axes.set(xlabel="time (ps)", ylabel="volume (Å³/atom)", title="NPT; dotted: mean of the last 60 %")
    axes.legend(frameon=False)
