"""Users' names are shown as they are, and no number is cut, wherever a command prints."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import yaml
from hienet_deploy.cli import _quoted
from labelled_frames import emt_frames, tiny_values
from rich.console import Console
from typer.testing import CliRunner

from hienet.cli import app
from hienet.config import load_config
from hienet.console import make_console, printable, run_app
from hienet.evaluate import evaluate
from hienet.info import describe_architectures, describe_file
from hienet.metrics import Errors
from hienet.tables import print_architectures, print_description, print_errors, print_facts, print_table
from hienet.testing import write_tiny_checkpoint
from hienet.train.display import LineDisplay, LiveDisplay, make_display
from hienet.train.logs import COLUMNS, RunLog

HOSTILE = {
    "x[/y]": "x[/y]",
    "[red]": "[red]",
    "bulk[fcc]": "bulk[fcc]",
    "bulk[bcc]": "bulk[bcc]",
    r"back\[slash": r"back\[slash",
    ":smile:": ":smile:",
    "[link=file:///etc]a[/link]": "[link=file:///etc]a[/link]",
    "all": "all",
    "all frames": '"all frames"',
    "(none)": '"(none)"',
    "": "(none)",
    "long" * 40: "long" * 40,
    "Å漢字ü": "Å漢字ü",
    "two\nlines": r"two\nlines",
    "tab\there": r"tab\there",
    "bell\x07": r"bell\x07",
    "colour\x1b[31m": r"colour\x1b[31m",
    "right\u202eleft": r"right\u202eleft",
    "bytes\udcff": r"bytes\udcff",
    "100%": "100%",
    "{0}": "{0}",
    "-": "-",
}
"""Names of frames' groups, and how they are shown."""

WIDTHS = (20, 40, 60, 80, 200)


def terminal(width: int) -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    return Console(file=output, width=width, force_terminal=True, color_system=None, _environ={}), output


def errors(scale: float = 1.0) -> Errors:
    """Numbers of the greatest lengths that occur, distinct for each scale."""
    return Errors(
        int(100_000 * scale), 7, 12_345.67 * scale, 0.25, 98_765.4 * scale, 123.4, 0.001 * scale, 1234.567 * scale
    )


def words(text: str) -> list[str]:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).split()


def numbers_of(found: Errors) -> list[str]:
    values = (found.energy_mae, found.energy_rmse, found.forces_mae, found.forces_rmse, found.stress_mae)
    forms = (".2f", ".2f", ".1f", ".1f", ".3f")
    return [str(found.n_frames), *(f"{value:{form}}" for value, form in zip(values, forms, strict=True))]


@pytest.mark.parametrize("width", WIDTHS)
def test_every_row_of_the_errors_is_there_with_whole_numbers(width):
    console, output = terminal(width)
    rows = [(name, errors(1.0 + 0.01 * i)) for i, name in enumerate(HOSTILE)]
    print_errors(console, "config_type", rows, errors(0.5))
    found = words(output.getvalue())
    for _, row in rows:
        for number in numbers_of(row):
            assert number in found
    for number in numbers_of(errors(0.5)):
        assert number in found
    # Where there is room; else a name is folded.
    text = "".join(found)
    for shown in HOSTILE.values():
        assert shown.replace(" ", "") in text or len(shown) > width - 75
    assert "…" not in output.getvalue()
    assert output.getvalue().count("\x1b") == output.getvalue().count("\x1b[")
    assert "\x1b[31m" not in output.getvalue()
    assert all(len(line) <= width for line in output.getvalue().splitlines() if line.isascii())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", [name for name in HOSTILE if name.strip()])
def test_names_are_shown_as_they_are(name, width):
    console, output = terminal(width)
    print_table(console, ("name", "number"), [(name, "12345.678")], title=name)
    print_facts(console, {name: name}, title="facts")
    text = output.getvalue().replace("\n", "").replace(" ", "")
    assert text.count(printable(name).replace(" ", "")) >= 3 or width < len(name) + 20
    assert "12345.678" in words(output.getvalue())


def test_a_pipe_gets_each_row_on_one_line():
    output = io.StringIO()
    console = make_console(output)
    print_errors(console, "config_type", [(name, errors()) for name in HOSTILE], errors())
    lines = output.getvalue().splitlines()
    for shown in HOSTILE.values():
        assert [line for line in lines if line.startswith(f"{shown} ") or line.split("  ")[0] == shown], shown
    # Two of headings, one empty.
    assert len(lines) == 2 + len(HOSTILE) + 1 + 1
    for line in [*lines[2:-2], lines[-1]]:
        assert line.split()[-7:] == ["100000", "12345.67", "0.25", "98765.4", "123.4", "0.001", "1234.567"]


