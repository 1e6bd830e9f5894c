"""The labelled quantities as users read their errors: names, units and formats, in one place."""

from __future__ import annotations

from dataclasses import dataclass

from hienet.units import EV_PER_CUBIC_ANGSTROM_IN_GPA


@dataclass(frozen=True)
class Quantity:
    """One that has labels.

    Attributes:
        name: in keys and headings.
        symbol: before MAE and RMSE in a table.
        short: where only one of its errors is shown.
        unit: of its errors.
        unit_in_keys: the same in names of columns and entries.
        form: of its errors, as `format` has it.
        factor: from eV (per atom), eV/Å or eV/Å^3 to `unit`.
    """

    name: str
    symbol: str
    short: str
    unit: str
    unit_in_keys: str
    form: str
    factor: float

    def key(self, measure: str) -> str:
        """Of a column or an entry: `energy_mae_mev_per_atom`."""
        return f"{self.name}_{measure}_{self.unit_in_keys}"

    def cell(self, value: float | None) -> str:
        """An error in a table."""
        return "-" if value is None else format(value, self.form)


ENERGY = Quantity("energy", "E", "E", "meV/atom", "mev_per_atom", ".2f", 1e3)
FORCES = Quantity("forces", "F", "F", "meV/Å", "mev_per_angstrom", ".1f", 1e3)
STRESS = Quantity("stress", "S", "stress", "GPa", "gpa", ".3f", EV_PER_CUBIC_ANGSTROM_IN_GPA)

QUANTITIES = (ENERGY, FORCES, STRESS)

MEASURES = ("mae", "rmse")
"""Mean absolute and root mean square."""
