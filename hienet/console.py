"""What a person reads in a terminal, a pipe or a log: users' text as it is and harmless, mistakes in one sentence."""

from __future__ import annotations

import io
import sys
from typing import IO, TYPE_CHECKING

import typer

from hienet.errors import HIENetError
from hienet.memory import is_out_of_memory

if TYPE_CHECKING:
    from rich.console import Console

_UNLIMITED = 100_000
"""Columns of what is not a terminal."""


def printable(text: object) -> str:
    """The text on one line: what would move the cursor or colour the terminal (line ends, escape sequences, directions
    of writing) is spelt out as in Python's strings, `\\n` and `\\x1b`, and so are bytes of names that are no text."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in str(text)
    )


def say(text: object) -> None:
    """Print a line, whatever users' names there are in it."""
    print(printable(text))


def make_console(file: IO[str] | None = None) -> Console:
    """A console that takes text for what it is: no `[tag]` and no `:smile:` mean anything, and no number is coloured.

    What is not a terminal has room for any line, so that nothing in it is folded or cut.
    """
    from rich.console import Console

    console = Console(file=file, markup=False, emoji=False, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = _UNLIMITED
    return console


def run_app(app: typer.Typer) -> None:
    """Run a command-line program; a `HIENetError` is printed on standard error and exits with status 1."""
    for stream in (sys.stdout, sys.stderr):
        # Å cannot be written in every encoding: better spelt out than a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except HIENetError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print("error: not enough memory; use a machine with more, or fewer and smaller structures", file=sys.stderr)
        sys.exit(1)
