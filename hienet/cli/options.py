"""Options that several commands have, and what they do alike."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from hienet.console import say

EnergyKey = Annotated[str | None, typer.Option(help="Name of the energy in the files.", show_default=False)]
ForcesKey = Annotated[str | None, typer.Option(help="Name of the forces.", show_default=False)]
StressKey = Annotated[str | None, typer.Option(help="Name of the stress.", show_default=False)]
VirialKey = Annotated[str | None, typer.Option(help="Name of the virial, in place of a stress.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace an existing file.")]


def require_free(path: Path, force: bool) -> None:
    """Refuse to replace a file unasked.

    Raises:
        HIENetError: it exists.
    """
    from hienet.errors import HIENetError

    if path.exists() and not force:
        raise HIENetError(f"`{path}` exists; add --force to replace it, or choose another name with --output")


def write_configuration(path: Path, text: str, remarks: Iterable[str]) -> None:
    """A configuration of a training, and what to do with it."""
    from hienet.files import atomic_path

    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    for line in remarks:
        say(line)
    say(f"wrote {path}; look it over, then run: hienet train {path}")
