"""Unit conversions as named constants. Internal units are eV and Å; see docs/conventions.md."""

EV_PER_CUBIC_ANGSTROM_IN_GPA = 160.21766208
"""1 eV/Å^3 in GPa (CODATA 2014, the value ASE uses)."""

EV_PER_CUBIC_ANGSTROM_IN_KBAR = 10.0 * EV_PER_CUBIC_ANGSTROM_IN_GPA
"""1 eV/Å^3 in kbar."""
