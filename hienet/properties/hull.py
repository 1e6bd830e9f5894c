"""Distance to the convex hull: how far a compound lies above the best mixture of others of its composition."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.formula import Formula
from scipy.optimize import linprog

from hienet.errors import HIENetError
from hienet.properties.engine import Array


@dataclass(frozen=True)
class Phase:
    """A compound and its energy.

    Attributes:
        fractions: of its atoms, by element.
        energy: eV/atom.
    """

    fractions: Mapping[str, float]
    energy: float


def phase(formula: str, energy: float) -> Phase:
    """Of a formula such as `Mg4O4`.

    Raises:
        HIENetError: it is none.
    """
    try:
        count = Formula(formula).count()
    except ValueError as error:
        raise HIENetError(f"`{formula}` is not a chemical formula; write it like Mg4O4") from error
    total = sum(count.values())
    if not total:
        raise HIENetError("a formula is empty; write it like Mg4O4")
    return Phase({symbol: number / total for symbol, number in count.items()}, energy)


def read_phases(path: str | Path) -> list[Phase]:
    """A table with the columns `formula` and `energy_ev_per_atom`, such as `results.csv` of `hienet relax`.

    Rows without an energy are left out.

    Raises:
        HIENetError: no such file or columns, or a formula or number that is none.
    """
    phases = []
    for row in read_table(path, ("formula", "energy_ev_per_atom")):
        if row["energy_ev_per_atom"]:
            phases.append(phase(row["formula"], number(row["energy_ev_per_atom"], path)))
    if not phases:
        raise HIENetError(f"`{path}` holds no energies; a row is a formula and an energy in eV/atom")
    return phases


def read_table(path: str | Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file.

    Raises:
        HIENetError: no such file, or one of the needed columns lacks.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = [{key: value or "" for key, value in row.items() if key} for row in reader]
            columns = reader.fieldnames or []
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise HIENetError(f"cannot read `{path}`: {reason}; give a CSV file") from error
    missing = [name for name in needed if name not in columns]
    if missing:
        raise HIENetError(
            f"`{path}` has no column `{missing[0]}`; its columns are {', '.join(columns) or 'none'}, needed are "
            f"{', '.join(needed)}"
        )
    return rows


def number(text: str, path: str | Path) -> float:
    """A finite number of a table.

    Raises:
        HIENetError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise HIENetError(f"`{path}` holds `{text}` where a number is expected; leave the cell empty if there is none")
    return value


def distance_to_hull(compound: Phase, references: Sequence[Phase]) -> float:
    """Energy above (positive) or below (negative) the hull of the references, eV/atom.

    The hull's energy is the least of a mixture of the references with the compound's composition: minimise sum_k x_k
    e_k with x_k >= 0 and sum_k x_k f_ka = f_a for each element a, a linear program.

    Args:
        compound: to be placed; it need not be among the references.
        references: at least one for each element, or compounds that give the composition.

    Raises:
        HIENetError: no mixture of the references has the compound's composition.
    """
    elements = sorted(compound.fractions)
    usable = [each for each in references if set(each.fractions) <= set(elements)]
    target: Array = np.array([compound.fractions[element] for element in elements])
    if usable:
        matrix = np.array([[each.fractions.get(element, 0.0) for each in usable] for element in elements])
        found = linprog([each.energy for each in usable], A_eq=matrix, b_eq=target, bounds=(0.0, None), method="highs")
    if not usable or not found.success:
        raise HIENetError(
            f"no mixture of the reference phases has the elements {', '.join(elements)} in these amounts; add a phase "
            "for each of the elements"
        )
    return compound.energy - float(found.fun)
