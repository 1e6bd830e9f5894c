"""Sets of elements by name."""

from __future__ import annotations

from ase.data import chemical_symbols

MPTRJ_ELEMENTS = tuple(sorted(set(chemical_symbols[1:95]) - {"Po", "At", "Rn", "Fr", "Ra"}))
"""The 89 elements of the MPtrj data set, in alphabetical order."""


def parse_elements(text: str) -> tuple[str, ...]:
    """Symbols separated by commas, or `mptrj`, in alphabetical order."""
    if text.strip().lower() == "mptrj":
        return MPTRJ_ELEMENTS
    return tuple(sorted(symbol for symbol in (part.strip() for part in text.split(",")) if symbol))
