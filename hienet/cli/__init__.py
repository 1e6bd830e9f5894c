"""The command `hienet`."""

from hienet.cli.commands import app, main

__all__ = ["app", "main"]