@pytest.mark.parametrize("width", WIDTHS)
def test_numbers_of_models_are_whole(width, checkpoint_path):
    console, output = terminal(width)
    description = describe_file(checkpoint_path)
    print_description(console, description)
    print_architectures(console, describe_architectures())
    found = words(output.getvalue())
    for stage in description["stages"]:
        assert str(stage["width"]) in found
    for family in describe_architectures():
        for preset in family["presets"]:
            assert f"{preset['parameters']:,}" in found
    assert "…" not in output.getvalue()


EPOCH = {
    **dict.fromkeys(COLUMNS, None),
    "epoch": 12345,
    "step": 1,
    "seconds": 1.0,
    "learning_rate": 1.25e-3,
    "train_loss": 6.789e2,
    "validation_loss": 4.321e5,
    "energy_mae_mev_per_atom": 98765.43,
    "forces_mae_mev_per_angstrom": 54321.9,
    "stress_mae_gpa": 1234.567,
}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", [LiveDisplay, LineDisplay])
def test_the_numbers_of_an_epoch_are_whole(width, kind):
    console, output = terminal(width)
    with kind(console, 20000) as display:
        display.epoch(dict(EPOCH), True)
    found = words(output.getvalue())
    for number in ("1.25e-03", "6.789e+02", "4.321e+05", "98765.43", "54321.9", "1234.567"):
        assert number in found, number
    assert "…" not in output.getvalue()


def test_the_display_is_live_in_a_terminal_and_lines_elsewhere():
    assert isinstance(make_display(terminal(80)[0], 3), LiveDisplay)
    assert isinstance(make_display(make_console(io.StringIO()), 3), LineDisplay)


def test_a_log_has_a_line_for_each_thing_that_is_said(tmp_path):
    log = RunLog(tmp_path, [])
    for name in HOSTILE:
        log.say(f"read `{name}`")
    lines = (tmp_path / "train.log").read_text(encoding="utf-8").splitlines()
    assert [line.split("  read ", 1)[1] for line in lines] == [f"`{printable(name)}`" for name in HOSTILE]


# --- commands


def labelled(names: list[str], path: Path) -> Path:
    frames = emt_frames(len(names))
    for frame, name in zip(frames, names, strict=True):
        frame.info["config_type"] = name
    ase.io.write(path, frames, format="extxyz")
    return path


def run(*arguments: object, columns: str = "", encoding: str = "utf-8") -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"}
    if columns:
        environment["COLUMNS"] = columns
    return subprocess.run(
        [sys.executable, "-m", "hienet", *(os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments)],
        capture_output=True,
        env=environment,
        timeout=300,
    )


IN_FILES = ["x[/y]", "[red]", "bulk[fcc]", "bulk[bcc]", ":smile:", "all", "all frames", "(none)", "Å漢字", "long" * 30]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("console") / "m[bold]:smile:.pt", elements=("Ag", "Cu"))


