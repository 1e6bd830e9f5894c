"""Every block of shell and Python in the documents runs, at reduced length, or says why it does not."""

from __future__ import annotations

import re
import runpy
import shutil
from pathlib import Path

import ase.io
import pytest
import yaml
from ase.build import bulk
from document_blocks import REASONS, ROOT, Block, blocks_of, check_options, run_command

DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("demo/data/*.md")]
)
RUNNABLE = ("bash", "python")
BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]
RUN = {
    str(path.relative_to(ROOT)): blocks
    for path in DOCUMENTS
    if (blocks := [b for b in BLOCKS if b.document == path and b.language in RUNNABLE and b.reason is None])
}
EXAMPLES = ROOT / "lammps_examples"
COMMANDS_PAGE = runpy.run_path(str(ROOT / "docs" / "write_commands.py"))
# Sorted by what is documented there, but run in the order in which one command makes what another reads.
ORDER = [f"{example}\n" for example in COMMANDS_PAGE["EXAMPLES"].values()]
RUN["docs/commands.md"].sort(key=lambda block: ORDER.index(block.text) if block.text in ORDER else -1)

SHORTER = (
    (r"--points 11", "--points 5"),
    (r"--atoms 512", "--atoms 32"),
    (r"--steps 20000", "--steps 40 --equilibration 20 --every 10"),
    (r"-n 2\b", "-n 1"),
    (r"--sizes \S+", "--sizes 8,16"),
    (r"--replace Cu --by Ni", "--replace Si --by C"),
    # The example model knows SiC alone, and no alloy can be relaxed with it.
    (r"--compositions 9", "--compositions 3 --fmax 1000"),
    (r"--minutes (3|0\.5)", "--minutes 0.1"),
    (r"--steps 300", "--steps 40 --equilibration 20 --every 10"),
    (r"-np 4", "-np 2"),
    (r"-var steps \d+", "-var steps 10"),
    (r"(lmp -in in\.n\w+)", r"\1 -var repeat 2 -var steps 10"),
    (r"--processes 4", "--processes 1"),
)
"""What makes a command short. Nothing else of it changes."""


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_every_block_is_run_or_says_why_not(block: Block) -> None:
    if block.is_shell:
        assert block.language in ("bash", "console"), "mark it as bash, or it is not run"
        for command in block.commands:
            check_options(command)
    if block.reason is not None:
        assert block.language in RUNNABLE, "only shell and Python are run at all"
        assert block.reason.startswith(REASONS), f"`{block.reason}` is none of the known reasons"


def put(folder: Path) -> None:
    """What the documents take for granted: labelled frames, models, structures, a deck."""
    frames = ase.io.read(ROOT / "demo" / "data" / "sic_pbe.extxyz", ":")
    few = frames[3:163:10]
    for name in ("data", "my", "train"):
        ase.io.write(folder / f"{name}.extxyz", few)
    for name in ("test", "validation"):
        ase.io.write(folder / f"{name}.extxyz", frames[5:160:40])
    for name in ("Si", "MgO", "a"):
        bulk("SiC", "zincblende", a=4.39).write(folder / f"{name}.cif")
    bulk("Si").write(folder / "Cu.cif")
    bulk("SiC", "zincblende", a=4.39).write(folder / "slab.extxyz")
    for place in ("best", "model", "run/best"):
        (folder / place).parent.mkdir(exist_ok=True)
        shutil.copy(EXAMPLES / "sic.pt", folder / f"{place}.pt")
        shutil.copy(EXAMPLES / "sic.hienet.pt", folder / f"{place}.hienet.pt")
    for name in ("sic.pt", "sic.hienet.pt"):
        shutil.copy(EXAMPLES / name, folder)
    ase.io.write(folder / "sic_pbe.extxyz", few)
    deck = (EXAMPLES / "nve" / "in.nve").read_text().replace("../sic.hienet.pt", "model.hienet.pt")
    (folder / "in.deck").write_text(deck.replace("index 100 ", "index 5 ").replace("index 4 ", "index 2 "))
    shutil.copytree(ROOT / "lammps_examples", folder / "lammps_examples", ignore=shutil.ignore_patterns("log.*"))
    shutil.copytree(ROOT / "demo" / "data", folder / "demo" / "data")


def shorten_training(folder: Path) -> None:
    """One epoch with a tiny model, in every configuration that a command has just written."""
    for path in folder.glob("*.yaml"):
        values = yaml.safe_load(path.read_text())
        values["training"].update(epochs=1, max_minutes=None)
        if "from" not in values["training"]:
            values["model"].update(invariant_channels=8, equivariant_irreps=["8x0e+4x1o", "8x0e"], l_max=1)
        path.write_text(yaml.safe_dump(values))


def test_the_page_of_commands_is_what_the_commands_say() -> None:
    written = (ROOT / "docs" / "commands.md").read_text()
    assert COMMANDS_PAGE["page"](COMMANDS_PAGE["recorded"]()) == written, "run: python docs/write_commands.py --options"
    assert "```text\n\n```" not in written, "an example has not been run: python docs/write_commands.py"
    assert {name for name, _ in COMMANDS_PAGE["commands"]()} == {
        *COMMANDS_PAGE["EXAMPLES"],
        *COMMANDS_PAGE["ELSEWHERE"],
    }


@pytest.mark.slow
@pytest.mark.lammps
@pytest.mark.parametrize("document", RUN)
def test_the_blocks_of_a_document_run_one_after_the_other(document, tmp_path, monkeypatch, operators):
    put(tmp_path)
    folder = tmp_path
    for block in RUN[document]:
        if block.language == "python":
            monkeypatch.chdir(folder)
            atoms = bulk("SiC", "zincblende", a=4.39, cubic=True)
            for name in re.findall(r"Save this as `(\S+)`:\n\n\Z", block.before):
                Path(name).write_text(block.text)
            exec(compile(block.text, block.name, "exec"), {"__name__": "document", "atoms": atoms})
            continue
        for command in block.commands:
            change = re.fullmatch(r"(?:mkdir (\S+) && )?cd (\S+)", command.split(" #")[0].strip())
            if change:
                # Blocks about examples begin in the folder of the project.
                start = tmp_path if change[2].startswith("lammps_examples/") else folder
                folder = (start / change[2]).resolve()
                folder.mkdir(exist_ok=bool(not change[1]))
                continue
            for pattern, shorter in SHORTER:
                command = re.sub(pattern, shorter, command)
            run_command(command, folder)
            if re.match(r"hienet (init|finetune)", command):
                shorten_training(folder)
