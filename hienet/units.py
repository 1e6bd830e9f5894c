"""Unit conversions as named constants. Internal units are eV and Å; see docs/conventions.md."""

EV_PER_CUBIC_ANGSTROM_IN_GPA = 160.21766208
"""1 eV/Å^3 in GPa (CODATA 2014, the value ASE uses)."""

EV_PER_CUBIC_ANGSTROM_IN_KBAR = 10.0 * EV_PER_CUBIC_ANGSTROM_IN_GPA
"""1 eV/Å^3 in kbar."""

EV_PER_CUBIC_ANGSTROM_IN_BAR_OF_LAMMPS = 1.6021765e6
"""1 eV/Å^3 in bar, with the digits that LAMMPS uses in metal units."""

COULOMB_CONSTANT = 14.3996454
"""e^2 / (4 pi epsilon_0) in eV Å (CODATA 2018)."""
