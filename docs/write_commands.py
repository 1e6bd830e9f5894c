"""Writes docs/commands.md: every command with its options, an example, and what the example prints.

    python docs/write_commands.py             # runs all examples, some minutes, and writes the page
    python docs/write_commands.py --options   # only the options anew; outputs stay as they were recorded

Options and their sentences are read from the commands; nothing of them is typed.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hienet_deploy.cli
import typer.main
from typer.testing import CliRunner

from hienet.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "commands.md"

DATA = "cp HIENET/demo/data/sic_pbe.extxyz HIENET/lammps_examples/sic.pt HIENET/lammps_examples/sic.hienet.pt ."

EXAMPLES = {
    "hienet models": "hienet models",
    "hienet data stats": "hienet data stats sic_pbe.extxyz",
    "hienet data check": "hienet data check sic_pbe.extxyz",
    "hienet data split": "hienet data split sic_pbe.extxyz -o parts --validation 0.1 --test 0.1 --stratify config_type",
    "hienet data convert": "hienet data convert parts/train.extxyz -o cache --cutoff 4",
    "hienet init": "hienet init parts/train.extxyz -o config.yaml --minutes 0.5",
    "hienet train": "hienet train config.yaml",
    "hienet eval": "hienet eval hienet_training/best.pt parts/test.extxyz",
    "hienet finetune": "hienet finetune sic.pt parts/validation.extxyz -o finetune.yaml",
    "hienet schema": "hienet schema -o schema.json",
    "hienet info": "hienet info sic.hienet.pt",
    "hienet new": "hienet new --elements Si,C -o random.pt",
    "hienet-deploy": "hienet-deploy hienet_training/best.pt",
    "hienet build": "hienet build",
    "hienet relax": "hienet relax SiC.cif -m sic.hienet.pt",
    "hienet eos": "hienet eos SiC.cif -m sic.hienet.pt",
    "hienet elastic": "hienet elastic SiC.cif -m sic.hienet.pt",
    "hienet phonons": "hienet phonons SiC.cif -m sic.hienet.pt --supercell 2",
    "hienet md": "hienet md SiC.cif -m sic.hienet.pt --atoms 64 -e npt -t 300 --steps 300",
    "hienet smoothness": "hienet smoothness SiC.cif -m sic.hienet.pt --points 40",
    "hienet speed": "hienet speed SiC.cif -m sic.hienet.pt --sizes 8,64",
}
"""An example for each command, in the order in which they are run."""

SILENT = {"hienet schema"}
"""Those whose example prints nothing."""

ELSEWHERE = {
    "hienet convert": ("models.md#trained-universal-potentials", "needs a checkpoint that is not ours"),
    "hienet distill": ("distill.md", "takes minutes to hours, and needs a universal potential"),
    "hienet qha": ("properties.md#qha", "takes minutes"),
    "hienet kappa": ("properties.md#kappa", "takes minutes"),
    "hienet alloy": ("properties.md#alloy", "needs a model of more elements"),
    "hienet hull": ("properties.md#hull-and-discovery", "needs energies of reference phases"),
    "hienet discovery": ("properties.md#hull-and-discovery", "needs DFT's distances to the hull"),
}
"""The other commands: where they are described, and why there is no example here."""

STRUCTURE = """from ase.build import bulk

bulk("SiC", "zincblende", a=4.39).write("SiC.cif")
"""

INTRODUCTION = f"""# Commands

`hienet COMMAND --help` prints what stands here. The examples were run one after the other in an empty folder, and what
they printed is shown as it was; times depend on the machine. `HIENET` is the folder of this repository.

<!-- not run: a sketch: the commands below are run with these files -->
```bash
{DATA}
```

```python
{STRUCTURE}```

A command that is given something wrong prints one sentence and ends with status 1, a misspelt option with status 2.
Files are written under a temporary name and renamed, so that an interrupted command leaves none that is half written.
"""


def commands() -> Iterator[tuple[str, Any]]:
    """All of them by their full names, in the order of the help."""
    for name, command in typer.main.get_command(app).commands.items():
        for further, inner in getattr(command, "commands", {}).items():
            yield f"hienet {name} {further}", inner
        if not hasattr(command, "commands"):
            yield f"hienet {name}", command
    yield "hienet-deploy", typer.main.get_command(hienet_deploy.cli.app)


def options(command: Any) -> str:
    """A table of arguments and options."""
    rows = ["| | meaning | default |", "|---|---|---|"]
    for parameter in command.params:
        if parameter.name in ("help", "install_completion", "show_completion"):
            continue
        names = [*parameter.opts, *parameter.secondary_opts]
        is_argument = parameter.param_type_name == "argument"
        name = str(parameter.name).upper() if is_argument else ", ".join(names)
        text = " ".join((getattr(parameter, "help", None) or "").split()).replace("|", r"\|")
        default = parameter.default
        known = default is not None and not callable(default) and default not in ((), [], False)
        shown = "required" if parameter.required else f"`{default}`" if known else ""
        rows.append(f"| `{name}` | {text} | {shown} |")
    return "\n".join(rows) + "\n"


def page(outputs: dict[str, str]) -> str:
    """The whole document, with what each example printed."""
    parts = [INTRODUCTION]
    for name, command in commands():
        sentence = " ".join((command.help or "").split("\n\n")[0].split())
        parts.append(f"## {name}\n\n{sentence}\n\n{options(command)}")
        if name in ELSEWHERE:
            link, reason = ELSEWHERE[name]
            parts.append(f"An example stands in [{link.split('#')[0]}]({link}).\nHere there is none, as it {reason}.\n")
        else:
            marker = "<!-- not run: compiles -->\n" if name == "hienet build" else ""
            printed = "It prints nothing." if name in SILENT else f"```text\n{outputs[name]}\n```"
            parts.append(f"{marker}```bash\n{EXAMPLES[name]}\n```\n\n{printed}\n")
    return "\n".join(parts)


def recorded() -> dict[str, str]:
    """What the examples printed when the page was written."""
    found = re.findall(r"^```bash\n([^\n]*)\n```\n\n```text\n(.*?)\n```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    by_example = dict(found)
    return {name: by_example.get(example, "") for name, example in EXAMPLES.items()}


def run_examples() -> dict[str, str]:
    """What they print in a terminal of 100 columns, in a new folder; in this process: torch is imported once."""
    os.environ.update(COLUMNS="100", NO_COLOR="1")
    outputs = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        subprocess.run(DATA.replace("HIENET", str(ROOT)), shell=True, check=True)
        exec(STRUCTURE, {})
        for name, example in EXAMPLES.items():
            print(example, flush=True)
            program, *words = shlex.split(example)
            result = CliRunner().invoke(app if program == "hienet" else hienet_deploy.cli.app, words)
            # `hienet data check` says by its status 2 that it found something.
            if result.exit_code not in (0, 2):
                raise SystemExit(f"error: `{example}` ended with status {result.exit_code}: {result.output}")
            text = result.output.replace(folder, "/tmp/example").replace(sys.prefix, "HIENET/.venv")
            text = text.replace(str(ROOT), "HIENET")
            text = re.sub(r"\x1b\[[0-9;]*m", "", text)
            outputs[name] = "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")
    return outputs


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--options", action="store_true", help="only the options anew; outputs stay as recorded")
    only_options = parser.parse_args().options
    PAGE.write_text(page(recorded() if only_options else run_examples()))


if __name__ == "__main__":
    main()
