"""Numbers and figures of the example decks: `python ../plot.py thermal_expansion` in the folder in which LAMMPS ran.

Reads `log.lammps`, or the log named as the second argument, and what the deck wrote beside it; prints the result and
draws `DECK.png`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hienet.figure import BLUE, COLORS, GREEN, ORANGE, own_style, save_figure, tidy

Array = NDArray[np.float64]
Table = dict[str, Array]


def thermo_tables(log: Path) -> list[Table]:
    """The thermodynamic output of each run in a log of LAMMPS, as columns by name."""
    tables: list[Table] = []
    names: list[str] = []
    rows: list[list[float]] = []
    for line in [*log.read_text().splitlines(), "Loop time"]:
        words = line.split()
        if words[:1] == ["Step"]:
            names, rows = words, []
        elif names and re.match(r"\s*\d+\s", line) and len(words) == len(names):
            rows.append([float(word) for word in words])
        elif names and line.startswith("Loop time"):
            tables.append(dict(zip(names, np.array(rows).T, strict=True)))
            names = []
    if not tables:
        raise SystemExit(f"error: `{log}` holds no complete run of LAMMPS")
    return tables


def chunks(path: Path) -> list[Array]:
    """The tables of `fix ave/chunk` or `fix ave/correlate`, one for each time of output: `[n_rows, n_columns]`."""
    found: list[list[list[float]]] = []
    expected = 0
    for line in path.read_text().splitlines():
        words = line.split()
        if line.startswith("#"):
            continue
        if expected == 0:
            expected = int(words[1])
            found.append([])
        else:
            found[-1].append([float(word) for word in words])
            expected -= 1
    return [np.array(rows) for rows in found]


def mean_and_error(values: Array, n_blocks: int = 5) -> tuple[float, float]:
    """The mean, and its standard error from the means of blocks, which are less correlated than the values."""
    blocks = np.array([block.mean() for block in np.array_split(values, n_blocks)])
    return float(values.mean()), float(blocks.std(ddof=1) / np.sqrt(n_blocks))


def thermal_expansion(log: Path, axis: Axes) -> str:
    tables = thermo_tables(log)[1::2]
    temperatures = np.array([table["Temp"].mean() for table in tables])
    sizes, errors = np.array([mean_and_error(table["v_a"]) for table in tables]).T
    slope, at_zero = np.polyfit(temperatures, sizes, 1)
    axis.errorbar(temperatures, sizes, 2 * errors, fmt="o", color=BLUE, label="mean, with twice its standard error")
    axis.plot(temperatures, at_zero + slope * temperatures, color=ORANGE, label="line")
    axis.set(xlabel="temperature (K)", ylabel="lattice constant (Å)")
    axis.legend(frameon=False)
    at_300 = at_zero + slope * 300
    return f"lattice constant at 300 K {at_300:.4f} Å, linear thermal expansion {1e6 * slope / at_300:.2f}e-6 /K"


def tensile(log: Path, axis: Axes) -> str:
    table = thermo_tables(log)[-1]
    strain, stress = table["v_strain"], table["v_stress"]
    small = strain < 0.03
    modulus = np.polyfit(strain[small], stress[small], 1)[0]
    strongest = int(stress.argmax())
    axis.plot(strain, stress, color=BLUE)
    axis.plot(strain[small], modulus * strain[small], color=ORANGE, linewidth=3, label=f"modulus {modulus:.0f} GPa")
    axis.plot(strain[strongest], stress[strongest], "o", color=GREEN, label=f"strength {stress[strongest]:.1f} GPa")
    axis.set(xlabel="strain", ylabel="stress (GPa)")
    axis.legend(frameon=False)
    return (
        f"Young's modulus {modulus:.0f} GPa (strains below 0.03), strength {stress[strongest]:.1f} GPa at a strain of "
        f"{strain[strongest]:.2f}"
    )


def diffusion(log: Path, axis: Axes) -> str:
    table = thermo_tables(log)[-1]
    time = table["Time"] - table["Time"][0]
    displacement = table["c_msd[4]"]
    # The first fifth is left out: there atoms fly, or shake in the cage of their neighbours.
    late = time >= 0.2 * time[-1]
    slope, start = np.polyfit(time[late], displacement[late], 1)
    axis.plot(time, displacement, color=BLUE, label="mean squared displacement")
    axis.plot(time[late], start + slope * time[late], color=ORANGE, linestyle="--", label="line")
    axis.set(xlabel="time (ps)", ylabel="mean squared displacement (Å²)")
    axis.legend(frameon=False)
    # <r^2> = 6 D t; 1 Å²/ps = 1e-4 cm²/s.
    return f"diffusion coefficient {slope / 6 * 1e-4:.2e} cm²/s at {table['Temp'].mean():.0f} K"


def melting(log: Path, axis: Axes) -> str:
    table = thermo_tables(log)[-1]
    time, temperature = table["Time"] - table["Time"][0], table["Temp"]
    last = time >= 0.5 * time[-1]
    mean, error = mean_and_error(temperature[last])
    axis.plot(time, temperature, color=BLUE, linewidth=1)
    axis.plot(time[last], np.full(last.sum(), mean), color=ORANGE, linewidth=3, label=f"{mean:.0f} K")
    axis.set(xlabel="time (ps)", ylabel="temperature (K)")
    axis.legend(frameon=False)
    # In the crystal the density along the box has a peak for each plane of atoms; in the melt it is flat.
    grid = axis.figure.add_gridspec(2, 1)
    axis.set_subplotspec(grid[0])
    profile = axis.figure.add_subplot(grid[1])
    rows = chunks(log.parent / "profile.txt")[-1]
    profile.plot(rows[:, 1], rows[:, 3], color=GREEN)
    profile.set(xlabel="place along the box, last quarter of the run", ylabel="atoms/Å³")
    tidy(profile)
    return f"temperature of both phases {mean:.0f} ± {error:.0f} K; look at the figure, whether both are there"


def thermal_conductivity(log: Path, axis: Axes) -> str:
    correlation = chunks(log.parent / "heat_flux.txt")[-1]
    line = re.findall(r"^correlation: (\S+) ps between its rows, (\S+) W", log.read_text(), re.MULTILINE)[-1]
    step, factor = map(float, line)
    time = step * np.arange(len(correlation))
    directions = correlation[:, 3:6]
    steps = 0.5 * (directions[1:] + directions[:-1]) * step
    integrals = factor * np.vstack([np.zeros(3), np.cumsum(steps, axis=0)])
    mean = integrals.mean(axis=1)
    for values, color, name in zip(integrals.T, COLORS[1:], "xyz", strict=False):
        axis.plot(time, values, color=color, linewidth=0.8, label=name)
    axis.plot(time, mean, color=BLUE, linewidth=2.5, label="mean")
    axis.set(xlabel="upper limit of the integral (ps)", ylabel="conductivity (W/(m K))")
    axis.legend(frameon=False)
    late = time >= 0.5 * time[-1]
    level, spread = mean[late].mean(), integrals[late].mean(axis=0).std(ddof=1) / np.sqrt(3)
    return f"thermal conductivity {level:.0f} ± {spread:.0f} W/(m K), mean of the second half of the integral"


def slab(log: Path, axis: Axes) -> str:
    pattern = r"^slab: (\S+) layers, area (\S+) Angstrom\^2, (\S+) eV cleaved, (\S+) eV relaxed"
    rows = np.array(re.findall(pattern, log.read_text(), re.MULTILINE), dtype=float)
    layers, area = rows[:, 0], rows[0, 1]
    found = []
    for energies, color, name in ((rows[:, 2], ORANGE, "cleaved"), (rows[:, 3], BLUE, "relaxed")):
        bulk, _ = np.polyfit(layers, energies, 1)
        # 1 eV/Å² = 16.0218 J/m².
        energy = 16.0218 * (energies - bulk * layers) / (2 * area)
        found.append(f"{name} {energy.mean():.2f} J/m²")
        axis.plot(layers, energy, "o-", color=color, label=name)
    # From zero, with some room above.
    axis.set_ylim(0, 1.2 * axis.get_ylim()[1])
    axis.set(xlabel="layers in the slab", ylabel="surface energy (J/m²)")
    axis.legend(frameon=False)
    return "surface energy, " + ", ".join(found)


DECKS: dict[str, Callable[[Path, Axes], str]] = {
    function.__name__: function
    for function in (thermal_expansion, tensile, diffusion, melting, thermal_conductivity, slab)
}


@own_style()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("deck", choices=list(DECKS))
    parser.add_argument("log", nargs="?", type=Path, default=Path("log.lammps"))
    arguments = parser.parse_args()
    if not arguments.log.is_file():
        parser.error(f"there is no log `{arguments.log}`: run `lmp -in in.{arguments.deck}` first, or name the log")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.add_subplot()
    print(DECKS[arguments.deck](arguments.log, axis))
    tidy(axis)
    axis.set_title(arguments.deck.replace("_", " "), loc="left", fontsize=11)
    save_figure(figure, Path(f"{arguments.deck}.png"))


if __name__ == "__main__":
    main()
