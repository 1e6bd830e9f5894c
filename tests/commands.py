"""The command `hienet` in this process: one that must succeed, and one that must refuse."""

from __future__ import annotations

import sys

import pytest
from typer.testing import CliRunner

from hienet.cli import app, main


def hienet(*arguments: object) -> str:
    """Standard output of a command that must succeed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refusal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """Standard error of a command that must fail with one line and exit status 1."""
    monkeypatch.setattr(sys, "argv", ["hienet", *(str(argument) for argument in arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    return error
