"""`hienet md` and `hienet distill`, with LAMMPS."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
from ase.build import bulk
from typer.testing import CliRunner

from hienet.cli import app
from hienet.distill.labels import Command
from hienet.distill.loop import Distillation
from hienet.distill.plan import Plan
from hienet.errors import HIENetError

SIC_MODEL = Path(__file__).parents[2] / "lammps_examples" / "sic.hienet.pt"


def hienet(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result.output


def test_dynamics_of_a_structure_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bulk("SiC", "zincblende", a=4.39).write("sic.cif")
    settings = ("--atoms", 16, "--steps", 60, "--equilibration", 20, "--every", 5)
    output = hienet("md", "sic.cif", "-m", SIC_MODEL, "-e", "nve", "-n", 2, *settings)
    assert "drift, meV/atom/ps" in output
    row = json.loads(Path("hienet_md/results.json").read_text())
    assert row["n_atoms"] >= 16
    assert row["ranks"] == 2
    assert abs(row["energy_drift_mev_per_atom_per_ps"]) < 20
    with Path("hienet_md/thermo.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 13
    assert Path("hienet_md/md.png").exists()


def test_a_checkpoint_is_deployed_for_dynamics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bulk("SiC", "zincblende", a=4.39).write("sic.cif")
    hienet("md", "sic.cif", "-m", SIC_MODEL.with_name("sic.pt"), "--write-only")
    assert Path("hienet_md/sic-CSi.hienet.pt").exists()
    assert "sic-CSi.hienet.pt C Si" in Path("hienet_md/in.md").read_text()


EMT = """
import sys
import ase.io
from ase.calculators.emt import EMT
atoms = ase.io.read(sys.argv[1])
atoms.calc = EMT()
atoms.get_forces(), atoms.get_stress()
ase.io.write(sys.argv[2], atoms)
"""


@pytest.mark.slow
def test_a_distillation_with_a_command_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bulk("Cu", a=3.6, cubic=True).write("cu.cif")
    Path("emt.py").write_text(EMT)
    label = f"{sys.executable} {tmp_path / 'emt.py'} {{input}} {{output}}"
    small = ("--atoms", 32, "--steps", 60, "--strained", 12, "--frames", 3, "--rounds", 1, "--cutoff", 3.5)
    command = ("distill", "cu.cif", "--label-with", label, "-t", 300, "--threshold", 1e-4, *small)
    # A second or so of training: nothing is learnt, but all of the loop is walked.
    output = hienet(*command, "--minutes", 0.02, "--final-minutes", 0.05)
    assert "the committee still disagreed after 1 rounds" in output
    folder = Path("hienet_distill")
    report = json.loads((folder / "report.json").read_text())
    # The crystal, the strained ones, and at most three on which the students disagree.
    assert 1 <= report["rounds"][0]["labelled"] <= 3
    assert report["labelled_frames"] == 13 + report["rounds"][0]["labelled"]
    assert all((folder / name).exists() for name in ("report.md", "report.png", "card.md", "report.csv"))
    assert "**Limits.**" in (folder / "card.md").read_text()
    before = (folder / "final" / "student.hienet.pt").stat().st_mtime
    again = hienet(*command, "--minutes", 0.02, "--final-minutes", 0.05)
    assert (folder / "final" / "student.hienet.pt").stat().st_mtime == before
    assert "labelled" not in [line for line in again.splitlines() if line.startswith("round-")]
    with pytest.raises(HIENetError, match=r"a distillation with minutes = 0\.02, not 0\.03"):
        hienet(*command, "--minutes", 0.03, "--final-minutes", 0.05)


def test_commands_that_fail_are_told(tmp_path: Path) -> None:
    frames = [bulk("Cu")] * 2
    broken = Command(f"{sys.executable} -c 'raise SystemExit(\"no licence\")' {{input}} {{output}}")
    with pytest.raises(HIENetError, match=r"first frame could not be labelled: .* status 1 and wrote no .*no licence"):
        broken.label(frames, tmp_path, lambda _: None)
    with pytest.raises(HIENetError, match="`nonsense` cannot be run"):
        Command("nonsense {input} {output}").label(frames, tmp_path, lambda _: None)
    with pytest.raises(HIENetError, match=r"needs \{input\} and \{output\}"):
        Command("vasp")


def test_a_distillation_needs_one_who_labels(tmp_path: Path) -> None:
    from hienet.console import make_console

    with pytest.raises(HIENetError, match="either --teacher MODEL or --label-with"):
        Distillation(bulk("Cu"), "Cu", tmp_path, Plan(), None, None, make_console())
