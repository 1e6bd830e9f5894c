"""How the command-line programs end: mistakes of the input in one sentence, without a traceback."""

from __future__ import annotations

import sys

import typer

from hienet.errors import HIENetError
from hienet.memory import is_out_of_memory


def run_app(app: typer.Typer) -> None:
    """Run a command-line program; a `HIENetError` is printed on standard error and exits with status 1."""
    try:
        app()
    except HIENetError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print("error: not enough memory; use a machine with more, or fewer and smaller structures", file=sys.stderr)
        sys.exit(1)
