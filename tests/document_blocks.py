"""The blocks of shell and Python of the documents, and a shell that runs them quickly."""

from __future__ import annotations

import glob
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import hienet_deploy.cli
import typer.main
from typer.testing import CliRunner

from hienet.cli import app

ROOT = Path(__file__).resolve().parent.parent

REASONS = (
    "installs packages",
    "compiles",
    "takes minutes",
    "takes hours",
    "needs a cluster",
    "needs a GPU",
    "needs KOKKOS",
    "needs a file that is not ours",
    "needs a program of DFT",
    "a sketch",
)
"""How the reason in `<!-- not run: REASON -->`, on the line before a block that is not run, may begin."""

COMMANDS = {"hienet": typer.main.get_command(app), "hienet-deploy": typer.main.get_command(hienet_deploy.cli.app)}

_PROGRAMS = r"(?:hienet|hienet-deploy|lmp|mpirun|torchrun|srun|make|pip|python|cmake|source|cd) "


@dataclass(frozen=True)
class Block:
    """One fenced block of a document."""

    document: Path
    line: int
    language: str
    text: str
    before: str
    """What stands above it."""
    reason: str | None
    """Why it is not run; None if it is."""

    @property
    def name(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"

    @property
    def lines(self) -> range:
        """Their numbers in the document."""
        return range(self.line + 1, self.line + 1 + self.text.count("\n"))

    @property
    def is_shell(self) -> bool:
        """By its look, whatever its language says."""
        return bool(re.match(_PROGRAMS, self.text))

    @property
    def commands(self) -> list[str]:
        """The lines of a shell block, those that a backslash continues in one piece."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.strip() and not line.startswith("#")]


def blocks_of(document: Path) -> list[Block]:
    """In order; blocks inside list items are not meant to be run."""
    found, lines, start = [], document.read_text().splitlines(), None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
            continue
        marker = re.fullmatch(r"<!-- not run: (.+) -->", lines[start - 1]) if start else None
        text = "\n".join(lines[start + 1 : number]) + "\n"
        reason = marker[1] if marker else None
        before = "\n".join(lines[:start]) + "\n"
        found.append(Block(document, start + 1, lines[start][3:], text, before, reason))
        start = None
    assert start is None, f"{document.name} has an open fence"
    return found


def words_of(command: str) -> list[str] | None:
    """The words of a call of one of our commands; None for what only a shell can run."""
    if not re.match(r"hienet(-deploy)? ", command) or re.search(r"[|<>;&]|\$\(", command.split(" #")[0]):
        return None
    words = shlex.split(command, comments=True)
    return [name for word in words for name in (sorted(glob.glob(word)) if "*" in word else []) or [word]]


def check_options(command: str) -> None:
    """Fails unless all subcommands and options of a call of ours exist; values are not looked at."""
    words = words_of(command)
    if words is None:
        return
    group, rest = COMMANDS[words[0]], words[1:]
    while subcommands := getattr(group, "commands", None):
        assert rest[0] in subcommands, f"there is no command `{rest[0]}` in `{command}`"
        group, rest = subcommands[rest[0]], rest[1:]
    known = {name for parameter in group.params for name in (*parameter.opts, *parameter.secondary_opts)}
    used = {word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
    assert used <= known | {"--help", "-h"}, f"`{command}` has the unknown options {used - known}"


def run_command(command: str, folder: Path, timeout: float = 120) -> str:
    """Output of one line of shell, run in `folder`; our own commands in this process, which saves the import of torch.

    Raises:
        AssertionError: its exit status is not 0.
    """
    here = os.getcwd()
    os.chdir(folder)
    try:
        words = words_of(command)
        if words is not None:
            program = app if words[0] == "hienet" else hienet_deploy.cli.app
            result = CliRunner().invoke(program, words[1:], catch_exceptions=False)
            status, output = result.exit_code, result.output
        else:
            path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
            ended = subprocess.run(
                ["bash", "-ec", command],
                env={**os.environ, "PATH": path},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
            )
            status, output = ended.returncode, ended.stdout + ended.stderr
    finally:
        os.chdir(here)
    # The status 2 of `hienet data check` says that it found something.
    fine = (0, 2) if command.startswith("hienet data check") else (0,)
    assert status in fine, f"`{command}` ended with status {status}: {output[-2000:]}"
    return output