@pytest.mark.parametrize(("columns", "encoding"), [("", "utf-8"), ("40", "utf-8"), ("40", "ascii")])
def test_eval_shows_every_group(model, tmp_path, columns, encoding):
    data = labelled(IN_FILES, tmp_path / "d[red][i].extxyz")
    found = run("eval", model, data, "-o", tmp_path / "[bold]out", columns=columns, encoding=encoding)
    assert found.returncode == 0, found.stderr
    lines = found.stdout.decode(encoding).splitlines()
    for name in IN_FILES:
        shown = f'"{name}"' if name in ("all frames", "(none)") else name
        shown = shown.encode(encoding, "backslashreplace").decode(encoding)
        assert [line for line in lines if line.startswith(shown) and line.split()[-7:-6] == ["1"]], name
    n_all = [str(len(IN_FILES))]
    assert [line for line in lines if line.startswith("all frames ") and line.split()[-7:-6] == n_all]
    assert b"[bold]out" in found.stdout
    with (tmp_path / "[bold]out" / "errors.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:12]] == ["all", *sorted_rows(IN_FILES)]
    assert set(json.loads((tmp_path / "[bold]out" / "errors.json").read_text())["by_config_type"]) == set(IN_FILES)


def sorted_rows(names: list[str]) -> list[str]:
    return [f'config_type "{n}"' if n in ("all frames", "(none)") else f"config_type {n}" for n in sorted(names)]


def test_a_group_named_none_is_not_that_of_frames_without_one(model, tmp_path):
    frames = emt_frames(4)
    for frame, name in zip(frames, ("(none)", None, "x", "x"), strict=True):
        frame.info = {} if name is None else {"config_type": name}
    ase.io.write(tmp_path / "d.extxyz", frames, format="extxyz")
    found = evaluate(model, [tmp_path / "d.extxyz"])
    output = io.StringIO()
    print_errors(make_console(output), "config_type", list(found.by_group.items()), found.total)
    rows = [line.split()[:2] for line in output.getvalue().splitlines()[2:5]]
    assert rows == [["(none)", "1"], ['"(none)"', "1"], ["x", "2"]]


def test_init_writes_a_configuration_whatever_the_groups_are_called(tmp_path):
    """A line end in a name must not end the comment that shows it."""
    data = tmp_path / "data.traj"
    frames = emt_frames(4)
    names = ["a\noutput: elsewhere", "b\rmodel: {}", "c\u2028seed: 3", "[/y]"]
    for frame, name in zip(frames, names, strict=True):
        frame.info["config_type"] = name
    ase.io.write(data, frames)
    config = tmp_path / "config.yaml"
    result = CliRunner().invoke(app, ["init", str(data), "-o", str(config)], catch_exceptions=False)
    assert result.exit_code == 0
    assert load_config(config).output == "hienet_training"
    for name in names:
        assert f"{printable(name)} 1" in result.output
        assert f"{printable(name)} 1" in config.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["[/y]", "[red]x", ":smile:", "a\nb", "a\x1b[31m", "ü漢", b"\xff\xfe", "x" * 200])
@pytest.mark.parametrize("command", ["eval", "info", "train", "convert", "init"])
def test_a_name_in_an_error_is_one_line(command, name, tmp_path, monkeypatch):
    path = os.fsdecode(name)
    arguments = {
        "eval": ["eval", path, "data.extxyz", "-o", str(tmp_path)],
        "convert": ["convert", path, "-o", str(tmp_path / "m.pt")],
    }.get(command, [command, path])
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(written, encoding="ascii", errors="backslashreplace"))
    monkeypatch.setattr(sys, "argv", ["hienet", *arguments])
    monkeypatch.setenv("COLUMNS", "40")
    with pytest.raises(SystemExit) as ended:
        run_app(app)
    assert ended.value.code == 1
    sys.stderr.flush()
    text = written.getvalue().decode("ascii")
    assert text.startswith("error: ")
    assert len(text.splitlines()) == 1
    assert "\x1b" not in text
    assert printable(path).encode("ascii", "backslashreplace").decode() in text


def test_a_run_with_hostile_names_trains_and_tells(tmp_path):
    data = labelled(list(IN_FILES), tmp_path / "d[red].extxyz")
    folder = tmp_path / "run [red]:smile:"
    config = tmp_path / "c[red].yaml"
    config.write_text(yaml.safe_dump(tiny_values(data, folder, epochs=1)), encoding="utf-8")
    found = run("train", config, columns="40")
    assert found.returncode == 0, found.stderr
    text = found.stdout.decode()
    assert f"output in {folder}" in text
    assert f"model: {folder / 'best.pt'}" in text
    described = run("info", folder / "best.pt", columns="40").stdout.decode()
    assert str(data) in described
    assert str(folder / "best.pt") in described


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        ("m.hienet.pt", "m.hienet.pt"),
        ("a b.pt", '"a b.pt"'),
        ("a#b.pt", '"a#b.pt"'),
        ("a$b.pt", '"a$b.pt"'),
        ("it's.pt", '"it\'s.pt"'),
        ('a"b.pt', '"""a"b.pt"""'),
        ("[/y].pt", "[/y].pt"),
    ],
)
def test_the_line_to_paste_quotes_what_lammps_would_read_otherwise(name, quoted):
    assert _quoted(name) == quoted


def test_printable_text_stays_and_the_rest_is_spelt_out():
    assert printable("Å ² µ 漢字 ü é [x] \\") == "Å ² µ 漢字 ü é [x] \\"
    for name in HOSTILE:
        assert printable(name).isprintable()
    assert np.unique([printable(name) for name in HOSTILE]).size == len(HOSTILE)
